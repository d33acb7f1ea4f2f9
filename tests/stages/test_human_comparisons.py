"""Published sets of human comparisons in their raw shapes, each recounted from these by a few lines of its own."""

import itertools
import json

import pytest

WORDS = ["wren", "owl", "tern", "stork", "heron", "finch"]
ASKED = [f"What do you know of the {word}?" for word in WORDS]
FIRST = [f"The {word} is a bird." for word in WORDS]
SECOND = [f"I have never heard of a {word}." for word in WORDS]
EACH = list(zip(ASKED, FIRST, SECOND, strict=True))


def pairs_by(places):
    """Question, better and worse answer, where `places` says 0 or 1; None is a tie."""
    return [
        (asked, *((first, second) if place == 0 else (second, first)))
        for (asked, first, second), place in zip(EACH, places, strict=True)
        if place is not None
    ]


def test_webgpt(reads):
    scores = [(1.0, -1.0), (-0.5, 0.5), (0.0, 0.0), (0.5, -0.5), (-1.0, 1.0), (1, -1)]
    rows = [
        {"question": {"dataset": "eli5", "id": "q", "full_text": asked}, "quotes_0": {"title": ["A book"]}}
        | {"answer_0": first, "score_0": left, "answer_1": second, "score_1": right, "tokens_0": {"prefix": [1, 2]}}
        for (asked, first, second), (left, right) in zip(EACH, scores, strict=True)
    ]

    with pytest.raises(ValueError, match=r"columns: \{prompt: question.full_text\}"):
        reads(rows)
    found = reads(rows, columns={"prompt": "question.full_text"})

    assert found.pairs() == pairs_by([None if a == b else int(b > a) for a, b in scores])
    assert found.counts["reject_reasons"] == {"tie": 1}
    assert any("the larger of score_0 and score_1" in sentence for sentence in found.counts["understood"])


def test_pku_safe_rlhf(reads):
    better, safer = [0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1]
    rows = [
        {"prompt": asked, "response_0": first, "response_1": second, "is_response_0_safe": True}
        | {"better_response_id": better[i], "safer_response_id": safer[i]}
        for i, (asked, first, second) in enumerate(EACH)
    ]

    with pytest.raises(ValueError, match="better_response_id and safer_response_id .* differ in 2 rows"):
        reads(rows)
    assert reads(rows, columns={"safer_response_id": "none"}).pairs() == pairs_by(better)
    assert reads(rows, columns={"winner": "safer_response_id"}).pairs() == pairs_by(safer)
    alike = [{**row, "safer_response_id": row["better_response_id"]} for row in rows]
    assert reads(alike).pairs() == pairs_by(better)


def test_stanford_human_preferences(reads):
    # In its labels 1 says that the answer A is better.
    labels = [1, 0, 0, 1, 1, 0]
    rows = [
        {"history": asked, "human_ref_A": first, "human_ref_B": second, "labels": label, "score_A": 3, "score_B": 2}
        for (asked, first, second), label in zip(EACH, labels, strict=True)
    ]

    with pytest.raises(ValueError, match=r"columns: \{prompt: history\} takes it for the question"):
        reads(rows, winners={"1": "first", "0": "second"})
    found = reads(rows, winners={"1": "first", "0": "second"}, columns={"prompt": "history"})

    assert found.pairs() == pairs_by([1 - label for label in labels])


def test_helpsteer_preferences(reads):
    strength = [-3, -1, 0, 1, 2, -2]
    rows = [
        {"context": [{"role": "user", "content": asked}], "response1": first, "response2": second}
        | {"overall_preference": number}
        for (asked, first, second), number in zip(EACH, strength, strict=True)
    ]
    places = {str(number): "tie" if not number else "first" if number < 0 else "second" for number in range(-3, 4)}

    with pytest.raises(ValueError, match=r"(?s)its words aren't known: -1 .*columns: \{prompt: context\}"):
        reads(rows)
    found = reads(rows, winners=places, columns={"prompt": "context"})

    assert found.pairs() == pairs_by([None if number == 0 else int(number > 0) for number in strength])


def test_helpsteer_ratings(reads):
    rows = [
        {"prompt": asked, "response": first, "helpfulness": i % 5, "correctness": 4 - i % 5, "coherence": 3}
        for i, (asked, first, _) in enumerate(EACH)
    ]

    with pytest.raises(ValueError, match="which is the vote"):
        reads(rows)
    found = reads(rows, columns={"label": "helpfulness", "correctness": "none"}, label_threshold=3)

    assert list(found.votes().values()) == [row["helpfulness"] >= 3 for row in rows]


def summary_row(i, asked, **columns):
    return {"info": {"id": f"t{i}", "post": asked, "title": "Birds"}, "worker": f"w{i}", "batch": "b", **columns}


def test_summaries_compared(reads):
    choices = [0, 1, 1, 0, 1, 0]
    rows = [
        summary_row(i, asked, choice=choices[i], summaries=[{"text": text, "policy": "p"} for text in answers])
        for i, (asked, *answers) in enumerate(EACH)
    ]

    with pytest.raises(ValueError, match="info.title .* may be part of the question"):
        reads(rows)
    assert reads(rows, columns={"info.title": "none"}).pairs() == pairs_by(choices)
    found = reads(rows, prompt_parts=["info.title", "info.post"])
    assert [asked for asked, *_ in found.pairs()] == [f"Birds\n\n{asked}" for asked in ASKED]
    assert {event["rater"] for event in found.events} == {f"w{i}" for i in range(6)}


