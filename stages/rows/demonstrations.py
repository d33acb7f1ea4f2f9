"""Demonstrations to learn from, out of a log of them or out of what people liked in a feedback log."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from stages.contracts.artifact import read_table
from stages.contracts.tokens import TOKENS
from stages.text.chat_template import ChatRenderer
from stages.text.encoding import encode_rows
from stages.text.feedback_log import FeedbackLog
from stages.text.layouts import Column
from stages.text.log_sources import open_log
from stages.text.normal_form import NormalForm, PlainText
from stages.text.reasons import RejectedRowError
from stages.text.truncation import truncate

_ROWS_AT_ONCE = 1000
_SCHEMA = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("weight", pa.float32()),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("prompt_length", pa.int32()),
    ]
)


class Demonstrations(NamedTuple):
    """Rows to learn from and rows to judge by, and how many there are of each kind."""

    train: Dataset
    held_out: Dataset
    counts: dict[str, int]
    """`train` and `held_out` rows, and those left out by reason."""


class DemonstrationReader(NamedTuple):
    """Reads a log of demonstrations: prompts with completions, or conversations, in any layout of feedback."""

    tokenizer: PreTrainedTokenizerBase
    columns: Mapping[Column, str]
    """By our name of a column, the log's name for it, where they differ."""
    plain_text: PlainText
    """Whether a prompt of plain text goes to the model as it is, or as a turn of a user."""
    test_share: float
    """Share of prompts held out, by the hash that the stage `normalization` takes."""
    max_length: int | None
    """Tokens of a row, at most; None cuts none."""

    def read(self, log: Path) -> tuple[pa.Table, dict[str, int]]:
        """Encoded rows of what the log shows or approves of, and how many were left out, by reason.

        Args:
            log: file or folder.

        Raises:
            ValueError: there is no log, or a file is damaged.
        """
        left_out: Counter[str] = Counter()
        with open_log(log, None) as files:
            rows = self._rows(FeedbackLog(files, columns=self.columns), left_out)
            tables = [self._encoded(part, left_out) for part in iter(lambda: list(islice(rows, _ROWS_AT_ONCE)), [])]
        return pa.concat_tables([_SCHEMA.empty_table(), *tables]), dict(left_out)

    def _rows(self, log: FeedbackLog, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
        """Rows in normal form."""
        normal_form = NormalForm(
            self.tokenizer, ChatRenderer(self.tokenizer), plain_text=self.plain_text, test_share=self.test_share
        )
        for _, feedback in log.rows(progress="demonstrations"):
            try:
                if isinstance(feedback, RejectedRowError):
                    raise feedback
                for row in normal_form.rows(feedback):
                    if row["completion"] is None or row["label"] is False:
                        left_out["no_completion" if row["completion"] is None else "undesired"] += 1
                    else:
                        yield row
            except RejectedRowError as error:
                left_out[error.reason] += 1

    def _encoded(self, rows: list[dict[str, Any]], left_out: Counter[str]) -> pa.Table:
        encoded = encode_rows(
            self.tokenizer,
            prompts=[row["prompt"] for row in rows],
            completions=[row["completion"] for row in rows],
            are_complete=[row["is_complete"] for row in rows],
        )
        found = []
        for row, ids in zip(rows, encoded, strict=True):
            try:
                cut = truncate(ids, max_length=self.max_length)
            except RejectedRowError as error:
                left_out[error.reason] += 1
                continue
            kept = {"split": row["split"], "weight": row["weight"]}
            found.append({**kept, "input_ids": cut.input_ids, "prompt_length": cut.prompt_length})
        return pa.Table.from_pylist(found, schema=_SCHEMA)


def read_demonstrations(*, log: Path | None, tokens: Path | None, reader: DemonstrationReader) -> Demonstrations:
    """Demonstrations of a log, of a `tokens` artifact, or of both.

    Args:
        log: file or folder of demonstrations; None reads none.
        tokens: `tokens` artifact, whose desired rows and whose rows without a label are taken; None reads none.
        reader: how the log is read.

    Raises:
        ContractError: `tokens` is missing or damaged.
        ValueError: neither is given, or there is nothing to learn from.
    """
    if log is None and tokens is None:
        raise ValueError("expected demonstrations, tokens or both, found neither; name one in dvc.yaml")
    tables, counts = [], Counter[str]()
    if log is not None:
        found, left_out = reader.read(log)
        tables.append(found)
        counts.update(left_out)
    if tokens is not None:
        rows = read_table(tokens, TOKENS, columns=["label", *_SCHEMA.names])
        is_liked = pc.fill_null(rows["label"], fill_value=True)
        counts["undesired"] += rows.num_rows - pc.sum(is_liked).as_py()
        tables.append(rows.filter(is_liked).select(_SCHEMA.names).cast(_SCHEMA))
    table = pa.concat_tables(tables)
    train, held_out = (_of_split(table, split) for split in ("train", "test"))
    counts.update(train=len(train), held_out=len(held_out))
    if not len(train):
        raise ValueError(f"expected demonstrations to learn from, found none ({dict(counts)})")
    return Demonstrations(train, held_out, dict(counts))


def _of_split(table: pa.Table, split: str) -> Dataset:
    rows = table.filter(pc.equal(table["split"], split)).drop_columns(["split"])
    return Dataset(InMemoryTable(rows.combine_chunks()))
