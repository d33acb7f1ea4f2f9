"""Stages `training` of a reward model and `reward_evaluation`: from pairs to a model, and what it is worth."""

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages import reward_evaluation, training
from stages.contracts.artifact import ContractError, read_table
from stages.contracts.files import files_below, tree_digest
from stages.contracts.scored_pairs import SCORED_PAIRS
from stages.models.scoring import load_reward_model, score_sequences
from stages.reward_evaluation import RewardEvaluationParams
from stages.rows.reading import read_rows
from stages.trainers.core.sections import LoraParams
from stages.trainers.reward.section import RewardTrainingParams
from stages.training_rows import RowsParams
from tests.stages.feedback import write_completions, write_tokens
from tests.stages.training_runs import kill_when, rows_of, write_base_model

PARAMS = {
    "learning_rate": 1e-2,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 4,
    "save_steps": 2,
}
# peft 0.21 asks transformers 5 under a name that has changed.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """What is read: 24 pairs, of which 8 are held out; chosen completions have small ids, rejected large ones."""
    folder = tmp_path_factory.mktemp("artifacts")
    base = write_base_model(folder / "base")
    generator = np.random.default_rng(0)
    tokens, completions = [], []
    for index in range(24):
        for label in (True, False):
            answer = generator.integers(3 if label else 16, 16 if label else 32, 2 + index % 3 + label)
            shared = {
                "prompt_id": f"id of prompt{index}",
                "pair_id": f"pair{index}",
                "label": label,
                "split": "test" if index % 3 == 0 else "train",
            }
            tokens.append({**shared, "input_ids": [1, 3 + index, *answer.tolist()], "prompt_length": 2})
            source = json.dumps({"topic": f"topic{index % 2}", "strength": "clear" if index % 4 else "slight"})
            completions.append({**shared, "prompt": f"prompt{index}", "source": source})
    tokens.append({"label": True, "prompt_id": "alone"})
    made = write_tokens(folder / "tokens", tokens)
    return {
        "base_model": base,
        "tokens": made,
        "rows": rows_of("pairs", folder / "rows", tokens=made),
        "completions": write_completions(folder / "completions", completions),
    }


def outputs(folder: Path) -> dict[str, Path]:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return {
        "model": folder / "models" / "reward",
        "metrics": folder / "metrics.json",
        "plots": folder / "curves.csv",
        "scratch": folder / "checkpoints",
    }


def digests(folder: Path) -> dict[str, str]:
    # The lineage names the base by a path relative to the model, and these folders stand in different places.
    written = outputs(folder)
    model = {file.name: tree_digest(file) for file in files_below(written["model"]) if file.name != "plumbline.json"}
    return {**model, **{name: tree_digest(written[name]) for name in ("metrics", "plots")}}


def inputs(artifacts):
    """Arguments of the stage `training` that read."""
    return {"method": "reward", **{name: artifacts[name] for name in ("base_model", "tokens", "rows")}}


def train(artifacts, folder, **params):
    written = outputs(folder)
    training.run(**inputs(artifacts), **written, params=RewardTrainingParams(**{**PARAMS, **params}))
    return written


@pytest.fixture(scope="module")
def trained(artifacts, tmp_path_factory):
    return train(artifacts, tmp_path_factory.mktemp("trained"))


def evaluate(artifacts, model, folder, **params):
    folder.mkdir(exist_ok=True)
    reward_evaluation.run(
        base_model=artifacts["base_model"],
        model=model,
        tokens=artifacts["tokens"],
        rows=artifacts["rows"],
        completions=artifacts["completions"],
        scored_pairs=folder / "scored_pairs",
        metrics=folder / "evaluation.json",
        plots=folder / "plots",
        params=RewardEvaluationParams(**{"num_resamples": 50, "num_bins": 4, **params}),
    )
    return json.loads((folder / "evaluation.json").read_text())


def test_writes_a_reward_model_its_lineage_its_curves_and_counts(trained):
    metrics = json.loads(trained["metrics"].read_text())
    curves = pd.read_csv(trained["plots"])

    assert metrics["rows"]["pairs"] == metrics["rows"]["pairs_given"] == 16
    assert (metrics["rows"]["rows_without_partner"], metrics["rows"]["other_split"]) == (1, 16)
    assert metrics["steps"] == 16
    assert metrics["last"]["loss"] < metrics["first"]["loss"]
    assert list(curves["step"]) == [1, 4, 8, 12, 16]
    assert {"accuracy", "rewards/chosen", "rewards/margins", "learning_rate"} <= set(curves.columns)
    assert json.loads((trained["model"] / "plumbline.json").read_text())["method"] == "reward"
    assert load_reward_model(trained["model"]).config.num_labels == 1


@PEFT_WARNS
@pytest.mark.parametrize("lora", [None, LoraParams(r=2, dropout=0.1)], ids=["whole", "adapter"])
def test_gives_the_same_bytes_twice_and_no_pickle_clock_or_path(artifacts, tmp_path, lora):
    for name in ("one", "two"):
        train(artifacts, tmp_path / name, lora=lora, disable_dropout=False, num_train_epochs=1)

    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    model = outputs(tmp_path / "one")["model"]
    for file in files_below(model):
        assert file.suffix in {".json", ".safetensors", ".md", ".jinja"}
        if file.name != "plumbline.json":
            assert str(tmp_path.parent).encode() not in file.read_bytes()
    assert (model / "adapter_config.json").exists() == (lora is not None)
    assert 0 <= evaluate(artifacts, model, tmp_path)["accuracy"]["value"] <= 1


