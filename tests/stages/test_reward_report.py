"""The report on a reward model: a page of its own that shows what the stages wrote and runs nothing."""

import json
import re

import pytest

from stages.reward_report import RewardReportParams, run
from tests.stages.pages import ATTACKS, Page


def interval(value, half=0.1):
    return {"value": value, "low": value - half, "high": value + half}


TRAINING = {
    "method": "reward",
    "steps": 12,
    "rows": {
        "pairs": 1016,
        "pairs_given": 1000,
        "pairs_from_votes": 20,
        "pairs_with_prompts_cut_differently": 4,
        "rows_without_partner": 3,
        "without_label": 2,
        "other_split": 50,
    },
}
EVALUATION = {
    "accuracy": interval(0.75),
    "margin": interval(1.25),
    "loss": interval(0.5),
    "brier": interval(0.2),
    "ece": 0.0625,
    "score": {"mean": 0.0, "std": 1.0},
    "length": {"chosen": interval(7.0), "rejected": interval(6.0)},
    "counts": {"pairs": 1200, "prompts": 900, "ties": 0},
}
PLOTS = {
    "calibration": "bin_low,bin_high,predicted,observed,low,high,rows\n0.5,0.6,0.55,0.6,0.5,0.7,2\n",
    "by_length": "difference_low,difference_high,accuracy,low,high,margin,pairs\n"
    "-4,-1,0.6,0.5,0.7,0.2,9\n3,3,0.8,0.7,0.9,0.4,9\n",
    "by_slice": "slice,metric,value,low,high,pairs\n"
    + "".join(
        f'"{attack.replace(chr(34), chr(34) * 2)}",{metric},0.7,0.6,0.8,9\n'
        for attack in ATTACKS
        for metric in ("accuracy", "margin")
    ),
}


@pytest.fixture
def inputs(tmp_path):
    plots = tmp_path / "plots"
    plots.mkdir()
    for name, text in PLOTS.items():
        (plots / f"{name}.csv").write_text(text)
    curves = "step,loss,accuracy,rewards/chosen,rewards/rejected\n1,0.7,0.5,0.0,0.0\n2,0.6,0.6,0.1,-0.1\n3,0.5,,,\n"
    for name, text in (
        ("training.json", json.dumps(TRAINING)),
        ("evaluation.json", json.dumps(EVALUATION)),
        ("curves.csv", curves),
    ):
        (tmp_path / name).write_text(text)
    return {
        "training_metrics": tmp_path / "training.json",
        "training_plots": tmp_path / "curves.csv",
        "evaluation_metrics": tmp_path / "evaluation.json",
        "evaluation_plots": plots,
    }


def page_of(inputs, tmp_path, **params):
    report = tmp_path / "report.html"
    run(**inputs, report=report, params=RewardReportParams(**params))
    return report.read_text()


def with_metrics(inputs, **changes):
    inputs["evaluation_metrics"].write_text(json.dumps({**EVALUATION, **changes}))
    return inputs


def test_text_of_logs_and_titles_stays_text(inputs, tmp_path):
    page = Page(page_of(inputs, tmp_path, title=ATTACKS[5]))

    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "textarea", "image", "use"}
    assert sum(tag == "style" for tag, _ in page.elements) == 1
    shown = page.text + " ".join(attributes.get("aria-label") or "" for _, attributes in page.elements)
    for attack in ATTACKS:
        assert attack.strip() in shown
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not {"src", "srcset", "xlink:href", "action", "data"} & set(attributes)


def test_the_page_asks_for_nothing_from_elsewhere(inputs, tmp_path):
    (inputs["evaluation_plots"] / "by_slice.csv").write_text("slice,metric,value,low,high,pairs\n")

    text = page_of(inputs, tmp_path)

    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_the_page_says_first_how_far_it_agrees_and_shows_every_section(inputs, tmp_path):
    page = Page(page_of(inputs, tmp_path))

    text = page.text.replace("\u00a0", " ")
    assert "The reward model ranks answers as people do more often than chance" in text
    assert "Of 1,200 held-out pairs on 900 prompts" in text
    assert "75 % (65 % to 85 %); a coin has 50 %" in text
    assert "1,016 pairs, 1,000 of them given by the log and 20 made of votes on one prompt, in 12 steps." in text
    assert "4 pairs were left out as their prompts were cut differently" in text
    assert "length of chosen" in text
    assert "-4 to -1 tokens" in text.replace("\u2212", "-")
    assert "+3 tokens" in text
    sections = {attributes.get("id") for tag, attributes in page.elements if tag == "section"}
    links = {attributes["href"].removeprefix("#") for tag, attributes in page.elements if tag == "a"}
    assert links <= sections
    assert sections == {"verdict", "results", "training", "inputs"}


@pytest.mark.parametrize(
    ("accuracy", "headline"),
    [
        (interval(0.75), "ranks answers as people do more often than chance"),
        (interval(0.25), "prefers what people rejected"),
        (interval(0.55), "It is not shown that the reward model agrees with people"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_accuracy(inputs, tmp_path, accuracy, headline):
    assert headline in Page(page_of(with_metrics(inputs, accuracy=accuracy), tmp_path)).text


def test_headings_are_in_order_and_pictures_have_words(inputs, tmp_path):
    page = Page(page_of(inputs, tmp_path))

    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 6  # calibration, by length, by slice; loss, accuracy, scores
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 10 for picture in pictures)
    assert ("html", {"lang": "en"}) in page.elements


def test_a_run_without_slices_and_of_equal_lengths_has_a_page(inputs, tmp_path):
    for name in ("calibration", "by_length", "by_slice"):
        file = inputs["evaluation_plots"] / f"{name}.csv"
        file.write_text(PLOTS[name].splitlines()[0] + "\n")

    text = Page(page_of(inputs, tmp_path)).text

    assert "By slice" not in text
    assert "Training" in text


def test_equal_inputs_give_equal_bytes(inputs, tmp_path):
    assert page_of(inputs, tmp_path) == page_of(inputs, tmp_path)


@pytest.mark.parametrize("name", ["accuracy", "ece", "counts"])
def test_metrics_that_lack_something_are_an_error_that_names_it(inputs, tmp_path, name):
    metrics = {key: value for key, value in EVALUATION.items() if key != name}
    inputs["evaluation_metrics"].write_text(json.dumps(metrics))

    with pytest.raises(ValueError, match=f"expected '{name}' among the metrics, found none; rerun the stages before"):
        page_of(inputs, tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_metrics_that_are_no_metrics_are_named(inputs, tmp_path, content):
    inputs["training_metrics"].write_text(content)

    with pytest.raises(ValueError, match=r"training\.json: expected metrics"):
        page_of(inputs, tmp_path)
