"""Cutting an encoded row to the lengths that training can hold."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

from stages.text.encoding import EncodedRow
from stages.text.reasons import RejectedRowError

TruncationMode = Literal["keep_end", "keep_start"]


class TruncatedRow(NamedTuple):
    """A row that fits: `input_ids[:prompt_length]` is its prompt and the rest, never empty, its completion."""

    input_ids: list[int]
    prompt_length: int
    is_prompt_cut: bool
    is_completion_cut: bool
    spans: list[int] | None = None
    """Tokens of what is left of the completion that the assistant said; None where it said all."""

    @property
    def truncated(self) -> bool:
        """Whether anything was cut off."""
        return self.is_prompt_cut or self.is_completion_cut


def truncate(row: EncodedRow, **lengths: Any) -> TruncatedRow:
    """Cut a row by itself; the lengths are those of `truncate_together`."""
    return truncate_together([row], **lengths)[0]


def truncate_together(
    rows: Sequence[EncodedRow],
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    truncation_mode: TruncationMode = "keep_end",
) -> list[TruncatedRow]:
    """Cut the completions of one prompt to fit, each behind the same tokens of the prompt; what fits is left as it is.

    First a completion is cut to `max_completion_length`. If a row is then longer than `max_length`, the prompt is
    cut to `max_prompt_length`, in all rows, and what the prompt leaves of `max_length` is a completion's. Completions
    lose their end, and with it their EOS, so that no model learns to stop where an answer was cut.

    Args:
        rows: ids of the prompt and of one completion each: a row, or the two of a pair.
        max_length: most tokens of prompt and completion together, BOS and EOS included. None sets no limit.
        max_prompt_length: tokens that a prompt is cut to where a row is longer than `max_length`, or always if that
            is None; a BOS in front is kept and not counted. None cuts no prompt.
        max_completion_length: most tokens of a completion, EOS included. None sets no limit of its own.
        truncation_mode: whether a prompt keeps its end or its start.

    Raises:
        RejectedRowError: no token is left for a completion, or none stands before it.
    """
    completions = [row.completion_ids[:max_completion_length] for row in rows]
    longest = max(len(row.prompt_ids) + len(ids) for row, ids in zip(rows, completions, strict=True))
    is_too_long = max_length is None or longest > max_length
    found = []
    for row, ids in zip(rows, completions, strict=True):
        prompt = _cut_prompt(row, max_prompt_length, truncation_mode) if is_too_long else row.prompt_ids
        completion = ids if max_length is None else ids[: max(max_length - len(prompt), 0)]
        if not prompt:
            raise RejectedRowError(
                "no_prompt_token", "the first token of a completion needs one before it to be predicted from"
            )
        if not completion:
            raise RejectedRowError(
                "no_room_for_completion",
                f"a prompt of {len(prompt)} tokens leaves none of max_length={max_length} for the completion; "
                "lower max_prompt_length or raise max_length",
            )
        cut = TruncatedRow(
            [*prompt, *completion],
            len(prompt),
            is_prompt_cut=len(prompt) < len(row.prompt_ids),
            is_completion_cut=len(completion) < len(row.completion_ids),
            spans=cut_spans(row.spans, len(completion)),
        )
        if cut.spans == []:
            raise RejectedRowError(
                "no_room_for_completion",
                f"of a completion cut to {len(completion)} tokens, the assistant said none; lower max_prompt_length or "
                "raise max_length",
            )
        found.append(cut)
    return found


def cut_spans(spans: Sequence[int] | None, length: int) -> list[int] | None:
    """Ranges of tokens within the first `length` of a completion; None stays None."""
    if spans is None:
        return None
    pairs = zip(spans[::2], spans[1::2], strict=True)
    return [place for begin, end in pairs if begin < length for place in (begin, min(end, length))]


def cut_weights(weights: Sequence[float] | None, spans: Sequence[int] | None) -> list[float] | None:
    """Weights of the ranges that `cut_spans` left; None stays None."""
    return None if weights is None else list(weights[: 1 if spans is None else len(spans) // 2])


def truncate_apart(
    rows: Sequence[EncodedRow],
    *,
    special_ids: Collection[int],
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    truncation_mode: TruncationMode = "keep_end",
) -> list[TruncatedRow]:
    """Cut rows of an encoder-decoder, whose two halves read prompt and completion apart: each by itself.

    Args:
        rows: ids of the prompt and of one completion each: a row, or the two of a pair.
        special_ids: ids that the tokenizer sets around a text. A prompt keeps its first and its last token if they are
            such; a completion that is cut loses its last one, so that no model learns to stop where an answer was cut.
        max_length: what limits a prompt or a completion that has no length of its own. None sets no limit.
        max_prompt_length: most tokens of a prompt, special ones included.
        max_completion_length: most tokens of a completion, EOS included.
        truncation_mode: whether a prompt keeps its end or its start.

    Raises:
        RejectedRowError: a prompt or a completion has no token.
    """
    prompt_limit = max_length if max_prompt_length is None else max_prompt_length
    completion_limit = max_length if max_completion_length is None else max_completion_length
    found = []
    for row in rows:
        prompt, completion = row.prompt_ids, row.completion_ids[:completion_limit]
        if not prompt or not completion:
            raise RejectedRowError(
                "empty_completion" if prompt else "empty_prompt", "expected a token of prompt and completion each"
            )
        if prompt_limit is not None and len(prompt) > prompt_limit:
            begin, end = (ids if ids[0] in special_ids else [] for ids in (prompt[:1], prompt[-1:]))
            body = prompt[len(begin) : len(prompt) - len(end)]
            room = max(prompt_limit - len(begin) - len(end), 0)
            prompt = [*begin, *(body[len(body) - room :] if truncation_mode == "keep_end" else body[:room]), *end]
        cut = TruncatedRow(
            [*prompt, *completion],
            len(prompt),
            is_prompt_cut=len(prompt) < len(row.prompt_ids),
            is_completion_cut=len(completion) < len(row.completion_ids),
        )
        found.append(cut)
    return found


def _cut_prompt(row: EncodedRow, max_prompt_length: int | None, mode: TruncationMode) -> list[int]:
    start = 1 if row.starts_with_bos else 0
    bos, body = row.prompt_ids[:start], row.prompt_ids[start:]
    if max_prompt_length is None or len(body) <= max_prompt_length:
        return row.prompt_ids
    return [*bos, *(body[-max_prompt_length:] if mode == "keep_end" else body[:max_prompt_length])]
