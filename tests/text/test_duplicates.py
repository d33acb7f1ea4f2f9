"""Duplicates and contradictions among rows."""

from hypothesis import given
from hypothesis import strategies as st

from stages.text.duplicates import Ballots, ballot_of
from stages.text.layouts import read_feedback
from stages.text.reasons import RejectedRowError


def verdicts(rows):
    feedbacks = [read_feedback(row) for row in rows]
    ballots = Ballots()
    for index, feedback in enumerate(feedbacks):
        ballots.add(index, ballot_of(feedback))
    found = []
    for index, feedback in enumerate(feedbacks):
        try:
            found.append("kept" if ballots.is_first(index, ballot_of(feedback)) else "duplicate")
        except RejectedRowError as error:
            found.append(error.reason)
    return found, ballots.num_contradictory()


def voted(label):
    return {"prompt": "p", "completion": "c", "label": label}


def preferred(chosen, rejected):
    return {"prompt": "p", "chosen": chosen, "rejected": rejected}


def test_the_majority_decides():
    assert verdicts([voted(0), voted(1), voted(1)]) == (["outvoted", "kept", "duplicate"], (1, 0))


def test_a_tie_is_refused():
    assert verdicts([voted(0), voted(1)]) == (["contradictory_labels", "contradictory_labels"], (0, 1))


def test_reversed_pairs_contradict_each_other():
    rows = [preferred("a", "b"), preferred("b", "a"), preferred("b", "a"), preferred("a", "c")]

    assert verdicts(rows) == (["outvoted", "kept", "duplicate", "kept"], (1, 0))


def test_a_demonstration_of_a_rated_completion_repeats_it():
    demonstration = {"prompt": "p", "completion": "c"}

    assert verdicts([demonstration, voted(1), demonstration])[0] == ["duplicate", "kept", "duplicate"]
    assert verdicts([demonstration, demonstration])[0] == ["kept", "duplicate"]


def test_bare_prompts_repeat_each_other_only():
    assert verdicts([{"prompt": "p"}, voted(1), {"prompt": "p"}])[0] == ["kept", "kept", "duplicate"]


ROW = st.builds(
    lambda prompt, completion, label: {"prompt": prompt, "completion": completion, "label": label},
    st.sampled_from("ab"),
    st.sampled_from("cd"),
    st.booleans(),
)


@given(st.lists(ROW, max_size=30))
def test_each_question_is_answered_once_or_refused_whole(rows):
    found, _ = verdicts(rows)

    for question in {(row["prompt"], row["completion"]) for row in rows}:
        votes = [
            (row["label"], verdict)
            for row, verdict in zip(rows, found, strict=True)
            if (row["prompt"], row["completion"]) == question
        ]
        kept = [label for label, verdict in votes if verdict == "kept"]
        num_up = sum(label for label, _ in votes)
        if 2 * num_up == len(votes):
            assert {verdict for _, verdict in votes} == {"contradictory_labels"}
        else:
            assert kept == [2 * num_up > len(votes)]
