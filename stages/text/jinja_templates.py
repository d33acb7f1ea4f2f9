"""Chat templates as the programs that they are: made to give the same text each day, and named where they fail."""

import functools
import re
import traceback
from datetime import date

from jinja2.exceptions import TemplateError, TemplateSyntaxError, UndefinedError

FAILURES = (TemplateError, ValueError, TypeError, AttributeError, KeyError, IndexError, ArithmeticError)
"""What rendering raises where a template, a program that others wrote, wasn't written for a conversation."""
_NO_JINJA = "is no Jinja"
_CHANGES = "writes something else each time"
_LINES_OF_THE_CLOCK = 1
_BY_CHANCE = re.compile(r"\|\s*random\b|\blipsum\b|\bmap\(\s*[\"']random\b")
_OF_DATES = "aAbBcdeDFgGhHIjkmMnpRStTuUVwWxXyYZ"


@functools.lru_cache(maxsize=16)
def frozen_template(template: str, today: date) -> str:
    """`template` with a clock that stands still, whatever name and format it is asked by; on the line behind the first.

    Raises:
        ValueError: the template draws lots.
    """
    if found := _BY_CHANCE.search(template):
        line = template.count("\n", 0, found.start()) + 1
        raise ValueError(f"{_CHANGES}, by {found.group()!r} in its line {line}; give one that doesn't")
    if "strftime_now" not in template:
        return template
    # Variables can't be functions, so that the macro of that name, which hides the clock's, writes out each directive.
    directives = {f"%{sign}{letter}": today.strftime(f"%{sign}{letter}") for letter in _OF_DATES for sign in ("", "-")}
    written = "".join(f" | replace({name!r}, {value!r})" for name, value in directives.items())
    clock = f"{{{{ format | replace('%%', '\\0'){written} | replace('\\0', '%') }}}}"
    # Rendering takes the line break behind a block off, and finds the template's first line as it was.
    return f"{{%- macro strftime_now(format) %}}{clock}{{% endmacro %}}\n{template}"


def _line_of_failure(error: Exception) -> int | None:
    """The line of a template in which it failed, from 1; None if it didn't get that far."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    places = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == "<template>"]
    return places[-1] if places else None


def failure(error: Exception, template: str, *, whose: str) -> str:
    """What a template didn't do, in which of its lines, and what to do about it.

    Args:
        error: one of `FAILURES`, as rendering the frozen template raised it.
        template: as it was before it was frozen.
        whose: what to call the place where it is kept.
    """
    line = _line_of_failure(error)
    if line is not None and "strftime_now" in template:
        line -= _LINES_OF_THE_CLOCK
    lines = template.split("\n")
    where = f"line {line} of " if line is not None and 0 < line <= len(lines) else ""
    shown = f": {lines[line - 1].strip()!r:.80}" if where and line else ""
    what = " ".join(str(error).split())[:200]
    if _CHANGES in what:
        return f"the chat template {what}"
    if isinstance(error, TemplateSyntaxError):
        return f"{where}the chat template {_NO_JINJA}: {what}{shown}; mend that line of {whose}"
    if isinstance(error, UndefinedError):
        return (
            f"{where}the chat template asks for what the conversation hasn't: {what}{shown}; give it in the "
            f"messages or as normalization.template_arguments, or mend that line of {whose}"
        )
    return (
        f"{where}the chat template refuses the conversation: {what}; change the turns (normalization.fold_system "
        "says a system text in the user's first turn, join_turns joins turns of the user), or give a "
        "normalization.chat_template that takes them"
    )


def is_of_template(what: str) -> bool:
    """Whether a failure is that of any conversation, and not of one."""
    return any(fault in what for fault in (_NO_JINJA, _CHANGES))
