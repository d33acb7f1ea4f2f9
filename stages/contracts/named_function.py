"""Functions that parameters name as "package.module:function"."""

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


def named_function(
    name: str, *, where: str, known: Collection[str], arguments: Sequence[str] | None = None
) -> Callable[..., Any]:
    """The function at `name`.

    Args:
        name: such as "my_rewards.colour:blueness"; the module is looked for as `import` does.
        where: the parameter that holds the name, for messages.
        known: what the parameter takes besides; names that the user could have meant.
        arguments: what the function is called with, in this order. None leaves that to its caller to check.

    Raises:
        ValueError: there is no such module or function, or the function can't be called with these arguments.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ValueError(
            f"{where}: expected {', '.join(known)} or package.module:function, found {name!r}{_nearest(name, known)}"
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected a module {module_name!r} that can be imported, for {name!r}, found: {error}; run from "
            "the folder that it stands in, or put that folder on PYTHONPATH"
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        found = "none" if function is None else f"a {type(function).__name__}"
        raise ValueError(
            f"{where}: expected a function {function_name!r} in the module {module_name!r}, found {found}"
            f"{_nearest(function_name, vars(module))}"
        )
    if arguments is not None:
        _check_takes(function, arguments, name=name, where=where)
    return function


@contextmanager
def errors_named(what: str) -> Iterator[None]:
    """Tell an error of somebody's own function as one of theirs.

    Args:
        what: which function, in what.

    Raises:
        ValueError: whatever the function raised, by its type and message.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{what}: expected an answer, but it raised {type(error).__name__}: {error}; with "
            "PLUMBLINE_TRACEBACK=1 the stage shows where"
        ) from error


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_takes(function: Callable[..., Any], arguments: Sequence[str], *, name: str, where: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some that are written in C don't say what they take
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(
            f"{where}: expected a function of {', '.join(arguments)} at {name}, found that {error}"
        ) from None
