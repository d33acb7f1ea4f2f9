"""Tables of rows encoded and cut: in many processes where there are enough rows, with the same result."""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from stages.contracts.stage import die_with_parent
from stages.text.encoding import EncodedRow, encode_rows
from stages.text.reasons import RejectedRowError
from stages.text.truncation import TruncatedRow, truncate_together

if TYPE_CHECKING:
    # Only for the annotation: importing transformers loads torch.
    from transformers import PreTrainedTokenizerBase

TEXT_COLUMNS = ("prompt", "completion", "is_complete")
"""Columns that a row's ids follow from."""

ENCODED = pa.schema(
    [
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("completion_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("starts_with_bos", pa.bool_(), nullable=False),
    ]
)
_CHUNK_ROWS = 1024
# The tokenizer itself uses all processors while it encodes; processes share out the rest of the work, which pays off
# only beside the seconds that they take to start.
ROWS_WORTH_PROCESSES = 65_536


TokenizerLoader = Callable[[Path], "PreTrainedTokenizerBase"]


def num_processes() -> int:
    """Processes to share work among on this machine: PLUMBLINE_PROCESSES, by default one per processor.

    Raises:
        ValueError: the variable holds something else than a positive number.
    """
    text = os.environ.get("PLUMBLINE_PROCESSES", str(os.cpu_count() or 1))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"expected PLUMBLINE_PROCESSES as a positive number, found {text!r}")
    return int(text)


class RowEncoder:
    """Encodes rows, in many processes where there are enough of them. Used as a context manager.

    How many processes is a matter of the machine: PLUMBLINE_PROCESSES, by default one per processor.

    Args:
        load: gives the tokenizer that lies at `folder`; a function of a module, so that other processes can call it.
        folder: where the tokenizer lies.
        rows_worth_processes: fewer rows than these are encoded in this process.

    Raises:
        ValueError: PLUMBLINE_PROCESSES is no positive number.
    """

    def __init__(
        self, load: TokenizerLoader, folder: Path, *, rows_worth_processes: int = ROWS_WORTH_PROCESSES
    ) -> None:
        self.load = load
        self.folder = folder
        self.tokenizer = load(folder)
        self.num_processes = num_processes()
        self.rows_worth_processes = rows_worth_processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def encode(self, rows: pa.Table) -> pa.Table:
        """Ids of each row of prompt, completion and is_complete, in their order."""
        chunks = [rows.slice(start, _CHUNK_ROWS) for start in range(0, rows.num_rows, _CHUNK_ROWS)]
        if self.num_processes < 2 or rows.num_rows < self.rows_worth_processes:
            return pa.concat_tables([ENCODED.empty_table(), *(_encode(self.tokenizer, chunk) for chunk in chunks)])
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_processes,
                mp_context=get_context("spawn"),  # threads of the tokenizer don't survive a fork
                initializer=_start_worker,
                initargs=(self.load, self.folder),
            )
        return pa.concat_tables(self._pool.map(_encode_in_worker, chunks))


_worker: dict[str, Any] = {}


def _start_worker(load: TokenizerLoader, folder: Path) -> None:
    die_with_parent()
    # One thread each: the processes already share out the processors.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker["tokenizer"] = load(folder)


def _encode_in_worker(rows: pa.Table) -> pa.Table:
    return _encode(_worker["tokenizer"], rows)


def _encode(tokenizer: "PreTrainedTokenizerBase", rows: pa.Table) -> pa.Table:
    encoded = encode_rows(
        tokenizer,
        prompts=rows["prompt"].to_pylist(),
        completions=rows["completion"].to_pylist(),
        are_complete=rows["is_complete"].to_pylist(),
    )
    columns = zip(*encoded, strict=True)
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, ENCODED, strict=True)]
    return pa.table(arrays, schema=ENCODED)


_Cut = tuple[dict[str, Any], TruncatedRow | RejectedRowError]


def cut_rows(rows: pa.Table, encoded: pa.Table, **lengths: Any) -> Iterator[_Cut]:
    """Each row, and what is left of it or why nothing is; pairs that differ only in what was cut are refused.

    Args:
        rows: table with a column `pair_id`, the two rows of a pair one after the other.
        encoded: ids of the rows, with the columns of `ENCODED`.
        lengths: see `truncate_together`; a pair's prompt is cut alike in both of its rows.
    """

    def members() -> Iterator[tuple[dict[str, Any], EncodedRow]]:
        for start in range(0, rows.num_rows, _CHUNK_ROWS):
            texts = rows.slice(start, _CHUNK_ROWS).to_pylist()
            for row, ids in zip(texts, encoded.slice(start, _CHUNK_ROWS).to_pylist(), strict=True):
                yield row, EncodedRow(**ids)

    alone = itertools.count()
    for _, group in itertools.groupby(members(), lambda item: item[0]["pair_id"] or next(alone)):
        pair, ids = zip(*group, strict=True)
        try:
            cut = truncate_together(ids, **lengths)
            if len(cut) == 2 and cut[0] == cut[1]:
                raise RejectedRowError(
                    "identical_after_truncation", "chosen and rejected have the same tokens once cut"
                )
        except RejectedRowError as error:
            yield from ((row, error) for row in pair)
        else:
            yield from zip(pair, cut, strict=True)
