"""Arguments of transformers 4 on transformers 5, and constructors as documented."""

import dataclasses
import inspect
import json

import pytest
from transformers import HfArgumentParser

from stages.trainers import BCOConfig, BCOTrainer, DPOTrainer, KTOConfig, KTOTrainer, set_seed
from stages.trainers.core.arguments import FORMER_ARGUMENTS
from stages.trainers.core.preference import PreferenceTrainer
from tests.material import SHARED, needs_shared

DPO_METHODS = (
    *("build_tokenized_answer", "compute_reference_log_probs", "concatenated_forward", "concatenated_inputs"),
    *("dpo_loss", "evaluation_loop", "get_batch_logps", "get_batch_loss_metrics", "get_batch_samples"),
    *("get_eval_dataloader", "get_train_dataloader", "log", "null_ref_context", "tokenize_row"),
)
KTO_ARGUMENTS = (
    *("model", "ref_model", "args", "train_dataset", "eval_dataset", "processing_class", "data_collator", "model_init"),
    *("callbacks", "optimizers", "preprocess_logits_for_metrics", "peft_config", "compute_metrics"),
    *("model_adapter_name", "ref_adapter_name"),
)


@needs_shared
@pytest.mark.parametrize("documented", [BCOConfig, BCOTrainer, DPOTrainer, set_seed])
def test_arguments_have_the_documented_names_order_and_defaults(documented):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[documented.__name__]

    found = list(inspect.signature(documented).parameters.values())[: len(ledger)]

    for (name, default), argument in zip(ledger, found, strict=True):
        assert argument.name == name
        if argument.default is not inspect.Parameter.empty:
            assert repr(argument.default) == str(default) or str(argument.default) == default


@needs_shared
@pytest.mark.parametrize(
    ("trainer", "method"),
    [(BCOTrainer, name) for name in ("train", "save_model", "push_to_hub")] + [(DPOTrainer, n) for n in DPO_METHODS],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_methods_take_the_documented_arguments(trainer, method):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[f"{trainer.__name__}.{method}"]
    is_static = isinstance(inspect.getattr_static(trainer, method), staticmethod)

    found = list(inspect.signature(getattr(trainer, method)).parameters.values())[0 if is_static else 1 :]

    assert len(found) >= len(ledger)
    for (name, default), argument in zip(ledger, found, strict=False):
        assert argument.name == name
        if default is not None:
            assert repr(argument.default) == str(default)
    # what comes behind is optional, so that a call as documented works
    assert all(
        argument.default is not inspect.Parameter.empty for argument in found[len(ledger) :] if _is_named(argument)
    )


def _is_named(argument):
    return argument.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@needs_shared
def test_all_documented_methods_of_dpo_are_looked_at():
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())

    assert {f"DPOTrainer.{name}" for name in DPO_METHODS} == {name for name in ledger if name.startswith("DPOTrainer.")}


def test_kto_takes_todays_arguments():
    assert tuple(inspect.signature(KTOTrainer).parameters) == KTO_ARGUMENTS
    assert inspect.signature(KTOTrainer) == inspect.signature(PreferenceTrainer)


def test_arguments_of_kto_stand_behind_those_of_training_in_the_documented_order(tmp_path):
    names = [
        name for name in inspect.signature(KTOConfig).parameters if name not in inspect.signature(BCOConfig).parameters
    ]
    config = KTOConfig(str(tmp_path), use_cpu=True)

    assert names == ["loss_type", "desirable_weight", "undesirable_weight"]
    assert (config.learning_rate, config.beta, config.loss_type) == (1e-6, 0.1, "kto")
    assert (config.max_length, config.max_prompt_length) == (1024, 512)


def test_positional_arguments_follow_the_documented_order(tmp_path):
    config = BCOConfig(str(tmp_path), False, True, use_cpu=True)

    assert config.do_train is True


@pytest.mark.parametrize(
    ("given", "successor", "value"),
    [
        ({"evaluation_strategy": "epoch"}, "eval_strategy", "epoch"),
        ({"per_gpu_train_batch_size": 3}, "per_device_train_batch_size", 3),
        ({"per_gpu_eval_batch_size": 3}, "per_device_eval_batch_size", 3),
        ({"no_cuda": True}, "use_cpu", True),
        ({"warmup_ratio": 0.25}, "warmup_steps", 0.25),
        ({"warmup_ratio": 0.25, "warmup_steps": 7}, "warmup_steps", 7),
        ({"adafactor": True}, "optim", "adafactor"),
        ({"group_by_length": True}, "train_sampling_strategy", "group_by_length"),
        ({"include_inputs_for_metrics": True}, "include_for_metrics", ["inputs"]),
        ({"push_to_hub_model_id": "a/b"}, "hub_model_id", "a/b"),
        ({"push_to_hub_token": "secret"}, "hub_token", "secret"),
        ({"gradient_checkpointing": True}, "activation_checkpointing", True),
        ({"report_to": "tensorboard"}, "report_to", ["tensorboard"]),
    ],
)
def test_a_renamed_argument_is_carried_over_and_stays_so_in_a_copy(tmp_path, given, successor, value):
    config = BCOConfig(str(tmp_path), **given)

    assert getattr(config, successor) == value
    assert getattr(dataclasses.replace(config), successor) == value


def test_warmup_ratio_warms_up_for_its_share_of_the_steps(tmp_path):
    assert BCOConfig(str(tmp_path), use_cpu=True, warmup_ratio=0.1).get_warmup_steps(200) == 20


def test_a_removed_argument_is_taken_at_its_default_and_refused_otherwise(tmp_path):
    removed = {name: former for name, former in FORMER_ARGUMENTS.items() if former.successor is None}
    BCOConfig(str(tmp_path), use_cpu=True, **{name: former.default for name, former in removed.items()})

    for name, former in removed.items():
        other = not former.default if isinstance(former.default, bool) else "other"
        with pytest.raises(ValueError, match=f"{name}=.*no such argument.*{former.remedy.split()[0]}"):
            BCOConfig(str(tmp_path), use_cpu=True, **{name: other})


def test_an_old_name_that_contradicts_the_new_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="per_gpu_train_batch_size=3 and per_device_train_batch_size=4"):
        BCOConfig(str(tmp_path), per_gpu_train_batch_size=3, per_device_train_batch_size=4)


def test_a_cpu_computes_in_full_precision_and_reports_nowhere_by_default(tmp_path):
    config = BCOConfig(str(tmp_path), use_cpu=True)

    assert (config.bf16, config.report_to, config.fsdp) == (False, [], None)


def test_a_command_line_sets_old_and_new_names(tmp_path):
    parser = HfArgumentParser(BCOConfig)

    (config,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--beta", "0.3", "--warmup_ratio", "0.2", "--no_disable_dropout"]
    )

    assert (config.beta, config.warmup_steps, config.disable_dropout) == (0.3, 0.2, False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"truncation_mode": "middle"}, "truncation_mode as one of keep_end, keep_start, found 'middle'"),
        ({"beta": 0.0}, "beta above 0"),
        ({"reward_shift": "median"}, "found 'median'"),
        ({"min_density_ratio": 3.0, "max_density_ratio": 2.0}, "found 1.0, 3.0 and 2.0"),
        ({"warmup_ratio": 1.5}, "warmup_ratio from 0 and below 1"),
    ],
)
def test_refuses_values_out_of_range(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        BCOConfig(str(tmp_path), use_cpu=True, **given)
