"""Bytes, seconds and memory that each stage before training takes per row, for working out what a larger log takes.

    python -m benchmarks.row_costs --log ../shared/data/feedback/tulu1_thumbs.jsonl \
        --model ../shared/data/models/stories260K --tokenizer ../shared/data/tokenizers/minimind --rows 2000 20000

The log is repeated with a number in front of each prompt, so that no row is a duplicate. Each stage runs in a process
of its own, once per number of rows, without a memo; the table says what one more row costs between the two.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages import ingestion, normalization, tokenization
from stages.contracts.files import files_below


def repeated_log(log: Path, target: Path, num_rows: int) -> None:
    """Write `num_rows` rows of `log`, JSON lines, each with a prompt of its own."""
    rows = [json.loads(line) for file in files_below(log) if file.suffix == ".jsonl" for line in file.open()]
    with target.open("w") as file:
        for i in range(num_rows):
            row = rows[i % len(rows)]
            file.write(json.dumps({**row, "prompt": f"{i}. {row['prompt']}"}) + "\n")


def ingest(folder: Path) -> None:
    """Run stage `ingestion`."""
    paths = {name: folder / name for name in ("feedback_events", "ledger", "metrics", "scratch")}
    ingestion.run(feedback=folder / "log.jsonl", **paths, params=ingestion.IngestionParams())


def normalize(folder: Path) -> None:
    """Run stage `normalization`."""
    paths = {name: folder / name for name in ("feedback_events", "ledger", "completions", "rejects", "metrics")}
    normalization.run(base_model=folder / "model", **paths, params=normalization.NormalizationParams())


def tokenize(folder: Path) -> None:
    """Run stage `tokenization`."""
    paths = {"tokens": folder / "tokens", "rejects": folder / "token_rejects", "metrics": folder / "token_metrics"}
    params = tokenization.TokenizationParams(max_length=1024)
    inputs = {"completions": folder / "completions", "base_model": folder / "model", "memo": folder / "memo"}
    tokenization.run(**inputs, **paths, params=params)


def tokenize_again(folder: Path) -> None:
    """Run stage `tokenization` where the memo has all rows."""
    tokenize(folder)


STAGES: dict[Callable[[Path], None], tuple[str, ...]] = {
    ingest: ("log.jsonl", "feedback_events", "ledger"),
    normalize: ("completions",),
    tokenize: ("tokens", "memo"),
    tokenize_again: (),
}


def measured(stage: Callable[[Path], None], folder: Path) -> dict[str, float]:
    """Seconds of a processor and peak megabytes of a stage in this process, start of Python and imports included."""
    start = time.process_time()
    stage(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.process_time() - start, "peak_mb": peak}


def size(path: Path) -> int:
    """Bytes of a file or folder."""
    return sum(file.stat().st_size for file in files_below(path))


def costs(arguments: argparse.Namespace, num_rows: int) -> dict[str, dict[str, Any]]:
    """What each stage took for `num_rows` rows, and the bytes that it read and wrote."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(arguments.model, folder / "model")
        shutil.copytree(arguments.tokenizer, folder / "model", dirs_exist_ok=True)
        repeated_log(arguments.log, folder / "log.jsonl", num_rows)
        for stage, paths in STAGES.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[stage.__name__] = pool.apply(measured, (stage, folder))
            found[stage.__name__] |= {f"{path}, bytes": size(folder / path) for path in paths}
    return found


def main() -> None:
    """Print one line per stage and figure: what it was for each number of rows, and per row between the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("log", "model", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs=2, default=[2000, 20000])
    arguments = parser.parse_args()
    small, large = (costs(arguments, num_rows) for num_rows in arguments.rows)
    step = arguments.rows[1] - arguments.rows[0]
    for stage, figures in small.items():
        for name, value in figures.items():
            more = (large[stage][name] - value) / step
            print(f"{stage:16} {name:20} {value:>14,.1f} {large[stage][name]:>14,.1f} {more:>16,.6f} a row")


if __name__ == "__main__":
    main()
