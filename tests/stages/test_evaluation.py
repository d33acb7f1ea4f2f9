"""Evaluation of tiny real models: what is measured, on what, and what is refused."""

import csv
import json
import shutil
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stages.contracts.artifact import ContractError, read_table, write_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.files import tree_digest
from stages.contracts.generations import GENERATIONS
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS
from stages.evaluation import EvaluationParams, run
from stages.models.row_logps import row_logps

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(30))]
BETA, SHIFT = 0.5, 0.05
PARAMS = EvaluationParams(num_samples=3, max_new_tokens=6, batch_size=8, num_resamples=100)


def judge_by_length(prompt, completion):
    """Longer is better."""
    return len(completion.split())


def failing_judge(prompt, completion):
    """A service that is away."""
    raise RuntimeError("no answer")


class Row(NamedTuple):
    prompt: list[int]
    completion: list[int]
    label: bool | None
    split: str
    topic: str | None


ROWS = [
    Row([2 + i % 7, 3, 4 + i % 5], [10 + i % 11, 9, 1], i % 3 > 0, "test" if i % 2 else "train", ["a", "b"][i // 2 % 2])
    for i in range(40)
]


def words(ids):
    return " ".join(WORDS[i] for i in ids)


def small_model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


class World:
    """Artifacts of one small log, and a call of the stage on them."""

    def __init__(self, root, rows=ROWS, policy_seed=1):
        self.root = root
        words_of = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
        words_of.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words_of, pad_token="<pad>", eos_token="<eos>")
        self.reference, self.policy = small_model(0), small_model(policy_seed)
        for name, model in (("base", self.reference), ("policy", self.policy)):
            model.save_pretrained(root / name)
            tokenizer.save_pretrained(root / name)
        (root / "policy" / "plumbline.json").write_text(json.dumps({"beta": BETA, "reward_shift": SHIFT}))
        self.write_rows(rows)

    def write_rows(self, rows):
        common = {
            "row_id": [f"r{i}" for i in range(len(rows))],
            "prompt_id": [f"p{'-'.join(map(str, row.prompt))}-{row.split}" for row in rows],
            "pair_id": pa.nulls(len(rows), pa.string()),
            "label": pa.array([row.label for row in rows], pa.bool_()),
            "weight": np.ones(len(rows), dtype=np.float32),
            "split": [row.split for row in rows],
        }
        texts = [(words(row.prompt), words(row.completion)) for row in rows]
        completions = {
            **common,
            "prompt": [prompt for prompt, _ in texts],
            "completion": [completion for _, completion in texts],
            "is_complete": [True] * len(rows),
            "messages": [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in texts],
            "source": [json.dumps({} if row.topic is None else {"topic": row.topic}) for row in rows],
        }
        write_table(self.root / "completions", pa.table(completions), COMPLETIONS)
        ids = [row.prompt + row.completion for row in rows]
        tokens = {
            **common,
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "prompt_length": pa.array([len(row.prompt) for row in rows], pa.int32()),
            "truncated": [False] * len(rows),
        }
        write_table(self.root / "tokens", pa.table(tokens), TOKENS)
        found = row_logps(self.reference, ids, [len(row.prompt) for row in rows], batch_size=8)
        logps = {
            "row_id": common["row_id"],
            "logps": found.logps,
            "num_tokens": found.num_tokens,
            "token_logps": pa.nulls(len(rows), pa.list_(pa.float32())),
        }
        write_table(self.root / "reference_logps", pa.table(logps), REFERENCE_LOGPS)

    def evaluate(self, *, out="out", scratch=None, **changes):
        folder = self.root / out
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "scratch").mkdir(parents=True)
        run(
            base_model=self.root / "base",
            model=self.root / "policy",
            completions=self.root / "completions",
            tokens=self.root / "tokens",
            reference_logps=self.root / "reference_logps",
            generations=folder / "generations",
            metrics=folder / "metrics.json",
            plots=folder / "plots",
            scratch=folder / "scratch" if scratch is None else scratch,
            params=PARAMS.model_copy(update=changes),
        )
        return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rewards_of_held_out_rows_are_beta_times_the_log_ratio(world):
    held_out = [row for row in ROWS if row.split == "test"]
    ids, lengths = [row.prompt + row.completion for row in held_out], [len(row.prompt) for row in held_out]
    logps = [row_logps(model, ids, lengths, batch_size=8).logps for model in (world.policy, world.reference)]
    rewards = BETA * (logps[0] - logps[1])
    labels = np.array([row.label for row in held_out])

    found = world.evaluate()

    assert found["accuracy"]["value"] == pytest.approx(np.mean((rewards > SHIFT) == labels), abs=1e-5)
    assert found["margin"]["value"] == pytest.approx(rewards[labels].mean() - rewards[~labels].mean(), abs=1e-4)
    assert found["counts"]["rows"] == len(held_out)
    assert (found["beta"], found["reward_shift"]) == (BETA, SHIFT)


