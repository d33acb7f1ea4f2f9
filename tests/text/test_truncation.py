"""Truncation: budgets worked by hand, beside what TRL's formulas give for rows that need no cutting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.encoding import EncodedRow
from stages.text.reasons import RejectedRowError
from stages.text.truncation import truncate, truncate_apart, truncate_together

BOS, EOS = 1, 2
ROW = EncodedRow([BOS, 10, 11, 12, 13], [20, 21, 22, EOS], starts_with_bos=True)  # 9 tokens


def peer_ids(prompt, answer, max_length, max_prompt_length):
    """The ids by the formulas of TRL, which reserves BOS and EOS and cuts answers by `max_prompt_length`."""
    room = max_length - (prompt[:1] != [BOS]) - (answer[-1:] != [EOS])
    if len(prompt) + len(answer) > room:
        prompt = prompt[-max_prompt_length:]
    if len(prompt) + len(answer) > room:
        answer = answer[: room - max_prompt_length]
    prompt = prompt if prompt[:1] == [BOS] else [BOS, *prompt]
    return prompt + (answer if answer[-1:] == [EOS] else [*answer, EOS])


def test_a_row_that_fits_is_left_alone():
    row = truncate(ROW, max_length=9, max_prompt_length=2)

    assert row.input_ids == [BOS, 10, 11, 12, 13, 20, 21, 22, EOS]
    assert (row.prompt_length, row.truncated) == (5, False)


def test_the_completion_gets_what_the_prompt_leaves():
    # 8 - 5 = 3 tokens of completion, of which none is an EOS
    row = truncate(ROW, max_length=8)

    assert row.input_ids == [BOS, 10, 11, 12, 13, 20, 21, 22]
    assert (row.is_prompt_cut, row.is_completion_cut) == (False, True)


@pytest.mark.parametrize(("mode", "kept"), [("keep_end", [12, 13]), ("keep_start", [10, 11])])
def test_the_prompt_is_cut_first_and_keeps_its_bos(mode, kept):
    # 1 BOS + 2 of the prompt + 4 of the completion = 7, which fits 8 without cutting the completion
    row = truncate(ROW, max_length=8, max_prompt_length=2, truncation_mode=mode)

    assert row.input_ids == [BOS, *kept, 20, 21, 22, EOS]
    assert (row.prompt_length, row.is_prompt_cut, row.is_completion_cut) == (3, True, False)


def test_the_budget_is_by_the_actual_prompt():
    # TRL would cut the answer to room - max_prompt_length = 10 - 8 = 2 tokens, and below zero for 11 or more.
    row = truncate(EncodedRow([BOS, 10], list(range(20, 40)), starts_with_bos=True), max_length=10, max_prompt_length=8)

    assert row.input_ids == [BOS, 10, *range(20, 28)]


def test_a_prompt_has_a_limit_of_its_own_where_rows_have_none():
    assert truncate(ROW, max_prompt_length=2).input_ids == [BOS, 12, 13, 20, 21, 22, EOS]


def test_a_completion_can_have_a_limit_of_its_own():
    row = truncate(ROW, max_completion_length=3)

    assert row.input_ids == [BOS, 10, 11, 12, 13, 20, 21, 22]
    assert row.is_completion_cut


def test_a_prompt_that_fills_the_row_is_refused():
    with pytest.raises(RejectedRowError, match=r"no_room_for_completion.*5 tokens.*max_length=5"):
        truncate(ROW, max_length=5)


def test_a_completion_needs_a_token_before_it():
    with pytest.raises(RejectedRowError, match="no_prompt_token"):
        truncate(EncodedRow([], [20, EOS], starts_with_bos=False))


IDS = st.lists(st.integers(10, 99), min_size=1, max_size=12)


@given(prompt=IDS, answer=IDS, max_prompt_length=st.integers(1, 20))
def test_ordinary_rows_have_the_ids_of_the_peer(prompt, answer, max_prompt_length):
    max_length = len(prompt) + len(answer) + 2
    row = truncate(
        EncodedRow([BOS, *prompt], [*answer, EOS], starts_with_bos=True),
        max_length=max_length,
        max_prompt_length=max_prompt_length,
    )

    assert row.input_ids == peer_ids(prompt, answer, max_length, max_prompt_length)


LIMIT = st.none() | st.integers(1, 30)


LIMITS = st.fixed_dictionaries(
    {
        "max_length": LIMIT,
        "max_prompt_length": LIMIT,
        "max_completion_length": LIMIT,
        "truncation_mode": st.sampled_from(["keep_end", "keep_start"]),
    }
)


@given(prompt=IDS, answer=IDS, limits=LIMITS)
def test_limits_hold_and_only_whole_answers_end(prompt, answer, limits):
    encoded = EncodedRow([BOS, *prompt], [*answer, EOS], starts_with_bos=True)
    max_length, max_completion_length = limits["max_length"], limits["max_completion_length"]
    try:
        row = truncate(encoded, **limits)
    except RejectedRowError:
        assert max_length is not None
        return

    completion = row.input_ids[row.prompt_length :]
    assert completion == encoded.completion_ids[: len(completion)] != []
    assert row.input_ids[0] == BOS
    assert max_length is None or len(row.input_ids) <= max_length
    assert max_completion_length is None or len(completion) <= max_completion_length
    assert row.is_completion_cut == (completion[-1] != EOS)


def test_prompt_of_a_pair_is_cut_alike_in_both_rows() -> None:
    """The short row's prompt is cut as well when the long row's has to be, so that the two share their prompt."""
    prompt = [1, 2, 3, 4, 5, 6]
    rows = [EncodedRow(prompt, completion, starts_with_bos=False) for completion in ([7], [7, 8, 9, 10])]
    short, long = truncate_together(rows, max_length=8, max_prompt_length=4)
    assert short.input_ids == [3, 4, 5, 6, 7]
    assert long.input_ids == [3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(("mode", "kept"), [("keep_end", [BOS, 12, 13, EOS]), ("keep_start", [BOS, 10, 11, EOS])])
def test_a_prompt_that_an_encoder_reads_keeps_both_of_its_ends(mode, kept):
    row = EncodedRow([BOS, 10, 11, 12, 13, EOS], [20, 21, 22, EOS], starts_with_bos=False)

    # 4 and 3 tokens, though 10 together would fit
    (cut,) = truncate_apart(
        [row], special_ids={BOS, EOS}, max_length=16, max_prompt_length=4, max_completion_length=3,
        truncation_mode=mode,
    )  # fmt: skip

    assert cut.input_ids == [*kept, 20, 21, 22]
    assert (cut.prompt_length, cut.is_prompt_cut, cut.is_completion_cut) == (4, True, True)


def test_what_has_no_length_of_its_own_is_cut_apart_to_that_of_rows():
    row = EncodedRow([10, 11, 12, 13, EOS], [20, 21, 22, EOS], starts_with_bos=False)

    (cut,) = truncate_apart([row], special_ids={EOS}, max_length=4)

    assert cut.input_ids == [11, 12, 13, EOS, 20, 21, 22, EOS]
    assert truncate_apart([row], special_ids={EOS})[0].input_ids == [10, 11, 12, 13, EOS, 20, 21, 22, EOS]


def test_nothing_to_read_or_to_answer_is_refused_apart():
    with pytest.raises(RejectedRowError, match="a token of prompt and completion each"):
        truncate_apart([EncodedRow([10], [], starts_with_bos=False)], special_ids=set())
