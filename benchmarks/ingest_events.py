"""Time and peak memory of stage `ingestion` on votes that stand apart from the answers that they are on.

    /usr/bin/time -v python -m benchmarks.ingest_events --events 2000000

A fifth of the events are answers, in files of their own; the others are votes by 1,000 raters, some of them changed
later, shuffled over ten files.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from stages.ingestion import IngestionParams, run

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
                "prompt": f"Question {i}: {'what is it? ' * 8}",
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


def main() -> None:
    """Print what the run took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "log", arguments.events)
        start, started = time.monotonic(), time.process_time()
        outputs = {name: folder / name for name in ("feedback_events", "ledger", "metrics", "scratch")}
        run(feedback=folder / "log", **outputs, params=IngestionParams(max_reject_share=1))
        seconds, cpu = time.monotonic() - start, time.process_time() - started
        counts = json.loads((folder / "metrics").read_text())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print({name: counts[name] for name in ("records", "events", "used", "merged", "superseded", "rejects")})
    print(f"{seconds:,.0f} s, {cpu:,.0f} s of a processor, {peak:,.0f} MB at the most")


if __name__ == "__main__":
    main()
