"""Tables of rows encoded and cut."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stages.text.encoding import EncodedRow, encode_each
from stages.text.reasons import RejectedRowError
from stages.text.truncation import TruncatedRow, truncate_together

if TYPE_CHECKING:
    # Only for the annotation: importing transformers loads torch.
    from transformers import PreTrainedTokenizerBase

TEXT_COLUMNS = ("prompt", "completion", "is_complete")
"""Columns that a row's ids follow from, beside `spans` where there are any."""

ENCODED = pa.schema(
    [
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("completion_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("starts_with_bos", pa.bool_(), nullable=False),
        pa.field("spans", pa.list_(pa.int32())),
        pa.field("rejected", pa.string()),  # reason and detail, if the row can't be encoded
    ]
)
_CHUNK_ROWS = 1024
# The tokenizer itself uses all processors while it encodes; processes share out the rest of the work, which pays off
# only beside the seconds that they take to start.
ROWS_WORTH_PROCESSES = 65_536
PIECE_ROWS = 8192
"""Rows that are encoded and then kept; what a kill can lose of each process."""


TokenizerLoader = Callable[[Path], "PreTrainedTokenizerBase"]


@dataclass(frozen=True)
class RowEncoder:
    """Gives the ids of rows of prompt, completion and is_complete, in their order."""

    load: TokenizerLoader
    """Gives the tokenizer that lies in a folder; a function of a module, so that other processes can call it."""
    folder: Path
    """Where the tokenizer lies."""

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, loaded once a process."""
        return self.load(self.folder)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Ids of each row; `ENCODED` has the columns."""
        chunks = [rows.slice(start, _CHUNK_ROWS) for start in range(0, rows.num_rows, _CHUNK_ROWS)]
        return pa.concat_tables([ENCODED.empty_table(), *(_encode(self.tokenizer, chunk) for chunk in chunks)])


def _encode(tokenizer: "PreTrainedTokenizerBase", rows: pa.Table) -> pa.Table:
    has_spans = "spans" in rows.column_names
    encoded = encode_each(
        tokenizer,
        prompts=rows["prompt"].to_pylist(),
        completions=rows["completion"].to_pylist(),
        are_complete=rows["is_complete"].to_pylist(),
        spans=rows["spans"].to_pylist() if has_spans else None,
        bos="as_served",
    )
    cells = [
        ([], [], False, None, json.dumps([row.reason, row.detail]))
        if isinstance(row, RejectedRowError)
        else (*row, None)
        for row in encoded
    ]
    columns = zip(*cells, strict=True)
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

    def members() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for start in range(0, rows.num_rows, _CHUNK_ROWS):
            texts = rows.slice(start, _CHUNK_ROWS).to_pylist()
            yield from zip(texts, encoded.slice(start, _CHUNK_ROWS).to_pylist(), strict=True)

    alone = itertools.count()
    for _, group in itertools.groupby(members(), lambda item: item[0]["pair_id"] or next(alone)):
        pair, ids = zip(*group, strict=True)
        try:
            cut = truncate_together([_encoded_row(row) for row in ids], **lengths)
            if len(cut) == 2 and cut[0] == cut[1]:
                raise RejectedRowError(
                    "identical_after_truncation", "chosen and rejected have the same tokens once cut"
                )
        except RejectedRowError as error:
            yield from ((row, error) for row in pair)
        else:
            yield from zip(pair, cut, strict=True)


def _encoded_row(cells: dict[str, Any]) -> EncodedRow:
    rejected = cells.pop("rejected")
    if rejected is not None:
        raise RejectedRowError(*json.loads(rejected))
    return EncodedRow(**cells)
