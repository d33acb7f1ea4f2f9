"""From one row of feedback to rows of `completions`: templated, hashed, put on its side of the split."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from stages.contracts.rows import Split, canonical_json, split_of
from stages.text.chat_template import ChatRenderer, SpecialTokens
from stages.text.layouts import Feedback, Text, each_answer, from_first_answer, messages_json, of_last_answer

if TYPE_CHECKING:
    # Only for the annotation: importing transformers loads torch, which reading a log has no use for.
    from transformers import PreTrainedTokenizerBase

PlainText = Literal["auto", "as_is", "chat"]
SpecialText = Literal["refuse", "keep"]


class NormalForm:
    """Makes rows of `completions` from feedback.

    Args:
        tokenizer: tokenizer of the policy.
        renderer: renders conversations.
        plain_text: whether a prompt of plain text goes to the model as it is, or as a turn of a user; auto takes it as
            a turn where there is a chat template.
        special_tokens: whether control tokens inside plain text and messages are refused or taken as such.
        test_share: share of prompts held out.
        has_template: whether the renderer has a template of its own.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        renderer: ChatRenderer,
        *,
        plain_text: PlainText = "as_is",
        special_tokens: SpecialText = "refuse",
        test_share: float = 0.1,
        has_template: bool = False,
    ) -> None:
        self.renderer = renderer
        self.plain_text = plain_text
        if plain_text == "auto":
            self.plain_text = "chat" if has_template or tokenizer.chat_template else "as_is"
        self.special_tokens = SpecialTokens(tokenizer) if special_tokens == "refuse" else None
        self.test_share = test_share

    def settled(self, feedback: Feedback) -> list[Feedback]:
        """What is learned of a conversation: its completion, more of it, or several answers by themselves."""
        learned = self.renderer.learned_turns
        if learned == "each":
            return each_answer(feedback)
        if learned == "all":
            return [feedback]
        return [from_first_answer(feedback) if learned == "conversation" else of_last_answer(feedback)]

    def rows(self, feedback: Feedback, *, split: Split | None = None) -> list[dict[str, Any]]:
        """One row per completion, chosen before rejected; a bare prompt gives one row without completion.

        Args:
            feedback: what to make rows of, settled.
            split: side of the split; None goes by the prompt alone.

        Raises:
            RejectedRowError: the text holds control tokens, or the chat template refuses it.
        """
        if self.special_tokens is not None:
            self.special_tokens.refuse(feedback.prompt, feedback.completions, feedback.tools or [])
        as_chat = self.plain_text == "chat"
        rendered = self.renderer.render(
            _turn(feedback.prompt, "user") if as_chat else feedback.prompt,
            [_turn(completion, "assistant") if as_chat else completion for completion in feedback.completions],
            are_complete=feedback.are_complete,
            tools=feedback.tools,
        )
        prompt_id = feedback.prompt_id()
        shared = {
            "prompt_id": prompt_id,
            "pair_id": feedback.pair_id(),
            "weight": feedback.weight,
            "split": split or split_of(prompt_id, test_share=self.test_share),
            "prompt": rendered.prompt,
            "source": canonical_json(feedback.source),
        }
        if not feedback.completions:
            return [{**shared, **_own(feedback, None, None, label=None, is_complete=True)}]
        labels = (True, False) if feedback.layout == "pairs" else (feedback.label,)
        said = [
            {"spans": flat(spans), "span_weights": None if weights is None else list(weights)}
            for spans, weights in zip(rendered.spans, rendered.weights, strict=True)
        ]
        parts = zip(feedback.completions, rendered.completions, said, labels, feedback.are_complete, strict=True)
        return [
            {**shared, **_own(feedback, given, text, label=label, is_complete=is_complete), **own}
            for given, text, own, label, is_complete in parts
        ]


def _own(
    feedback: Feedback, given: Text | None, text: str | None, *, label: bool | None, is_complete: bool
) -> dict[str, Any]:
    return {
        "row_id": feedback.row_id(given),
        "label": label,
        "completion": text,
        "is_complete": is_complete,
        "messages": messages_json(feedback, given),
    }


def flat(spans: Sequence[tuple[int, int]] | None) -> list[int] | None:
    """Ranges as start, end, start, end, the way artifacts hold them; None stays None."""
    return None if spans is None else [place for span in spans for place in span]


def _turn(text: Text, role: str) -> Text:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
