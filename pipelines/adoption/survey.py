"""What a log is, found out by the stages that read it: what is shown is what a run would do."""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.params import Params

LOOKED_AT = 20_000
"""Rows whose lengths and columns are looked at, at most; they are spread over the whole log."""
SHOWN = 3
_MAX_SLICES = 12
_MIN_PROMPTS_OF_SLICE = 10
_SLICE_NAMES = (
    "topic",
    "category",
    "task",
    "domain",
    "language",
    "lang",
    "locale",
    "app",
    "product",
    "source",
    "model",
)
"""Columns that people like to see results by, the likeliest first."""


class Lengths(NamedTuple):
    """Tokens of rows before anything is cut."""

    prompts: np.ndarray[Any, Any]
    """Shape (n,)."""
    completions: np.ndarray[Any, Any]
    """Shape (n,)."""

    def rows(self) -> np.ndarray[Any, Any]:
        """Tokens of prompt and completion together. Shape (n,)."""
        found: np.ndarray[Any, Any] = self.prompts + self.completions
        return found


class Example(NamedTuple):
    """A row as the model will see it."""

    what: str
    """What people said of it."""
    prompt: str
    completion: str


class Survey(NamedTuple):
    """What is known of a log, read with a model's tokenizer."""

    said: str
    """What the stage that reads it printed."""
    counts: Mapping[str, Any]
    """Its metrics."""
    kinds: Mapping[str, int]
    """Rows by kind: pairs, desired, undesired, demonstrations, prompts; those of pairs count as one."""
    prompts_of_both: int
    """Prompts with a desired and an undesired completion outside pairs, of which pairs are made."""
    lengths: Lengths
    slices: Sequence[str]
    """Columns with a few values by which results can be shown, the best first."""
    examples: Sequence[Example]
    columns: Sequence[str]
    """What the log's first rows have, read or not."""


def survey(log: Path, base_model: Path, params: Params) -> Survey:
    """Read a log as the graph would, into a folder that is removed again.

    Args:
        log: file or folder.
        base_model: `base_model` artifact, or the folder of a model, for its tokenizer.
        params: how the log is to be read.

    Raises:
        ValueError: there is no log, a file is damaged, or something in it can be read in two ways.
    """
    from stages.contracts.artifact import read_table
    from stages.contracts.completions import COMPLETIONS

    with _read(log, base_model, params) as (said, counts, completions):
        rows = read_table(completions, COMPLETIONS)
        kinds, both = _kinds(rows)
        sample = rows.take(pa.array(_spread(rows.num_rows, LOOKED_AT), pa.int64()))
        return Survey(
            said,
            counts,
            kinds,
            both,
            _lengths(sample, base_model),
            list(_slices(sample)),
            list(_examples(rows)),
            list(dict.fromkeys(name for row in first_rows(log, params) for name in row)),
        )


def first_rows(log: Path, params: Params, at_most: int = 1000) -> list[dict[str, Any]]:
    """The first rows of a log, as they stand there.

    Args:
        log: file or folder.
        params: where in it to look.
        at_most: rows looked at.

    Raises:
        ValueError: there is no log, or a file is damaged.
    """
    from stages.text.log_files import read_log
    from stages.text.log_sources import open_log

    section = params.ingestion
    with open_log(log, section.source) as found:
        rows = read_log(found.files, max_row_bytes=section.max_row_bytes, encoding=section.encoding, tallies={})
        return [dict(logged.row) for logged in islice(rows, at_most) if logged.row is not None]


@contextmanager
def _read(log: Path, base_model: Path, params: Params) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """What reading the log printed and counted, and where its rows stand meanwhile."""
    from stages import ingestion, normalization
    from stages.contracts.stage import StageFailure

    # Whatever share is rejected is shown; whether it is too much is judged by what stands in params.yaml.
    any_share = {"max_reject_share": 1.0}
    with TemporaryDirectory() as name:
        folder = Path(name)
        events: dict[str, Path] = {name: folder / name for name in ("feedback_events", "ledger")}
        metrics = {name: folder / f"{name}.json" for name in ("ingestion", "normalization")}
        said = io.StringIO()
        try:
            with redirect_stdout(said):
                ingestion.run(
                    feedback=log,
                    **events,
                    metrics=metrics["ingestion"],
                    scratch=folder / "scratch",
                    params=params.ingestion.model_copy(update=any_share),
                )
                normalization.run(
                    **events,
                    base_model=base_model,
                    completions=folder / "completions",
                    rejects=folder / "rejects",
                    metrics=metrics["normalization"],
                    params=params.normalization.model_copy(update=any_share),
                )
        except StageFailure as failure:
            raise ValueError(str(failure)) from None
        read, kept = (json.loads(file.read_text(encoding="utf-8")) for file in metrics.values())
        yield said.getvalue(), {**read, **kept}, folder / "completions"


