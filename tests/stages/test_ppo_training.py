"""Stage `ppo_training`: from prompts and a reward to a policy, the same bytes each time and after a kill."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from transformers import GenerationConfig

from stages.contracts.artifact import ContractError, read_table, write_table
from stages.contracts.closure import code_files
from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import files_below, tree_digest
from stages.models.held_out import read_reward
from stages.models.loading import load_causal_lm
from stages.models.tokenizers import load_tokenizer
from stages.ppo_training import run
from stages.trainers.core.sections import LoraParams
from stages.trainers.ppo.section import PPOTrainingParams
from stages.trainers.ppo.trainer import PPOTrainer
from tests.stages.feedback import write_completions
from tests.stages.training_runs import rows_of, start, told_to_stop, write_base_model
from tests.trainers.tiny import WORDS

# peft 0.21 asks transformers 5 under a name that has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

REWARD = "tests.stages.test_ppo_training:share_of_wanted"
PARAMS = {
    "reward": REWARD,
    "num_steps": 4,
    "batch_size": 8,
    "mini_batch_size": 4,
    "learning_rate": 1e-2,
    "max_new_tokens": 4,
    "save_steps": 1,
}


def share_of_wanted(prompt, completion, row):
    """Rewards the word that the log's column names."""
    return completion.split().count(row["wanted"]) / 4


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    return write_base_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def inputs(tmp_path, base_model):
    """Arguments of `run` that read; twelve prompts, one twice, and two that are held out."""
    rows = [{"prompt": f"what is {word}", "source": json.dumps({"wanted": "good"})} for word in WORDS[:12]]
    held_out = [{"prompt": f"a {word}", "split": "test"} for word in WORDS[:2]]
    completions = write_completions(tmp_path / "completions", [*rows, rows[0], *held_out])
    rows = rows_of("prompts", tmp_path / "rows", completions=completions)
    return {"base_model": base_model, "completions": completions, "rows": rows}


def outputs(folder: Path) -> dict[str, Path]:
    scratch = folder / "checkpoints" / "training-ppo" / "key"
    scratch.mkdir(parents=True, exist_ok=True)
    return {
        "model": folder / "models" / "ppo",
        "metrics": folder / "metrics.json",
        "plots": folder / "curves.csv",
        "scratch": scratch,
    }


def digests(folder: Path) -> dict[str, str]:
    # The lineage names the base by a path relative to the model, and these folders stand in different places.
    written = outputs(folder)
    model = {file.name: tree_digest(file) for file in files_below(written["model"]) if file.name != "plumbline.json"}
    return {**model, **{name: tree_digest(written[name]) for name in ("metrics", "plots")}}


def test_writes_a_policy_its_value_head_its_lineage_and_its_curves(inputs, base_model, tmp_path):
    written = outputs(tmp_path / "out")

    run(**inputs, **written, params=PPOTrainingParams(**PARAMS))

    trained, base = load_causal_lm(written["model"]), load_causal_lm(base_model)
    assert not np.array_equal(trained.lm_head.weight.detach(), base.lm_head.weight.detach())
    assert load_tokenizer(written["model"]).pad_token_id == 0
    assert (written["model"] / "value_head.safetensors").exists()
    assert "Proximal Policy Optimization" in (written["model"] / "README.md").read_text()
    metrics = json.loads(written["metrics"].read_text())
    assert metrics["rows"] == {"prompts": 12, "prompts_too_long": 0}
    assert (metrics["steps"], metrics["reward"]) == (4, REWARD)
    assert metrics["first"]["kl"] == pytest.approx(0.0, abs=1e-5)
    curves = written["plots"].read_text().splitlines()
    assert curves[0].startswith("step,reward,reward_std,kl,kl_coef,")
    assert [line.split(",")[0] for line in curves[1:]] == ["1", "2", "3", "4"]
    beta, shift = read_reward(written["model"])
    assert beta == json.loads((written["model"] / "plumbline.json").read_text())["state"]["kl_coef"]
    assert 0.19 < beta < 0.2
    assert shift == 0.0


@pytest.mark.parametrize("lora", [None, LoraParams(r=2, dropout=0.1)])
def test_gives_the_same_bytes_twice_and_no_pickle_or_path(inputs, tmp_path, lora):
    params = PPOTrainingParams(**{**PARAMS, "num_steps": 2}, lora=lora)

    for name in ("one", "two"):
        run(**inputs, **outputs(tmp_path / name), params=params)

    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    for file in files_below(outputs(tmp_path / "one")["model"]):
        assert file.suffix in {".json", ".safetensors", ".md", ".jinja"}
        if file.name != "plumbline.json":
            assert str(tmp_path.parent).encode() not in file.read_bytes()
    if lora is not None:
        assert load_causal_lm(outputs(tmp_path / "one")["model"]).peft_config["default"].r == 2


