"""What the report says of the numbers, in words."""

import pytest

from stages.page.sections import answer_groups, data, estimate, training, verdict

COUNTS = {"rows": 10, "desired": 4, "undesired": 6, "sampled_prompts": 20, "samples_per_prompt": 2}


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def judged(gain):
    return {
        "counts": COUNTS,
        "true_reward": {"policy": interval(0.7, 0.6, 0.8), "reference": interval(0.5, 0.4, 0.6), "gain": gain},
        "win_rate": interval(0.64, 0.6, 0.7),
        "kl": interval(3.0, 2.5, 3.5),
        "length": {"policy": interval(6.0, 5.0, 7.0), "reference": interval(5.5, 5.0, 6.0)},
    }


@pytest.mark.parametrize(
    ("gain", "kind", "headline"),
    [
        (interval(0.2, 0.1, 0.3), "better", "answers better than its start"),
        (interval(-0.2, -0.3, -0.1), "worse", "answers worse than its start"),
        (interval(0.2, -0.1, 0.5), "unsure", "not shown"),
    ],
)
def test_the_interval_of_the_gain_decides_the_verdict(gain, kind, headline):
    found = verdict(judged(gain))

    assert found.kind == kind
    assert headline in found.headline
    text = " ".join(found.sentences)
    assert "20 held-out prompts" in text
    assert "64\u00a0%" in text
    assert "3.00 (2.50 to 3.50) nats" in text
    assert found.tiles[-1].detail.endswith("start 5.50")


@pytest.mark.parametrize(
    ("auc", "kind"),
    [
        (interval(0.7, 0.6, 0.8), "better"),
        (interval(0.3, 0.2, 0.4), "worse"),
        (interval(0.6, 0.4, 0.8), "unsure"),
        (None, "unsure"),
    ],
)
def test_without_a_judge_the_auc_decides_and_the_page_says_what_was_not_measured(auc, kind):
    found = verdict({"counts": COUNTS, **({} if auc is None else {"auc": auc})})

    assert found.kind == kind
    assert "No judge was named" in found.sentences[0]


def test_a_metric_is_found_by_its_path():
    metrics = judged(interval(0.2, 0.1, 0.3))

    assert estimate(metrics, "true_reward/gain").value == 0.2
    assert estimate(metrics, "true_reward/nothing") is None
    assert estimate(metrics, "counts/rows") is None


NORMALIZATION = {
    "rows_read": 10,
    "rows_kept": 7,
    "duplicates": 1,
    "rejects": 2,
    "reject_reasons": {"empty_completion": 2},
}
TOKENIZATION = {"rows_kept": 7, "truncated": 0, "reject_reasons": {}}


def test_counts_of_the_data_add_up_or_the_page_says_so():
    good = data(NORMALIZATION, TOKENIZATION)
    bad = data({**NORMALIZATION, "rejects": 1}, {**TOKENIZATION, "truncated": 3})

    assert good["sentence"] == "Of 10 rows read, 7 were kept, 1 were duplicates and 2 were refused."
    assert good["reasons"] == [("empty completion", "normalization", "2")]
    assert "DO NOT ADD UP" in bad["sentence"]
    one_group = data({**NORMALIZATION, "split_groups": {"largest_share": 0.625}}, TOKENIZATION)
    assert any("holds 62.5\N{NO-BREAK SPACE}% of the rows, all on one side" in note for note in one_group["notes"])
    torn = data({**NORMALIZATION, "split_groups": {"torn_by_prompt": {"groups": 2, "rows": 5}}}, TOKENIZATION)
    assert any("2 conversations or like prompts, 5 rows together, on both sides" in note for note in torn["notes"])
    assert any(note.startswith("3 of 7 rows (42.9\N{NO-BREAK SPACE}%) were cut") for note in bad["notes"])


def test_training_that_loses_desired_answers_is_pointed_out():
    metrics = {"method": "bco", "rows": {"desired": 1, "undesired": 2}, "steps": 3, "last": {}}
    curves = [{"step": 1.0, "loss": 0.7, "delta": None}, {"step": 2.0, "loss": 0.6, "delta": None}]

    losing = training({**metrics, "last": {"rewards/chosen": -0.2, "rewards/margins": -0.1}}, curves, beta=0.1)
    fine = training({**metrics, "last": {"rewards/chosen": 0.2, "rewards/margins": 0.1}}, curves, beta=None)

    assert "by 2.00 nats" in losing["notes"][0]
    assert len(losing["notes"]) == 2
    assert fine["notes"] == []
    assert len(fine["charts"]) == 1


def generation(name, policy, reference):
    return {
        "prompt_id": name,
        "prompt": name,
        "slice": None,
        "policy": ["p"] * 2,
        "reference": ["r"] * 2,
        "policy_scores": policy,
        "reference_scores": reference,
    }


def test_answers_show_the_largest_gains_and_losses_and_some_by_chance():
    rows = [generation(f"prompt {i}", [i / 10, i / 10], [0.45, 0.45]) for i in range(10)]

    groups = {group["name"]: [e["prompt"] for e in group["examples"]] for group in answer_groups(rows, num_examples=6)}

    assert groups["Largest gains"] == ["prompt 9", "prompt 8"]
    assert groups["Largest losses"] == ["prompt 0", "prompt 1"]
    assert len(groups["Picked by chance"]) == 2
    assert not set(groups["Picked by chance"]) & {"prompt 9", "prompt 8", "prompt 0", "prompt 1"}


def test_answers_without_scores_are_picked_by_chance_alone():
    rows = [generation(f"prompt {i}", None, None) for i in range(5)]

    (group,) = answer_groups(rows, num_examples=3)

    assert group["name"] == "Picked by chance"
    assert len(group["examples"]) == 3
    assert group["examples"][0]["policy"][0] == {"text": "p", "score": None}


def test_no_examples_are_asked_for_and_none_are_shown():
    assert answer_groups([generation("a", [1.0, 1.0], [0.0, 0.0])], num_examples=0) == []


def test_long_and_unprintable_text_is_made_fit_for_a_page():
    row = generation("a", None, None) | {"policy": ["x" * 5000, "bell\x07 nul\x00", "  "]}

    texts = [sample["text"] for sample in answer_groups([row], num_examples=1)[0]["examples"][0]["policy"]]

    assert texts[0].endswith("(4,200 more characters)")
    assert texts[1] == "bell\ufffd nul\ufffd"
    assert texts[2] == "(empty)"
