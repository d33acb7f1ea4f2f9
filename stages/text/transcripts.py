"""Conversations that a log holds as one text, turn by turn, as those of Anthropic's helpful and harmless feedback."""

import re
from typing import Any

_TURN = re.compile(r"(?:\A\s*|\n\n)(?P<speaker>Human|Assistant):[ \t]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns_in(text: Any) -> list[dict[str, Any]] | None:
    """The turns of a transcript; None of any other text.

    A transcript begins with "Human:" and has a turn of the assistant, which may be empty: there the answer goes on.
    """
    if not isinstance(text, str) or not text.lstrip().startswith("Human:") or "\n\nAssistant:" not in text:
        return None
    found = list(_TURN.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    turns = [
        {"role": _ROLES[match["speaker"]], "content": text[match.end() : end].strip()}
        for match, end in zip(found, ends, strict=True)
    ]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns
