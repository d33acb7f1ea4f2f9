"""What rounds of best of n are given: prompts of a log, and a reward by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.models.held_out import choose_prompts
from stages.models.judging import user_text
from stages.text.encoding import encode_rows
from stages.trainers.core.named_reward import Reward, load_reward
from stages.trainers.iterative_sft.run import Prompt


class RoundPrompts(NamedTuple):
    """Distinct prompts of both sides of the split."""

    train: list[Prompt]
    held_out: list[Prompt]
    counts: dict[str, int]
    """How many of each there are to learn from and to compare by, and how many of them were too long."""


def named_reward(name: str, *, reward_model: Path | None, truth: Path | None) -> Reward:
    """The reward that params.yaml names.

    Args:
        name: "model"; "demo", the true reward of the demo's world; or "package.module:function".
        reward_model: folder of the reward model; None if there is none.
        truth: the file that the demo's reward reads; None if there is none.

    Raises:
        ValueError: what the name needs is missing, or something is given that it has no use for.
    """
    for needed, argument, path in (("model", "reward_model", reward_model), ("demo", "truth", truth)):
        if (name == needed) != (path is not None):
            raise ValueError(
                f"reward: expected the argument {argument} with reward {needed} and with no other, found "
                f"{'none' if path is None else path} with {name}"
            )
    return load_reward(name if reward_model is None else reward_model, truth=truth)


def read_prompts(
    completions: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None,
    num_held_out: int,
    seed: int,
    prompts_as: Literal["templated", "user"],
) -> RoundPrompts:
    """The prompts of a `completions` artifact, each once, bare prompts included.

    Args:
        completions: the artifact.
        tokenizer: of the policy.
        max_prompt_length: prompts of more tokens are left out; None keeps all.
        num_held_out: held-out prompts wanted; a hash chooses them.
        seed: of that hash.
        prompts_as: whether the reward is told the text after templating, or what the user wrote.

    Raises:
        ContractError: the artifact is missing or damaged.
        ValueError: no prompt of the training split is left.
    """
    table = read_table(completions, COMPLETIONS, columns=["prompt_id", "split", "prompt", "messages", "source"])
    first = {prompt_id: index for index, prompt_id in reversed(list(enumerate(table["prompt_id"].to_pylist())))}
    distinct = table.take(sorted(first.values()))
    sides = [distinct.filter(pc.equal(distinct["split"], split)) for split in ("train", "test")]
    sides[1] = choose_prompts(sides[1], num_prompts=num_held_out, seed=seed)
    read = [_prompts(side.to_pylist(), tokenizer, prompts_as=prompts_as) for side in sides]
    kept = [[p for p in side if max_prompt_length is None or len(p.input_ids) <= max_prompt_length] for side in read]
    counts = {"train": len(kept[0]), "held_out": len(kept[1]), "too_long": sum(map(len, read)) - sum(map(len, kept))}
    if not kept[0]:
        most = "any number of" if max_prompt_length is None else f"at most {max_prompt_length}"
        raise ValueError(
            f"{completions}: expected prompts of {most} tokens to learn from, found none ({counts}); lower "
            "max_new_tokens, or look at normalization.test_share"
        )
    return RoundPrompts(kept[0], kept[1], counts)


def _prompts(
    rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, *, prompts_as: Literal["templated", "user"]
) -> list[Prompt]:
    encoded = encode_rows(
        tokenizer,
        prompts=[row["prompt"] for row in rows],
        completions=[None] * len(rows),
        are_complete=[True] * len(rows),
    )
    return [
        Prompt(
            row["prompt_id"],
            ids.prompt_ids,
            row["prompt"] if prompts_as == "templated" else user_text(row["messages"]),
            json.loads(row["source"]),
        )
        for row, ids in zip(rows, encoded, strict=True)
    ]
