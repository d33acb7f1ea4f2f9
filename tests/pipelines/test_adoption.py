"""What `adopt` chooses for a log and a model, and how it edits dvc.yaml and params.yaml."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.adoption.adopting import adopt
from pipelines.adoption.base_models import BaseModel, look_at
from pipelines.adoption.choices import ENCODER, choose
from pipelines.adoption.survey import Lengths, Survey
from pipelines.adoption.texts import graph_for, params_for
from pipelines.graph import read_graph
from pipelines.params import check_params
from stages.contracts.closure import ROOT
from tests.models.models_on_disk import write_model

GRAPH = (ROOT / "dvc.yaml").read_text()
PARAMS = (ROOT / "params.yaml").read_text()
NOTHING = {"pairs": 0, "desired": 0, "undesired": 0, "demonstrations": 0, "prompts": 0}


@pytest.fixture(scope="module")
def nodes():
    return read_graph(ROOT)


def log(*, both=0, prompts=(20,) * 100, completions=(30,) * 100, slices=(), **kinds):
    """What is known of a log of 100 rows that were looked at."""
    return Survey(
        said="",
        counts={},
        kinds={**NOTHING, **kinds},
        prompts_of_both=both,
        lengths=Lengths(np.array(prompts), np.array(completions)),
        slices=list(slices),
        examples=[],
        columns=[],
    )


def model(num_parameters=260_000, positions=512, **where):
    found = {"folder": Path("data/model"), "repository": None, "revision": None, **where}
    return BaseModel(num_parameters=num_parameters, num_bytes=4 * num_parameters, positions=positions, **found)


# ---- choices ----


@pytest.mark.parametrize(
    ("kinds", "supported"),
    [
        ({"desired": 800, "undesired": 200}, ["bco", "kto", "sft"]),
        ({"desired": 800, "undesired": 200, "both": 10}, ["bco", "dpo", "kto", "reward", "sft"]),
        ({"pairs": 500}, ["dpo", "bco", "kto", "reward", "sft"]),
        ({"pairs": 10, "desired": 800, "undesired": 1}, ["bco", "dpo", "kto", "reward", "sft"]),
        ({"demonstrations": 500}, ["sft"]),
        ({"demonstrations": 500, "desired": 5, "undesired": 5}, ["sft", "bco", "kto"]),
        ({"desired": 100}, ["sft"]),
    ],
)
def test_methods_are_those_that_the_log_feeds_the_best_first(kinds, supported):
    chosen = choose(log(**kinds), model())

    assert chosen.supported == supported
    assert chosen.methods == supported[:1] == chosen.values["run.methods"]


@pytest.mark.parametrize("kinds", [{"undesired": 100}, {"prompts": 100}])
def test_a_log_that_no_method_learns_from_is_refused(kinds):
    with pytest.raises(ValueError, match="no method learns from this log"):
        choose(log(**kinds), model())


def test_a_method_that_the_log_cant_feed_is_refused():
    with pytest.raises(ValueError, match="methods that this log can feed, bco, kto, sft, found 'dpo'"):
        choose(log(desired=50, undesired=50), model(), methods=["dpo"])


def test_lengths_hold_nearly_all_rows_within_the_models_positions():
    # 98 rows of 50 tokens and 2 of 1,030: the 99th percentile is 1,030, in steps of 16 it is 1,040.
    found = log(desired=50, undesired=50, completions=[30] * 98 + [1010] * 2)

    assert choose(found, model(positions=4096)).values["tokenization.max_length"] == 1040
    assert choose(found, model(positions=512)).values["tokenization.max_length"] == 512
    assert choose(found, model(positions=None)).values["tokenization.max_length"] == 1040


def test_prompts_are_cut_where_many_leave_no_room_for_an_answer():
    few = log(desired=50, undesired=50, prompts=[20] * 80 + [600] * 20)
    many = log(desired=50, undesired=50, prompts=[20] * 60 + [600] * 40)

    assert choose(few, model()).values["tokenization.max_prompt_length"] is None
    chosen = choose(many, model())
    # Answers have 30 tokens, in steps of 16 32.
    assert chosen.values["tokenization.max_prompt_length"] == 512 - 32
    assert any("40% of the prompts" in reason for reason in chosen.reasons)


def test_the_gate_fits_the_length_of_answers_and_what_the_log_lets_measure():
    # Answers of 100, 5 and 30 tokens are sampled up to 112, 16 and 32.
    long_answers = choose(log(desired=50, undesired=50, completions=[100] * 100), model())
    short_answers = choose(log(desired=50, undesired=50, completions=[5] * 100), model())
    demonstrations = choose(log(demonstrations=100), model())

    assert long_answers.values["gate.bco"] == {"minimums": {"auc": 0.5, "counts/rows": 30}, "maximums": {"kl": 112.0}}
    assert short_answers.values["gate.bco"]["maximums"] == {"kl": 16.0}
    assert demonstrations.values["gate.sft"] == {"minimums": {}, "maximums": {"kl": 32.0}}


def test_more_is_held_out_of_a_small_log():
    shares = [
        choose(log(desired=rows // 2, undesired=rows // 2), model()).values["normalization.test_share"]
        for rows in (10_000, 1000, 100)
    ]

    assert shares == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("size", "rate", "has_adapter"), [(1e6, 3e-4, False), (1e8, 1e-5, False), (1e9, 1e-6, False), (7e9, 1e-5, True)]
)
def test_rates_fall_with_size_and_large_models_get_an_adapter(size, rate, has_adapter):
    section = choose(log(desired=50, undesired=50), model(int(size))).values["training.bco"]

    assert section["learning_rate"] == rate
    assert ("lora" in section) == has_adapter


def test_every_choice_is_one_that_params_take(nodes):
    for methods in (["bco", "kto", "dpo", "sft", "reward"], ["sft"]):
        for size in (1e6, 1e8, 7e9):
            values = choose(log(pairs=500), model(int(size)), methods=methods).values
            check_params(yaml.safe_load(params_for(PARAMS, values, ())))


def test_encoders_are_pinned_for_models_of_the_hub_and_as_asked():
    found = log(desired=50, undesired=50)
    of_the_hub = choose(found, model(folder=None, repository="org/name", revision="1" * 40)).values
    asked = choose(found, model(), encoder="encoders/mine").values

    assert (of_the_hub["prompt_embedding.encoder"], of_the_hub["prompt_embedding.revision"]) == ENCODER
    assert choose(found, model()).values["prompt_embedding.encoder"] == "base"
    assert asked["prompt_embedding.encoder"] == asked["inputs.encoder"] == "encoders/mine"


# ---- models ----


def test_a_model_is_looked_at_where_it_lies(tmp_path):
    written = write_model(tmp_path / "model")

    found = look_at(str(tmp_path / "model"), tmp_path / "artifact")

    assert found.num_parameters == sum(part.numel() for part in written.parameters())
    assert found.positions == written.config.max_position_embeddings


def test_what_is_neither_folder_nor_repository_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a model, or owner/name"):
        look_at(str(tmp_path / "nothing"), tmp_path / "artifact")


def test_a_hub_that_isnt_reached_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(ValueError, match=r"org/name is no folder here.*or name a commit .*org/name@COMMIT"):
        look_at("org/name", tmp_path / "artifact")


# ---- texts ----


@pytest.mark.parametrize("methods", [["bco"], ["kto"], ["dpo"], ["sft"], ["reward"], ["kto", "reward"]])
def test_a_graph_keeps_the_methods_and_nothing_of_the_demo(nodes, methods):
    text = graph_for(GRAPH, nodes, methods, is_hub=False)
    stages = yaml.safe_load(text)["stages"]

    assert set(stages["training"]["foreach"]) == set(methods)
    assert {name for name in stages if name.endswith("_rows")} - {"mismatched_rows"} == {f"{m}_rows" for m in methods}
    assert "demo" not in " ".join(stages)
    assert "mismatched_rows" in stages if "kto" in methods else "mismatched_rows" not in stages
    # What is kept is as it was.
    assert set(text.split("\n")) - set(GRAPH.split("\n")) <= {
        line for line in text.split("\n") if "plots/" in line or "&compare" in line or "&long" in line
    }


def test_plots_are_those_of_the_methods_kept(nodes):
    plots = {
        name: yaml.safe_load(graph_for(GRAPH, nodes, [name], is_hub=False)).get("plots") for name in ("dpo", "sft")
    }

    assert "plots/training/dpo.csv" in str(plots["dpo"])
    assert "bco" not in str(plots)
    assert "rewards" not in str(plots["sft"])


def test_a_model_of_the_hub_leaves_no_folder_to_watch(nodes):
    stage = yaml.safe_load(graph_for(GRAPH, nodes, ["bco"], is_hub=True))["stages"]["base_model"]

    assert "--source" not in stage["cmd"]
    assert stage["deps"] == ["artifacts/code/base_model"]


def test_values_are_set_and_comments_stay():
    text = params_for(
        PARAMS,
        {"evaluation.judge": "none", "training.bco": {"start_from": "base", "learning_rate": 1e-6}},
        ["demo_feedback", "inputs.image_prompts"],
    )

    values = yaml.safe_load(text)
    assert values["evaluation"]["judge"] == "none"
    # YAML 1.1 takes a number without a point for a word.
    assert values["training"]["bco"] == {"start_from": "base", "learning_rate": 1e-6}
    assert "demo_feedback" not in values
    assert "image_prompts" not in values["inputs"]
    kept = [line.partition("#")[2] for line in PARAMS.split("\n") if "#" in line]
    lost = [comment for comment in kept if comment not in text]
    assert len(lost) == 2, lost
    assert "\n\n\n" not in text


def test_a_section_that_nothing_is_left_of_goes():
    assert "rows" not in yaml.safe_load(params_for(PARAMS, {}, ["rows.dpo", "rows.reward"]))


# ---- logs of elsewhere ----


@pytest.mark.parametrize(
    ("log", "remedy"),
    [
        ("https://host/a/log.jsonl?token=x", "`dvc import-url 'https://host/a/log.jsonl?token=x' data/log.jsonl`"),
        ("s3://bucket/logs/2025-*.jsonl", "`dvc import-url s3://bucket/logs data/logs`, then adopt data/logs"),
        ("hf:org/set@abc:train", "`hf download org/set --repo-type dataset --revision abc --local-dir data/set`"),
        ("hf://datasets/org/set/train.parquet", "`hf download org/set --repo-type dataset --local-dir data/set`"),
        ("org/set", "found nothing there; if it is a data set of the hub, bring it here with `hf download org/set"),
        ("log.jsonl", "expected a log at log.jsonl, found nothing there$"),
    ],
)
def test_a_log_of_elsewhere_is_refused_with_what_brings_it_here(log, remedy):
    with pytest.raises(ValueError, match=remedy if remedy.endswith("$") else re.escape(remedy)):
        adopt(log, "model", dry_run=True)
