"""Words of a command that stand for values of params.yaml, so that no value goes through a shell.

`{inputs.feedback}` is the value of that name, and `{item}` what stands behind the @ in the name of DVC's stage, as of
"gate@bco". DVC puts values for `${...}` into the text of a command, which a shell then reads.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.-]+)\}")


def with_values(words: Sequence[str], *, value_of: Callable[[str], Any], stage: str) -> list[str]:
    """The words with values for placeholders.

    Args:
        words: of a command.
        value_of: gives the value that has a dotted name in params.yaml.
        stage: name of DVC's stage; empty for a command that DVC doesn't run.

    Raises:
        ValueError: a value is no text, or there is no item.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        found = stage.partition("@")[2] if name == "item" else value_of(name)
        if not isinstance(found, str) or not found:
            raise ValueError(f"expected text for {match[0]} in {match.string}, found {found!r}; see params.yaml")
        return found

    return [_PLACEHOLDER.sub(value, word) for word in words]