@pytest.mark.slow
def test_goes_on_after_kill_9_to_the_same_bytes(inputs, tmp_path):
    params = {**PARAMS, "num_steps": 12}
    run(**inputs, **outputs(tmp_path / "whole"), params=PPOTrainingParams(**{**params, "save_steps": 0}))
    killed = outputs(tmp_path / "killed")

    section = "stages.trainers.ppo.section:PPOTrainingParams"
    process = start("stages.ppo_training", section, {**inputs, **killed}, params)
    while not any((killed["scratch"] / f"step-{step}").exists() for step in (2, 3, 4)) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)

    assert process.wait() == -signal.SIGKILL
    assert not killed["metrics"].exists()
    run(**inputs, **killed, params=PPOTrainingParams(**params))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_goes_on_from_the_step_that_it_was_told_to_stop_in(inputs, tmp_path, monkeypatch):
    params = PPOTrainingParams(**{**PARAMS, "save_steps": 0})
    run(**inputs, **outputs(tmp_path / "whole"), params=params)
    stopped = outputs(tmp_path / "stopped")

    said = told_to_stop(monkeypatch, PPOTrainer, "step", call=3, then=lambda: run(**inputs, **stopped, params=params))

    assert "behind step 3," in said
    run(**inputs, **stopped, params=params)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


@pytest.fixture
def own_precision():
    """Accelerate keeps the precision of a process, which a stage has to itself."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("own_precision")
def test_trains_with_shared_layers_checkpointed_activations_and_bfloat16(inputs, tmp_path):
    params = {**PARAMS, "num_steps": 1, "num_shared_layers": 1, "gradient_checkpointing": True, "bf16": True}

    run(**inputs, **outputs(tmp_path / "out"), params=PPOTrainingParams(**params, lr_scheduler_type="linear"))

    assert json.loads(outputs(tmp_path / "out")["metrics"].read_text())["steps"] == 1


def test_reports_to_tensorboard_and_dvclive_outside_the_outputs(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    params = {**PARAMS, "num_steps": 2}

    run(**inputs, **outputs(tmp_path / "silent"), params=PPOTrainingParams(**params))
    run(
        **inputs,
        **outputs(tmp_path / "tracked"),
        params=PPOTrainingParams(**params, report_to=["tensorboard", "dvclive"]),
    )

    folder = tmp_path / "cache" / "tracking" / "training-ppo" / "key"
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert "objective" in json.loads((folder / "dvclive" / "metrics.json").read_text())
    assert digests(tmp_path / "silent") == digests(tmp_path / "tracked")
    assert not (tmp_path / "dvclive").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "model"}, "expected --reward-models with reward model and with no other, found none"),
        ({"batch_size": 6}, r"batch_size as a multiple of .* \(4\), found 6"),
        ({"max_new_tokens": 64}, "fewer than the 64 positions of the model, found 64"),
        ({"max_new_tokens": 62}, "prompts of at most 2 tokens in the training split, found none among 12"),
        ({"use_score_norm": True}, "expected use_score_scaling with use_score_norm"),
    ],
)
def test_refuses_what_cannot_work_before_a_model_is_loaded(inputs, tmp_path, monkeypatch, changes, message):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("stages.models.loading.load_causal_lm", load)

    with pytest.raises(ValueError, match=message):
        run(**inputs, **outputs(tmp_path / "out"), params=PPOTrainingParams(**{**PARAMS, **changes}))


def test_rows_of_other_completions_are_refused(inputs, tmp_path):
    others = write_completions(tmp_path / "others", [{"prompt": "what"}])

    with pytest.raises(ContractError, match="expected places in .*others as it is now, found those of another"):
        run(**{**inputs, "completions": others}, **outputs(tmp_path / "out"), params=PPOTrainingParams(**PARAMS))


def test_its_code_holds_no_other_methods_loss():
    losses = {path.name for path in code_files(["stages.ppo_training"]) if "losses" in path.parts}

    assert losses == {"kl_penalty.py", "ppo.py"}


def one_word(prompt, completion, row):
    """Rewards a word, and stops where an answer went on behind it."""
    assert len(completion.split()) <= 1, completion
    return float("good" in completion)


def test_rollouts_stop_where_the_saved_policy_does(inputs, tmp_path):
    completions = tmp_path / "ended"
    serving = {"stop_tokens": ["</s>", *WORDS]}
    write_table(completions, read_table(inputs["completions"], COMPLETIONS), COMPLETIONS, meta={"serving": serving})
    rows = rows_of("prompts", tmp_path / "ended_rows", completions=completions)
    params = PPOTrainingParams(**{**PARAMS, "num_steps": 2, "reward": "tests.stages.test_ppo_training:one_word"})
    written = outputs(tmp_path / "out")

    run(**{**inputs, "completions": completions, "rows": rows}, **written, params=params)

    tokenizer = load_tokenizer(written["model"])
    ends = sorted(tokenizer.convert_tokens_to_ids(serving["stop_tokens"]))
    assert GenerationConfig.from_pretrained(written["model"]).eos_token_id == ends
