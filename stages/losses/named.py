"""Losses by name: those of a table, and functions of the user's own, given as "module:function"."""

from collections.abc import Callable, Collection
from difflib import get_close_matches
from importlib import import_module
from typing import Any


def own_function(name: str, table: Collection[str]) -> Callable[..., Any]:
    """The function that "module:function" names.

    Args:
        name: what the user gave; no name of the table.
        table: names that the user could have meant.

    Raises:
        ValueError: there is no such name, module or function.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        near = get_close_matches(name, table, n=1)
        meant = f"did you mean {near[0]!r}? There are" if near else "there are"
        raise ValueError(
            f'expected the name of a loss, found {name!r}; {meant} {", ".join(table)}, and "module:function" for one '
            "of your own"
        )
    try:
        module = import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected a module {module_name!r} that can be imported, for the loss {name!r}, found: {error}; run from "
            "the folder that it stands in, or put that folder on PYTHONPATH"
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        near = get_close_matches(function_name, vars(module), n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected a function {function_name!r} in the module {module_name!r}, found none{meant}")
    return function
