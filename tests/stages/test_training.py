"""Stage `training`: from artifacts to a policy, the same bytes each time and after a kill."""

import json
import math
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from stages.contracts.artifact import ContractError, read_manifest, read_table, write_table
from stages.contracts.closure import code_files
from stages.contracts.density_ratios import DENSITY_RATIOS
from stages.contracts.files import files_below, tree_digest
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS
from stages.contracts.training_rows import TRAINING_ROWS
from stages.models.loading import load_causal_lm
from stages.models.tokenizers import load_tokenizer
from stages.trainers.bco.section import BCOTrainingParams
from stages.trainers.bco.trainer import BCOTrainer
from stages.trainers.core.sections import LoraParams
from stages.training import run
from stages.training_rows import RowsParams
from tests.stages.feedback import write_completions, write_reference_logps
from tests.stages.training_runs import rows_of, start, told_to_stop, write_base_model

PARAMS = {
    "learning_rate": 1e-2,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "logging_steps": 3,
    "save_steps": 2,
    "max_start_reward": 100,  # the reference's log-probabilities are made up
}


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    return write_base_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def artifacts(tmp_path, base_model):
    """Arguments of `run` that read; forty rows, of which eight are held out and some have no label."""
    generator = np.random.default_rng(0)
    number = 40
    labels = [None if i % 10 == 9 else bool(generator.random() < 0.5) for i in range(number)]
    tokens = pa.table(
        {
            "row_id": [f"row{i}" for i in range(number)],
            "prompt_id": [f"prompt{i % 20}" for i in range(number)],
            "pair_id": pa.nulls(number, pa.string()),
            "label": pa.array(labels, pa.bool_()),
            "weight": pa.array(np.ones(number), pa.float32()),
            "split": ["test" if i % 20 >= 16 else "train" for i in range(number)],
            "input_ids": pa.array(
                [generator.integers(3, 32, 6 + i % 5).tolist() for i in range(number)], pa.list_(pa.int32())
            ),
            "prompt_length": pa.array([3] * number, pa.int32()),
            "truncated": [False] * number,
        }
    )
    logps = {
        "row_id": tokens["row_id"],
        "logps": pa.array(generator.normal(-12, 2, number), pa.float32()),
        "num_tokens": pa.array([3] * number, pa.int32()),
        "token_logps": pa.nulls(number, pa.list_(pa.float32())),
    }
    ratios = {
        "prompt_id": [f"prompt{i}" for i in range(20)],
        "desirable_probability": np.full(20, 0.5, np.float32),
        "density_ratio": np.ones(20, np.float32),
        "desired_weight": np.ones(20, np.float32),
        "undesired_weight": np.linspace(0.5, 2.0, 20, dtype=np.float32),
        "logit_offset": np.zeros(20, np.float32),
    }
    write_table(tmp_path / "tokens", tokens, TOKENS)
    write_table(tmp_path / "reference_logps", pa.table(logps), REFERENCE_LOGPS)
    write_table(tmp_path / "density_ratios", pa.table(ratios), DENSITY_RATIOS)
    read = {name: tmp_path / name for name in ("tokens", "reference_logps", "density_ratios")}
    rows = rows_of("labelled", tmp_path / "rows", **read)
    return {"method": "bco", "base_model": base_model, "tokens": tmp_path / "tokens", "rows": rows}


def outputs(folder: Path) -> dict[str, Path]:
    (folder / "checkpoints" / "training-bco" / "key").mkdir(parents=True, exist_ok=True)
    return {
        "model": folder / "models" / "bco",
        "metrics": folder / "metrics.json",
        "plots": folder / "curves.csv",
        "scratch": folder / "checkpoints" / "training-bco" / "key",
    }


def digests(folder: Path) -> dict[str, str]:
    # The lineage names the base by a path relative to the model, and these folders stand in different places.
    written = outputs(folder)
    model = {file.name: tree_digest(file) for file in files_below(written["model"]) if file.name != "plumbline.json"}
    return {**model, **{name: tree_digest(written[name]) for name in ("metrics", "plots")}}


