"""Prompts and completions as the text that a model reads, by the chat template that its tokenizer brings.

The text of a prompt is what a server sends, to the byte: the prompt's turns with the generation prompt, or, where they
end with a turn of the assistant, that turn left open. The completion is what the whole conversation has behind it, up
to the token at which generation stops. Every text of every message is looked up in both (`stages.text.marks`), so that
a template which drops, changes, repeats or moves one costs the row, with a reason, and never its meaning.
"""

import contextlib
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stages.text.jinja_templates import FAILURES, failure, frozen_template, is_of_template
from stages.text.layouts import Messages, Text
from stages.text.marks import REASONING_FIELD, Found, Piece, Place, check_numbers, find_pieces, marked, said_by
from stages.text.message_forms import (
    CHANGES,
    Form,
    as_parts,
    canonical,
    changed,
    forms_of,
    in_form,
    joined,
)
from stages.text.reasons import RejectedRowError

if TYPE_CHECKING:
    # Only for the annotation: importing transformers loads torch, which reading a log has no use for.
    from transformers import PreTrainedTokenizerBase

DEFAULT_DATE = date(2025, 1, 1)

EarlierThoughts = Literal["refuse", "as_served"]
LearnedTurns = Literal["all", "last", "conversation", "each"]
_Spans = tuple[Place, ...]
_OPEN, _CLOSE = "<think>", "</think>"

_LIKE_CONTROL = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>")

# What nobody says, to see what a template writes around it.
_PROBE = ("plumbline asks", "plumbline answers")


class RenderedRow(NamedTuple):
    """Prompt and completions as text; a row's text is the prompt with one completion directly behind it."""

    prompt: str
    completions: tuple[str, ...]
    spans: tuple[_Spans | None, ...] = ()
    """Of each completion, the ranges of characters that the assistant said; None where it said all of it."""
    weights: tuple[tuple[float, ...] | None, ...] = ()
    """Of each completion, what each of those ranges weighs; None where all count alike."""


class _Served(NamedTuple):
    text: str
    tail: str  # what the template writes behind the last text of the prompt, up to where the answer begins


class _Turns(NamedTuple):
    """A whole conversation, rendered."""

    messages: Messages
    text: str
    found: list[Found]

    def of_answer(self, turn: int) -> list[Found]:
        """The pieces of a turn that aren't the prompt's."""
        return [item for item in self.found if item.piece.turn == turn and not item.piece.is_prompt]

    def end_before(self, start: int) -> int:
        """Where the last text in front of a place ends."""
        return max((item.end for item in self.found if item.end <= start), default=0)

    def behind(self, end: int) -> str:
        """What the template writes from a place up to the next text."""
        return self.text[end : min((item.start for item in self.found if item.start >= end), default=len(self.text))]


