"""Why a row can't be used: a closed list of names, so that counts can be compared from one log to the next."""

from typing import Final

REASONS: Final[dict[str, str]] = {
    # What stands in the file is no row.
    "bad_utf8": "bytes that are no UTF-8",
    "lone_surrogate": "half of a surrogate pair, which is no character",
    "nul_character": "a NUL character",
    "json_invalid": "no JSON",
    "json_truncated": "a last line that ends in the middle, as when a writer was killed",
    "not_finite": "NaN or Infinity, which JSON can't hold",
    "duplicate_keys": "a key that stands twice in one object",
    "too_deep": "values nested too deeply",
    "row_too_long": "a row longer than max_row_bytes",
    "not_an_object": "JSON that is no object",
    "csv_invalid": "a CSV line whose quotes don't match",
    "wrong_number_of_cells": "a CSV line with more or fewer cells than the header",
    # The row is no feedback.
    "unknown_layout": "columns that fit no layout",
    "not_text": "a prompt or completion that is neither text nor a list of messages",
    "bad_messages": "messages without role and content",
    "unsupported_content": "content other than text, such as an image",
    "too_many_messages": "a conversation of too many turns",
    "bad_tools": "tools that are no list of JSON objects",
    "completion_not_assistant": "a completion that doesn't begin with a turn of the assistant",
    "empty_prompt": "no prompt",
    "empty_completion": "an empty completion",
    "no_label": "a completion without a vote",
    "unknown_label": "a vote that can't be read",
    "ignored_label": "a vote that params say is none",
    "tie": "two answers of which neither is better",
    "unrated": "an answer that nobody voted on, in a log of votes",
    "vote_without_answer": "a vote on an answer that isn't in the log",
    "ambiguous_vote": "a vote on an id that several answers have",
    "broken_answer": "an answer that was cut off while it was written, or an error in its place",
    "missing_turns": "an answer whose conversation isn't whole",
    "retracted": "a vote that was taken back",
    "after_until": "an event later than params allow",
    "split_conflict": "a prompt held out, in a conversation that is trained on, or the reverse",
    "bad_weight": "a weight that is no positive finite number",
    "no_learned_turn": "a completion of which every answer weighs 0",
    "half_pair": "only one of chosen and rejected",
    "identical_pair": "chosen and rejected are the same",
    # The row contradicts others.
    "contradictory_labels": "as many votes for as against",
    "outvoted": "a vote against the majority",
    # The row and the model don't go together.
    "no_chat_template": "messages, and a tokenizer without chat template",
    "template_error": "the chat template refuses the conversation",
    "text_not_rendered": "a text of a message that the chat template leaves out",
    "text_misplaced": "a text of a message that the chat template changes, repeats or moves",
    "prompt_not_served": "a conversation that doesn't begin with its prompt as a server sends it",
    "unclear_turns": "a completion of several turns that doesn't show where the assistant's begin and end",
    "special_token_in_text": "a control token of the model inside the text",
    "no_room_for_completion": "a prompt that leaves no token for the completion",
    "no_prompt_token": "a prompt without tokens, and a tokenizer without BOS to stand before the completion",
    "no_offsets": "a row that needs to know where its tokens stand in the text, and a tokenizer that doesn't say",
    "identical_after_truncation": "chosen and rejected differ only in what was cut off",
}


class RejectedRowError(ValueError):
    """A row can't be used.

    Args:
        reason: a key of `REASONS`.
        detail: what was found and what to do about it, one sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"expected a reason of stages.text.reasons, found {reason!r}; add it there")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