def test_writes_a_policy_its_lineage_its_curves_and_counts(artifacts, base_model, tmp_path):
    written = outputs(tmp_path / "out")

    run(**artifacts, **written, params=BCOTrainingParams(**PARAMS))

    model = load_causal_lm(written["model"])
    assert load_tokenizer(written["model"]).pad_token_id == 0
    assert not np.array_equal(
        model.lm_head.weight.detach().numpy(), load_file(base_model / "model.safetensors")["lm_head.weight"]
    )
    metrics = json.loads(written["metrics"].read_text())
    # of 32 training rows, i = 9, 29 have no label (19 and 39 are held out)
    assert metrics["rows"]["without_label"] == 2
    assert metrics["rows"]["held_out"] == 8
    assert metrics["rows"]["desired"] + metrics["rows"]["undesired"] == 30
    assert metrics["steps"] == 12
    assert metrics["first"]["delta"] != metrics["last"]["delta"]
    curves = written["plots"].read_text().splitlines()
    assert curves[0].startswith("step,epoch,loss,")
    assert {"rewards/chosen", "rewards/margins", "logits/rejected", "delta"} <= set(curves[0].split(","))
    assert [line.split(",")[0] for line in curves[1:]] == ["1", "3", "6", "9", "12"]
    lineage = json.loads((written["model"] / "plumbline.json").read_text())
    assert lineage["beta"] == 0.1
    assert lineage["reward_shift"] == pytest.approx(np.mean(lineage["state"]["rewards"]["means"]))
    assert "Binary Classifier Optimization" in (written["model"] / "README.md").read_text()


@pytest.mark.parametrize("term", [{"humanline": True}, {"sync_ref_model": True, "ref_model_sync_steps": 2}], ids=str)
def test_a_reference_that_has_to_be_run_is_the_model_that_it_starts_from(artifacts, tmp_path, term):
    written = outputs(tmp_path)

    # The log-probabilities in the rows are made up; under the model itself rewards are 0 at the start.
    run(**artifacts, **written, params=BCOTrainingParams(**{**PARAMS, "max_start_reward": 0.1}, **term))

    metrics = json.loads(written["metrics"].read_text())
    assert metrics["start"]["mean_size"] < 1e-5
    assert metrics["last"]["rewards/margins"] != 0
    assert json.loads((written["model"] / "plumbline.json").read_text())["terms"] == term
    assert all(f"| {name} | {value} |" in (written["model"] / "README.md").read_text() for name, value in term.items())


@pytest.fixture
def of_two_models(artifacts, tmp_path):
    """The same rows, each compared with one of two references."""
    tokens = read_table(artifacts["tokens"], TOKENS)
    log = [
        {"row_id": row, "label": label, "prompt": "p", "source": json.dumps({"model": "sft" if index % 2 else "base"})}
        for index, (row, label) in enumerate(
            zip(tokens["row_id"].to_pylist(), tokens["label"].to_pylist(), strict=True)
        )
    ]
    completions = write_completions(tmp_path / "completions", log)
    base, sft = (
        write_reference_logps(tmp_path / name, [at] * 40, [3] * 40) for name, at in (("base", -9), ("sft", -20))
    )
    rows = rows_of(
        "labelled", tmp_path / "rows_of_two", params=RowsParams(origin_column="model"), tokens=artifacts["tokens"],
        reference_logps=base, origin_reference_logps=(sft,), completions=completions,
    )  # fmt: skip
    return {**artifacts, "rows": rows}


def test_rows_may_be_compared_with_the_models_that_gave_their_answers(of_two_models, tmp_path):
    """Rewards aren't 0 at the start then, and no bound is set on them."""
    written = outputs(tmp_path)

    run(**of_two_models, **written, params=BCOTrainingParams(**{**PARAMS, "max_start_reward": 0.1}))

    metrics = json.loads(written["metrics"].read_text())
    assert "start" not in metrics
    assert math.isfinite(metrics["last"]["loss"])


