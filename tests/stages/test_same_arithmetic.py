"""Policy, reference and evaluation compute alike: rewards are 0 before the first step, or it is said how far not."""

import json
from importlib.util import find_spec

import pytest
from transformers import GenerationConfig

from stages.contracts.artifact import read_table
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.models.comparison import compare_models
from stages.models.generation import Sampling
from stages.models.loading import load_causal_lm
from stages.models.pointer import precision_of, read_pointer, write_pointer
from stages.reference_logprobs import ReferenceLogprobsParams
from stages.reference_logprobs import run as score
from stages.trainers.bco.section import BCOTrainingParams
from stages.trainers.dpo.section import DPOTrainingParams
from stages.training import run as train
from tests.stages.feedback import write_tokens
from tests.stages.training_runs import outputs, rows_of, write_base_model

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="weights of 8 bits need bitsandbytes; pip install bitsandbytes"
)
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
# One step of hardly any size, with a reward per nat.
STEP = {"learning_rate": 1e-12, "beta": 1.0, "max_steps": 1, "save_steps": 0}
SEQUENCES = [[1, 3 + index // 2, *range(5, 12 + index % 7)] for index in range(16)]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rows = [
        {
            "prompt_id": f"id{i // 2}",
            "pair_id": f"pair{i // 2}",
            "label": i % 2 == 0,
            "input_ids": ids,
            "prompt_length": 2,
        }
        for i, ids in enumerate(SEQUENCES)
    ]
    return write_tokens(tmp_path_factory.mktemp("rows") / "tokens", rows)


def base_of(folder, **pointer):
    base = write_base_model(folder / "base")
    write_pointer(base, read_pointer(base).model_copy(update=pointer))
    return base


def scored(folder, base, tokens, **params):
    score(
        tokens=tokens,
        base_model=base,
        reference_logps=folder / "logps",
        memo=folder / "memo",
        params=ReferenceLogprobsParams(**params),
    )
    return folder / "logps"


def trained(folder, tokens, *, policy, reference, pointer=None, method="bco"):
    """What a training says of its start, and the folder of its model."""
    base = base_of(folder, **(pointer or {}))
    logps = scored(folder, base, tokens, **reference)
    kind, section = {"bco": ("labelled", BCOTrainingParams), "dpo": ("pairs", DPOTrainingParams)}[method]
    rows = rows_of(kind, folder / "rows", tokens=tokens, reference_logps=logps)
    written = outputs(folder)
    read = {"method": method, "base_model": base, "tokens": tokens, "rows": rows}
    train(**read, **written, params=section(**{**STEP, **policy}))
    return json.loads(written["metrics"].read_text())["start"], written["model"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["bco", "dpo"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(({}, {}, {}), id="float32"),
        pytest.param(({}, {}, {"attention": "eager"}), id="attention written out"),
        pytest.param(({"lora": LORA}, {}, {}), id="adapter"),
        pytest.param(({"dtype": "bfloat16"}, {"dtype": "bfloat16"}, {}), id="bfloat16 weights"),
        pytest.param(
            ({"dtype": "bfloat16", "lora": LORA}, {"dtype": "bfloat16"}, {}), id="adapter on bfloat16 weights"
        ),
        pytest.param(({"bf16": True}, {"bf16": True}, {}), id="bfloat16 passes"),
        pytest.param(({"lora": LORA}, {}, {"quantisation": "8bit"}), id="8 bits", marks=needs_bitsandbytes),
    ],
)
def test_a_policy_that_is_its_reference_has_no_rewards(tmp_path, tokens, settings, method):
    policy, reference, pointer = settings
    start, _ = trained(tmp_path, tokens, policy=policy, reference=reference, pointer=pointer, method=method)

    # What batches of another width leave of it. A processor with products in bfloat16 adds them in another order then,
    # each rounded by 4e-3 of its size: 5e-4 on one of them, 2e-5 on one without.
    is_rounded = any("bf16" in part or "dtype" in part for part in settings)
    assert start["mean_size"] < (2e-3 if is_rounded else 5e-5)
    assert start["rows"] > 0


@pytest.mark.parametrize("policy", [{"dtype": "bfloat16"}, {"bf16": True}])
def test_a_policy_that_rounds_otherwise_is_said_by_how_much_and_ends_the_run_above_the_bound(tmp_path, tokens, policy):
    start, _ = trained(tmp_path / "let", tokens, policy={**policy, "max_start_reward": 9}, reference={})
    bound = start["mean_size"] / 2

    assert bound > 1e-4
    with pytest.raises(ValueError, match=r"rewards should be 0.*found [+-].*over 8 rows.*reference_logprobs\.dtype"):
        trained(tmp_path / "held", tokens, policy={**policy, "max_start_reward": bound}, reference={})
    assert not outputs(tmp_path / "held")["model"].exists()


@pytest.mark.parametrize("precision", [{"dtype": "bfloat16"}, {"bf16": True}, {}])
def test_evaluation_computes_as_training_did(tmp_path, tokens, precision):
    _, model = trained(tmp_path, tokens, policy=precision, reference=precision)
    reference = read_table(tmp_path / "logps", REFERENCE_LOGPS)["logps"].to_pylist()

    found = compare_models(
        model,
        tmp_path / "base",
        sequences=SEQUENCES,
        prompt_lengths=[2] * len(SEQUENCES),
        prompts=["what is"],
        sampling=Sampling(1, 2, 1.0, 1.0, 0, 16),
    )

    assert precision_of(model)._asdict() == {
        "dtype": "float32", "bf16": False, "attention": None, "quantisation": None, **precision
    }  # fmt: skip
    assert found.policy_logps.tolist() == pytest.approx(reference, abs=2e-5)
    assert found.values["kl"].tolist() == [0.0]


def test_all_who_load_a_base_model_take_its_attention(tmp_path):
    assert load_causal_lm(base_of(tmp_path, attention="eager")).config._attn_implementation == "eager"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_both_sides_stop_where_the_policy_is_served_to(tmp_path, tokens):
    _, policy = trained(tmp_path, tokens, policy={"lora": LORA}, reference={})
    base = tmp_path / "base"
    sampling = Sampling(4, 6, 1.0, 1.0, 0, 16)

    def lengths():
        rows = {"sequences": SEQUENCES, "prompt_lengths": [2] * len(SEQUENCES), "prompts": ["what is"]}
        found = compare_models(policy, base, **rows, sampling=sampling).values
        return [found[f"length/{side}"].tolist() for side in ("policy", "reference")]

    assert max(map(max, lengths())) > 1
    GenerationConfig(eos_token_id=list(range(32))).save_pretrained(policy)
    assert lengths() == [[1.0], [1.0]]