def test_summaries_rated(reads):
    rows = [
        summary_row(i, asked, summary={"text": first, "axes": {"overall": i + 1, "accuracy": 7}})
        for i, (asked, first, _) in enumerate(EACH)
    ]

    with pytest.raises(ValueError, match=r"accuracy \(6\), overall \(6\)"):
        reads(rows, columns={"info.title": "none"})
    found = reads(rows, columns={"info.title": "none"}, score="overall", label_threshold=4)

    assert list(found.votes().values()) == [i + 1 >= 4 for i in range(6)]


def replies(asked, ranked):
    """A question as OpenAssistant holds it, and the answers to it by their rank, the best first."""
    tree = {"message_id": asked, "parent_id": None, "role": "prompter", "text": asked, "rank": None, "lang": "en"}
    answers = [
        {"message_id": text, "parent_id": asked, "role": "assistant", "text": text, "rank": rank}
        | {"emojis": {"+1": 3 - rank}, "labels": {"quality": {"value": 0.5, "count": 2}}}
        for rank, text in enumerate(ranked)
    ]
    return tree, answers


@pytest.mark.parametrize("is_flat", [False, True])
def test_openassistant(reads, is_flat):
    orders = [(first, second, f"{asked} Pardon?") for asked, first, second in EACH]
    trees = [replies(asked, order) for asked, order in zip(ASKED, orders, strict=True)]
    if is_flat:
        # The answers stand in any order.
        rows = [row for tree, answers in trees for row in (answers[1], tree, answers[0], answers[2])]
    else:
        rows = [
            {"message_tree_id": i, "prompt": tree | {"replies": answers}} for i, (tree, answers) in enumerate(trees)
        ]

    found = reads(rows)

    expected = [
        (asked, *pair) for asked, order in zip(ASKED, orders, strict=True) for pair in itertools.combinations(order, 2)
    ]
    assert sorted(found.pairs()) == sorted(expected)
    assert not found.rejects


def as_text(*turns):
    return "".join(f"\n\n{speaker}: {said}" for speaker, said in zip(itertools.cycle(["Human", "Assistant"]), turns))


def test_helpful_and_harmless(reads):
    rows = [
        {
            name: as_text("Hello.", "Hello! And?", asked, answer)
            for name, answer in (("chosen", first), ("rejected", second))
        }
        for asked, first, second in EACH
    ]

    found = reads(rows)

    assert found.pairs() == EACH
    assert turns_of(found.rows[0])[:2] == [("user", "Hello."), ("assistant", "Hello! And?")]
    assert any("transcripts: text" in sentence for sentence in found.counts["understood"])
    as_they_are = reads(rows, transcripts="text", plain_text="as_is")
    assert as_they_are.rows[0]["prompt"] + as_they_are.rows[0]["completion"] == rows[0]["chosen"]


def turns_of(row):

    return [(turn["role"], turn["content"]) for turn in json.loads(row["messages"])["prompt"]]


def test_nectar(reads):
    rows = [
        {"prompt": f"{as_text(asked)}\n\nAssistant: ", "num_responses": 2, "turns": 1}
        | {"answers": [{"answer": second, "model": "b", "rank": 2.0}, {"answer": first, "model": "a", "rank": 1.0}]}
        for asked, first, second in EACH
    ]

    assert reads(rows).pairs() == EACH


def test_ultrafeedback(reads):
    rows = [
        {"instruction": asked, "source": "evol", "models": ["a", "b"], "correct_answers": ["None"]}
        | {"completions": [scored(first, 2 + i, 9 - i), scored(second, 4, 5)]}
        for i, (asked, first, second) in enumerate(EACH)
    ]

    with pytest.raises(ValueError, match=r"fine-grained_score \(6\), honesty \(6\), overall_score \(6\)"):
        reads(rows)
    # The first answers have 2, 3, 4, 5, 6 and 7, and overall 9 to 4; the second ones 4, and overall 5.
    assert reads(rows, score="fine-grained_score").pairs() == pairs_by([1, 1, None, 0, 0, 0])
    assert reads(rows, score="overall_score").pairs() == pairs_by([0, 0, 0, 0, None, 1])


def scored(text, fine, overall):
    annotations = {"honesty": {"Rating": "3", "Rationale": "So it is."}}
    return {"response": text, "fine-grained_score": fine, "overall_score": overall, "annotations": annotations}


@pytest.mark.parametrize("name", ["scores", "ranks"])
def test_lists_of_answers_beside_lists_of_scores(reads, name):
    values = [0.9, 0.2] if name == "scores" else [1, 2]

    found = reads([{"prompt": asked, "responses": answers, name: values} for asked, *answers in EACH])

    assert found.pairs() == EACH


def test_what_stands_beside_the_question_of_a_ranked_list_stops(reads):
    rows = [{"prompt": asked, "context": "A book.", "responses": answers, "ranks": [1, 2]} for asked, *answers in EACH]

    with pytest.raises(ValueError, match="context .* may be part of the question"):
        reads(rows)


def test_orders_of_label_studio(reads):
    orders = [["a", "b"], ["b", "a"]] * 3
    rows = [
        {"data": {"prompt": asked, "items": [{"id": "a", "html": first}, {"id": "b", "html": second}]}}
        | {"annotations": [{"completed_by": 1, "result": [order(orders[i])]}]}
        for i, (asked, first, second) in enumerate(EACH)
    ]

    assert reads(rows).pairs() == pairs_by([int(found[0] == "b") for found in orders])


def order(names):
    return {"from_name": "rank", "to_name": "items", "type": "ranker", "value": {"ranker": {"rank": names}}}
