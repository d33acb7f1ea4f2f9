"""How a model has to be served that learned from an artifact: facts that go with the rows up to the saved model.

Rows are rendered by a template and arguments that params.yaml may name, and end where generation stops. A model that is
saved without them would be asked in other words than it learned.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from stages.contracts.artifact import Contract, read_manifest

_KEY = "serving"


class Serving(TypedDict, total=False):
    """What differs from the base model's own; empty where nothing does."""

    chat_template: str
    """Jinja text that prompts were rendered by."""
    template_arguments: dict[str, Any]
    """Variables that it was given."""
    stop_tokens: list[str]
    """Tokens at which generation stops, where the base model's makers don't list them all."""


def serving_meta(
    *, template: str | None, arguments: Mapping[str, Any], ends: Sequence[str], listed: Sequence[str]
) -> dict[str, Any]:
    """Facts to keep in the manifest of an artifact; none where a model is served as its base is.

    Args:
        template: normalization's own; None for that of the tokenizer.
        arguments: of the template.
        ends: control tokens that answers end with.
        listed: tokens at which the base model stops.
    """
    found: Serving = {}
    if template is not None:
        found["chat_template"] = template
    if arguments:
        found["template_arguments"] = dict(arguments)
    if more := [end for end in ends if end not in listed]:
        found["stop_tokens"] = [*listed, *more]
    return {_KEY: found} if found else {}


def read_serving(artifact: Path, contract: Contract) -> Serving:
    """The facts in an artifact's manifest.

    Raises:
        ContractError: the artifact is missing or of another kind.
    """
    found: Serving = read_manifest(artifact, contract)["meta"].get(_KEY, {})
    return found


def read_losses(artifact: Path, contract: Contract) -> dict[str, int]:
    """Of the completions that were encoded for an artifact, how many were rejected and truncated; empty if none was.

    Raises:
        ContractError: the artifact is missing or of another kind.
    """
    found: dict[str, int] = read_manifest(artifact, contract)["meta"].get("losses", {})
    return found


def with_defaults(template: str, arguments: Mapping[str, Any]) -> str:
    """A template that takes arguments for granted, unless whoever renders it says otherwise."""
    defaults = [
        f"{{%- if {name} is not defined %}}{{% set {name} = {json.dumps(value)} %}}{{% endif %}}"
        for name, value in arguments.items()
    ]
    # Rendering takes the line break behind a block off, and finds the template's first line as it was.
    return "".join([*defaults, "\n" if defaults else "", template])
