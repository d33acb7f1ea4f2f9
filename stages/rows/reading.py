"""The artifact `training_rows` with the texts and token ids that its places stand for, as trainers read them."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.table import InMemoryTable

from stages.contracts.artifact import MANIFEST, Contract, ContractError, read_manifest, read_table, write_table
from stages.contracts.files import file_digest
from stages.contracts.rows import Split
from stages.contracts.tokens import TOKENS
from stages.contracts.training_rows import TRAINING_ROWS, Kind
from stages.rows.mismatched import mismatched_spans
from stages.rows.pairs import pair_ids
from stages.rows.table import FoundRows

_FACTS = ("desired_weight", "undesired_weight", "logit_offset", "margin")
_COMPLETION = ("input_ids", "prompt_length")
_SPANS = "spans"
_SPAN_WEIGHTS = "span_weights"


class TrainingRows(NamedTuple):
    """Rows of an artifact, and the table that they are places in."""

    kind: Kind
    table: pa.Table
    source: pa.Table
    counts: dict[str, dict[str, int]]
    """By split: what there is to learn from, and what was left out for which reason."""
    origins: tuple[str, ...] = ()
    """Names of the references besides the model that training starts from; none where all rows have that one."""

    def of_split(self, split: Split) -> "TrainingRows":
        """Those of one side."""
        return self._replace(table=self.table.filter(pc.equal(self.table["split"], split)))

    def texts(self) -> pa.Table:
        """The row of the source that each row stands for."""
        return self.source.take(self.table["row"])

    def columns(self) -> pa.Table:
        """The rows as a trainer reads them: token ids and numbers."""
        make = _pair_columns if self.kind == "pairs" else _completion_columns
        columns = make(self.table, self.source)
        if self.kind == "demonstrations" and _SPAN_WEIGHTS in self.source.column_names:
            columns[_SPAN_WEIGHTS] = self.texts()[_SPAN_WEIGHTS]
        if self.kind != "demonstrations":
            columns |= {name: self.table[name] for name in _FACTS if self.table[name].null_count < len(self.table)}
        return pa.table(columns).combine_chunks()

    def dataset(self) -> Dataset:
        """Those columns as a dataset."""
        return Dataset(InMemoryTable(self.columns()))


def write_rows(path: Path, found: FoundRows, *, kind: Kind, source: Path) -> None:
    """Write rows as an artifact that knows of what they are the rows.

    Args:
        path: folder to write.
        found: the rows.
        kind: of them.
        source: the artifact that they are places in.
    """
    meta = {"kind": kind, "source": file_digest(source / MANIFEST), "counts": found.counts}
    meta |= {"origins": list(found.origins)} if found.origins else {}
    write_table(path, found.table, TRAINING_ROWS, meta=meta)


def read_rows(rows: Path, source: Path, contract: Contract = TOKENS, *, kind: Kind) -> TrainingRows:
    """The artifact at `rows`.

    Args:
        rows: `training_rows` artifact.
        source: the artifact that its rows are places in.
        contract: of that one.
        kind: what the reader learns from.

    Raises:
        ContractError: an artifact is missing or damaged, or the rows are of another kind or of another source.
    """
    meta = read_manifest(rows, TRAINING_ROWS)["meta"]
    table, texts = read_table(rows, TRAINING_ROWS), read_table(source, contract)
    if meta.get("kind") != kind:
        raise ContractError(
            f"{rows}: expected rows of the kind {kind}, found {meta.get('kind')}; change --kind in the entry of "
            "dvc.yaml that makes them"
        )
    if meta.get("source") != file_digest(source / MANIFEST):
        raise ContractError(
            f"{rows}: expected places in {source} as it is now, found those of another; rerun its stage"
        )
    return TrainingRows(kind, table, texts, meta["counts"], tuple(meta.get("origins", ())))


def _completion_columns(table: pa.Table, tokens: pa.Table) -> dict[str, Any]:
    """Columns of single completions; of mismatched ones, those with the prefix `kl_`."""
    own = tokens.take(table["row"])
    columns = {"row_id": own["row_id"], "weight": table["weight"], **_sequence(own)}
    if len(table) and not table["reference_logps"].null_count:
        columns |= {"label": table["label"], "reference_logps": table["reference_logps"]}
    if len(table) and not table["partner"].null_count:
        partners = tokens.take(table["partner"])
        ids = _mismatched_ids(own, partners, table["partner_length"])
        columns |= {"kl_input_ids": ids, "kl_prompt_length": own["prompt_length"]}
        if _SPANS in partners.column_names:
            rows, lengths = ids.to_pylist(), own["prompt_length"].to_pylist()
            spans = mismatched_spans(partners[_SPANS].to_pylist(), rows, lengths, range(len(rows)))
            columns["kl_spans"] = pa.array(spans, pa.list_(pa.int32()))
        columns["reference_kl_logps"] = table["partner_reference_logps"]
    return columns


def _sequence(rows: pa.Table) -> dict[str, Any]:
    """Columns of a sequence: its tokens, where its completion begins and, if any row tells, what of it was said."""
    return {name: rows[name] for name in (*_COMPLETION, _SPANS) if name in rows.column_names}


def _mismatched_ids(own: pa.Table, partners: pa.Table, lengths: pa.ChunkedArray) -> pa.Array:
    """Ids of each prompt followed by its partner's completion, cut as where the reference scored it."""
    columns = [table[name].to_pylist() for table in (own, partners) for name in _COMPLETION]
    ids = [
        [*prompt[:at], *answer[begin:]][:length]
        for prompt, at, answer, begin, length in zip(*columns, lengths.to_pylist(), strict=True)
    ]
    return pa.array(ids, pa.list_(pa.int32()))


def _pair_columns(table: pa.Table, tokens: pa.Table) -> dict[str, Any]:
    columns: dict[str, Any] = {"row_id": pa.array(pair_ids(table, tokens), pa.string()), "weight": table["weight"]}
    for prefix, name, scored in (
        ("chosen", "row", "reference_logps"),
        ("rejected", "partner", "partner_reference_logps"),
    ):
        side = _sequence(tokens.take(table[name]))
        columns |= {f"{prefix}_{column}": values for column, values in side.items()}
        if not table[scored].null_count:
            columns[f"reference_{prefix}_logps"] = table[scored]
    return columns
