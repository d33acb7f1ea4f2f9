"""The report: a page of its own that shows what the stages wrote and runs nothing."""

import json
import re

import pyarrow as pa
import pytest

from stages.contracts.artifact import write_table
from stages.contracts.generations import GENERATIONS
from stages.report import ReportParams, run
from tests.stages.pages import ATTACKS, Page


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


METRICS = {
    "normalization_metrics": {
        "rows_read": 12,
        "rows_kept": 8,
        "duplicates": 1,
        "rejects": 3,
        "reject_reasons": {"empty_completion": 3},
        "splits": {"test": 2, "train": 6},
        "labels": {"desired": 4, "undesired": 4},
    },
    "tokenization_metrics": {"rows_kept": 8, "truncated": 1, "reject_reasons": {"prompt_too_long": 1}},
    "density_metrics": {
        "auc": interval(0.7),
        "correction": "udm",
        "effective_sample_share": {"udm": 0.5, "udm_before_clamping": 0.5, "desired": 1.0, "undesired": 0.5},
        "clamped_share": {"low": 0.1, "high": 0.2},
    },
    "shift_metrics": {
        "verdict": "rater_bias",
        "recommendation": "udm",
        "reason": "people are harsher",
        "correction": "udm",
        "correction_fits": True,
        "grouped_by": "topic",
        "groups": {ATTACKS[0]: {"num_rows": 4, "up_rate": 0.5, "mean_logp": -1.0}},
    },
    "training_metrics": {
        "method": "bco",
        "rows": {"desired": 3, "undesired": 3},
        "steps": 2,
        "last": {"rewards/chosen": 0.2, "rewards/margins": 0.3},
    },
    "evaluation_metrics": {
        "counts": {"rows": 2, "desired": 1, "undesired": 1, "sampled_prompts": 6, "samples_per_prompt": 1},
        "true_reward": {"policy": interval(0.7), "reference": interval(0.4), "gain": interval(0.3)},
        "win_rate": interval(0.8),
        "auc": interval(0.9),
        "kl": interval(2.0),
        "beta": 0.1,
        "judge": ATTACKS[1],
    },
}


@pytest.fixture
def inputs(tmp_path):
    paths = {}
    for name, values in METRICS.items():
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps(values))
    density, evaluation = tmp_path / "density", tmp_path / "evaluation"
    density.mkdir()
    evaluation.mkdir()
    (density / "weights.csv").write_text("label,share,density_ratio\ndesired,0,0.5\ndesired,1,10\nundesired,0,0.5\n")
    (density / "reliability.csv").write_text("low,high,num_rows,predicted,observed\n0,0.1,3,0.05,0.1\n")
    (evaluation / "calibration.csv").write_text(
        "bin_low,bin_high,predicted,observed,low,high,rows\n0.5,0.6,0.55,0.6,0.5,0.7,2\n"
    )
    (evaluation / "by_slice.csv").write_text(
        f'slice,metric,value,low,high,prompts,rows\n"{ATTACKS[0]}",true_reward/gain,0.1,0.0,0.2,3,1\n'
    )
    curves = tmp_path / "curves.csv"
    curves.write_text("step,loss,rewards/chosen,rewards/rejected\n1,0.7,0.0,0.0\n2,0.6,0.1,-0.1\n3,0.5,,\n")
    paths |= {"density_plots": density, "evaluation_plots": evaluation, "training_plots": curves}
    write_generations(tmp_path / "generations", ATTACKS)
    return {**paths, "generations": tmp_path / "generations"}


def write_generations(path, texts):
    count = len(texts)
    table = pa.table(
        {
            "prompt_id": [f"p{i}" for i in range(count)],
            "prompt": list(texts),
            "slice": list(texts),
            "policy": [[text] for text in texts],
            "reference": [[text[::-1]] for text in texts],
            "policy_scores": pa.array([[1.0]] * count, pa.list_(pa.float32())),
            "reference_scores": pa.array([[0.0]] * count, pa.list_(pa.float32())),
        }
    )
    write_table(path, table, GENERATIONS)


def page_of(inputs, tmp_path, **params):
    report = tmp_path / "report.html"
    run(**inputs, report=report, params=ReportParams(**params))
    return report.read_text()


