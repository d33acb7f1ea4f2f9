"""Python functions that params.yaml names as "package.module:function"."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any


def named_function(name: str, *, where: str, known: str, arguments: Sequence[str]) -> Callable[..., Any]:
    """The function at `name`.

    Args:
        name: such as "my_rewards.colour:blueness"; the module is looked for as `import` does.
        where: the parameter that holds the name, for messages.
        known: names that the parameter takes besides, for messages.
        arguments: what the function is called with, in this order.

    Raises:
        ValueError: the name leads to no function, or to one that can't be called with so many arguments.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ValueError(f"{where}: expected {known} or package.module:function, found {name!r}")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: expected a function at {name}, found that {error}") from None
    if not callable(found):
        raise ValueError(f"{where}: expected a function at {name}, found a {type(found).__name__}")
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        raise ValueError(
            f"{where}: expected a function of {', '.join(arguments)} at {name}, found that {error}"
        ) from None
    except ValueError:
        # Some that are written in C don't say what they take.
        pass
    function: Callable[..., Any] = found
    return function