def _spread(num_rows: int, at_most: int) -> np.ndarray[Any, Any]:
    """Places of rows, evenly over all of them."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, at_most)).astype(int))


def _kinds(rows: pa.Table) -> tuple[dict[str, int], int]:
    in_pair, label = rows["pair_id"].is_valid(), rows["label"]
    has_answer = rows["completion"].is_valid()
    alone = pc.and_(pc.invert(in_pair), has_answer)

    def count(mask: Any) -> int:
        return int(pc.sum(pc.fill_null(mask, False)).as_py() or 0)

    kinds = {
        "pairs": count(in_pair) // 2,
        "desired": count(pc.and_(alone, label)),
        "undesired": count(pc.and_(alone, pc.invert(label))),
        "demonstrations": count(pc.and_(alone, label.is_null())),
        "prompts": count(pc.invert(has_answer)),
    }
    labelled = rows.filter(pc.and_(alone, label.is_valid())).select(["prompt_id", "label"])
    sides = labelled.group_by("prompt_id").aggregate([("label", "count_distinct")])
    return kinds, count(pc.greater(sides["label_count_distinct"], 1))


def _lengths(rows: pa.Table, base_model: Path) -> Lengths:
    from stages.models.tokenizers import load_tokenizer
    from stages.text.row_encoding import TEXT_COLUMNS, RowEncoder

    answered = rows.filter(rows["completion"].is_valid())
    columns = [*TEXT_COLUMNS, *(["spans"] if "spans" in rows.column_names else [])]
    encoded = RowEncoder(load_tokenizer, base_model)(answered.select(columns))
    encoded = encoded.filter(encoded["rejected"].is_null())
    return Lengths(
        *(pc.list_value_length(encoded[f"{name}_ids"]).to_numpy().astype(int) for name in ("prompt", "completion"))
    )


def _slices(rows: pa.Table) -> Iterator[str]:
    """Columns of the log with a few words that all rows of a prompt share."""
    values: dict[str, dict[str, Any]] = defaultdict(dict)
    mixed: set[str] = set()
    prompts = set(rows["prompt_id"].to_pylist())
    for prompt_id, source in zip(rows["prompt_id"].to_pylist(), rows["source"].to_pylist(), strict=True):
        for name, value in json.loads(source).items():
            if not isinstance(value, str) or values[name].setdefault(prompt_id, value) != value:
                mixed.add(name)
    found = []
    for name in values.keys() - mixed:
        sizes = Counter(values[name].values())
        if (
            2 <= len(sizes) <= _MAX_SLICES
            and sizes.total() == len(prompts)
            and min(sizes.values()) >= (_MIN_PROMPTS_OF_SLICE)
        ):
            known = _SLICE_NAMES.index(name.lower()) if name.lower() in _SLICE_NAMES else len(_SLICE_NAMES)
            found.append((known, len(sizes), name))
    return (name for *_, name in sorted(found))


def _examples(rows: pa.Table) -> Iterator[Example]:
    """A row of each thing that people can say, then further ones."""
    places = np.unique([*range(min(rows.num_rows, 10)), *_spread(rows.num_rows, 1000)])
    sample = rows.take(pa.array(places, pa.int64())).to_pylist()
    firsts: dict[str, dict[str, Any]] = {}
    for row in sample:
        firsts.setdefault(_what(row), row)
    rest = [row for row in sample if row not in firsts.values()]
    for row in [*firsts.values(), *rest][:SHOWN]:
        yield Example(_what(row), row["prompt"], row["completion"] or "")


def _what(row: Mapping[str, Any]) -> str:
    if row["completion"] is None:
        return "a prompt"
    if row["pair_id"] is not None:
        return "chosen" if row["label"] else "rejected"
    return {True: "desired", False: "undesired", None: "a demonstration"}[row["label"]]
