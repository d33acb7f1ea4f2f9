"""Cutting an encoded row to the lengths that training can hold."""

from typing import Literal, NamedTuple

from stages.text.encoding import EncodedRow
from stages.text.reasons import RejectedRowError

TruncationMode = Literal["keep_end", "keep_start"]


class TruncatedRow(NamedTuple):
    """A row that fits: `input_ids[:prompt_length]` is its prompt and the rest, never empty, its completion."""

    input_ids: list[int]
    prompt_length: int
    is_prompt_cut: bool
    is_completion_cut: bool

    @property
    def truncated(self) -> bool:
        """Whether anything was cut off."""
        return self.is_prompt_cut or self.is_completion_cut


def truncate(
    row: EncodedRow,
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    truncation_mode: TruncationMode = "keep_end",
) -> TruncatedRow:
    """Cut a row to fit; a row that fits is left as it is.

    First a completion is cut to `max_completion_length`. If the row is then longer than `max_length`, its prompt is
    cut to `max_prompt_length`, and what the prompt leaves of `max_length` is the completion's. Completions lose their
    end, and with it their EOS, so that no model learns to stop where an answer was cut.

    Args:
        row: ids of prompt and completion.
        max_length: most tokens of prompt and completion together, BOS and EOS included. None sets no limit.
        max_prompt_length: tokens that a prompt is cut to in a row longer than `max_length`, or in every row if that
            is None; a BOS in front is kept and not counted. None cuts no prompt.
        max_completion_length: most tokens of a completion, EOS included. None sets no limit of its own.
        truncation_mode: whether a prompt keeps its end or its start.

    Raises:
        RejectedRowError: no token is left for the completion, or none stands before it.
    """
    prompt, completion = row.prompt_ids, row.completion_ids
    if max_completion_length is not None:
        completion = completion[:max_completion_length]
    if max_length is None or len(prompt) + len(completion) > max_length:
        prompt = _cut_prompt(row, max_prompt_length, truncation_mode)
        if max_length is not None:
            completion = completion[: max(max_length - len(prompt), 0)]
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
    return TruncatedRow(
        [*prompt, *completion],
        len(prompt),
        is_prompt_cut=len(prompt) < len(row.prompt_ids),
        is_completion_cut=len(completion) < len(row.completion_ids),
    )


def _cut_prompt(row: EncodedRow, max_prompt_length: int | None, mode: TruncationMode) -> list[int]:
    start = 1 if row.starts_with_bos else 0
    bos, body = row.prompt_ids[:start], row.prompt_ids[start:]
    if max_prompt_length is None or len(body) <= max_prompt_length:
        return row.prompt_ids
    return [*bos, *(body[-max_prompt_length:] if mode == "keep_end" else body[:max_prompt_length])]
