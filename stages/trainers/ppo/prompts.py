"""The prompts that a run of PPO samples from, out of the log's normal form."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from stages.models.held_out import split_prompts
from stages.models.judging import user_text
from stages.text.encoding import encode_rows


class Prompt(NamedTuple):
    """One prompt to answer."""

    input_ids: list[int]
    """Its tokens, as the policy reads them."""
    templated: str
    """Its text after templating."""
    user: str
    """What the user wrote last."""
    row: dict[str, Any]
    """The other columns of the log."""


def read_prompts(
    completions: Path, tokenizer: PreTrainedTokenizerBase, *, room: int | None
) -> tuple[list[Prompt], dict[str, int]]:
    """Distinct prompts of the training split, in the order of the log.

    Args:
        completions: `completions` artifact.
        tokenizer: of the policy.
        room: tokens that a prompt may have; longer ones are left out. None sets no limit.

    Returns:
        The prompts, and how many there are and how many were left out.

    Raises:
        ContractError: the artifact is missing or damaged.
        ValueError: there is no prompt to train on.
    """
    table = split_prompts(completions, "train")
    texts = table["prompt"].to_pylist()
    encoded = encode_rows(tokenizer, prompts=texts, completions=[None] * len(texts), are_complete=[True] * len(texts))
    columns = zip(encoded, texts, table["messages"].to_pylist(), table["source"].to_pylist(), strict=True)
    prompts = [Prompt(row.prompt_ids, text, user_text(turns), json.loads(rest)) for row, text, turns, rest in columns]
    fitting = [prompt for prompt in prompts if prompt.input_ids and (room is None or len(prompt.input_ids) <= room)]
    if not fitting:
        raise ValueError(
            f"{completions}: expected prompts of at most {room} tokens in the training split, found none among "
            f"{len(prompts)}; lower max_new_tokens, or look at normalization.test_share"
        )
    return fitting, {"prompts": len(fitting), "prompts_too_long": len(prompts) - len(fitting)}


def prompt_rows(prompts: Sequence[Prompt], *, templated: bool) -> tuple[list[str], list[dict[str, Any]]]:
    """What a reward is told of the prompts: their texts, and the other columns of the log."""
    return [prompt.templated if templated else prompt.user for prompt in prompts], [prompt.row for prompt in prompts]
