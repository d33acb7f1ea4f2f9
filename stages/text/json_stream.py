"""Objects of large JSON documents, one by one, so that a document isn't held.

A document is an array of objects, or an object that holds such arrays below its keys.
"""

from collections.abc import Collection, Iterator
from typing import IO, Any, NamedTuple

import ijson
from ijson.common import ObjectBuilder

MAX_KEYS = 3
"""How many keys may lead to an array of rows."""


class Element(NamedTuple):
    """An object of an array."""

    value: dict[str, Any] | Any
    repeated_key: str | None
    """A key that stands twice in one object of it."""


def arrays_of_objects(stream: IO[bytes], *, row_keys: Collection[str]) -> list[str]:
    """Where arrays with objects in them stand: "" for the document itself, else keys joined by dots.

    Args:
        stream: JSON.
        row_keys: keys of an object that is a row itself; what stands below it is no table.

    Raises:
        ValueError: the text is no JSON.
    """
    found: dict[str, None] = {}
    rows: list[str] = []
    for prefix, event, value in ijson.parse(stream, use_float=True):
        place = prefix.removesuffix(".item") if prefix != "item" else ""
        if event == "map_key" and value in row_keys and "item" not in prefix.split("."):
            rows.append(prefix)
        is_element = event == "start_map" and (prefix == "item" or prefix.endswith(".item"))
        if is_element and "item" not in place.split(".") and place.count(".") < MAX_KEYS:
            found[place] = None
    return [place for place in found if not any(_is_below(place, row) for row in rows)]


def _is_below(place: str, row: str) -> bool:
    return row in ("", place) or place.startswith(f"{row}.")


def elements(stream: IO[bytes], place: str) -> Iterator[Element]:
    """The elements of the array at a place.

    Raises:
        ValueError: the text is no JSON, or cut off.
    """
    wanted = f"{place}.item" if place else "item"
    builder: ObjectBuilder | None = None
    keys: list[set[str]] = []
    repeated: str | None = None
    for prefix, event, value in ijson.parse(stream, use_float=True):
        if builder is None:
            if prefix != wanted or event in ("end_map", "end_array", "map_key"):
                continue
            builder, keys, repeated = ObjectBuilder(), [], None
        builder.event(event, value)
        if event == "start_map":
            keys.append(set())
        elif event == "end_map":
            keys.pop()
        elif event == "map_key":
            repeated = value if value in keys[-1] else repeated
            keys[-1].add(value)
        if prefix == wanted and event not in ("start_map", "start_array", "map_key"):
            yield Element(builder.value, repeated)
            builder = None
