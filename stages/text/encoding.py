"""Token ids of prompts and completions, such that a prompt's ids are the same whatever is said after it.

Joining two texts can change the tokens around the seam: "wor" and "ld" become one token "world". So a prompt is
encoded alone, exactly as it is when the model is asked to answer it, and these ids begin the row. Prompt and
completion are then encoded together. Where the ids of the prompt begin those of the whole, which is the ordinary
case, the rest are the completion's. Where they don't, however many tokens were merged anew, the offsets say at which
character after the seam a token begins that shares no character with those before it: from there on the joint
tokens are kept, and the text between the seam and that character is encoded by itself.

So two completions of one prompt share its ids, and the ids of prompt and completion together decode to the text.

Where a completion holds several answers, a token that would stand with one foot in an answer and with the other in what
somebody else said is encoded as two, for a model never answers with such a token.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stages.text.reasons import RejectedRowError

if TYPE_CHECKING:
    # Only for the annotation: importing transformers loads torch, which reading a log has no use for.
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", "a", "0", ".", "\N{CJK UNIFIED IDEOGRAPH-4E00}")


class EncodedRow(NamedTuple):
    """Ids of one row before truncation."""

    prompt_ids: list[int]
    """With the BOS in front if there is one."""
    completion_ids: list[int]
    """With the EOS behind if the answer is complete; empty for a bare prompt."""
    starts_with_bos: bool
    """Whether the first of `prompt_ids` is a BOS."""
    spans: list[int] | None = None
    """Tokens of the completion that the assistant said, as start, end, start, end; None where it said all."""


def encode_row(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    prompt: str,
    completion: str | None,
    is_complete: bool = True,
    spans: Sequence[int] | None = None,
) -> EncodedRow:
    """Ids of a prompt and one completion of it.

    Args:
        tokenizer: tokenizer of the policy.
        prompt: text after templating.
        completion: text that follows the prompt directly; None for a bare prompt.
        is_complete: whether the answer ended by itself, so that an EOS is due.
        spans: characters of the completion that the assistant said, as start, end, start, end; None: all of it.

    Raises:
        RejectedRowError: the tokenizer gives no offsets, and they are needed: tokens merge across the seam, or the
            assistant didn't say all of the completion.
    """
    (found,) = encode_rows(
        tokenizer, prompts=[prompt], completions=[completion], are_complete=[is_complete], spans=[spans]
    )
    return found


def encode_rows(tokenizer: "PreTrainedTokenizerBase", **texts: Any) -> list[EncodedRow]:
    """Ids of many rows, each as `encode_row` gives it.

    Args:
        tokenizer: tokenizer of the policy.
        texts: see `encode_each`.

    Raises:
        RejectedRowError: one of them can't be encoded.
    """
    found = []
    for row in encode_each(tokenizer, **texts):
        if isinstance(row, RejectedRowError):
            raise row
        found.append(row)
    return found


def encode_each(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    prompts: Sequence[str],
    completions: Sequence[str | None],
    are_complete: Sequence[bool],
    spans: Sequence[Sequence[int] | None] | None = None,
    bos: Literal["always", "as_served"] = "always",
) -> list[EncodedRow | RejectedRowError]:
    """Ids of many rows, or why one has none, with each distinct prompt encoded once.

    Args:
        tokenizer: tokenizer of the policy.
        prompts: texts after templating.
        completions: text that follows each prompt directly; None for a bare prompt.
        are_complete: whether each answer ended by itself, so that an EOS is due.
        spans: characters of each completion that the assistant said, as start, end, start, end; None: all of it.
        bos: whether a BOS stands in front of every prompt if the tokenizer has one, or only where a server sends it:
            where the text or the tokenizer puts it there.
    """
    distinct = list(dict.fromkeys(prompts))
    prompt_ids = dict(zip(distinct, _encode(tokenizer, distinct), strict=True))
    joined = [prompt + (completion or "") for prompt, completion in zip(prompts, completions, strict=True)]
    rows: list[EncodedRow | RejectedRowError] = []
    adds_bos = bos == "always" or adds_bos_itself(tokenizer)
    for prompt, completion, is_complete, said, text, whole_ids in zip(
        prompts,
        completions,
        are_complete,
        spans or [None] * len(prompts),
        joined,
        _encode(tokenizer, joined),
        strict=True,
    ):
        ids = prompt_ids[prompt]
        completion_ids: list[int] = []
        token_spans = None
        try:
            if completion is not None:
                seam = len(prompt)
                if whole_ids[: len(ids)] == ids:
                    own_ids, fragment = whole_ids[len(ids) :], _Fragment(0, seam)
                else:
                    own_ids, fragment = _ids_behind_seam(tokenizer, text, seam)
                completion_ids = _with_eos(tokenizer, own_ids, completion, is_complete=is_complete)
                if said is not None:
                    places = [seam + place for place in said]
                    offsets = _offsets_behind(tokenizer, text, seam, fragment, len(own_ids))
                    own_ids, offsets = _split_at(tokenizer, text, own_ids, offsets, places)
                    completion_ids = _with_eos(tokenizer, own_ids, completion, is_complete=is_complete)
                    token_spans = _token_spans(offsets, places)
                    if token_spans[-1] == len(own_ids):
                        token_spans[-1] = len(completion_ids)
        except RejectedRowError as rejected:
            rows.append(rejected)
            continue
        with_bos, starts_with_bos = _with_bos(tokenizer, ids, adds_bos=adds_bos)
        rows.append(EncodedRow(with_bos, completion_ids, starts_with_bos, token_spans))
    return rows


class _Fragment(NamedTuple):
    """What of a completion was encoded apart from the rest, at its start."""

    num_tokens: int
    end: int  # character of the whole text


def _offsets_behind(
    tokenizer: "PreTrainedTokenizerBase", text: str, seam: int, fragment: _Fragment, length: int
) -> list[tuple[int, int]]:
    """Characters of each of the `length` tokens of a completion; those of the fragment share its characters."""
    whole = _offsets(tokenizer, text)
    joint = whole[len(whole) - (length - fragment.num_tokens) :]
    return [*[(seam, fragment.end)] * fragment.num_tokens, *joint]


def _split_at(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    ids: list[int],
    offsets: list[tuple[int, int]],
    borders: Sequence[int],
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets with those tokens encoded apart that hold characters of both sides of a border."""
    control = _control_ids(tokenizer)
    # Some control tokens take the white space around them in, which nobody said.
    offsets = [_bare(text, place) if token in control else place for token, place in zip(ids, offsets, strict=True)]
    for border in borders:
        over = [index for index, (start, stop) in enumerate(offsets) if start < border < stop]
        if not over:
            continue
        # Tokens may share a character, so that all those around it are encoded anew.
        first, last = over[0], over[-1]
        while first and offsets[first - 1][1] > offsets[first][0]:
            first -= 1
        while last + 1 < len(offsets) and offsets[last + 1][0] < offsets[last][1]:
            last += 1
        begin, end = offsets[first][0], max(stop for _, stop in offsets[first : last + 1])
        places = ((begin, border), (border, end))
        sides = [(place, _encode_fragment(tokenizer, text[slice(*place)])) for place in places]
        ids = [*ids[:first], *(token for _, own in sides for token in own), *ids[last + 1 :]]
        offsets = [*offsets[:first], *(place for place, own in sides for _ in own), *offsets[last + 1 :]]
    return ids, offsets


