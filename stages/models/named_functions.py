"""Python functions that params.yaml names as "package.module:function"."""

import importlib
from collections.abc import Callable
from typing import Any


def named_function(name: str, *, where: str, known: str) -> Callable[..., Any]:
    """The function at `name`.

    Args:
        name: such as "my_rewards.colour:blueness"; the module is looked for as `import` does.
        where: the parameter that holds the name, for messages.
        known: names that the parameter takes besides, for messages.

    Raises:
        ValueError: the name leads to no function.
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
    function: Callable[..., Any] = found
    return function
