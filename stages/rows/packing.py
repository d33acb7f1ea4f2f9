"""Packing: several documents in one row of tokens, so that little of a batch is padding, and no token is lost.

Documents either follow each other in rows cut at a fixed length, as in pretraining, or stay whole and apart: each has
positions that begin anew, sees no other one, and doesn't predict the one behind it.
"""

import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from stages.losses.sft import IGNORED
from stages.text.encoding import with_single_ends

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000
_INT_LISTS = pa.list_(pa.int32())


class Document(NamedTuple):
    """Tokens of one text."""

    input_ids: list[int]
    labels: list[int]
    """The same ids, or `IGNORED` where nothing is learned."""


class PackedRow(NamedTuple):
    """Tokens of several documents, or of parts of them."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int] | None = None
    """Position of each token in its document; None where documents aren't kept apart."""


def follow_each_other(documents: Iterable[Document], *, seq_length: int) -> Iterator[PackedRow]:
    """Rows of exactly `seq_length` tokens, the last one of what is left; documents are cut where a row ends."""
    ids: list[int] = []
    labels: list[int] = []
    for document in documents:
        ids.extend(document.input_ids)
        labels.extend(document.labels)
        whole = len(ids) - len(ids) % seq_length
        for start in range(0, whole, seq_length):
            yield PackedRow(ids[start : start + seq_length], labels[start : start + seq_length])
        del ids[:whole], labels[:whole]
    if ids:
        yield PackedRow(ids, labels)


