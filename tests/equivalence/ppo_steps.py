"""Steps of PPO, in one process or as one of two that a test launches."""

import json
import sys
from pathlib import Path

import torch

from tests.trainers.tiny_ppo import rollouts, tiny_trainer


def two_steps(folder: Path, size: int) -> None:
    """Two steps on eight responses, of which this process has `size`; writes what came of it."""
    trainer = tiny_trainer(
        batch_size=size, mini_batch_size=size // 2, gradient_accumulation_steps=2, whiten_rewards=True,
        use_score_scaling=True, max_grad_norm=0.1, ppo_epochs=2,
    )  # fmt: skip
    # Means over tokens are means over processes where all responses are of one length.
    given = {**rollouts(8), "responses": [torch.arange(6, 10) + row for row in range(8)]}
    rank = trainer.accelerator.process_index
    own = {name: rows[rank * size : (rank + 1) * size] for name, rows in given.items()}
    found = [trainer.step(**own) for _ in range(2)]
    trainer.save_state(folder / "state")
    if trainer.accelerator.is_main_process:
        kept = [{k: v for k, v in stats.items() if isinstance(v, float) and "time" not in k} for stats in found]
        shapes = {name: value.shape for name, value in found[0].items() if not isinstance(value, float)}
        (folder / "found.json").write_text(json.dumps([kept, trainer.method_state(), shapes]))
        policy = trainer.accelerator.unwrap_model(trainer.model)
        torch.save({name: weight.detach() for name, weight in policy.named_parameters()}, folder / "weights.pt")


if __name__ == "__main__":
    two_steps(Path(sys.argv[1]), 4)
