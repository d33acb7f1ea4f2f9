"""Runs `ingestion` and `normalization` on logs that tests write, and gives back what a reader would recount."""

import json
from typing import NamedTuple

from stages import ingestion, normalization
from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.feedback_events import FEEDBACK_EVENTS
from stages.contracts.ledger import LEDGER
from stages.contracts.rejects import REJECTS
from stages.ingestion import IngestionParams
from stages.normalization import NormalizationParams


class Read(NamedTuple):
    rows: list
    rejects: list
    counts: dict
    events: list
    ledger: list

    def votes(self):
        """By question and answer as plain text, the label of each unpaired row."""
        return {said(row): row["label"] for row in self.rows}

    def pairs(self):
        """Question, better answer and worse answer of each pair."""
        return [
            (*said(chosen), said(rejected)[1]) for chosen, rejected in zip(self.rows[::2], self.rows[1::2], strict=True)
        ]


def said(row):
    """What was asked last and what was answered."""
    messages = json.loads(row["messages"])
    return _last(messages["prompt"]), _last(messages["completion"])


def turns(row):
    """Every turn of the prompt as speaker and text."""
    return [(turn["role"], turn["content"]) for turn in json.loads(row["messages"])["prompt"]]


def _last(value):
    return value if value is None or isinstance(value, str) else value[-1]["content"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def normalize(feedback, base_model, folder, **params):
    """What the stages from a log to completions write below a folder; the counts of both."""
    own = {name: params[name] for name in NormalizationParams.model_fields if name in params}
    ingest = {name: value for name, value in params.items() if name in IngestionParams.model_fields}
    assert params.keys() <= own.keys() | ingest.keys()
    folder.mkdir(parents=True, exist_ok=True)
    between = {"feedback_events": folder / "feedback_events", "ledger": folder / "ledger"}
    ingestion.run(
        feedback=feedback,
        **between,
        metrics=folder / "ingestion.json",
        scratch=folder / "scratch",
        params=IngestionParams(**ingest),
    )
    normalization.run(
        **between,
        base_model=base_model,
        completions=folder / "completions",
        rejects=folder / "rejects",
        metrics=folder / "normalization.json",
        params=NormalizationParams(**own),
    )
    stages = [json.loads((folder / f"{stage}.json").read_text()) for stage in ("ingestion", "normalization")]
    understood = [sentence for counts in stages for sentence in counts["understood"]]
    return Read(
        read_table(folder / "completions", COMPLETIONS).to_pylist(),
        read_table(folder / "rejects", REJECTS).to_pylist(),
        {**stages[0], **stages[1], "understood": understood},
        read_table(folder / "feedback_events", FEEDBACK_EVENTS).to_pylist(),
        read_table(folder / "ledger", LEDGER).to_pylist(),
    )


def read(log, base_model, folder, **params):
    return normalize(log, base_model, folder, **{"test_share": 0.0, "max_reject_share": 1.0, **params})