def test_a_reference_that_has_to_be_run_is_one(of_two_models, tmp_path):
    with pytest.raises(ValueError, match="expected rows with one reference with humanline: .*, found also sft"):
        run(**of_two_models, **outputs(tmp_path), params=BCOTrainingParams(**PARAMS, humanline=True))


@pytest.mark.parametrize("lora", [None, LoraParams(r=2, dropout=0.1)])
def test_gives_the_same_bytes_twice_and_no_pickle_clock_or_path(artifacts, tmp_path, lora):
    params = BCOTrainingParams(**PARAMS, lora=lora, disable_dropout=False)

    for name in ("one", "two"):
        run(**artifacts, **outputs(tmp_path / name), params=params)

    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    for file in files_below(outputs(tmp_path / "one")["model"]):
        assert file.suffix in {".json", ".safetensors", ".md", ".jinja"}
        if file.name != "plumbline.json":
            assert str(tmp_path.parent).encode() not in file.read_bytes()


# peft 0.21 asks transformers 5 under a name that has changed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_is_loaded_onto_its_base(artifacts, tmp_path):
    written = outputs(tmp_path)

    run(**artifacts, **written, params=BCOTrainingParams(**PARAMS, lora=LoraParams(r=2)))

    assert not (written["model"] / "model.safetensors").exists()
    assert load_causal_lm(written["model"]).peft_config["default"].r == 2


def start_bco(artifacts, written, params):
    return start("stages.training", "stages.trainers.bco.section:BCOTrainingParams", {**artifacts, **written}, params)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, pytest.param({"r": 2, "dropout": 0.1}, marks=pytest.mark.long)])
def test_goes_on_after_kill_9_to_the_same_bytes(artifacts, tmp_path, lora):
    params = {**PARAMS, "num_train_epochs": 8, "disable_dropout": False, "lora": lora, "gradient_accumulation_steps": 2}
    section = BCOTrainingParams(**params)
    run(**artifacts, **outputs(tmp_path / "whole"), params=section)
    killed = outputs(tmp_path / "killed")
    # A step in the middle of the second, third or fourth epoch; an epoch has two steps, checkpoints stand at even ones.
    # Another one each time; it is shown where the test fails.
    last = random.Random().choice([2, 4, 6])
    print(f"killed after checkpoint {last}")

    process = start_bco(artifacts, killed, params)
    while not (killed["scratch"] / f"checkpoint-{last}").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)

    assert process.wait() == -signal.SIGKILL
    assert not killed["metrics"].exists()
    run(**artifacts, **killed, params=section)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


# In the middle of an epoch, at the end of one, and behind the last step of all.
@pytest.mark.parametrize("step", [3, 8, 12])
def test_goes_on_from_the_step_that_it_was_told_to_stop_in(artifacts, tmp_path, monkeypatch, step):
    params = BCOTrainingParams(**{**PARAMS, "save_steps": 500}, disable_dropout=False)
    run(**artifacts, **outputs(tmp_path / "whole"), params=params)
    stopped = outputs(tmp_path / "stopped")

    said = told_to_stop(
        monkeypatch,
        BCOTrainer,
        "training_step",
        call=step,
        then=lambda: run(**artifacts, **stopped, params=params),
    )

    assert f"stopped by SIGTERM behind step {step}," in said
    assert not stopped["metrics"].exists()
    run(**artifacts, **stopped, params=params)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_a_row_weighs_what_its_prompts_ratio_says(artifacts, tmp_path):
    params = BCOTrainingParams(**{**PARAMS, "num_train_epochs": 1, "per_device_train_batch_size": 40})
    scored = {"tokens": artifacts["tokens"], "reference_logps": tmp_path / "reference_logps"}
    plain = rows_of("labelled", tmp_path / "plain_rows", **scored)

    losses = []
    for name, inputs in (("plain", {**artifacts, "rows": plain}), ("weighted", artifacts)):
        written = outputs(tmp_path / name)
        run(**inputs, **written, params=params)
        losses.append(json.loads(written["metrics"].read_text())["first"]["loss"])

    assert not math.isclose(*losses, rel_tol=1e-3)


