"""Batches of pairs under the documented names, and under ours."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from stages.rows.batching import padded
from stages.rows.collation import PreferenceCollator
from stages.rows.raw import PAIR
from stages.trainers.core.scored import Batch
from stages.trainers.reward.rows import SIDES, check_max_length, unmasked


class RewardDataCollatorWithPadding:
    """Makes a batch of pairs that have the documented columns, under the documented names.

    Args:
        tokenizer: pads the rows, on the right.
        padding: True pads to the longest row of a side, "max_length" to `max_length`.
        max_length: tokens that a row is cut to. None cuts none.
        pad_to_multiple_of: number that the padded width is a multiple of. None takes the width as it is.
        return_tensors: "pt"; there is no other kind.

    Raises:
        ValueError: `padding` or `return_tensors` is something else.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        padding: bool | Literal["longest", "max_length"] = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str = "pt",
    ) -> None:
        check_max_length(max_length)
        if padding not in (True, "longest", "max_length") or return_tensors != "pt":
            raise ValueError(
                'expected padding as True, "longest" or "max_length" and return_tensors as "pt", found '
                f"{padding!r} and {return_tensors!r}; rows of different lengths make no tensor without padding"
            )
        self.tokenizer, self.padding, self.max_length = tokenizer, padding, max_length
        self.pad_to_multiple_of, self.return_tensors = pad_to_multiple_of, return_tensors

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of `features`.

        Returns:
            `input_ids_chosen`, `attention_mask_chosen` and the same for the rejected ones, of shape (n, t) with t of
            each side its own; `margin` of shape (n,) where rows have one; and `return_loss`.

        Raises:
            ValueError: a row lacks one of the documented columns, or the tokenizer a pad token.
        """
        pad_id: Any = self.tokenizer.pad_token_id
        if pad_id is None:
            raise ValueError("expected a tokenizer with a pad token, found none; set tokenizer.pad_token")
        batch: dict[str, Any] = {}
        for side in SIDES:
            missing = [name for name in (f"input_ids_{side}", f"attention_mask_{side}") if name not in features[0]]
            if missing:
                raise ValueError(f"expected a column {missing[0]} in each row, found {', '.join(features[0])}")
            ids = [unmasked(row[f"input_ids_{side}"], row[f"attention_mask_{side}"]) for row in features]
            rows = [row[: self.max_length] for row in ids]
            found = padded(rows, pad_id=pad_id, width=self._width(max(map(len, rows))))
            batch |= {f"input_ids_{side}": found.ids, f"attention_mask_{side}": found.mask}
        if "margin" in features[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in features], dtype=torch.float32)
        return {**batch, "return_loss": True}

    def _width(self, longest: int) -> int:
        width = self.max_length or self.tokenizer.model_max_length if self.padding == "max_length" else longest
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple


class PairCollator(PreferenceCollator):
    """The default collator of pairs: of our columns under our names, of the documented ones under theirs.

    Args:
        tokenizer: pads rows; None lets only rows of our columns pass.
        pad_id: id that fills short rows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, pad_id: int) -> None:
        super().__init__(pad_id)
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of `rows`; see `PreferenceCollator` and `RewardDataCollatorWithPadding`."""
        if self.tokenizer is not None and f"input_ids_{SIDES[0]}" in rows[0]:
            return RewardDataCollatorWithPadding(self.tokenizer)(rows)
        return super().__call__(rows)


def agree_on_padding(model: Any, collator: Any) -> None:
    """Let the model and the collator pad with one token: the model's, or the tokenizer's for a model without one."""
    config = getattr(model, "config", None)
    if config is None or not isinstance(collator, PreferenceCollator):
        return
    if config.pad_token_id is None:
        config.pad_token_id = collator.pad_id
    collator.pad_id = config.pad_token_id


def with_our_names(batch: Batch) -> Batch:
    """The batch with each side's tensors under our names, whichever it came with.

    Raises:
        ValueError: a tensor is missing.
    """
    found = dict(batch)
    for side, prefix in zip(SIDES, PAIR, strict=True):
        for name in ("input_ids", "attention_mask"):
            if f"{name}_{side}" in found:
                found[f"{prefix}{name}"] = found.pop(f"{name}_{side}")
            elif f"{prefix}{name}" not in found:
                raise ValueError(
                    f"expected a batch with {name}_{side}, found {', '.join(batch)}; let data_collator make it"
                )
    return found
