"""Tables and the picture of a run."""

import re

from pipelines.drawing import data_url, graph_svg
from pipelines.graph import StageNode
from pipelines.run_artifacts import artifact_key, stage_table
from pipelines.run_record import StageRecord, summary
from stages.measures.metric_rows import MetricRow, metric_rows


def node(name, *upstream):
    return StageNode(name=name, command=(), deps=(), outs=(), upstream=upstream)


def test_every_stage_has_a_box_and_every_edge_a_line():
    svg = graph_svg([node("a"), node("b<c>", "a"), node("d", "a", "b<c>", "elsewhere")], {"a": "Cached", "d": "Failed"})

    assert {"a", "b&lt;c&gt;", "d", "Cached", "Failed"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert svg.count("<path") == 3
    assert data_url(svg).startswith("data:image/svg+xml;base64,")


def test_a_graph_without_stages_can_be_drawn():
    assert "<svg" in graph_svg([], {})


def test_metrics_become_rows():
    values = {"kl": {"value": 0.5, "low": 0.4, "high": 0.6}, "slices": {"x": {"n": 3}}, "list": [1], "none": None}

    assert list(metric_rows(values)) == [MetricRow("kl", 0.5, 0.4, 0.6), MetricRow("slices/x/n", 3)]


def test_keys_of_artifacts_are_what_prefect_allows():
    assert artifact_key("metrics", "training@iterative_sft") == "metrics-training-iterative-sft"
    assert artifact_key("gate", "gate@bco") == "gate-bco"


def test_a_run_is_summed_up_with_its_failures():
    records = {"a": StageRecord("Cached", 0.0, "as | before"), "b": StageRecord("Failed", 1.5, "b ended with 3: no")}

    assert summary(records) == "2 stages: 1 Cached, 1 Failed; b ended with 3: no"
    assert "| a | Cached | 0.0 | as \\| before |" in stage_table(records)