def stay_apart(documents: Iterable[Document], *, seq_length: int) -> Iterator[PackedRow]:
    """Rows of up to `seq_length` tokens that hold whole documents; only one longer than that is cut, into several.

    The longest documents come first, each into the fullest row that has room for it.
    """
    pieces = [piece for document in documents for piece in _pieces(document, seq_length)]
    rows: list[list[Document]] = []
    rooms: list[tuple[int, int]] = []  # tokens left in a row and its number, in order
    for piece in sorted(pieces, key=lambda piece: -len(piece.input_ids)):
        length = len(piece.input_ids)
        place = bisect_left(rooms, (length, -1))
        room, number = rooms.pop(place) if place < len(rooms) else (seq_length, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append(piece)
        insort(rooms, (room - length, number))
    yield from map(_side_by_side, rows)


def _pieces(document: Document, seq_length: int) -> Iterator[Document]:
    for start in range(0, len(document.input_ids), seq_length):
        part = slice(start, start + seq_length)
        yield Document(document.input_ids[part], document.labels[part])


def _side_by_side(documents: list[Document]) -> PackedRow:
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for document in documents:
        ids.extend(document.input_ids)
        # What stands before its first token is another document, from which it can't be predicted.
        labels.extend([IGNORED, *document.labels[1:]])
        positions.extend(range(len(document.input_ids)))
    return PackedRow(ids, labels, positions)


def packed_dataset(rows: Iterable[PackedRow]) -> Dataset:
    """The rows as a dataset in memory, with columns `input_ids`, `labels` and, where they have them, `position_ids`."""
    batches, waiting = [], []
    for row in rows:
        waiting.append(row)
        if len(waiting) == _ROWS_AT_ONCE:
            batches.append(_table(waiting))
            waiting = []
    if waiting or not batches:
        batches.append(_table(waiting))
    return Dataset(InMemoryTable(pa.concat_tables(batches).combine_chunks()))


def _table(rows: list[PackedRow]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in PackedRow._fields}
    if None in columns["position_ids"]:
        del columns["position_ids"]
    return pa.table({name: pa.array(values, _INT_LISTS) for name, values in columns.items()})


class ConstantLengthDataset(IterableDataset[dict[str, torch.Tensor]]):
    """Packs the texts of a dataset as they are asked for.

    Texts are read into a buffer until their characters suggest enough tokens for a number of rows, encoded together,
    and packed; what doesn't fill a row goes on into the next buffer, and at the end is a shorter row.

    Args:
        tokenizer: encodes the texts; its EOS stands behind each.
        dataset: rows with the texts.
        dataset_text_field: column of the texts.
        formatting_func: called with a row, gives its text. One of the two has to be given.
        infinite: whether to begin again at the end of the data, for ever.
        seq_length: tokens of a row.
        num_of_sequences: rows that a buffer is to make.
        chars_per_token: characters that a token has on average, to guess when the buffer is full.
        eos_token_id: stands behind each text if the tokenizer has no EOS.
        shuffle: whether the rows of a buffer are shuffled.
        append_concat_token: whether an EOS stands behind each text, which parts them in a row of many. A text in which
            it is written gets no second one; one that a tokenizer adds of its own does, as documented.
        add_special_tokens: whether the tokenizer adds its own special tokens.
        seed: of the shuffling.
        keep_documents_apart: whether texts stay whole, with positions of their own.
        truncates: whether of a text that is longer than a row the end is left out, and not put into further rows, where
            texts stay apart.

    Raises:
        ValueError: it isn't said where the texts stand, or a number is out of range.
    """

    def __init__(  # noqa: PLR0917 - the documented order
        self,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Iterable[Mapping[str, Any]],
        dataset_text_field: str | None = None,
        formatting_func: Callable[[Mapping[str, Any]], str] | None = None,
        infinite: bool = False,
        seq_length: int = 1024,
        num_of_sequences: int = 1024,
        chars_per_token: float = 3.6,
        eos_token_id: int = 0,
        shuffle: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
        *,
        seed: int = 0,
        keep_documents_apart: bool = False,
        truncates: bool = False,
    ) -> None:
        if (dataset_text_field is None) == (formatting_func is None):
            raise ValueError(
                "expected one of dataset_text_field and formatting_func, which say where the texts stand, found "
                f"{'neither' if formatting_func is None else 'both'}"
            )
        check_packing(seq_length=seq_length, num_of_sequences=num_of_sequences, chars_per_token=chars_per_token)
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.dataset_text_field = dataset_text_field
        self.formatting_func = formatting_func
        self.infinite = infinite
        self.seq_length = seq_length
        self.max_buffer_size = seq_length * chars_per_token * num_of_sequences
        self.concat_token_id = eos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.shuffle = shuffle
        self.append_concat_token = append_concat_token
        self.add_special_tokens = add_special_tokens
        self.seed = seed
        self.keep_documents_apart = keep_documents_apart
        self.truncates = truncates
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of epoch `epoch` from the next pass on."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Rows of the data that are packed, as documented; packed rows are fewer or more."""
        return len(cast(Sized, self.dataset))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # Each worker process would otherwise give all rows.
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for index, row in enumerate(self.rows()):
            if index % count == number:
                yield {name: torch.tensor(ids) for name, ids in row._asdict().items() if ids is not None}

    def rows(self) -> Iterator[PackedRow]:
        """The packed rows, in the order of the epoch.

        Raises:
            ValueError: the data has no text, or a row's text isn't one string.
        """
        order = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        tail: list[Document] = []
        num_cut = 0
        for texts in self._buffers():
            documents = self._documents(texts)
            if self.truncates:
                num_cut += sum(len(document.input_ids) > self.seq_length for document in documents)
                documents = [Document(*(ids[: self.seq_length] for ids in document)) for document in documents]
            packed = list(self._pack([*tail, *documents]))
            tail = []
            if not self.keep_documents_apart and packed and len(packed[-1].input_ids) < self.seq_length:
                tail = [Document(*packed.pop()[:2])]
            for index in order.permutation(len(packed)) if self.shuffle else range(len(packed)):
                yield packed[index]
        for row in tail:
            yield PackedRow(*row)
        if num_cut:
            logger.warning("packing: cut %d texts to %d tokens", num_cut, self.seq_length)

    def _pack(self, documents: list[Document]) -> Iterator[PackedRow]:
        pack = stay_apart if self.keep_documents_apart else follow_each_other
        return pack(documents, seq_length=self.seq_length)

    def _buffers(self) -> Iterator[list[str]]:
        while True:
            buffer: list[str] = []
            size = number = 0
            for row in self.dataset:
                number += 1
                buffer.append(self._text(row))
                size += len(buffer[-1])
                if size >= self.max_buffer_size:
                    yield buffer
                    buffer, size = [], 0
            if buffer:
                yield buffer
            if not number:
                raise ValueError("expected rows to pack, found none")
            if not self.infinite:
                return

    def _text(self, row: Mapping[str, Any]) -> str:
        text = self.formatting_func(row) if self.formatting_func is not None else row[self.dataset_text_field or ""]
        if not isinstance(text, str):
            raise ValueError(
                f"expected one text per row where rows are packed, found {type(text).__name__} {text!r:.60}; "
                "a formatting_func is called with one row there, and gives one string"
            )
        return text

    def _documents(self, texts: list[str]) -> list[Document]:
        encoded = self.tokenizer(texts, add_special_tokens=self.add_special_tokens, truncation=False, verbose=False)
        end = [self.concat_token_id] if self.append_concat_token else []
        documents = []
        for text, ids in zip(texts, encoded["input_ids"], strict=True):
            own = with_single_ends(self.tokenizer, text, ids)
            has_own_end = bool(self.tokenizer.eos_token) and text.rstrip().endswith(self.tokenizer.eos_token)
            whole = [*own, *(end if own[-1:] != end or not has_own_end else [])]
            documents.append(Document(whole, whole))
        return documents


def check_packing(*, seq_length: int, num_of_sequences: int, chars_per_token: float) -> None:
    """Raise ValueError if a size isn't positive."""
    if seq_length < 1 or num_of_sequences < 1 or not chars_per_token > 0:
        raise ValueError(
            "expected seq_length and num_of_sequences from 1 and chars_per_token above 0, found "
            f"{seq_length}, {num_of_sequences} and {chars_per_token}"
        )
