"""Distinct prompts, which methods that sample their own answers learn from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from stages.contracts.artifact import Contract, read_table
from stages.rows.table import FoundRows, training_table
from stages.text.encoding import encode_rows
from stages.text.messages import user_text


class Prompt(NamedTuple):
    """One prompt to answer."""

    prompt_id: str
    """Hash of it."""
    input_ids: list[int]
    """Its tokens, as the policy is asked."""
    templated: str
    """Its text after templating."""
    user: str
    """What the user wrote last."""
    row: dict[str, Any]
    """The other columns of the log."""

    def text(self, prompts_as: str) -> str:
        """What a reward is told of it: "templated" or "user"."""
        return self.templated if prompts_as == "templated" else self.user


def prompt_rows(artifact: Path, contract: Contract) -> FoundRows:
    """The first row of each prompt, in the order of the artifact.

    Args:
        artifact: `completions` or `image_prompts`.
        contract: which of them; it has `prompt_id` and `split`.

    Raises:
        ContractError: the artifact is missing or damaged.
    """
    table = read_table(artifact, contract, columns=["prompt_id", "split"])
    ids, splits = table["prompt_id"].to_pylist(), table["split"].to_pylist()
    first = {prompt_id: place for place, prompt_id in reversed(list(enumerate(ids)))}
    places = sorted(first.values())
    columns = {
        "row": pa.array(places, pa.int32()),
        "weight": pa.array([1.0] * len(places), pa.float32()),
        "split": pa.array([splits[place] for place in places], pa.string()),
    }
    number = sum(splits[place] == "train" for place in places)
    return FoundRows(training_table(columns), {"train": {"train": number, "test": len(places) - number}})


def encode_prompts(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, *, room: int | None
) -> tuple[list[Prompt], int]:
    """Rows of `completions` as prompts to answer, in their order.

    Args:
        table: the rows, with the columns prompt_id, prompt, messages and source.
        tokenizer: of the policy.
        room: tokens that a prompt may have; None sets no limit.

    Returns:
        Those of one token at least that fit, and how many did not.
    """
    rows: Sequence[dict[str, Any]] = table.select(["prompt_id", "prompt", "messages", "source"]).to_pylist()
    texts = [row["prompt"] for row in rows]
    encoded = encode_rows(
        tokenizer,
        prompts=texts,
        completions=[None] * len(texts),
        are_complete=[True] * len(texts),
        bos="as_served",
    )
    prompts = [
        Prompt(row["prompt_id"], ids.prompt_ids, row["prompt"], user_text(row["messages"]), json.loads(row["source"]))
        for row, ids in zip(rows, encoded, strict=True)
    ]
    fitting = [prompt for prompt in prompts if prompt.input_ids and (room is None or len(prompt.input_ids) <= room)]
    return fitting, len(prompts) - len(fitting)