def test_an_untrained_policy_gains_exactly_nothing(tmp_path):
    found = World(tmp_path, policy_seed=0).evaluate(judge=f"{__name__}:judge_by_length")

    assert found["true_reward"]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["win_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["kl"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert found["margin"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert found["length"]["policy"] == found["length"]["reference"]


def test_samples_of_held_out_prompts_are_kept_with_their_scores(world):
    world.evaluate(judge=f"{__name__}:judge_by_length", slice_by="topic")

    rows = read_table(world.root / "out" / "generations", GENERATIONS).to_pylist()
    prompts = {words(row.prompt) for row in ROWS if row.split == "test"}
    assert {row["prompt"] for row in rows} == prompts
    assert len(rows) == len(prompts)
    for row in rows:
        assert len(row["policy"]) == len(row["reference"]) == 3
        assert row["policy_scores"] == [len(text.split()) for text in row["policy"]]
        assert not any("<" in text for text in row["policy"] + row["reference"])
        assert row["slice"] in {"a", "b"}


def test_true_reward_is_what_the_judge_says_of_the_samples(world):
    found = world.evaluate(judge=f"{__name__}:judge_by_length")

    rows = read_table(world.root / "out" / "generations", GENERATIONS).to_pylist()
    policy = np.mean([np.mean(row["policy_scores"]) for row in rows])
    reference = np.mean([np.mean(row["reference_scores"]) for row in rows])
    assert found["true_reward"]["policy"]["value"] == pytest.approx(policy, abs=1e-5)
    assert found["true_reward"]["gain"]["value"] == pytest.approx(policy - reference, abs=1e-5)
    assert found["kl"]["value"] > 0


def test_without_a_judge_nothing_is_said_about_true_reward(world):
    found = world.evaluate()

    assert not {"true_reward", "win_rate"} & set(found)
    assert read_table(world.root / "out" / "generations", GENERATIONS)["policy_scores"].null_count > 0


def test_two_runs_write_the_same_bytes(world):
    world.evaluate(out="one", slice_by="topic", judge=f"{__name__}:judge_by_length")
    world.evaluate(out="two", slice_by="topic", judge=f"{__name__}:judge_by_length")

    assert tree_digest(world.root / "one") == tree_digest(world.root / "two")


def test_slices_cover_all_rows_and_prompts(world):
    found = world.evaluate(slice_by="topic")

    rows = read_csv(world.root / "out" / "plots" / "by_slice.csv")
    assert {row["slice"] for row in rows} == {"a", "b"}
    assert sum(int(row["rows"]) for row in rows if row["metric"] == "accuracy") == found["counts"]["rows"]
    assert sum(int(row["prompts"]) for row in rows if row["metric"] == "kl") == found["counts"]["prompts"]
    bins = read_csv(world.root / "out" / "plots" / "calibration.csv")
    assert sum(int(row["rows"]) for row in bins) == found["counts"]["rows"]


def test_fewer_prompts_are_a_choice_that_new_prompts_hardly_move(world):
    world.evaluate(num_prompts=5)
    before = read_table(world.root / "out" / "generations", GENERATIONS)["prompt_id"].to_pylist()
    world.write_rows([*ROWS, Row([20, 21], [5, 1], True, "test", "a")])
    world.evaluate(num_prompts=5)
    after = read_table(world.root / "out" / "generations", GENERATIONS)["prompt_id"].to_pylist()

    assert len(before) == len(after) == 5
    assert len(set(before) & set(after)) >= 4


def test_a_log_without_labels_is_still_sampled(tmp_path):
    world = World(tmp_path, rows=[row._replace(label=None) for row in ROWS])

    found = world.evaluate()

    assert found["counts"]["rows"] == 0
    assert "accuracy" not in found
    assert "kl" in found
    assert read_csv(world.root / "out" / "plots" / "calibration.csv") == []


def test_prompts_longer_than_the_model_are_cut_and_counted(tmp_path):
    world = World(tmp_path, rows=[*ROWS, Row([5] * 40, [6, 1], None, "test", "a")])

    assert world.evaluate()["counts"]["prompts_cut"] == 1


def test_nothing_held_out_is_an_error_that_names_the_parameter(tmp_path):
    world = World(tmp_path, rows=[row._replace(split="train") for row in ROWS])

    with pytest.raises(ValueError, match=r"normalization\.test_share"):
        world.evaluate()


def test_an_unknown_slice_names_the_columns_there_are(world):
    with pytest.raises(ValueError, match=r"no 'language'.*\[topic\]"):
        world.evaluate(slice_by="language")


def test_reference_logps_of_other_rows_are_refused(world):
    kept = (world.root / "reference_logps", world.root / "kept")
    shutil.copytree(*kept)
    world.write_rows(ROWS[::-1][:10])
    shutil.rmtree(kept[0])
    shutil.copytree(*kept[::-1])

    with pytest.raises(ContractError, match="found others; rerun the stage of it"):
        world.evaluate()


def test_a_policy_of_unknown_beta_is_refused(world):
    (world.root / "policy" / "plumbline.json").unlink()

    with pytest.raises(ValueError, match="expected beta and reward_shift"):
        world.evaluate()


def test_a_policy_that_diverged_is_named(world):
    with torch.no_grad():
        world.policy.lm_head.weight.fill_(torch.nan)
    world.policy.save_pretrained(world.root / "policy")

    with pytest.raises(ValueError, match="training diverged"):
        world.evaluate()


def test_no_room_for_an_answer_is_an_error(world):
    with pytest.raises(ValueError, match="32 positions"):
        world.evaluate(max_new_tokens=32)


def test_what_was_sampled_is_kept_where_the_judge_fails(world, tmp_path, monkeypatch):
    params = {"judge": f"{__name__}:failing_judge", "scratch": tmp_path / "kept"}
    whole = world.evaluate(out="whole", judge=f"{__name__}:judge_by_length")

    with pytest.raises(ValueError, match="failing_judge, at prompt 1: expected an answer, .* RuntimeError: no answer"):
        world.evaluate(**params)

    monkeypatch.setattr("stages.models.comparison.compare_models", None)
    monkeypatch.setattr(f"{__name__}.failing_judge", judge_by_length)
    assert {**world.evaluate(**params), "judge": whole["judge"]} == whole