def test_text_of_logs_and_models_stays_text(inputs, tmp_path):
    page = Page(page_of(inputs, tmp_path, title=ATTACKS[5]))

    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "textarea", "image", "use"}
    assert sum(tag == "style" for tag, _ in page.elements) == 1
    for attack in ATTACKS:
        assert attack in page.text
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not {"src", "srcset", "xlink:href", "action", "data"} & set(attributes)


def test_the_page_asks_for_nothing_from_elsewhere(inputs, tmp_path):
    write_generations(inputs["generations"], ["plain"])
    inputs["evaluation_metrics"].write_text(json.dumps(METRICS["evaluation_metrics"] | {"judge": "demo"}))

    text = page_of(inputs, tmp_path)

    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_the_page_says_first_what_happened_and_shows_every_section(inputs, tmp_path):
    page = Page(page_of(inputs, tmp_path))

    assert "The policy answers better than its start" in page.text
    assert "difference of +0.300 (+0.200 to +0.400)" in page.text
    assert "Likely cause: rater bias. Recommended correction: udm." in page.text
    assert "Of 12 rows read, 8 were kept, 1 were duplicates and 3 were refused." in page.text
    assert "prompt too long" in page.text
    sections = {attributes.get("id") for tag, attributes in page.elements if tag == "section"}
    links = {attributes["href"].removeprefix("#") for tag, attributes in page.elements if tag == "a"}
    assert links <= sections
    assert len(sections) == 7


def test_a_shift_that_was_not_measured_is_said_to_be_and_why(inputs, tmp_path):
    why = "expected desired and undesired rows to compare, found 4 desired and 0 undesired ones"
    inputs["density_metrics"].write_text(json.dumps({"correction": "none", "not_measured": why}))
    inputs["shift_metrics"].write_text(json.dumps({"verdict": "not_measured", "reason": why}))
    for name in ("weights.csv", "reliability.csv"):
        (inputs["density_plots"] / name).write_text("")

    page = Page(page_of(inputs, tmp_path))

    assert "Not measured." in page.text
    assert why in page.text
    sections = {attributes.get("id") for tag, attributes in page.elements if tag == "section"}
    links = {attributes["href"].removeprefix("#") for tag, attributes in page.elements if tag == "a"}
    assert links <= sections
    assert len(sections) == 7


def test_the_picture_of_the_stages_has_rows_between_what_is_computed_and_training(inputs, tmp_path):
    page = Page(page_of(inputs, tmp_path))

    described = " ".join(attributes.get("aria-label", "") for _, attributes in page.elements)
    assert "density_ratio feeds rows" in described
    assert "rows feeds training" in described


def test_headings_are_in_order_and_pictures_have_words(inputs, tmp_path):
    page = Page(page_of(inputs, tmp_path))

    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) >= 8
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 10 for picture in pictures)
    assert ("html", {"lang": "en"}) in page.elements


def test_equal_inputs_give_equal_bytes(inputs, tmp_path):
    assert page_of(inputs, tmp_path) == page_of(inputs, tmp_path)


def test_hundreds_of_long_answers_leave_the_page_small(inputs, tmp_path):
    write_generations(inputs["generations"], [f"{i} " + "<&>" * 3000 for i in range(300)])

    assert len(page_of(inputs, tmp_path)) < 1_000_000


def test_a_run_without_judge_and_slices_has_a_page(inputs, tmp_path):
    evaluation = {key: METRICS["evaluation_metrics"][key] for key in ("counts", "auc", "kl", "beta")}
    inputs["evaluation_metrics"].write_text(json.dumps(evaluation))
    (inputs["evaluation_plots"] / "by_slice.csv").write_text("slice,metric,value,low,high,prompts,rows\n")
    shift = METRICS["shift_metrics"] | {"groups": {}, "correction_fits": False, "correction": "none"}
    inputs["shift_metrics"].write_text(json.dumps(shift))

    text = Page(page_of(inputs, tmp_path)).text

    assert "No judge was named" in text
    assert "By slice" not in text
    assert "does not fit" in text


def test_metrics_that_lack_a_section_are_an_error_that_names_it(inputs, tmp_path):
    inputs["density_metrics"].write_text(json.dumps({"auc": interval(0.7)}))

    with pytest.raises(ValueError, match="expected 'effective_sample_share'"):
        page_of(inputs, tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_metrics_that_are_no_metrics_are_named(inputs, tmp_path, content):
    inputs["training_metrics"].write_text(content)

    with pytest.raises(ValueError, match=r"training_metrics\.json: expected metrics"):
        page_of(inputs, tmp_path)
