"""Learning from answers alone, where a row is one text and a template tells where an answer begins."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from stages.losses.sft import IGNORED
from stages.rows.label_collation import LabelCollator


class DataCollatorForCompletionOnlyLM(LabelCollator, DataCollatorForLanguageModeling):
    """Makes a batch in which only answers are learned from.

    Rows are dicts with `input_ids`, or lists or tensors of ids; they are padded on the tokenizer's side. With a
    response template alone, what stands behind its last occurrence is learned. With an instruction template
    too, a conversation's every answer is: from behind each response template up to the next instruction template.

    Args:
        response_template: text, or token ids, with which an answer begins. Give ids where the tokens of the text differ
            inside a row from those that it has alone.
        instruction_template: the same of what people say; None for rows of one answer.
        tokenizer: encodes templates given as text, and names the padding.
        mlm: here for its documented place; tokens are never masked.
        ignore_index: label of what isn't learned from, which models expect to be -100.

    Raises:
        ValueError: a template has no tokens, or an argument asks for something else than completion-only learning.
    """

    def __init__(
        self,
        response_template: str | Sequence[int],
        instruction_template: str | Sequence[int] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        mlm: bool = False,
        ignore_index: int = IGNORED,
    ) -> None:
        if mlm or ignore_index != IGNORED:
            raise ValueError(f"expected mlm=False and ignore_index={IGNORED}, found {mlm} and {ignore_index}")
        if tokenizer is None:
            raise ValueError("expected a tokenizer, to encode templates and to pad with, found none")
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad_id is None:
            raise ValueError("expected a tokenizer with a pad token or an EOS, found neither; set one of the two")
        super().__init__(pad_id)
        # What the base class of transformers keeps; its own way of making labels isn't asked.
        self.tokenizer, self.mlm, self.pad_to_multiple_of, self.return_tensors = tokenizer, False, None, "pt"
        self.response_template = response_template
        self.instruction_template = instruction_template
        self.response_ids = _template_ids(response_template, tokenizer, "response_template")
        self.instruction_ids = (
            None
            if instruction_template is None
            else _template_ids(instruction_template, tokenizer, "instruction_template")
        )

    def __call__(self, features: Sequence[Any], return_tensors: str | None = None) -> dict[str, Tensor]:
        """The batch of `features`; tensors of shape (n, t) as `LabelCollator` makes them.

        Raises:
            ValueError: `return_tensors` asks for something else than tensors of torch.
        """
        if return_tensors not in {None, "pt"}:
            raise ValueError(f'expected return_tensors="pt", found {return_tensors!r}')
        rows = [row if isinstance(row, Mapping) else {"input_ids": row} for row in features]
        batch = super().__call__(rows)
        if self.tokenizer.padding_side == "right":
            return batch
        room = [batch["input_ids"].shape[1] - len(row["input_ids"]) for row in rows]
        return {
            name: torch.stack([row.roll(places) for row, places in zip(values, room, strict=True)])
            if values.ndim == 2
            else values
            for name, values in batch.items()
        }

    def torch_call(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """The same, under the name that the base class has for it."""
        return self(examples)

    def labels_of(self, row: Mapping[str, Any], ids: list[int]) -> list[int]:  # noqa: ARG002 - the ids say it all
        """Labels of a row: the ids of its answers; a row without one is warned of."""
        answers = list(self._answers(ids))
        if not answers:
            text = self.tokenizer.decode(ids)
            warnings.warn(
                f"expected the response template {self.response_template!r} in each row, found none in {text!r:.200}; "
                "nothing of it is learned",
                UserWarning,
                stacklevel=2,
            )
        labels = [IGNORED] * len(ids)
        for start, end in answers:
            labels[start:end] = ids[start:end]
        return labels

    def _answers(self, ids: list[int]) -> Iterator[tuple[int, int]]:
        """Where answers begin and end."""
        ends = [start + len(self.response_ids) for start in _occurrences(ids, self.response_ids)]
        if self.instruction_ids is None:
            if ends:
                yield ends[-1], len(ids)
            return
        instructions = _occurrences(ids, self.instruction_ids)
        for i, start in enumerate(ends):
            next_response = ends[i + 1] - len(self.response_ids) if i + 1 < len(ends) else len(ids)
            next_instruction = next((place for place in instructions if place >= start), len(ids))
            yield start, min(next_response, next_instruction)


def _template_ids(template: str | Sequence[int], tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    ids = tokenizer(template, add_special_tokens=False)["input_ids"] if isinstance(template, str) else list(template)
    if not ids:
        raise ValueError(f"expected {name} with tokens, found {template!r}")
    return ids


def _occurrences(ids: list[int], part: list[int]) -> list[int]:
    last = len(ids) - len(part)
    return [start for start in range(last + 1) if ids[start] == part[0] and ids[start : start + len(part)] == part]
