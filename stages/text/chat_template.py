"""Prompts and completions as the text that a model reads, by the chat template that its tokenizer brings.

The text of a prompt must be what the model is given when it is asked to answer, so it is rendered with the
generation prompt; one that ends with a turn of the assistant is rendered open, and the completion continues that
turn. The completion is what the whole conversation has beyond the prompt. Templates exist whose generation prompt
says more than the finished turn does; the prompt is then cut to what both share.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2.exceptions import TemplateError

from stages.text.layouts import Messages, Text
from stages.text.reasons import RejectedRowError

if TYPE_CHECKING:
    # Only for the annotation: importing transformers loads torch, which reading a log has no use for.
    from transformers import PreTrainedTokenizerBase

DEFAULT_DATE = date(2025, 1, 1)

# An answer that no template looks into and whose first character no template writes.
_PROBE = "\N{REPLACEMENT CHARACTER}probe"


class RenderedRow(NamedTuple):
    """Prompt and completions as text; a row's text is the prompt with one completion directly behind it."""

    prompt: str
    completions: tuple[str, ...]


class ChatRenderer:
    """Renders conversations through the template of one tokenizer, the same in every run.

    Args:
        tokenizer: tokenizer of the policy.
        template: Jinja text to use in place of the tokenizer's own template.
        today: day that a template which writes today's date is given, so that results don't change overnight.
        arguments: further variables for the template, such as `enable_thinking`.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: str | None = None,
        today: date = DEFAULT_DATE,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})
        self._template = template
        self._today = today
        self._open_prompt = functools.lru_cache(maxsize=1024)(self._open_prompt_of_json)

    def render(
        self,
        prompt: Text,
        completions: Sequence[Text],
        *,
        are_complete: Sequence[bool] | None = None,
        tools: Sequence[Any] | None = None,
    ) -> RenderedRow:
        """Text of a prompt and of its completions; plain text is given back as it is.

        Args:
            prompt: plain text or messages.
            completions: of the same kind as the prompt.
            are_complete: of each completion, whether it ended by itself; one that was cut off gets no end of turn.
                None says that all did.
            tools: JSON schemas of the tools offered.

        Raises:
            RejectedRowError: there is no template, or it refuses the conversation.
        """
        if isinstance(prompt, str):
            return RenderedRow(prompt, tuple(text for text in completions if isinstance(text, str)))
        tools = list(tools) if tools else None
        # Nearly always the whole of `text`; some templates write more before one answer than before another.
        text = self._open_prompt(json.dumps([prompt, tools]))
        complete = are_complete or [True] * len(completions)
        wholes = [
            self._whole(prompt, completion, tools, is_complete=is_complete)
            for completion, is_complete in zip(completions, complete, strict=True)
            if not isinstance(completion, str)
        ]
        text = _shared_start(text, *wholes)
        rests = tuple(whole[len(text) :] for whole in wholes)
        if not text or not all(rest.strip() for rest in rests):
            raise RejectedRowError(
                "template_error", "the chat template leaves nothing of the prompt or of the completion"
            )
        return RenderedRow(text, rests)

    def _open_prompt_of_json(self, key: str) -> str:
        """Text of a prompt up to where an answer begins, whatever the answer is."""
        # Read back from JSON rather than handed over, because lists are no keys of a cache.
        prompt, tools = json.loads(key)
        if _is_open(prompt):
            rendered = self._render(prompt, tools, continue_final_message=True)
        else:
            rendered = self._render(prompt, tools, add_generation_prompt=True)
        probe = self._render(_joined(prompt, [{"role": "assistant", "content": _PROBE}]), tools)
        return _shared_start(rendered, probe)

    def _whole(self, prompt: Messages, completion: Messages, tools: list[Any] | None, *, is_complete: bool) -> str:
        messages = _joined(prompt, completion)
        if not is_complete:
            return self._render(messages, tools, continue_final_message=True)
        text = self._render(messages, tools)
        # Generation stops at EOS, so a line break that the template writes behind it is never sampled or scored.
        eos = self.tokenizer.eos_token
        return text.rstrip() if isinstance(eos, str) and eos and text.rstrip().endswith(eos) else text

    def _render(self, messages: Messages, tools: list[Any] | None, **flags: Any) -> str:
        template = self._template or self._own_template(has_tools=bool(tools))
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=frozen_template(template, self._today),
                tokenize=False,
                **flags,
                **self.arguments,
            )
        # Templates are programs that others wrote: they fail in their own ways on what they weren't written for.
        except (TemplateError, ValueError, TypeError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
            raise RejectedRowError(
                "template_error", f"the chat template failed: {' '.join(str(error).split())[:200]}"
            ) from None
        return str(rendered)

    def _own_template(self, *, has_tools: bool) -> str:
        if not self.tokenizer.chat_template:
            raise RejectedRowError(
                "no_chat_template",
                "expected a tokenizer with a chat template for a row of messages, found none; give one as "
                "normalization.chat_template, or take a base model that has one",
            )
        return str(self.tokenizer.get_chat_template(None, [{}] if has_tools else None))


@functools.lru_cache(maxsize=16)
def frozen_template(template: str, today: date) -> str:
    """`template` with the current date replaced by `today`.

    Raises:
        ValueError: the template asks for the time in a way that can't be replaced.
    """

    def written(match: re.Match[str]) -> str:
        return repr(today.strftime(match["format"]))

    frozen = re.sub(r"strftime_now\s*\(\s*(?P<quote>[\"'])(?P<format>.*?)(?P=quote)\s*\)", written, template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise ValueError("the chat template asks for the time under a computed format; give one that doesn't")
    return frozen


class SpecialTokens:
    """The control tokens of a tokenizer, to be looked for in what people wrote.

    In text that is encoded with the template's own control tokens, one that somebody typed would end their turn and
    begin another.

    Args:
        tokenizer: tokenizer of the policy.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.tokens = sorted({*added, *map(str, tokenizer.all_special_tokens)} - {""})
        self._pattern = (
            re.compile("|".join(map(re.escape, sorted(self.tokens, key=len, reverse=True)))) if self.tokens else None
        )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        matches_normalized = any(token.normalized for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._normalizer = backend.normalizer if backend is not None and matches_normalized else None

    def find(self, *values: Any) -> str | None:
        """A control token inside any text of `values`, looked for in lists and objects too; None without one."""
        if self._pattern is None:
            return None
        for text in _texts(values):
            found = self._pattern.search(text)
            if found is None and self._normalizer is not None:
                found = self._pattern.search(self._normalizer.normalize_str(text))
            if found is not None:
                return found.group()
        return None

    def refuse(self, *values: Any) -> None:
        """Raise if any text of `values` holds a control token.

        Raises:
            RejectedRowError: it does.
        """
        if found := self.find(*values):
            raise RejectedRowError(
                "special_token_in_text",
                f"the text holds the control token {found}; if the log is already templated, set "
                "normalization.special_tokens: keep",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value))
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def _shared_start(*texts: str) -> str:
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _is_open(prompt: Messages) -> bool:
    return bool(prompt[-1]["role"] == "assistant")


def _joined(prompt: Messages, completion: Messages) -> Messages:
    """The whole conversation; a completion of an open turn of the assistant continues that turn."""
    if not _is_open(prompt):
        return [*prompt, *completion]
    turn = {**completion[0], **prompt[-1], "content": prompt[-1]["content"] + completion[0]["content"]}
    return [*prompt[:-1], turn, *completion[1:]]