def _bare(text: str, place: tuple[int, int]) -> tuple[int, int]:
    """A place in a text without the white space at its ends."""
    own = text[slice(*place)]
    return (place[0] + len(own) - len(own.lstrip()), place[1] - len(own) + len(own.rstrip())) if own.strip() else place


def _token_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[int]) -> list[int]:
    """The tokens that lie wholly in ranges of characters, as ranges; none of the ranges is without tokens."""
    found: list[int] = []
    for begin, end in zip(spans[::2], spans[1::2], strict=True):
        inside = [index for index, (start, stop) in enumerate(offsets) if begin <= start < stop <= end]
        if not inside:
            raise RejectedRowError(
                "unclear_turns",
                f"answer {len(found) // 2 + 1} of the completion has no token of its own, as the tokenizer joins it "
                "with what stands around it; log each answer as a row of its own",
            )
        found += [inside[0], inside[-1] + 1]
    return found


def _offsets(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[tuple[int, int]]:
    if not tokenizer.is_fast:
        raise RejectedRowError(
            "no_offsets",
            f"expected a tokenizer that gives offsets, found {type(tokenizer).__name__}, whose tokens merge across the "
            "end of a prompt or of a turn; use its fast version",
        )
    found: list[tuple[int, int]] = _encoding(tokenizer, [text], with_offsets=True)["offset_mapping"][0]
    return found


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


def _ids_behind_seam(tokenizer: "PreTrainedTokenizerBase", text: str, seam: int) -> tuple[list[int], _Fragment]:
    """Ids of `text[seam:]` where the tokens of the whole text don't break at the seam."""
    offsets = _offsets(tokenizer, text)
    first, start = _clean_start(offsets, seam, len(text))
    ids: list[int] = _encode(tokenizer, [text])[0][first:]
    fragment = _encode_fragment(tokenizer, text[seam:start])
    return fragment + ids, _Fragment(len(fragment), start)


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


def _with_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int], *, adds_bos: bool) -> tuple[list[int], bool]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids, False
    # A template that writes the BOS itself, around text that already had one, would double it.
    while ids[:2] == [bos, bos]:
        ids = ids[1:]
    if ids[:1] != [bos] and (adds_bos or not ids):
        return [bos, *ids], True
    return ids, ids[:1] == [bos]


def with_single_ends(tokenizer: "PreTrainedTokenizerBase", text: str, ids: list[int]) -> list[int]:
    """Ids of a text that may be templated already, with one BOS, and with nothing behind an EOS that ends it.

    Args:
        tokenizer: what encoded the text, perhaps with special tokens of its own around those of the text.
        text: as it was encoded.
        ids: of it.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if eos is None or not text.rstrip().endswith(str(tokenizer.eos_token)):
        return ids
    ends = [place for place, token in enumerate(ids) if token == eos]
    number = text.count(str(tokenizer.eos_token))
    return ids[: ends[number - 1] + 1] if 0 < number <= len(ends) else ids


def adds_bos_itself(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts a BOS before a text, as it does where a server asks the model with that text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]


def _with_eos(tokenizer: "PreTrainedTokenizerBase", ids: list[int], completion: str, *, is_complete: bool) -> list[int]:
    eos = tokenizer.eos_token_id
    if eos is None or not is_complete or ids[-1:] == [eos]:
        return ids
    # Templates that end a turn with EOS and a line break have said that the answer is over: what follows isn't learned.
    if completion.rstrip().endswith(str(tokenizer.eos_token)) and eos in ids:
        return ids[: len(ids) - ids[::-1].index(eos)]
    # So have those that end it with another control token, where generation stops; nobody else writes one.
    if ids and ids[-1] in _control_ids(tokenizer):
        return ids
    return [*ids, eos]


def _control_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
