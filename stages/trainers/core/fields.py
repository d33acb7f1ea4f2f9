"""Fields of a method's config: their limits, written once in their types, and a section of params.yaml made of them.

Light to import, for stages read params.yaml with it.
"""

import ast
import dataclasses
import inspect
import operator
import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field, create_model

from stages.contracts.stage import Section

_LIMITS = {
    "gt": ("above", operator.gt),
    "ge": ("of at least", operator.ge),
    "lt": ("below", operator.lt),
    "le": ("up to", operator.le),
}


def check_fields(config: Any, *, of: type[Any] | None = None) -> None:
    """Raise ValueError if a field of a dataclass lies outside the limits or the choices that its type names.

    Args:
        config: the dataclass.
        of: a class that it derives from, whose fields alone are looked at. None looks at all.
    """
    for name, hint in get_type_hints(of or type(config), include_extras=True).items():
        value = getattr(config, name)
        check_kind(name, value, hint)
        options = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
        if value is not None or NoneType not in options:
            _check(name, value, options)


def check_kind(name: str, value: Any, hint: Any, *, may_be_none: bool = False) -> None:
    """Raise ValueError if a value is text where its type is a number or a truth value, or no list where it is one.

    Args:
        name: field that the value is for.
        value: what was given.
        hint: type of the field.
        may_be_none: whether None passes whatever the type says.
    """
    options = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    kinds = {get_args(option)[0] if get_origin(option) is Annotated else option for option in options} - {NoneType}
    is_missing = value is None and NoneType not in options and not may_be_none and bool(kinds & {*_SAID, str})
    if is_missing or (isinstance(value, str) and kinds <= {*_SAID}):
        said = " or ".join(dict.fromkeys(_SAID.get(kind, "text") for kind in sorted(kinds & {*_SAID, str}, key=str)))
        # Such as 1e-5, which YAML reads as text.
        remedy = "; YAML reads 1e-5 as text and 1.0e-5 as a number" if value and re.search("[0-9]e", value) else ""
        raise ValueError(f"expected {name} as {said}, found {value!r}{remedy}")
    if (
        value is not None
        and kinds
        and all(get_origin(kind) is list for kind in kinds)
        and not isinstance(value, list | tuple)
    ):
        raise ValueError(f"expected {name} as a list, found {value!r}")


_SAID = {bool: "True or False", int: "a number", float: "a number"}


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` may be a slip of; None if there is none."""
    near = get_close_matches(name, known, n=1, cutoff=0.8)
    return near[0] if near else None


def refuse_slip(config: Any, name: str) -> None:
    """Raise ValueError if an attribute that a configuration doesn't have is named nearly as one that it has.

    Nothing would read it. Other attributes are the user's own.
    """
    known = [field.name for field in dataclasses.fields(config)]
    if (
        name not in known
        and not name.startswith("_")
        and not hasattr(type(config), name)
        and (near := meant(name, known))
    ):
        raise ValueError(f"{type(config).__name__} has no {name}, so setting it would do nothing; did you mean {near}?")


def _check(name: str, value: Any, options: tuple[Any, ...]) -> None:
    or_none = " or None" if NoneType in options else ""
    for option in options:
        if get_origin(option) is Literal:
            check_choice(name, value, option)
        metadata = option.__metadata__ if get_origin(option) is Annotated else ()
        limits = [
            (f"{words} {bound}", value is not None and holds(value, bound))
            for item in metadata
            for key, (words, holds) in _LIMITS.items()
            if (bound := getattr(item, key, None)) is not None
        ]
        if not all(is_kept for _, is_kept in limits):
            raise ValueError(f"expected {name} {' and '.join(words for words, _ in limits)}{or_none}, found {value}")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise ValueError unless `value`, of the field `name`, is one of the words of the Literal `choices`."""
    if value not in get_args(choices):
        raise ValueError(f"expected {name} as one of {', '.join(get_args(choices))}, found {value!r}")


def section_fields(base: type[Section], config: type[Any], names: str, **defaults: Any) -> Any:
    """A section with fields of a config: their types, limits, defaults and what the config says of them.

    Args:
        base: what the section is besides.
        config: the dataclass, with a string under each field.
        names: fields of it that the section takes as they are, with spaces between.
        defaults: further fields, with the section's own defaults.

    Returns:
        A class to derive the section from, which adds what the config doesn't have or has otherwise.
    """
    hints = get_type_hints(config, include_extras=True)
    given = {field.name: field.default for field in dataclasses.fields(config)}
    said = _docstrings(config)
    fields: dict[str, Any] = {}
    for name in (*names.split(), *defaults):
        # A default of 1 becomes 1.0 where the type is float, as if it were read. And YAML has no None.
        default, description = defaults.get(name, given[name]), said[name].replace("None", "null")
        fields[name] = (hints[name], Field(default, description=description, validate_default=True))
    return create_model(f"{config.__name__}Fields", __base__=base, **fields)


def config_values(params: Section, config: type[Any]) -> dict[str, Any]:
    """What of a section are arguments of the config, by name."""
    return params.model_dump(include={field.name for field in dataclasses.fields(config)})


def _docstrings(config: type[Any]) -> dict[str, str]:
    """The string under each field of a class."""
    (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(config))).body
    found: dict[str, str] = {}
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return found
