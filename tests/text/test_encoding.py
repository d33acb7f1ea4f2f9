"""Encoding: a prompt's ids don't depend on its completion, and nothing of the text is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer

from stages.text.encoding import encode_each, encode_row, encode_rows, with_single_ends
from tests.material import SHARED, needs_shared
from tests.text.tiny_tokenizers import byte_level, chatml, with_space_in_front

TOKENIZERS = {
    "byte_level": byte_level(),
    "without_bos": byte_level(bos=None),
    "chatml": chatml(),
    "with_space_in_front": with_space_in_front(),
}
SHARED_TOKENIZERS = [
    "parity/assets/tok",
    "parity/assets/tok_nobos",
    "parity/assets/tok_padeos",
    "parity/assets/tok_post",
    "data/tokenizers/minimind",
    "data/models/stories260K",
]
PIECES = st.text(alphabet="theworld is?.\n 12\u00e9e\u0301\u4e16\U0001f44d", max_size=12)


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_matches_ids_worked_by_hand():
    # "<s>" and "</s>" stand around; "world" is one token, and the prompt ends within it: "wor" is merged as far as it
    # goes, "ld" is what is left of the word, and " is" is as in the whole text.
    tokenizer = TOKENIZERS["byte_level"]

    row = encode_row(tokenizer, prompt="the wor", completion="ld is")

    assert tokenizer.convert_ids_to_tokens(row.prompt_ids) == ["<s>", "the", "\u0120wor"]
    assert tokenizer.convert_ids_to_tokens(row.completion_ids) == ["ld", "\u0120is", "</s>"]
    assert (
        tokenizer.convert_ids_to_tokens(tokenizer("the world", add_special_tokens=False)["input_ids"])[-1]
        == "\u0120world"
    )


def test_ordinary_rows_are_the_tokens_of_the_whole_text():
    tokenizer = TOKENIZERS["byte_level"]
    whole = tokenizer("what is the world? a city.", add_special_tokens=False)["input_ids"]

    row = encode_row(tokenizer, prompt="what is the world?", completion=" a city.")

    assert row.prompt_ids + row.completion_ids == [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(prompt=PIECES, first=PIECES, second=PIECES)
def test_completions_of_one_prompt_share_its_ids_and_decode_to_their_text(name, prompt, first, second):
    tokenizer = TOKENIZERS[name]

    rows = encode_rows(tokenizer, prompts=[prompt] * 3, completions=[first, second, None], are_complete=[True] * 3)

    assert rows[0].prompt_ids == rows[1].prompt_ids == rows[2].prompt_ids
    assert rows[0].prompt_ids[rows[0].starts_with_bos :] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for row, completion in zip(rows, (first, second, ""), strict=True):
        expected = text_of(tokenizer, tokenizer(prompt + completion, add_special_tokens=False)["input_ids"])
        found = text_of(tokenizer, row.prompt_ids + row.completion_ids)
        # A tokenizer that puts a space before every text shows it behind a BOS.
        assert found.removeprefix(" ") == expected.removeprefix(" ")


@needs_shared
@pytest.mark.parametrize("folder", SHARED_TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Hello wor", "ld, hello"),
        ("Question: ", "Answer"),
        ("\u00e9t\u00e9 \u4e16", "\u754c!"),
        ("1", "234567"),
        ("a\n", "\nb"),
    ],
)
def test_real_tokenizers_lose_nothing(folder, prompt, completion):
    tokenizer = AutoTokenizer.from_pretrained(SHARED / folder, clean_up_tokenization_spaces=False)

    row = encode_row(tokenizer, prompt=prompt, completion=completion)

    assert row.prompt_ids[row.starts_with_bos :] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert text_of(tokenizer, row.prompt_ids + row.completion_ids).removeprefix(" ") == prompt + completion
    assert row.completion_ids[-1] == tokenizer.eos_token_id


def test_bos_and_eos_stand_once():
    tokenizer = TOKENIZERS["byte_level"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    bare = encode_row(tokenizer, prompt="a", completion="b")
    templated = encode_row(tokenizer, prompt="<s>a", completion="b</s>")
    doubled = encode_row(tokenizer, prompt="<s><s>a", completion="b</s>\n")

    assert bare == templated
    assert doubled.prompt_ids == bare.prompt_ids
    assert doubled.completion_ids.count(eos) == 1
    assert bare.prompt_ids.count(bos) == 1


def test_a_tokenizer_without_bos_gets_none():
    row = encode_row(TOKENIZERS["without_bos"], prompt="", completion="b")

    assert row.prompt_ids == []
    assert row.starts_with_bos is False


def test_answers_that_were_cut_off_get_no_eos():
    tokenizer = TOKENIZERS["byte_level"]

    row = encode_row(tokenizer, prompt="a", completion="b", is_complete=False)

    assert tokenizer.eos_token_id not in row.completion_ids


def test_a_bare_prompt_has_no_completion():
    assert encode_row(TOKENIZERS["byte_level"], prompt="a", completion=None).completion_ids == []


def test_no_rows_are_no_rows():
    assert encode_rows(TOKENIZERS["byte_level"], prompts=[], completions=[], are_complete=[]) == []


def test_a_templated_text_has_one_bos_and_ends_at_its_eos():
    tokenizer = TOKENIZERS["byte_level"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    (own,) = tokenizer(["the world"], add_special_tokens=False)["input_ids"]
    (ids,) = tokenizer(["<s>the world</s>\n"], add_special_tokens=False)["input_ids"]

    # The tokenizer puts its own around the text.
    assert with_single_ends(tokenizer, "<s>the world</s>\n", [bos, *ids, eos]) == [bos, *own, eos]
    assert with_single_ends(tokenizer, "the world", [bos, *own, eos]) == [bos, *own, eos]


def test_a_bos_that_nobody_sends_isnt_added():
    rows = {"prompts": ["a", "<s>a", ""], "completions": ["b"] * 3, "are_complete": [True] * 3}

    bare, templated, empty = encode_rows(TOKENIZERS["byte_level"], **rows, bos="as_served")

    assert bare.prompt_ids == templated.prompt_ids[1:]
    assert not bare.starts_with_bos
    # Without a token in front, nothing would predict the first one of the completion.
    assert empty.starts_with_bos


def test_another_control_token_at_the_end_is_an_end():
    tokenizer = TOKENIZERS["byte_level"]

    row = encode_row(tokenizer, prompt="a", completion="b<|user|>")

    assert row.completion_ids[-1] == tokenizer.convert_tokens_to_ids("<|user|>")


class _Slow:
    """A tokenizer that gives no offsets."""

    is_fast = False

    def __init__(self):
        self.tokenizer = TOKENIZERS["byte_level"]

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *texts, **options):
        return self.tokenizer(*texts, **options)


def test_a_slow_tokenizer_costs_the_row_that_needs_offsets_and_no_other():
    apart, merged = encode_each(
        _Slow(), prompts=["what?", "the wor"], completions=[" a city", "ld is"], are_complete=[True, True]
    )

    assert apart.completion_ids
    assert merged.reason == "no_offsets"


def test_a_token_between_two_speakers_is_encoded_as_two():
    # "word" and "world" are tokens; the first answer ends within the one, the second begins within the other.
    tokenizer = TOKENIZERS["byte_level"]
    completion = "the word? the world"
    spans = [0, 6, 15, 19]

    row = encode_row(tokenizer, prompt="what is", completion=completion, spans=spans)

    said = [row.completion_ids[begin:end] for begin, end in zip(row.spans[::2], row.spans[1::2], strict=True)]
    assert [text_of(tokenizer, ids) for ids in said] == ["the wo", "orld"]
    assert text_of(tokenizer, row.completion_ids) == completion
    assert row.completion_ids[-1] == tokenizer.eos_token_id
    assert row.spans[-1] == len(row.completion_ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(parts=st.lists(PIECES.filter(lambda text: text.strip()), min_size=3, max_size=5))
def test_spans_of_tokens_hold_just_the_characters_that_were_said(name, parts):
    tokenizer = TOKENIZERS[name]
    completion, spans = "".join(parts), []
    for index, part in enumerate(parts):
        start = len("".join(parts[:index]))
        spans += [start, start + len(part)] if index % 2 == 0 else []

    row = encode_row(tokenizer, prompt="what? ", completion=completion, is_complete=False, spans=spans)

    said = [row.completion_ids[begin:end] for begin, end in zip(row.spans[::2], row.spans[1::2], strict=True)]
    assert [text_of(tokenizer, ids).strip() for ids in said] == [part.strip() for part in parts[::2]]


def test_a_control_token_that_takes_in_a_line_break_is_still_the_end_of_its_answer():
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]})
    completion = "a city.<|end|>\n<|user|>what?<|end|>\n<|assistant|>the world.<|end|>"
    first, last = completion.index("\n"), completion.index("the world")

    row = encode_row(tokenizer, prompt="say", completion=completion, spans=[0, first, last, len(completion)])

    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert [row.completion_ids[stop - 1] for stop in row.spans[1::2]] == [end, end]
    assert row.completion_ids == tokenizer(completion, add_special_tokens=False)["input_ids"]
