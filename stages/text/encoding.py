"""Token ids of prompts and completions, such that a prompt's ids are the same whatever is said after it.

Joining two texts can change the tokens around the seam: "wor" and "ld" become one token "world". So a prompt is
encoded alone, exactly as it is when the model is asked to answer it, and these ids begin the row. Prompt and
completion are then encoded together. Where the ids of the prompt begin those of the whole, which is the ordinary
case, the rest are the completion's. Where they don't, however many tokens were merged anew, the offsets say at which
character after the seam a token begins that shares no character with those before it: from there on the joint
tokens are kept, and the text between the seam and that character is encoded by itself.

So two completions of one prompt share its ids, and the ids of prompt and completion together decode to the text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.text.reasons import RejectedRowError

if TYPE_CHECKING:
    # Only for the annotation: importing transformers loads torch, which reading a log has no use for.
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", "a", "0", ".", "\N{CJK UNIFIED IDEOGRAPH-4E00}")


class EncodedRow(NamedTuple):
    """Ids of one row before truncation."""

    prompt_ids: list[int]
    """With the BOS in front if the tokenizer has one."""
    completion_ids: list[int]
    """With the EOS behind if the answer is complete; empty for a bare prompt."""
    starts_with_bos: bool
    """Whether the first of `prompt_ids` is a BOS."""


def encode_row(
    tokenizer: "PreTrainedTokenizerBase", *, prompt: str, completion: str | None, is_complete: bool = True
) -> EncodedRow:
    """Ids of a prompt and one completion of it.

    Args:
        tokenizer: tokenizer of the policy.
        prompt: text after templating.
        completion: text that follows the prompt directly; None for a bare prompt.
        is_complete: whether the answer ended by itself, so that an EOS is due.

    Raises:
        ValueError: the tokenizer gives no offsets and tokens merge across the seam.
    """
    return encode_rows(tokenizer, prompts=[prompt], completions=[completion], are_complete=[is_complete])[0]


def encode_rows(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    prompts: Sequence[str],
    completions: Sequence[str | None],
    are_complete: Sequence[bool],
) -> list[EncodedRow]:
    """Ids of many rows, each as `encode_row` gives it, with each distinct prompt encoded once."""
    distinct = list(dict.fromkeys(prompts))
    prompt_ids = dict(zip(distinct, _encode(tokenizer, distinct), strict=True))
    joined = [prompt + (completion or "") for prompt, completion in zip(prompts, completions, strict=True)]
    rows = []
    for prompt, completion, is_complete, text, whole_ids in zip(
        prompts, completions, are_complete, joined, _encode(tokenizer, joined), strict=True
    ):
        ids = prompt_ids[prompt]
        completion_ids: list[int] = []
        if completion is not None:
            is_ordinary = whole_ids[: len(ids)] == ids
            completion_ids = whole_ids[len(ids) :] if is_ordinary else _ids_behind_seam(tokenizer, text, len(prompt))
            completion_ids = _with_eos(tokenizer, completion_ids, completion, is_complete=is_complete)
        with_bos, starts_with_bos = _with_bos(tokenizer, ids)
        rows.append(EncodedRow(with_bos, completion_ids, starts_with_bos))
    return rows


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = _encoding(tokenizer, texts)["input_ids"] if texts else []
    return ids


def _encoding(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, with_offsets: bool = False) -> Any:
    # A row longer than the model's positions is cut later, so the tokenizer's warning about it would mislead.
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=with_offsets,
        truncation=False,
        verbose=False,
    )


def _ids_behind_seam(tokenizer: "PreTrainedTokenizerBase", text: str, seam: int) -> list[int]:
    """Ids of `text[seam:]` where the tokens of the whole text don't break at the seam."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"expected a tokenizer that gives offsets, found {type(tokenizer).__name__}, whose tokens merge across the "
            "end of a prompt; use its fast version"
        )
    whole = _encoding(tokenizer, [text], with_offsets=True)
    first, start = _clean_start(whole["offset_mapping"][0], seam, len(text))
    ids: list[int] = whole["input_ids"][0][first:]
    return _encode_fragment(tokenizer, text[seam:start]) + ids


def _clean_start(offsets: Sequence[tuple[int, int]], seam: int, end: int) -> tuple[int, int]:
    """First token at or after character `seam` that begins where all tokens before it end, and its character.

    A byte-level token may hold a part of a character, which the next one then shares. Some tokenizers leave the
    space in front of a word out of its offsets; asking that nothing lies between skips those too.
    """
    covered = 0
    for i, (start, stop) in enumerate(offsets):
        if start >= seam and start == covered:
            return i, start
        covered = max(covered, stop)
    return len(offsets), end


def _encode_fragment(tokenizer: "PreTrainedTokenizerBase", fragment: str) -> list[int]:
    """Ids of text that stands in the middle of a row.

    Some tokenizers put a space before whatever they are given, so the text is encoded behind a character that it
    doesn't merge with, whose tokens are dropped.
    """
    if not fragment:
        return []
    for anchor in (*_ANCHORS, *tokenizer.all_special_tokens):
        encoded = _encoding(tokenizer, [anchor + fragment], with_offsets=True)
        first, start = _clean_start(encoded["offset_mapping"][0], len(anchor), len(anchor) + len(fragment))
        if start == len(anchor):
            ids: list[int] = encoded["input_ids"][0][first:]
            return ids
    raise RejectedRowError(
        "template_error", f"the tokenizer can't encode {fragment!r:.40} apart from what stands before it"
    )


def _with_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> tuple[list[int], bool]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids, False
    # A template that writes the BOS itself, around text that already had one, would double it.
    while ids[:2] == [bos, bos]:
        ids = ids[1:]
    return (ids if ids[:1] == [bos] else [bos, *ids]), True


def _with_eos(tokenizer: "PreTrainedTokenizerBase", ids: list[int], completion: str, *, is_complete: bool) -> list[int]:
    eos = tokenizer.eos_token_id
    if eos is None or not is_complete or ids[-1:] == [eos]:
        return ids
    # Templates that end a turn with EOS and a line break have said that the answer is over.
    if completion.rstrip().endswith(str(tokenizer.eos_token)) and eos in ids:
        return ids
    return [*ids, eos]
