"""Trains with one class after the other as one of several processes that accelerate launches, and resumes.

accelerate launch --config_file PROFILE --num_processes 2 -m tests.trainers.launched FOLDER
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from tests.trainers.tiny import METHODS, method_trainer, tiny_llama
from tests.trainers.tiny_iterative import iterative_trainer
from tests.trainers.tiny_ppo import rollouts, tiny_trainer
from tests.trainers.tiny_reward import reward_trainer
from tests.trainers.tiny_sft import sft_trainer

TRAINERS: dict[str, Any] = {
    **{name: partial(method_trainer, name) for name in METHODS},
    "sft": sft_trainer,
    "reward": reward_trainer,
}
STEPS = 2
IS_SHARDED = os.environ.get("ACCELERATE_USE_FSDP") == "true"


def trained(name: str, folder: Path, *, with_adapter: bool, resumes: bool) -> dict[str, torch.Tensor]:
    """All weights behind the last step, for the first process to keep."""
    settings: dict[str, Any] = {"use_cpu": True, "ddp_backend": "gloo"}
    settings |= {"gradient_checkpointing": True, "per_device_train_batch_size": 2}
    if name in METHODS:
        settings["ref_model"] = None if with_adapter else tiny_llama(seed=1)
    if with_adapter:
        kind = "SEQ_CLS" if name == "reward" else "CAUSAL_LM"
        settings |= {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=kind), "bf16": True}
    trainer = TRAINERS[name](folder, max_steps=STEPS, save_strategy="steps", save_steps=1, **settings)
    assert trainer.accelerator.num_processes == 2
    assert trainer.is_fsdp_enabled == IS_SHARDED

    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1") if resumes else None)

    assert trainer.state.global_step == STEPS
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    # Of sharded weights, the first process alone is given them whole.
    assert weights or not trainer.accelerator.is_main_process
    return {weight: values.clone() for weight, values in weights.items()}


def say(line: str) -> None:
    """Print it once, and not between the words of the other process."""
    if os.environ["RANK"] == "0":
        print(line, flush=True)


def stepped(folder: Path) -> None:
    """Steps of the classes that are driven step by step; both processes end with the same weights."""
    iterative = iterative_trainer(folder, ddp_backend="gloo")
    ids = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
    iterative.step(input_ids=ids, attention_mask=[torch.ones_like(row) for row in ids], labels=ids)
    ppo = tiny_trainer()
    ppo.step(**rollouts(seed=ppo.accelerator.process_index))
    for trainer in (iterative, ppo):
        assert trainer.accelerator.num_processes == 2
        own = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
        both = trainer.accelerator.gather(own).chunk(2)
        torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)
    say("stepped")


def main(folder: Path) -> None:
    """Train, resume behind the first step, and compare."""
    for name in TRAINERS:
        for with_adapter in (False, True):
            own = folder / f"{name}_{with_adapter}"
            whole = trained(name, own, with_adapter=with_adapter, resumes=False)
            resumed = trained(name, own, with_adapter=with_adapter, resumes=True)
            assert whole.keys() == resumed.keys()
            for weight, values in whole.items():
                torch.testing.assert_close(resumed[weight], values, rtol=0, atol=0, msg=f"{own.name}: {weight}")
            say(f"resumed {own.name}")
    if not IS_SHARDED:
        stepped(folder / "steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
