"""An artifact of rows made of another one: what filters, mixtures and curricula have in common."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.artifact import read_manifest, read_table, write_table
from stages.contracts.training_rows import TRAINING_ROWS


def rewrite_rows(rows: Path, rewritten: Path, change: Callable[[pa.Table], pa.Table], *, left_out_as: str) -> None:
    """Write what `change` makes of an artifact of rows; what is left and left out is counted.

    Args:
        rows: `training_rows` artifact to read.
        rewritten: the same to write; its rows are places in the same tokens.
        change: gives rows of the same columns: fewer, in another order, or with other weights.
        left_out_as: what to call in the counts those that it leaves out, such as "too_long".

    Raises:
        ContractError: `rows` is missing or damaged, or `change` gives other columns.
        ValueError: no row to train on is left.
    """
    meta, before = read_manifest(rows, TRAINING_ROWS)["meta"], read_table(rows, TRAINING_ROWS)
    after = change(before)
    numbers = {split: [_number(table, split) for table in (before, after)] for split in ("train", "test")}
    if not numbers["train"][1]:
        raise ValueError(
            f"{rows}: expected rows to train on, found all {numbers['train'][0]:,} left out: {left_out_as}"
        )
    counts = {
        split: {**found, **_counted(after, meta["kind"], split), left_out_as: numbers[split][0] - numbers[split][1]}
        for split, found in meta["counts"].items()
    }
    print(", ".join(f"{split}: {old:,} rows, {new:,} kept" for split, (old, new) in numbers.items()))
    write_table(rewritten, after, TRAINING_ROWS, meta={**meta, "counts": counts})


def _counted(rows: pa.Table, kind: str, split: str) -> dict[str, int]:
    """What there is of the rows of a split, under the names that their kind has for it."""
    inside = rows.filter(pc.equal(rows["split"], split))
    if kind == "labelled":
        desired = pc.sum(inside["label"]).as_py() or 0
        return {"desired": desired, "undesired": len(inside) - desired}
    if kind == "pairs":
        return {"pairs": len(inside)}
    others = "held_out" if kind == "demonstrations" else "test"
    return {"train": _number(rows, "train"), others: _number(rows, "test")}


def _number(rows: pa.Table, split: str) -> int:
    return pc.sum(pc.equal(rows["split"], split)).as_py() or 0
