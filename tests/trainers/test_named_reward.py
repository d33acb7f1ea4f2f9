"""Rewards by name, and the example that checks answers of GSM8K."""

import json
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from examples.gsm8k_reward import answer_reward, final_number
from stages.models.scoring import RewardScorer
from stages.trainers.core.named_reward import load_reward, named_reward
from tests.material import SHARED, needs_shared
from tests.trainers.tiny import tiny_tokenizer


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module of rewards that can be named."""
    (tmp_path / "own_rewards.py").write_text(
        "def length(prompt, completion): return len(completion)\n"
        "def lengths(prompts, completions): return [len(text) for text in completions]\n"
        "def column(prompt, completion, row): return row['worth']\n"
        "def columns(prompts, completions, rows): return [row['worth'] for row in rows]\n"
        "def few(prompts, completions): return [1.0]\n"
        "def broken(prompt, completion): return float('nan')\n"
        "def failing(prompt, completion): return {}[completion]\n"
        "def other(text): return 1.0\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_rewards"
    sys.modules.pop("own_rewards", None)


@pytest.mark.parametrize("name", ["length", "lengths"])
def test_a_function_is_given_one_each_or_lists_as_its_arguments_say(functions, name):
    reward = load_reward(f"{functions}:{name}")

    assert reward(["a", "b"], ["xy", "z"]) == [2.0, 1.0]
    assert reward.prompts_as == "user"


def test_a_function_that_raises_is_named(functions):
    with pytest.raises(ValueError, match="reward own_rewards:failing: expected an answer, but it raised KeyError: 'x'"):
        load_reward(f"{functions}:failing")(["a"], ["x"])


@pytest.mark.parametrize("name", ["column", "columns"])
def test_a_function_that_wants_the_logs_other_columns_gets_them(functions, name):
    reward = load_reward(f"{functions}:{name}")

    assert reward(["a", "b"], ["x", "y"], [{"worth": 3}, {"worth": 0.5}]) == [3.0, 0.5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_rewards:missing", "expected a function 'missing' in the module 'own_rewards', found none"),
        ("no_such_module:f", "found: No module named"),
        ("own_rewards:number", "found a int"),
        ("own_rewards:other", "a function of prompt and completion, .* found one of text"),
        ("nothing", "expected demo, the folder of a reward model or package.module:function, found 'nothing'"),
    ],
)
def test_says_that_a_name_leads_to_no_reward(functions, name, message):
    with pytest.raises(ValueError, match=message):
        load_reward(name)


def test_says_that_a_reward_gave_no_number_for_each(functions):
    with pytest.raises(ValueError, match="reward own_rewards:few: .* each of 2 completions, found 1 numbers"):
        load_reward(f"{functions}:few")(["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match="reward own_rewards:broken: .* found 1 numbers, 0 of them finite"):
        load_reward(f"{functions}:broken")(["a"], ["x"])


def test_the_demos_true_reward():
    reward = load_reward("demo")

    question = "Say the opposites of hot, big and fast."
    assert reward([question] * 3, ["cold, small, slow", "cold, small, fast", "no idea"]) == [1.0, 2 / 3, 0.0]


def test_the_demos_true_reward_is_meant_also_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)

    assert load_reward("demo")(["Add one to one, two and six."], ["two, three, seven"]) == [1.0]
    with pytest.raises(ValueError, match="demo: expected weights"):
        load_reward(Path("demo"))


def write_reward_model(folder, *, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=1,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_reward_model_scores_prompts_after_templating(tmp_path):
    write_reward_model(tmp_path)

    reward = load_reward(str(tmp_path))

    assert reward.prompts_as == "templated"
    prompts, texts = ["what is the sky", "what is the"], [" blue", " red green"]
    scorer = RewardScorer.load(tmp_path)
    assert reward(prompts, texts) == scorer.texts(prompts, texts).tolist()
    cut = reward(prompts, texts, are_complete=[False, True])
    assert cut == scorer.texts(prompts, texts, are_complete=[False, True]).tolist()
    assert cut[0] != reward(prompts, texts)[0]


def test_several_reward_models_give_the_mean_of_their_scores(tmp_path):
    folders = [write_reward_model(tmp_path / f"reward{seed}", seed=seed) for seed in range(3)]
    asked = (["what is the sky", "what is the"], [" blue", " red green"])

    found = named_reward("model", folders)

    scores = [load_reward(folder)(*asked) for folder in folders]
    assert found(*asked) == pytest.approx([sum(column) / 3 for column in zip(*scores, strict=True)])
    assert found.prompts_as == "templated"
    assert named_reward("model", folders[:1])(*asked) == scores[0]


@pytest.mark.parametrize(
    ("name", "folders", "message"),
    [
        ("model", (), "expected --reward-models with reward model and with no other, found none with model"),
        ("demo", (Path("models/reward"),), "found models/reward with demo; mend the stage's entry in dvc.yaml"),
        ("a.b:c", (Path("models/reward"),), "found models/reward with a.b:c"),
        ("no.such:reward", (), "a module 'no.such' that can be imported, .* found: No module named"),
        ("nonsense", (), "found 'nonsense'"),
    ],
)
def test_a_name_of_params_yaml_and_reward_models_have_to_fit(name, folders, message):
    with pytest.raises(ValueError, match=message):
        named_reward(name, folders)


# ---- the example ----


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 + 12 = <<6+12=18>>18 eggs\n#### 18", "18"),
        ("so 9 * 2 = $18\nA: $1,800.50", "1800.50"),
        ("The answer is -3 degrees on day 2", "-3"),
        ("first 4, then 5.0 apples.", "5"),
        ("#### .5", "0.5"),
    ],
)
def test_the_final_number_of_a_solution(text, number):
    assert final_number(text) == Decimal(number)


def test_an_answer_is_right_or_wrong_and_a_row_has_to_know():
    row = {"answer": "2 + 2 = 4\n#### 4"}

    assert answer_reward("2 + 2?", "It is 4.0", row) == 1.0
    assert answer_reward("2 + 2?", "A: 5", row) == 0.0
    assert answer_reward("2 + 2?", "no idea", row) == 0.0
    with pytest.raises(ValueError, match=r"column answer that ends in a number, found None for '2 \+ 2\?'"):
        answer_reward("2 + 2?", "4", {})


@needs_shared
def test_solutions_of_gsm8k_get_the_verdict_that_people_gave_them():
    lines = (SHARED / "data" / "feedback" / "gsm8k_thumbs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    solutions = {row["prompt"]: row["completion"] for row in rows if row["label"]}
    reward = load_reward("examples.gsm8k_reward:answer_reward")
    judged = [row for row in rows if row["prompt"] in solutions]

    found = reward(
        [row["prompt"] for row in judged],
        [row["completion"] for row in judged],
        [{"answer": solutions[row["prompt"]]} for row in judged],
    )

    assert len(judged) == 3548  # of 5,276; to the other problems nobody found the answer
    assert [bool(score) for score in found] == [row["label"] for row in judged]