def written_anew(artifacts, folder, table):
    """The rows with another table, as a filter or a mixture writes them."""
    meta = read_manifest(artifacts["rows"], TRAINING_ROWS)["meta"]
    write_table(folder, table, TRAINING_ROWS, meta=meta)
    return {**artifacts, "rows": folder}


def test_rows_that_a_filter_has_dropped_are_not_trained_on(artifacts, tmp_path):
    table = read_table(artifacts["rows"], TRAINING_ROWS)
    is_train = np.array(table["split"].to_pylist()) == "train"
    kept = np.flatnonzero(is_train)[:16]
    fewer = written_anew(artifacts, tmp_path / "fewer", table.take(pa.array(kept)))
    written = outputs(tmp_path / "out")

    run(**fewer, **written, params=BCOTrainingParams(**PARAMS))

    metrics = json.loads(written["metrics"].read_text())
    assert metrics["steps"] == 3 * 2
    lineage = [json.loads((outputs(tmp_path / "out")["model"] / "plumbline.json").read_text())["rows"]]
    assert lineage == [tree_digest(fewer["rows"])] != [tree_digest(artifacts["rows"])]


def test_a_curriculum_is_an_artifact_with_rows_more_than_once(artifacts, tmp_path):
    table = read_table(artifacts["rows"], TRAINING_ROWS)
    twice = written_anew(artifacts, tmp_path / "twice", pa.concat_tables([table, table]))
    written = outputs(tmp_path / "out")

    run(**twice, **written, params=BCOTrainingParams(**{**PARAMS, "num_train_epochs": 1}))

    assert json.loads(written["metrics"].read_text())["steps"] == 8  # of 2 * 30 rows in eights


def test_refuses_rows_of_other_tokens_and_of_another_kind(artifacts, tmp_path):
    write_table(tmp_path / "others", read_table(artifacts["tokens"], TOKENS).slice(1), TOKENS)

    with pytest.raises(ContractError, match="expected places in .*others as it is now, found those of another; rerun"):
        run(**{**artifacts, "tokens": tmp_path / "others"}, **outputs(tmp_path), params=BCOTrainingParams())
    with pytest.raises(ContractError, match="expected rows of the kind pairs, found labelled; change --kind"):
        run(**{**artifacts, "method": "dpo"}, **outputs(tmp_path), params=BCOTrainingParams())


def test_an_unknown_method_is_named_with_the_nearest(artifacts, tmp_path):
    with pytest.raises(ValueError, match=r"expected a method, one of bco, .*, found 'bcoo'; did you mean bco\?"):
        run(**{**artifacts, "method": "bcoo"}, **outputs(tmp_path), params=BCOTrainingParams())


def test_reports_to_tensorboard_and_dvclive_outside_the_outputs(artifacts, tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    params = {**PARAMS, "num_train_epochs": 1}

    run(**artifacts, **outputs(tmp_path / "silent"), params=BCOTrainingParams(**params))
    run(
        **artifacts,
        **outputs(tmp_path / "tracked"),
        params=BCOTrainingParams(**params, report_to=["tensorboard", "dvclive"]),
    )

    folder = tmp_path / "cache" / "tracking" / "training-bco" / "key"
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((folder / "dvclive" / "metrics.json").read_text())["train"]["loss"] > 0
    assert digests(tmp_path / "silent") == digests(tmp_path / "tracked")
    assert not (tmp_path / "dvclive").exists()


def test_its_code_holds_no_methods_trainer_unless_that_is_named():
    shared = {path.as_posix() for path in code_files(["stages.training"])}
    of_bco = {path.as_posix() for path in code_files(["stages.training", "stages.trainers.bco.trainer"])}

    assert not any(path.startswith("stages/trainers/") and "/core/" not in path for path in shared)
    assert "stages/losses/bco.py" in of_bco - shared
