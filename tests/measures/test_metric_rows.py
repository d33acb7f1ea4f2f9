"""Metrics files as rows, by path."""

from stages.measures.metric_rows import MetricRow, metric_rows


def test_a_metric_with_an_interval_is_one_row_and_words_are_rows_too():
    values = {"a": {"b": {"value": 1, "low": 0, "high": 2}, "c": 3.5}, "method": "bco", "history": [1, 2], "d": None}

    assert list(metric_rows(values)) == [MetricRow("a/b", 1, 0, 2), MetricRow("a/c", 3.5), MetricRow("method", "bco")]
