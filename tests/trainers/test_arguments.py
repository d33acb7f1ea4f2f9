"""Arguments of transformers 4 on transformers 5, and constructors as documented."""

import dataclasses
import inspect
import json

import pytest
from transformers import HfArgumentParser

from stages.trainers import BCOConfig, BCOTrainer, set_seed
from stages.trainers.arguments import FORMER_ARGUMENTS
from tests.material import SHARED, needs_shared


@needs_shared
@pytest.mark.parametrize("documented", [BCOConfig, BCOTrainer, set_seed])
def test_arguments_have_the_documented_names_order_and_defaults(documented):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[documented.__name__]

    found = list(inspect.signature(documented).parameters.values())[: len(ledger)]

    for (name, default), argument in zip(ledger, found, strict=True):
        assert argument.name == name
        if argument.default is not inspect.Parameter.empty:
            assert repr(argument.default) == str(default) or str(argument.default) == default


@needs_shared
@pytest.mark.parametrize("method", ["train", "save_model", "push_to_hub"])
def test_methods_take_the_documented_arguments(method):
    ledger = json.loads((SHARED / "seeds" / "signatures.json").read_text())[f"BCOTrainer.{method}"]

    found = inspect.signature(getattr(BCOTrainer, method)).parameters

    for (name, default), argument in zip(ledger, list(found.values())[1:], strict=False):
        assert (argument.name, repr(argument.default)) == (name, str(default))


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
