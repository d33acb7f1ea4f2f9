"""Rows that trainers read: from a raw dataset by the functions of the stages, or with columns that a stage made."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from stages.text.chat_template import ChatRenderer
from stages.text.encoding import EncodedRow, encode_rows
from stages.text.layouts import Feedback, read_feedback
from stages.text.reasons import RejectedRowError
from stages.text.truncation import TruncationMode, truncate
from stages.text.votes import parse_vote

logger = logging.getLogger(__name__)

ROW_COLUMNS = ("row_id", "input_ids", "prompt_length", "label", "weight", "reference_logps")
NUMBER_COLUMNS = ("weight", "reference_logps", "desired_weight", "undesired_weight", "logit_offset")
# A row that can't be learned from is left out and counted; anything else wrong with a row is the caller's to mend.
_LEFT_OUT = ("no_room_for_completion", "no_prompt_token", "empty_completion", "empty_prompt", "identical_pair")


class Lengths(NamedTuple):
    """How rows are cut to fit, in tokens."""

    max_length: int | None = None
    """Of prompt and completion together."""
    max_prompt_length: int | None = None
    """That a prompt is cut to in a row that is too long."""
    max_completion_length: int | None = None
    """Of a completion."""
    truncation_mode: TruncationMode = "keep_end"
    """Whether a cut prompt keeps its end or its start."""


class LeftOut(NamedTuple):
    """Rows that were left out, by reason."""

    counts: dict[str, int]

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))


def is_encoded(dataset: Dataset) -> bool:
    """Whether the dataset has the columns that the stage `tokenization` makes."""
    return {"input_ids", "prompt_length"} <= set(dataset.column_names)


class RowReader(NamedTuple):
    """Makes encoded rows of datasets.

    A raw dataset has unpaired rows or pairs, plain or conversational; a pair becomes its chosen and its rejected row,
    one behind the other. One that is encoded already keeps its columns.
    """

    tokenizer: PreTrainedTokenizerBase | None
    """Tokenizer of the policy; only raw rows need it."""
    lengths: Lengths
    """How raw rows are cut."""
    is_encoder_decoder: bool = False
    """Whether prompt and completion are encoded apart from each other."""
    num_proc: int | None = None
    """Processes that encode raw rows."""

    def labelled(self, dataset: Dataset, *, name: str, extra_columns: Sequence[str]) -> tuple[Dataset, LeftOut]:
        """Rows with a truth value as label, each named by `row_id`, and what was left out.

        Args:
            dataset: what a trainer was given.
            name: what to call it in messages.
            extra_columns: further columns to keep where they are there.

        Raises:
            ValueError: there are no rows, a label or number can't be used, or raw rows come without a tokenizer.
        """
        left_out = LeftOut({})
        if not is_encoded(dataset):
            dataset, left_out = self._encoded(dataset, name)
        columns = [column for column in (*ROW_COLUMNS, *extra_columns) if column in dataset.column_names]
        rows = dataset.select_columns(list(dict.fromkeys(columns)))
        if not len(rows):
            raise ValueError(f"{name}: expected rows, found none{f' left ({left_out})' if left_out.counts else ''}")
        if "row_id" not in columns:
            rows = rows.add_column("row_id", [f"row {index}" for index in range(len(rows))])
        _check_numbers(rows, name)
        return _with_truth_values(rows, name), left_out

    def _encoded(self, dataset: Dataset, name: str) -> tuple[Dataset, LeftOut]:
        if self.tokenizer is None:
            raise ValueError(f"{name}: expected processing_class, a tokenizer, to encode raw rows with, found none")
        settings = {name: getattr(self, name) for name in ("tokenizer", "lengths", "is_encoder_decoder")}
        encoded = dataset.map(
            encode_batch,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            num_proc=self.num_proc,
            fn_kwargs=settings,
            desc=f"Encoding the {name}",
        )
        reasons = encoded["left_out"][:]
        left_out = LeftOut(dict(Counter(reason for reason in reasons if reason)))
        if left_out.counts:
            logger.warning("%s: left out of %d rows: %s", name, len(dataset), left_out)
            encoded = encoded.select([index for index, reason in enumerate(reasons) if not reason])
        return encoded.remove_columns("left_out"), left_out


def encode_batch(
    rows: Mapping[str, Sequence[Any]],
    indices: Sequence[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Lengths,
    is_encoder_decoder: bool,
) -> dict[str, list[Any]]:
    """Columns of the encoded rows of a batch of raw ones; those to leave out carry a reason in `left_out`."""
    renderer = ChatRenderer(tokenizer)
    found: dict[str, list[Any]] = {
        key: [] for key in ("row_id", "prompt", "input_ids", "prompt_length", "label", "weight", "left_out")
    }
    for position, index in enumerate(indices):
        raw = {column: values[position] for column, values in rows.items()}
        for cells in _encode_row(raw, index, renderer, lengths, is_encoder_decoder=is_encoder_decoder):
            for key, values in found.items():
                values.append(cells[key])
    return found


def _encode_row(
    raw: Mapping[str, Any], index: int, renderer: ChatRenderer, lengths: Lengths, *, is_encoder_decoder: bool
) -> list[dict[str, Any]]:
    """One row, or the two of a pair; one that is left out has no ids."""
    empty = {"row_id": f"row {index}", "prompt": "", "input_ids": [], "prompt_length": 0, "label": False, "weight": 1.0}
    try:
        feedback = read_feedback(raw)
        labels = _labels(feedback)
        text = renderer.render(
            feedback.prompt, feedback.completions, are_complete=feedback.are_complete, tools=feedback.tools
        )
        encode = _encode_apart if is_encoder_decoder else encode_rows
        encoded = encode(
            renderer.tokenizer,
            prompts=[text.prompt] * len(text.completions),
            completions=text.completions,
            are_complete=feedback.are_complete,
        )
        cut = [truncate(row, **lengths._asdict()) for row in encoded]
    except RejectedRowError as rejected:
        if rejected.reason not in _LEFT_OUT:
            raise ValueError(f"row {index}: {rejected.detail}") from None
        return [{**empty, "left_out": rejected.reason}]
    names = [f"row {index}"] if len(cut) == 1 else [f"row {index} chosen", f"row {index} rejected"]
    return [
        {
            "row_id": row_id,
            "prompt": text.prompt,
            "input_ids": row.input_ids,
            "prompt_length": row.prompt_length,
            "label": label,
            "weight": feedback.weight,
            "left_out": "",
        }
        for row_id, row, label in zip(names, cut, labels, strict=True)
    ]


def _labels(feedback: Feedback) -> list[bool]:
    if feedback.layout == "pairs":
        return [True, False]
    if feedback.label is None:
        raise RejectedRowError(
            "unknown_layout", "expected prompt, completion and label, or chosen and rejected, found no label"
        )
    return [feedback.label]


def _encode_apart(
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    are_complete: Sequence[bool],  # noqa: ARG001 - the same arguments as `encode_rows`
) -> list[EncodedRow]:
    """Ids for an encoder-decoder: prompt and completion each with the tokenizer's own special tokens."""
    return [
        EncodedRow(
            tokenizer(prompt)["input_ids"], tokenizer(text_target=completion)["input_ids"], starts_with_bos=False
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _check_numbers(rows: Dataset, name: str) -> None:
    for column in NUMBER_COLUMNS:
        if column not in rows.column_names:
            continue
        values = np.array([np.nan if value is None else value for value in rows[column]], dtype=float)
        wrong = np.flatnonzero(~np.isfinite(values) | ((values < 0) & column.endswith("weight")))
        if len(wrong):
            raise ValueError(
                f"{name}: expected a finite {column} in every row{', from 0' if column.endswith('weight') else ''}, "
                f"found {values[wrong[0]]} in {rows[int(wrong[0])]['row_id']}; rerun the stage that made it"
            )


def _with_truth_values(rows: Dataset, name: str) -> Dataset:
    """`rows` with labels as booleans, whatever stood for them."""
    if "label" not in rows.column_names:
        raise ValueError(f"{name}: expected a column label, found {', '.join(rows.column_names)}")
    found = rows["label"][:]
    if all(type(label) is bool for label in found):
        return rows
    labels = []
    for index, label in enumerate(found):
        try:
            labels.append(parse_vote(label))
        except RejectedRowError as rejected:
            raise ValueError(f"{name}: {rows[index]['row_id']}: {rejected.detail}") from None
    return rows.remove_columns("label").add_column("label", labels)


class PreferenceCollator:
    """Makes a batch of encoded rows: ids and masks padded on the right, numbers as tensors, texts as lists.

    Args:
        pad_id: id that fills short rows.
        is_encoder_decoder: whether prompts and completions go into tensors of their own.
    """

    def __init__(self, pad_id: int, *, is_encoder_decoder: bool = False) -> None:
        self.pad_id = pad_id
        self.is_encoder_decoder = is_encoder_decoder

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of `rows`.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask` of shape (n, t); for an encoder-decoder, `input_ids` and
            `attention_mask` of the prompts and `decoder_input_ids` and `completion_mask` of the completions. The
            columns besides, of shape (n,).
        """
        batch: dict[str, Any] = {}
        ids = [row["input_ids"] for row in rows]
        prompt_lengths = [row["prompt_length"] for row in rows]
        if self.is_encoder_decoder:
            prompts = [row[:length] for row, length in zip(ids, prompt_lengths, strict=True)]
            completions = [row[length:] for row, length in zip(ids, prompt_lengths, strict=True)]
            batch["input_ids"], batch["attention_mask"] = _padded(prompts, self.pad_id)
            batch["decoder_input_ids"], batch["completion_mask"] = _padded(completions, self.pad_id)
        else:
            batch["input_ids"], batch["attention_mask"] = _padded(ids, self.pad_id)
            positions = torch.arange(batch["input_ids"].shape[1])
            behind_prompt = (positions >= torch.tensor(prompt_lengths)[:, None]).long()
            batch["completion_mask"] = batch["attention_mask"] * behind_prompt
        for name in rows[0]:
            if name not in ("input_ids", "prompt_length"):
                batch[name] = _column([row[name] for row in rows])
        return batch


def default_collator(
    tokenizer: PreTrainedTokenizerBase | None, *, padding_value: int | None, is_encoder_decoder: bool
) -> PreferenceCollator:
    """The collator that pads with `padding_value`, or as the tokenizer does.

    Raises:
        ValueError: neither gives an id to pad with.
    """
    candidates = (padding_value, getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None))
    pad_id = next((candidate for candidate in candidates if candidate is not None), None)
    if pad_id is None:
        raise ValueError(
            "expected processing_class, a tokenizer with a pad token, for the default collator, found none; give one, "
            "or padding_value, or a data_collator"
        )
    return PreferenceCollator(pad_id, is_encoder_decoder=is_encoder_decoder)


def _padded(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, dtype=np.int64)
    padded[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in ids])
    return torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64))


def _column(values: list[Any]) -> torch.Tensor | list[Any]:
    first = values[0]
    if isinstance(first, bool):
        return torch.tensor(values, dtype=torch.bool)
    if isinstance(first, float):
        return torch.tensor(values, dtype=torch.float32)
    return torch.tensor(values) if isinstance(first, int) else values
