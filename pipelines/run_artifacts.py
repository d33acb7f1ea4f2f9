"""What a run leaves in Prefect to look at: progress, metrics, verdicts of gates, reports, and the graph."""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from pipelines.drawing import data_url, graph_svg
from pipelines.graph import StageNode
from pipelines.output import Progress
from pipelines.run_record import StageRecord
from stages.contracts.stage import parse_section, read_params
from stages.gate import GateParams, compare
from stages.measures.metric_rows import metric_rows

PROGRESS_EVERY_S = 2.0


class ProgressReporter:
    """Shows how far a stage is, as one artifact that moves.

    Args:
        stage: name of the stage.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._artifact: Any = None
        self._told_at = -float("inf")

    def __call__(self, progress: Progress) -> None:
        """Take note of where the bar stands; Prefect is told every two seconds at the most."""
        if time.monotonic() - self._told_at < PROGRESS_EVERY_S and progress.percent < 100:
            return
        self._told_at = time.monotonic()
        with _optional(f"progress of {self.stage}"):
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    progress.percent, key=artifact_key("progress", self.stage), description=progress.what or self.stage
                )
            else:
                update_progress_artifact(self._artifact, progress.percent, description=progress.what or self.stage)


def show_outputs(node: StageNode) -> None:
    """Show what a stage wrote: a table of its metrics, a link to its pages."""
    with _optional(f"results of {node.name}"):
        for path in node.metrics if not node.is_gate else ():
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [row._asdict() for row in metric_rows(values if isinstance(values, dict) else {path: values})]
            create_table_artifact(rows, key=artifact_key("metrics", node.name), description=f"{node.name}: {path}")
        for path in node.outs:
            if path.endswith(".html"):
                link = Path(path).resolve().as_uri()
                create_link_artifact(
                    link,
                    path,
                    key=artifact_key("page", node.name),
                    # Browsers follow no link from a server's page to a file.
                    description=f"written by {node.name}; open {Path(path).resolve()} on the machine of the workspace",
                )


def show_gate(node: StageNode) -> None:
    """Show what a gate asked for and what was found, whether or not it was met; one that isn't met writes nothing."""
    with _optional(f"checks of {node.name}"):
        metrics, section = (node.command[node.command.index(flag) + 1] for flag in ("--metrics", "--params"))
        checks = compare(Path(metrics), parse_section(GateParams, read_params(section), where=section))
        rows = [check._asdict() for check in checks]
        create_table_artifact(rows, key=artifact_key("gate", node.name), description=f"{node.name}: {metrics}")


def show_run(nodes: Iterable[StageNode], records: Mapping[str, StageRecord]) -> None:
    """Show what became of every stage, as a table and as a picture of the graph."""
    nodes = list(nodes)
    show_table("stages", stage_table(records), "what became of each stage")
    with _optional("the graph"):
        svg = graph_svg(nodes, {name: record.state for name, record in records.items()})
        create_image_artifact(data_url(svg), key="graph", description="the graph of this run")


def show_table(key: str, markdown: str, description: str) -> None:
    """Show a table that stands in markdown."""
    with _optional(description):
        create_markdown_artifact(markdown, key=key, description=description)


def stage_table(records: Mapping[str, StageRecord]) -> str:
    """What became of every stage, as markdown."""
    lines = ["| stage | state | seconds | why |", "|---|---|---:|---|"]
    for name, record in records.items():
        message = record.message.replace("|", "\\|")
        lines.append(f"| {name} | {record.state} | {record.seconds:.1f} | {message} |")
    return "\n".join(lines)


def artifact_key(kind: str, stage: str) -> str:
    """Name of an artifact, in the letters that Prefect allows."""
    name = stage if stage.startswith(kind) else f"{kind}-{stage}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@contextmanager
def _optional(what: str) -> Iterator[None]:
    """Say so, and go on, if Prefect can't be reached or a file can't be shown: a picture is no reason to fail."""
    try:
        yield
    except (httpx.HTTPError, PrefectException, OSError, ValueError) as error:
        get_run_logger().warning("%s can't be shown in Prefect: %s", what, error)
