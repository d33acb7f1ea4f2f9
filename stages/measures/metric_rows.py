"""Metrics files as rows of a table, each known by its path in the file."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class MetricRow(NamedTuple):
    """One entry of a metrics file."""

    metric: str
    """Path in the file, such as "true_reward/gain"."""
    value: str | float
    low: float | None = None
    """Lower end of its interval, if it has one."""
    high: float | None = None


def metric_rows(values: Mapping[str, Any], path: str = "") -> Iterator[MetricRow]:
    """Every number and word below `values`; one with an interval is one row with its ends."""
    for key, value in values.items():
        name = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping) and "value" in value:
            yield MetricRow(name, value["value"], value.get("low"), value.get("high"))
        elif isinstance(value, Mapping):
            yield from metric_rows(value, name)
        elif isinstance(value, str | int | float):
            yield MetricRow(name, value)
