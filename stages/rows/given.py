"""A dataset as people hand it to a trainer, in any of the types that libraries allow, and its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from stages.contracts.rows import canonical_json
from stages.text.chat_template import ChatRenderer
from stages.text.layouts import without_nulls
from stages.text.reasons import RejectedRowError


def rows_of(given: Any, name: str) -> Any:
    """A dataset as its rows are, whatever format it shows them in; several by name stay a mapping.

    Args:
        given: a `datasets.Dataset` in any format, a list of dicts, a pandas table, a mapping of these by name, or
            anything else, which stays as it is.
        name: what to call it in messages.

    Raises:
        ValueError: it holds the splits of a dataset where one of them is meant.
    """
    if isinstance(given, Mapping):
        if name == "train_dataset":
            splits = ", ".join(map(str, given))
            raise ValueError(
                f"train_dataset: expected one dataset, found {type(given).__name__} of {splits}; give "
                "train_dataset=data['train'], and eval_dataset=data['test']"
            )
        return {key: rows_of(rows, f"{name} {key}") for key, rows in given.items()}
    if isinstance(given, Dataset):
        kind = given.format["type"]
        # What a transform shows is what is meant; the other formats show the same rows in other types.
        return Dataset.from_list(list(given)) if kind == "custom" else given.with_format(None) if kind else given
    if type(given).__module__.partition(".")[0] == "pandas" and hasattr(given, "columns"):
        return Dataset.from_pandas(given, preserve_index=False)
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(row, Mapping) for row in given):
        return Dataset.from_list([dict(row) for row in given])
    return given


def check_finite(rows: Any, name: str) -> None:
    """Raise ValueError unless `rows` are a dataset of which it is known how many rows it has."""
    if isinstance(rows, Dataset):
        return
    remedy = "Dataset.from_list makes one"
    if isinstance(rows, datasets.IterableDataset):
        remedy = "Dataset.from_list(list(stream)) makes one of a stream that ends"
    raise ValueError(f"{name}: expected a datasets.Dataset, found {type(rows).__name__}; {remedy}")


def id_extents(rows: Dataset, name: str) -> tuple[int, int]:
    """The greatest token id in a column of ids, and the tokens of its longest row; 0 in an empty one."""
    batches = [batch[name] for batch in rows.with_format("arrow").iter(10_000)]
    greatest = max((pc.max(pc.list_flatten(ids)).as_py() or 0 for ids in batches), default=0)
    return greatest, max((pc.max(pc.list_value_length(ids)).as_py() or 0 for ids in batches), default=0)


def own_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A raw row without what Arrow puts into its messages and tools: a null for every key that another row has."""
    return {name: without_nulls(value) for name, value in row.items()}


def refusal(index: int, rejected: RejectedRowError) -> str:
    """What to tell who handed a trainer a row that can't be used, whose settings aren't those of the stages.

    Args:
        index: place of the row in its dataset.
        rejected: why it can't.
    """
    remedy = ""
    if "normalization." in rejected.detail or "template_arguments" in rejected.detail:
        remedy = (
            "; here normalization.chat_template is the tokenizer's chat_template, template_arguments are a column "
            "chat_template_kwargs, and for the other settings the messages are to be changed"
        )
    return f"row {index}: {rejected.detail}{remedy}"


class RowRenderers:
    """Renderers of raw rows, which may bring arguments of the template in a column `chat_template_kwargs`.

    Args:
        tokenizer: tokenizer of the policy, with its chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._made: dict[str, ChatRenderer] = {}

    def of(self, raw: Mapping[str, Any]) -> ChatRenderer:
        """The renderer of a row.

        Raises:
            RejectedRowError: its arguments are no object.
        """
        arguments = raw.get("chat_template_kwargs") or {}
        if not isinstance(arguments, Mapping):
            raise RejectedRowError(
                "not_text", f"expected chat_template_kwargs as an object, found {type(arguments).__name__}"
            )
        key = canonical_json(arguments)
        if key not in self._made:
            self._made[key] = ChatRenderer(self.tokenizer, arguments=arguments)
        return self._made[key]
