"""Rows that trainers read: from a raw dataset by the functions of the stages, or with columns that a stage made.

A sequence is a prompt followed by one completion of it. An unpaired row has one, a pair has two, told apart by the
prefixes of their columns.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from stages.rows.given import RowRenderers, check_finite, own_cells, refusal
from stages.text.chat_template import ChatRenderer
from stages.text.encoding import EncodedRow, encode_rows
from stages.text.layouts import Feedback, read_feedback
from stages.text.normal_form import flat
from stages.text.reasons import RejectedRowError
from stages.text.truncation import TruncatedRow, TruncationMode, truncate_apart, truncate_together
from stages.text.votes import parse_vote

logger = logging.getLogger(__name__)

PAIR = ("chosen_", "rejected_")
"""Prefixes of a pair's columns: `chosen_input_ids`, `chosen_prompt_length` and so on."""
MISMATCHED = "kl_"
"""Prefix of the columns of a prompt with the completion of another one."""


def reference_column(sequence: str) -> str:
    """Name of the column that holds the log-probability of a sequence under the reference.

    Args:
        sequence: prefix of the sequence's columns; empty for that of an unpaired row.
    """
    return f"reference_{sequence}logps"


_IDS = ("input_ids", "prompt_length")
_SEQUENCES = ("", *PAIR, MISMATCHED)
ROW_COLUMNS = (
    "row_id",
    "label",
    "weight",
    *(f"{sequence}{column}" for sequence in _SEQUENCES for column in (*_IDS, "spans")),
    *map(reference_column, _SEQUENCES),
)
NUMBER_COLUMNS = (
    *("weight", "desired_weight", "undesired_weight", "logit_offset"),
    *map(reference_column, _SEQUENCES),
)
# A row that can't be learned from is left out and counted; anything else wrong with a row is the caller's to mend.
_LEFT_OUT = (
    *("no_room_for_completion", "no_prompt_token", "empty_completion", "empty_prompt", "identical_pair"),
    "no_learned_turn",
)


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
    """Whether the dataset has token ids, of single rows or of pairs."""
    return not {"input_ids", "chosen_input_ids"}.isdisjoint(dataset.column_names)


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
        rows, left_out = self._named(dataset, name, extra_columns, as_pairs=False)
        return _with_truth_values(rows, name), left_out

    def paired(self, dataset: Dataset, *, name: str, extra_columns: Sequence[str]) -> tuple[Dataset, LeftOut]:
        """The same of pairs: each row has the columns of two sequences, named by the prefixes in `PAIR`."""
        return self._named(dataset, name, extra_columns, as_pairs=True)

    def check(self, dataset: Any, *, name: str, as_pairs: bool) -> None:
        """See that a dataset has columns to read, from its first row alone.

        Args:
            dataset: what a trainer was given; perhaps several datasets by name, or None.
            name: what to call it in messages.
            as_pairs: whether pairs are wanted.

        Raises:
            ValueError: it is no dataset, has no such columns or no rows, or raw rows come without a tokenizer.
        """
        if isinstance(dataset, Mapping):
            for key, rows in dataset.items():
                self.check(rows, name=f"{name} {key}", as_pairs=as_pairs)
        elif dataset is not None:
            check_finite(dataset, name)
            self._check_columns(dataset, name, as_pairs=as_pairs)

    def _check_columns(self, dataset: Dataset, name: str, *, as_pairs: bool) -> None:
        found = dataset.column_names
        if not len(dataset):
            raise ValueError(f"{name}: expected rows, found none")
        if not is_encoded(dataset):
            if self.tokenizer is None:
                raise ValueError(f"{name}: expected processing_class, a tokenizer, to encode raw rows with, found none")
            _check_first(dataset, name, as_pairs=as_pairs)
            return
        needed = {f"{prefix}{column}" for prefix in (PAIR if as_pairs else ("",)) for column in _IDS}
        if missing := sorted(needed - set(found)):
            raise ValueError(
                f"{name}: expected {'pairs' if as_pairs else 'single rows'} with a column {missing[0]}, "
                f"found {', '.join(found)}"
            )
        if not as_pairs and "label" not in found:
            raise ValueError(f"{name}: expected a column label, found {', '.join(found)}")

    def _named(
        self, dataset: Dataset, name: str, extra_columns: Sequence[str], *, as_pairs: bool
    ) -> tuple[Dataset, LeftOut]:
        self._check_columns(dataset, name, as_pairs=as_pairs)
        left_out = LeftOut({})
        came_with = dataset.column_names
        if not is_encoded(dataset):
            known = map(reference_column, PAIR if as_pairs else ("",))
            carried = [column for column in (*known, *extra_columns) if column in dataset.column_names]
            dataset, left_out = self._encoded(dataset, name, as_pairs=as_pairs, carried=carried)
        columns = [column for column in (*ROW_COLUMNS, *extra_columns) if column in dataset.column_names]
        _warn_of_slips(came_with, (*NUMBER_COLUMNS, *extra_columns), name)
        rows = dataset.select_columns(list(dict.fromkeys(columns)))
        if not len(rows):
            raise ValueError(f"{name}: expected rows, found none left ({left_out})")
        if "row_id" not in columns:
            rows = rows.add_column("row_id", [f"row {index}" for index in range(len(rows))])
        _check_numbers(rows, name)
        return rows, left_out

    def _encoded(
        self, dataset: Dataset, name: str, *, as_pairs: bool, carried: Sequence[str]
    ) -> tuple[Dataset, LeftOut]:
        settings = {name: getattr(self, name) for name in ("tokenizer", "lengths", "is_encoder_decoder")}
        encoded = dataset.map(
            encode_batch,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            num_proc=self.num_proc,
            fn_kwargs={**settings, "as_pairs": as_pairs, "carried": carried},
            desc=f"Encoding the {name}",
        )
        reasons = encoded["left_out"][:]
        left_out = LeftOut(dict(Counter(reason for reason in reasons if reason)))
        if left_out.counts:
            logger.warning("%s: left out of %d rows: %s", name, len(dataset), left_out)
            encoded = encoded.select([index for index, reason in enumerate(reasons) if not reason])
        return without_needless_spans(encoded.remove_columns("left_out")), left_out


