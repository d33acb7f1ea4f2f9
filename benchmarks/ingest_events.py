"""Time and peak memory of reading a log, `ingestion` and then `normalization`, each in a process of its own.

    python -m benchmarks.ingest_events --events 2000000 --model FOLDER

A fifth of the events are answers, in files of their own; the others are votes by 1,000 raters, some of them changed
later, shuffled over ten files. Votes stand apart from the answers that they are on. Without --model, whose tokenizer
renders the rows, `normalization` isn't run.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_RATERS = 1000
_FILES = 10


def write_log(folder: Path, num_events: int) -> None:
    """Write answers and votes, `num_events` together, as JSON lines."""
    rng = random.Random(0)  # noqa: S311 # no secret
    folder.mkdir()
    num_answers = num_events // 5
    with (folder / "answers.jsonl").open("w") as file:
        for i in range(num_answers):
            row = {
                "id": f"m{i}",
                "prompt": f"What of {''.join('abcdefghij'[int(digit)] for digit in str(i))}? {'What is it? ' * 8}",
                "response": f"Answer {i}. {'So. ' * 20}",
            }
            file.write(json.dumps(row) + "\n")
    files = [(folder / f"votes-{i}.jsonl").open("w") for i in range(_FILES)]
    for i in range(num_events - num_answers):
        answer, rater = rng.randrange(num_answers), rng.randrange(_RATERS)
        vote = {"message_id": f"m{answer}", "user": f"u{rater}", "vote": rng.choice(["up", "down"]), "time": i}
        rng.choice(files).write(json.dumps(vote) + "\n")
    for file in files:
        file.close()


def measure(stage: str, folder: Path, **paths: Path) -> None:
    """Run a stage and print what it took, and its counts."""
    flags = [word for name, path in paths.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", f"stages.{stage}", *flags, "--metrics", str(folder / f"{stage}.json")]
    root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run(words, cwd=folder, env={**os.environ, **root}, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    counts = json.loads((folder / f"{stage}.json").read_text())
    print({name: count for name, count in counts.items() if isinstance(count, int)})
    # The largest of all processes so far, so that of a stage which takes less than those before it isn't seen.
    peak = f"{after.ru_maxrss / 1024:,.0f} MB at the most"
    print(f"{stage}: {time.monotonic() - start:,.0f} s, {cpu:,.0f} s of a processor, {peak}", flush=True)


def main() -> None:
    """Print what the run took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--model", type=Path, help="folder of a model with a chat template")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "log", arguments.events)
        events = {name: folder / name for name in ("feedback_events", "ledger")}
        (folder / "params.yaml").write_text("ingestion: {max_reject_share: 1}\nnormalization: {max_reject_share: 1}\n")
        measure("ingestion", folder, feedback=folder / "log", **events)
        if arguments.model:
            rows = {name: folder / name for name in ("completions", "rejects")}
            measure("normalization", folder, base_model=arguments.model.resolve(), **events, **rows)


if __name__ == "__main__":
    main()
