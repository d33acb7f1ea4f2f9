"""Tables that one JSON object holds: by column, by row, or as names beside rows of cells, as pandas writes them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from stages.text.column_names import OWN_IDS, canonical, is_vote
from stages.text.columns import ANSWERS, PROMPTS
from stages.text.layouts import COLUMNS


class JsonTable(NamedTuple):
    """A table that was found in an object."""

    form: str
    """How the object holds it, such as "a table by column"."""
    rows: Iterator[dict[str, Any]]


def table_in(document: Mapping[str, Any], *, row_keys: Collection[str]) -> JsonTable | None:
    """The table that an object is; None of a row, and of an object that holds arrays of rows below a key.

    Args:
        document: the only object of a file.
        row_keys: names of columns beside our own that tell a row.
    """
    known = {*row_keys, *COLUMNS, *PROMPTS, *ANSWERS}

    def are_columns(names: Collection[str]) -> bool:
        return any(canonical(name) in known or is_vote(name) for name in names)

    if found := _named_cells(document):
        return found
    values = list(document.values())
    if len(values) > 1 and all(isinstance(value, list) for value in values):
        is_table = len({len(value) for value in values}) == 1 < len(values[0]) and are_columns(document)
        # Lists of objects are tables of their own, or turns.
        if is_table and not any(isinstance(cell, Mapping) for value in values for cell in value):
            rows = (dict(zip(document, cells, strict=True)) for cells in zip(*values, strict=True))
            return JsonTable("a table by column", rows)
    if len(values) > 1 and all(isinstance(value, Mapping) and value for value in values):
        return _nested(document, has_columns=are_columns(document), are_rows=are_columns(_shared(values)))
    return None


def _named_cells(document: Mapping[str, Any]) -> JsonTable | None:
    """Rows of cells beside the names of columns, or beside a schema."""
    data, names = document.get("data"), document.get("columns")
    if not isinstance(data, list) or not data:
        return None
    schema = document.get("schema")
    if isinstance(schema, Mapping) and "fields" in schema and all(isinstance(row, Mapping) for row in data):
        return JsonTable("a table with its schema", map(dict, data))
    if not isinstance(names, list) or not all(isinstance(row, list) and len(row) == len(names) for row in data):
        return None
    return JsonTable("a table, split", (dict(zip(map(str, names), row, strict=True)) for row in data))


def _nested(document: Mapping[str, Any], *, has_columns: bool, are_rows: bool) -> JsonTable | None:
    """Cells below the name of their column and of their row, whichever stands outside."""
    first = next(iter(document.values()))
    is_whole = all(value.keys() == first.keys() for value in document.values())
    if is_whole and has_columns and not are_rows:
        return JsonTable("a table by column", ({name: document[name][row] for name in document} for row in first))
    if has_columns or not are_rows:
        return None
    return JsonTable("rows by their names", (_with_id(name, row) for name, row in document.items()))


def _shared(rows: list[Mapping[str, Any]]) -> set[str]:
    return set(rows[0]).intersection(*rows[1:])


def _with_id(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    # A number that counts rows is no id of them.
    has_id = name.isdigit() or not row.keys().isdisjoint(OWN_IDS)
    return dict(row) if has_id else {"id": name, **row}