def without_needless_spans(rows: Dataset) -> Dataset:
    """`rows` without columns of spans that hold whole completions in every row, and of weights that are all 1."""
    if "span_weights" in rows.column_names and all(set(weights) <= {1.0} for weights in rows["span_weights"]):
        rows = rows.remove_columns("span_weights")
    for column in [name for name in rows.column_names if name.endswith("spans")]:
        prefix = column.removesuffix("spans")
        lengths = [len(ids) for ids in rows[f"{prefix}input_ids"]]
        parts = zip(rows[column], lengths, rows[f"{prefix}prompt_length"], strict=True)
        if all(spans == [0, length - start] for spans, length, start in parts):
            rows = rows.remove_columns(column)
    return rows


def encode_batch(
    rows: Mapping[str, Sequence[Any]],
    indices: Sequence[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Lengths,
    is_encoder_decoder: bool,
    as_pairs: bool,
    carried: Sequence[str] = (),
) -> dict[str, list[Any]]:
    """Columns of the encoded rows of a batch of raw ones; those to leave out carry a reason in `left_out`.

    Args:
        rows: columns of the raw rows.
        indices: place of each in its dataset.
        tokenizer: tokenizer of the policy.
        lengths: how rows are cut.
        is_encoder_decoder: whether prompt and completion are encoded apart from each other.
        as_pairs: whether a pair stays one row.
        carried: columns that stay as they are, in both rows of a pair; one that is made here is the one made.

    Raises:
        ValueError: a row can't be read.
    """
    renderers = RowRenderers(tokenizer)
    empty = {"prompt": "", "weight": 1.0, **({} if as_pairs else {"label": False})}
    empty |= _sequence_columns([TruncatedRow([], 0, is_prompt_cut=False, is_completion_cut=False)] * (1 + as_pairs))
    cells: list[dict[str, Any]] = []
    for position, index in enumerate(indices):
        raw = own_cells({column: values[position] for column, values in rows.items()})
        kept = {column: raw[column] for column in carried}
        try:
            renderer = renderers.of(raw)
            encoded = _encode_row(raw, renderer, lengths, is_encoder_decoder=is_encoder_decoder, as_pairs=as_pairs)
            cells.extend({**kept, **row, "row_id": f"row {index}{row['row_id']}", "left_out": ""} for row in encoded)
        except RejectedRowError as rejected:
            if rejected.reason not in _LEFT_OUT:
                raise ValueError(refusal(index, rejected)) from None
            cells.append({**kept, **empty, "row_id": f"row {index}", "left_out": rejected.reason})
    return {key: [row[key] for row in cells] for key in dict.fromkeys((*carried, *empty, "row_id", "left_out"))}


def _encode_row(
    raw: Mapping[str, Any], renderer: ChatRenderer, lengths: Lengths, *, is_encoder_decoder: bool, as_pairs: bool
) -> list[dict[str, Any]]:
    """One row, or the two of a pair, or with `as_pairs` both in one."""
    feedback = _feedback_of(raw, as_pairs=as_pairs)
    is_pair = feedback.layout == "pairs"
    text = renderer.render(
        feedback.prompt, feedback.completions, are_complete=feedback.are_complete, tools=feedback.tools
    )
    if any(text.weights):
        raise RejectedRowError(
            "bad_weight",
            "expected messages that weigh 0 or 1, as the method compares whole completions, found other weights; round "
            "them, or learn these rows by SFTTrainer",
        )
    encode = _encode_apart if is_encoder_decoder else encode_rows
    encoded = encode(
        renderer.tokenizer,
        prompts=[text.prompt] * len(text.completions),
        completions=text.completions,
        are_complete=feedback.are_complete,
        spans=[flat(spans) for spans in text.spans],
    )
    cut = (
        truncate_apart(encoded, special_ids=renderer.tokenizer.all_special_ids, **lengths._asdict())
        if is_encoder_decoder
        else truncate_together(encoded, **lengths._asdict())
    )
    shared = {"prompt": text.prompt, "weight": feedback.weight}
    if as_pairs:
        return [{**shared, "row_id": "", **_sequence_columns(cut)}]
    labels = {" chosen": True, " rejected": False} if is_pair else {"": feedback.label}
    return [
        {**shared, "row_id": name, "label": label, **_sequence_columns([row])}
        for (name, label), row in zip(labels.items(), cut, strict=True)
    ]


def _feedback_of(raw: Mapping[str, Any], *, as_pairs: bool) -> Feedback:
    feedback = read_feedback(raw)
    is_pair = feedback.layout == "pairs"
    if as_pairs and not is_pair:
        raise RejectedRowError("unknown_layout", f"expected chosen and rejected, found {', '.join(raw)}")
    if not is_pair and feedback.label is None:
        raise RejectedRowError(
            "unknown_layout", "expected prompt, completion and label, or chosen and rejected, found no label"
        )
    return feedback


def _check_first(dataset: Dataset, name: str, *, as_pairs: bool) -> None:
    """Raise ValueError if the first row has no columns to read."""
    try:
        _feedback_of(own_cells(dataset[0]), as_pairs=as_pairs)
    except RejectedRowError as rejected:
        if rejected.reason not in _LEFT_OUT:
            raise ValueError(f"{name}: {refusal(0, rejected)}") from None
        if {"completion", "chosen", "rejected", "messages", "conversations"}.isdisjoint(dataset.column_names):
            raise ValueError(
                f"{name}: expected a column completion, or chosen and rejected, or messages, found "
                f"{', '.join(dataset.column_names)}; rename the one that holds the completions"
            ) from None


def _sequence_columns(cut: Sequence[TruncatedRow]) -> dict[str, Any]:
    """Columns of one sequence, or of the two of a pair."""
    found: dict[str, Any] = {}
    for prefix, row in zip(PAIR if len(cut) == 2 else ("",), cut, strict=True):
        found |= {f"{prefix}input_ids": row.input_ids, f"{prefix}prompt_length": row.prompt_length}
        # Told of every row, for batches of rows can't differ in their columns; needless ones are left out later.
        found[f"{prefix}spans"] = [0, len(row.input_ids) - row.prompt_length] if row.spans is None else row.spans
    return found


def _encode_apart(
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    are_complete: Sequence[bool],  # noqa: ARG001 - the same arguments as `encode_rows`
    spans: Sequence[Sequence[int] | None],
) -> list[EncodedRow]:
    """Ids for an encoder-decoder: prompt and completion each with the tokenizer's own special tokens."""
    if any(row is not None for row in spans):
        raise RejectedRowError(
            "unclear_turns", "expected a completion of one answer for an encoder-decoder, found several turns"
        )
    return [
        EncodedRow(
            tokenizer(prompt)["input_ids"], tokenizer(text_target=completion)["input_ids"], starts_with_bos=False
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _warn_of_slips(columns: Sequence[str], known: Sequence[str], name: str) -> None:
    """Say which columns nothing reads that are named nearly as an optional one, which isn't there."""
    missing = [column for column in known if column not in columns]
    for column in columns:
        near = get_close_matches(column, missing, n=1, cutoff=0.8) if column not in known else []
        if near:
            logger.warning("%s: a column %s isn't read; did you mean %s?", name, column, near[0])


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