class ChatRenderer:
    """Renders conversations through the template of one tokenizer, the same in every run.

    Args:
        tokenizer: tokenizer of the policy.
        template: Jinja text to use in place of the tokenizer's own template.
        today: day that a template which writes today's date is given, so that results don't change overnight.
        arguments: further variables for the template, such as `enable_thinking`.
        stop_tokens: tokens at which generation stops, as the model's makers list them; the tokenizer's EOS and the
            template's end of turn count besides.
        earlier_thoughts: whether a prompt whose template leaves out what the assistant thought in earlier turns is
            refused, or taken as the server sends it.
        fold_system: whether a system text that the template doesn't take is said in the user's first turn instead.
        join_turns: whether turns of the user in a row that the template doesn't take are one turn instead.
        learned_turns: whether of a completion of several turns all answers are learned, or the `last` one; what the
            completion of a whole conversation is has been settled before.
        turn_decay: what an answer weighs for each one that comes after it in its completion.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: str | None = None,
        today: date = DEFAULT_DATE,
        arguments: Mapping[str, Any] | None = None,
        stop_tokens: Sequence[str] = (),
        earlier_thoughts: EarlierThoughts = "refuse",
        fold_system: bool = False,
        join_turns: bool = False,
        learned_turns: LearnedTurns = "all",
        turn_decay: float = 1.0,
    ) -> None:
        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})
        self.earlier_thoughts = earlier_thoughts
        self.learned_turns = learned_turns
        self.turn_decay = turn_decay
        self._changes = tuple(name for name, asked in zip(CHANGES, (fold_system, join_turns), strict=True) if asked)
        self.said: Counter[str] = Counter()
        """What was done to rows that a reader of the run should know of."""
        self._learned_ends: dict[str, None] = {}
        self._rendered_any = False
        self._template = template
        self._today = today
        self._listed = [token for token in (*stop_tokens, tokenizer.eos_token) if isinstance(token, str) and token]
        self._served = functools.lru_cache(maxsize=1024)(self._served_of_json)

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
            RejectedRowError: there is no template, it refuses the conversation, or it doesn't render every text of it
                once, in order, on its side.
        """
        if isinstance(prompt, str):
            texts = tuple(text for text in completions if isinstance(text, str))
            return RenderedRow(prompt, texts, (None,) * len(texts), (None,) * len(texts))
        answers = [canonical(completion) for completion in completions if not isinstance(completion, str)]
        first = canonical(prompt)
        complete = are_complete or [True] * len(answers)
        weights = [self._weights(completion) for completion in completions if not isinstance(completion, str)]
        template = self._text(has_tools=bool(tools))
        error: RejectedRowError | None = None
        for changes, asked in changed(first, self._changes):
            said = [joined(answer) for answer in answers] if "turns_joined" in changes else answers
            for form in forms_of([*asked, *chain.from_iterable(said)], template):
                try:
                    found = self._rendered(asked, said, complete, list(tools) if tools else None, form)
                except RejectedRowError as rejected:
                    error = error or rejected
                else:
                    self._rendered_any = True
                    self.said.update([*form.said(), *changes])
                    if any(message.get("weight") for message in prompt):
                        self.said["weights_in_prompt"] += 1
                    found = _with_weights(found, weights)
                    self._note_ends(found, complete)
                    return found
        raise error or RejectedRowError("template_error", "there is no way to render the conversation")

    def sentences(self) -> list[str]:
        """What was changed of the turns, for a reader of the run."""
        told = {
            "system_folded": "a system text, which the template doesn't take, was said in the user's first turn",
            "thoughts_closed": "an answer closes the thought, empty or not, that the server's prompt opens",
            "turns_joined": "turns of the user in a row, which the template doesn't take, were joined",
            "weights_in_prompt": "an answer in the prompt has a weight, and prompts aren't learned; set "
            "normalization.learned_turns: conversation or each to learn the earlier answers of demonstrations too",
        }
        found = [f"in {self.said[name]:,} rows {what}" for name, what in told.items() if self.said[name]]
        if self._rendered_any and (unknown := self.unknown_tokens()):
            found.append(
                f"the chat template writes {', '.join(unknown)}, which the tokenizer doesn't know and takes for plain "
                "text; take a template that was made for it, or a base model whose tokenizer has them"
            )
        return found

    def unknown_tokens(self) -> list[str]:
        """What looks like a control token in what the template writes around a turn, and is none of the tokenizer's."""
        asked, said = (
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), _PROBE, strict=True)
        )
        try:
            text = self._render([asked, said, asked], None, add_generation_prompt=True)
        except RejectedRowError:
            return []
        vocabulary = self.tokenizer.get_vocab()
        return [token for token in dict.fromkeys(_LIKE_CONTROL.findall(text)) if token not in vocabulary]

    def ends(self) -> list[str]:
        """Control tokens that answers end with: the template's end of turn, and others of rows rendered so far."""
        return list(dict.fromkeys([*filter(None, [self.turn_end()]), *self._learned_ends]))

    def _note_ends(self, row: RenderedRow, are_complete: Sequence[bool]) -> None:
        """Keep the control tokens that answers end with and that nobody lists, such as one behind a call."""
        for text, spans, is_complete in zip(row.completions, row.spans, are_complete, strict=True):
            for start, end in spans or ((0, len(text)),):
                found = self._control_tokens(text[start:end]) if is_complete or end < len(text) else []
                if found and start + found[-1].end() == end and found[-1].group() not in self._listed:
                    self._learned_ends[found[-1].group()] = None

    def turn_end(self) -> str | None:
        """The control token that the template ends a turn of the assistant with; None without one or a template."""
        try:
            return self._turn_end
        except RejectedRowError:
            return None

    @functools.cached_property
    def _turn_end(self) -> str | None:
        asked, said = (
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), _PROBE, strict=True)
        )
        for form in forms_of([asked, said], self._text(has_tools=False)):
            try:
                ends = [
                    self._render(as_parts(messages, form), None).partition(_PROBE[1])[2]
                    for messages in ([asked, said], [asked, said, asked, said])
                ]
            except RejectedRowError:
                continue
            if found := self._control_tokens(_shared_start(*ends)):
                return found[-1].group()
        return None

    @functools.cached_property
    def _opening(self) -> str:
        """What the template writes between the generation prompt and an answer, such as an empty thought."""
        asked, said = (
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), _PROBE, strict=True)
        )
        try:
            prompt = self._render([asked], None, add_generation_prompt=True)
            whole = self._render([asked, said], None)
        except RejectedRowError:
            return ""
        return whole[len(prompt) :].partition(_PROBE[1])[0] if whole.startswith(prompt) else ""

    @functools.cached_property
    def _header(self) -> str:
        """What the template asks for an answer with; empty if that can't be told."""
        asked = [{"role": "user", "content": _PROBE[0]}]
        try:
            bare = self._render(asked, None)
            prompt = self._render(asked, None, add_generation_prompt=True)
        except RejectedRowError:
            return ""
        return prompt[len(bare) :].strip() if prompt.startswith(bare) else ""

    def _control_tokens(self, text: str) -> list[re.Match[str]]:
        pattern = self._specials.pattern
        return [] if pattern is None else list(pattern.finditer(text))

    @functools.cached_property
    def _specials(self) -> "SpecialTokens":
        return SpecialTokens(self.tokenizer)

    def _rendered(
        self,
        prompt: Messages,
        answers: Sequence[Messages],
        are_complete: Sequence[bool],
        tools: list[Any] | None,
        form: Form,
    ) -> RenderedRow:
        # A thought that a server is given in a field never gets into its prompt between tags of ours.
        asked = in_form(prompt, form._replace(reasoning="field"))
        # Read back from JSON rather than handed over, because lists are no keys of a cache.
        served = self._served(json.dumps([asked, tools, form, _is_open(asked)]))
        found = [
            self._answered(asked, in_form(answer, form), served, tools, form, is_complete=is_complete)
            for answer, is_complete in zip(answers, are_complete, strict=True)
        ]
        return RenderedRow(served.text, tuple(text for text, _ in found), tuple(spans for _, spans in found))

    def _served_of_json(self, key: str) -> _Served:
        """A prompt as a server sends it; its last turn is continued or answered."""
        prompt, tools, form, is_continued = json.loads(key)
        flags = {"continue_final_message" if is_continued else "add_generation_prompt": True}
        turns = self._turns(prompt, tools, Form(*form), num_prompt_turns=len(prompt), **flags)
        if not turns.text.strip():
            raise RejectedRowError("template_error", "the chat template leaves nothing of the prompt")
        return _Served(turns.text, turns.text[turns.end_before(len(turns.text)) :])

    def _turns(
        self, messages: Messages, tools: list[Any] | None, form: Form, *, num_prompt_turns: int, **options: Any
    ) -> _Turns:
        seam = options.pop("seam", None)
        is_prompt = num_prompt_turns == len(messages)
        text = self._render(as_parts(messages, form), tools, **options)
        conversation = marked(messages, num_prompt_turns=num_prompt_turns, seam=seam)
        rendered = self._render(as_parts(conversation.messages, form), tools, **options)
        drops_thoughts = self.earlier_thoughts == "as_served"

        def may_miss(piece: Piece) -> bool:
            # What a prompt must hold is looked up in the prompt that the server sends.
            return piece.is_prompt and (not is_prompt or (drops_thoughts and piece.is_thought))

        found = find_pieces(text, rendered, conversation, may_miss=may_miss)
        check_numbers(text, found, messages)
        return _Turns(messages, text, found)

    def _answered(
        self,
        prompt: Messages,
        answer: Messages,
        served: _Served,
        tools: list[Any] | None,
        form: Form,
        *,
        is_complete: bool,
    ) -> tuple[str, _Spans | None]:
        """A completion, also where the server's prompt opens a thought that the template never writes into answers."""
        try:
            return self._answer(prompt, answer, served, tools, form, is_complete=is_complete)
        except RejectedRowError:
            template = self._text(has_tools=bool(tools))
            always_opens = served.tail.rstrip().endswith(_OPEN) and _CLOSE in template and "enable_" not in template
            # In tags of ours, earlier thoughts would be in a prompt that no server sends.
            is_alone = len(answer) == 1 and form.reasoning == "field"
            found = None
            if always_opens and is_alone and answer[0]["role"] == "assistant" and not _is_open(prompt):
                with contextlib.suppress(RejectedRowError):
                    found = self._behind_thought(prompt, answer[0], served, tools, form, is_complete=is_complete)
            if found is None:
                raise
        self.said["thoughts_closed"] += 1
        return found, None

    def _behind_thought(
        self,
        prompt: Messages,
        answer: dict[str, Any],
        served: _Served,
        tools: list[Any] | None,
        form: Form,
        *,
        is_complete: bool,
    ) -> str | None:
        """The answer behind its thought, empty or not, as a model closes one; None where the turns don't fit that."""
        bare = {name: value for name, value in answer.items() if name != REASONING_FIELD}
        thought, content = answer.get(REASONING_FIELD) or "", bare.get("content")
        if isinstance(content, str) and _CLOSE in content:
            inside, _, bare["content"] = content.partition(_CLOSE)
            thought += inside.strip().removeprefix(_OPEN)
        whole = [*prompt, bare]
        turns = self._turns(whole, tools, form, num_prompt_turns=len(prompt))
        own = turns.of_answer(len(prompt))
        if not own:
            return None
        start = min(item.start for item in own)
        asked = served.text.rstrip().removesuffix(_OPEN).rstrip()
        if not turns.text.startswith(asked) or len(asked) < turns.end_before(start):
            return None
        if not bare.get("tool_calls"):
            if turns.text[len(asked) : start].strip():
                return None
        else:
            # What the template writes in front of a call is the assistant's too.
            start = len(asked) + len(turns.text[len(asked) :]) - len(turns.text[len(asked) :].lstrip())
        end = self._last_end(turns, len(prompt), is_complete=is_complete)
        return f"{thought.strip()}\n{_CLOSE}\n\n{turns.text[start:end]}"

    def _answer(
        self,
        prompt: Messages,
        answer: Messages,
        served: _Served,
        tools: list[Any] | None,
        form: Form,
        *,
        is_complete: bool,
    ) -> tuple[str, _Spans | None]:
        """Text of a completion, and what of it the assistant said."""
        if answer[-1]["role"] != "assistant":
            raise RejectedRowError(
                "completion_not_assistant",
                "expected a completion that ends with an answer of the assistant, found a turn of "
                f"{answer[-1]['role']:.40}; leave that turn out",
            )
        first = len(prompt) - _is_open(prompt)
        seam = len(prompt[-1]["content"]) if _is_open(prompt) else None
        whole = _joined(prompt, answer)
        turns = self._turns(whole, tools, form, num_prompt_turns=first, seam=seam)
        spoken = [turn for turn in range(first, len(whole)) if whole[turn]["role"] == "assistant"]
        for turn in spoken:
            if not turns.of_answer(turn):
                raise RejectedRowError("empty_completion", f"message {turn + 1} (assistant) says nothing")
        begin = self._seam(served, turns, first)
        starts = [begin, *(self._start(turns, turn, tools, form) for turn in spoken[1:])]
        ends = [self._end(turns, turn, tools, form) for turn in spoken[:-1]]
        ends.append(self._last_end(turns, spoken[-1], is_complete=is_complete))
        self._check_starts(turns, spoken, starts, ends)
        spans = tuple((start - begin, end - begin) for start, end in zip(starts, ends, strict=True))
        text = turns.text[begin : ends[-1]]
        return text, None if spans == ((0, len(text)),) else spans

    def _weights(self, answer: Messages) -> list[float]:
        """What each turn of the assistant weighs; 0 for one that isn't learned.

        Raises:
            RejectedRowError: none is learned.
        """
        given = [message.get("weight", 1.0) for message in answer if message["role"] == "assistant"]
        last = len(given) - 1
        found = [weight * self.turn_decay ** (last - place) for place, weight in enumerate(given)]
        if self.learned_turns == "last":
            found[:-1] = [0.0] * last
        if found and not any(found):
            raise RejectedRowError(
                "no_learned_turn",
                "expected an answer to learn, found a completion of which every one weighs 0; leave the row out, or "
                "give one of its messages a weight",
            )
        return found

    def _check_starts(self, turns: _Turns, spoken: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> None:
        """See that no answer holds the end of another one, or the words that a server asks for it with."""
        for turn, start, before in zip(spoken, starts, [0, *ends[:-1]], strict=True):
            opening = turns.text[start : min(item.start for item in turns.of_answer(turn))]
            if start < before or (self._header and self._header in opening):
                raise RejectedRowError(
                    "unclear_turns",
                    f"message {turn + 1} (assistant): the chat template begins the answer with {opening!r:.60}, which "
                    "isn't the assistant's to say; log each answer as a row of its own, or give a "
                    "normalization.chat_template whose generation prompt is the same behind every turn",
                )

    def _seam(self, served: _Served, turns: _Turns, first: int) -> int:
        """Where the completion begins in the whole conversation."""
        start = min(item.start for item in turns.of_answer(first))
        is_before = [item.end <= start for item in turns.found if item.piece.is_prompt]
        thinks = any(item.piece.is_thought for item in turns.of_answer(first))
        if _CLOSE in served.tail and thinks:
            # The template may write the thought behind the one that the server's prompt has closed already.
            raise self._not_served(served, turns, first, start)
        if turns.text.startswith(served.text) and len(served.text) <= start and all(is_before):
            return len(served.text)
        end = turns.end_before(start)
        gap = turns.text[end:start]
        # What was said before may be rendered otherwise once it is answered (a system text in the last turn of the
        # user, say): the prompt is then the server's, if the answer follows on the same words all the same.
        if (
            all(is_before)
            and gap.startswith(served.tail)
            and gap[len(served.tail) :].strip() in ("", self._opening.strip())
        ):
            return end + len(served.tail)
        raise self._not_served(served, turns, first, start)

    def _not_served(self, served: _Served, turns: _Turns, first: int, start: int) -> RejectedRowError:
        """That the answer, whose first text stands at `start`, doesn't follow on the prompt that a server sends."""
        return RejectedRowError(
            "prompt_not_served",
            f"{said_by(turns.of_answer(first)[0].piece, turns.messages)}: a server asks with a prompt that ends in "
            f"{served.text[-40:]!r}, and the conversation with its answer goes on otherwise, with "
            f"{turns.text[max(start - 40, 0) : start]!r}; {self._way_to_serve(served, turns, first)}, or give a "
            "normalization.chat_template that begins the whole conversation with the prompt",
        )

    def _way_to_serve(self, served: _Served, turns: _Turns, first: int) -> str:
        """What to do about an answer that doesn't follow on the prompt that a server sends."""
        thinks = any(item.piece.is_thought for item in turns.of_answer(first))
        if _CLOSE in served.tail and thinks:
            return "leave the thought out of the row, or set template_arguments so that your server lets it think"
        if len(turns.messages) > first + 1:
            return (
                "the template writes an answer otherwise once other turns follow it: log each answer as a row of its "
                "own, as normalization.learned_turns: each does with demonstrations, or set last, which puts the "
                "earlier answers of what isn't a pair into the prompt"
            )
        if served.tail.rstrip().endswith(_OPEN) and not thinks:
            return (
                "log the thinking as reasoning_content, or, if your server doesn't let the model think, set "
                "template_arguments as it does (such as enable_thinking: false)"
            )
        return "set template_arguments as your server does"

    def _start(self, turns: _Turns, turn: int, tools: list[Any] | None, form: Form) -> int:
        """Where a later turn of the assistant begins: behind what a server would ask for it with."""
        own = turns.of_answer(turn)
        start = min(item.start for item in own)
        end = turns.end_before(start)
        try:
            tail = self._served(json.dumps([turns.messages[:turn], tools, form, False])).tail
        except RejectedRowError:
            tail = None
        if tail is not None and turns.text.startswith(tail, end) and end + len(tail) <= start:
            return end + len(tail)
        return self._only_words(own, start, turns)

    def _end(self, turns: _Turns, turn: int, tools: list[Any] | None, form: Form) -> int:
        """Where an earlier turn of the assistant ends, its end of turn included."""
        own = turns.of_answer(turn)
        end = max(item.end for item in own)
        behind = turns.behind(end)
        if (stop := self._stop(behind)) is not None:
            return end + stop
        try:
            until = self._turns(turns.messages[: turn + 1], tools, form, num_prompt_turns=0)
        except RejectedRowError:
            return self._only_words(own, end, turns)
        tail = until.text[until.end_before(len(until.text)) :].rstrip()
        if tail and behind.startswith(tail):
            return end + len(tail)
        return self._only_words(own, end, turns)

    def _last_end(self, turns: _Turns, turn: int, *, is_complete: bool) -> int:
        end = max(item.end for item in turns.of_answer(turn))
        if not is_complete:
            return end
        behind = turns.text[end:]
        if (stop := self._stop(behind)) is not None:
            return end + stop
        found = self._control_tokens(behind)
        return end + (found[-1].end() if found else len(behind.rstrip()))

    def _stop(self, text: str) -> int | None:
        """Where the first token in `text` ends at which generation stops."""
        stops = {*self._listed, *([self._turn_end] if self._turn_end else [])}
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        return min(ends, default=None)

    def _only_words(self, own: Sequence[Found], place: int, turns: _Turns) -> int:
        """`place`, for a turn of words alone; what the template writes around a call is the assistant's too."""
        if any(item.piece.kind != "text" for item in own):
            raise RejectedRowError(
                "unclear_turns",
                f"message {own[0].piece.turn + 1} ({turns.messages[own[0].piece.turn]['role']}): where the call begins "
                "and ends can't be told from what the chat template writes around it; log each answer as a row of its "
                "own",
            )
        return place

    def _render(self, messages: Messages, tools: list[Any] | None, **flags: Any) -> str:
        template = self._text(has_tools=bool(tools))
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=frozen_template(template, self._today),
                tokenize=False,
                **flags,
                **self.arguments,
            )
        except FAILURES as error:
            raise RejectedRowError("template_error", failure(error, template, whose=self._whose)) from None
        return str(rendered)

    @property
    def _whose(self) -> str:
        return "the tokenizer's chat_template" if self._template is None else "normalization.chat_template"

    def check_syntax(self) -> None:
        """See that the template given in place of the tokenizer's own can be used at all, before it costs every row.

        Raises:
            ValueError: it is no Jinja, or draws lots; the line is named.
        """
        if self._template is None:
            return
        try:
            self._render([{"role": "user", "content": _PROBE[0]}], None)
        except RejectedRowError as rejected:
            if is_of_template(rejected.detail):
                raise ValueError(f"normalization.chat_template: {rejected.detail}") from None

    def _text(self, *, has_tools: bool) -> str:
        if self._template is not None:
            return self._template
        if not self.tokenizer.chat_template:
            raise RejectedRowError(
                "no_chat_template",
                "expected a tokenizer with a chat template for a row of messages, found none; give one as "
                "normalization.chat_template, or take a base model that has one",
            )
        return str(self.tokenizer.get_chat_template(None, [{}] if has_tools else None))


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
        self.pattern = (
            re.compile("|".join(map(re.escape, sorted(self.tokens, key=len, reverse=True)))) if self.tokens else None
        )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        matches_normalized = any(token.normalized for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._normalizer = backend.normalizer if backend is not None and matches_normalized else None

    def find(self, *values: Any) -> str | None:
        """A control token inside any text of `values`, looked for in lists and objects too; None without one."""
        if self.pattern is None:
            return None
        for text in _texts(values):
            found = self.pattern.search(text)
            if found is None and self._normalizer is not None:
                found = self.pattern.search(self._normalizer.normalize_str(text))
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


def _with_weights(row: RenderedRow, weights: Sequence[Sequence[float]]) -> RenderedRow:
    """`row` without the spans that weigh 0, and with the weights of the others where they don't count alike."""
    spans, kept = [], []
    for text, found, of_turns in zip(row.completions, row.spans, weights, strict=True):
        whole = ((0, len(text)),)
        learned = [item for item in zip(found or whole, of_turns, strict=True) if item[1] > 0]
        own = tuple(span for span, _ in learned)
        spans.append(None if own == whole else own)
        kept.append(None if {weight for _, weight in learned} == {1.0} else tuple(weight for _, weight in learned))
    return row._replace(spans=tuple(spans), weights=tuple(kept))


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