def test_the_margin_of_the_log_enters_the_loss(artifacts, tmp_path):
    params = RowsParams(margin_column="strength", margin_values={"slight": 0.5, "clear": 2.0})
    read = {"tokens": artifacts["tokens"], "completions": artifacts["completions"]}
    with_margins = {**artifacts, "rows": rows_of("pairs", tmp_path / "rows", params=params, **read)}

    losses = [
        json.loads(train(given, tmp_path / name, num_train_epochs=1)["metrics"].read_text())["first"]
        for name, given in (("plain", artifacts), ("margin", with_margins))
    ]

    # At the start leads are near 0: log(1 + e^0) against a mean of log(1 + e^0.5) and log(1 + e^2).
    assert losses[0]["loss"] == pytest.approx(np.log(2), abs=0.1)
    assert np.log1p(np.exp(0.5)) - 0.1 < losses[1]["loss"] < np.log1p(np.exp(2.0)) + 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("single_thread")
@pytest.mark.long
def test_goes_on_after_kill_9_to_the_same_bytes(artifacts, tmp_path):
    params = {"disable_dropout": False, "num_train_epochs": 8}
    train(artifacts, tmp_path / "whole", **params)
    killed = outputs(tmp_path / "killed")

    status = kill_when(
        killed["scratch"] / "checkpoint-6",
        "stages.training",
        "stages.trainers.reward.section:RewardTrainingParams",
        {**inputs(artifacts), **killed},
        {**PARAMS, **params},
    )

    assert status == -signal.SIGKILL
    assert not killed["metrics"].exists()
    train(artifacts, tmp_path / "killed", **params)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_evaluation_agrees_with_scores_taken_one_by_one(artifacts, trained, tmp_path):
    found = evaluate(artifacts, trained["model"], tmp_path, slice_by="topic", batch_size=3)

    model = load_reward_model(trained["model"])
    pairs = read_rows(artifacts["rows"], artifacts["tokens"], kind="pairs").of_split("test").columns().to_pylist()
    with torch.no_grad():
        leads = [
            (
                model(input_ids=torch.tensor([row["chosen_input_ids"]])).logits
                - model(input_ids=torch.tensor([row["rejected_input_ids"]])).logits
            ).item()
            for row in pairs
        ]
    assert found["margin"]["value"] == pytest.approx(np.mean(leads), rel=1e-4)
    assert found["accuracy"]["value"] == np.mean(np.array(leads) > 0)
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert found["counts"]["pairs"] == found["counts"]["prompts"] == 8
    # Every chosen completion is one token longer.
    assert found["length"]["chosen"]["value"] - found["length"]["rejected"]["value"] == pytest.approx(1)
    assert found["length"]["people"]["value"] == 1.0
    assert found["length"]["bias"]["value"] == pytest.approx(found["accuracy"]["value"] - 1)
    plots = {name: pd.read_csv(tmp_path / "plots" / f"{name}.csv") for name in ("calibration", "by_length", "by_slice")}
    assert plots["calibration"]["rows"].sum() == 16
    assert plots["by_length"]["pairs"].sum() == 8
    assert set(plots["by_slice"]["slice"]) == {"topic0", "topic1"}


def test_evaluation_computes_as_the_reward_model_was_trained(artifacts, tmp_path):
    model = train(artifacts, tmp_path, bf16=True, num_train_epochs=1)["model"]
    evaluate(artifacts, model, tmp_path)
    pairs = read_rows(artifacts["rows"], artifacts["tokens"], kind="pairs").of_split("test").columns()
    sequences, loaded = pairs["chosen_input_ids"].to_pylist(), load_reward_model(model)

    def scores(*, bf16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return score_sequences(loaded, sequences, batch_size=RewardEvaluationParams().batch_size)

    found = read_table(tmp_path / "scored_pairs", SCORED_PAIRS)["chosen_score"].to_numpy()
    assert found.tolist() == scores(bf16=True).tolist() != scores(bf16=False).tolist()


def test_evaluation_gives_the_same_bytes_twice(artifacts, trained, tmp_path):
    for name in ("one", "two"):
        evaluate(artifacts, trained["model"], tmp_path / name)

    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")


def test_refuses_a_policy_in_place_of_a_reward_model(artifacts, tmp_path):
    with pytest.raises(ValueError, match=r"found one without score.weight; train one"):
        evaluate(artifacts, artifacts["base_model"], tmp_path)


def test_evaluation_refuses_a_log_without_held_out_pairs_and_pairs_of_other_tokens(artifacts, trained, tmp_path):
    few = write_tokens(tmp_path / "few", [{"pair_id": "one", "label": label} for label in (True, False)])
    without = {**artifacts, "tokens": few, "rows": rows_of("pairs", tmp_path / "rows", tokens=few)}

    with pytest.raises(ValueError, match=r"expected held-out pairs, found none \(.*raise normalization.test_share"):
        evaluate(without, trained["model"], tmp_path / "without")
    with pytest.raises(ContractError, match="found those of another; rerun its stage"):
        evaluate({**artifacts, "tokens": few}, trained["model"], tmp_path / "others")
