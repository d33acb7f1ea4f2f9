"""Rows to imitate: texts, conversations, or prompts with completions, made into token ids."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from stages.losses.sft import IGNORED
from stages.rows.given import RowRenderers, own_cells, refusal
from stages.rows.raw import LeftOut, is_encoded, without_needless_spans
from stages.text.chat_template import ChatRenderer
from stages.text.encoding import encode_row, with_single_ends
from stages.text.layouts import Feedback, Text, read_feedback
from stages.text.normal_form import flat
from stages.text.reasons import RejectedRowError
from stages.text.truncation import cut_weights, truncate_together

logger = logging.getLogger(__name__)

FormattingFunction = Callable[[Mapping[str, Any]], Any]

_ENCODED = (
    *("row_id", "input_ids", "labels", "position_ids", "attention_mask", "prompt_length", "spans"),
    *("weight", "span_weights"),
)
OF_COMPLETIONS = ("prompt_length", "spans", "span_weights")
"""Columns that say what of a row is learned, where that isn't all of it."""
# A row that can't be learned from is left out and counted; anything else wrong with a row is the caller's to mend.
_LEFT_OUT = ("no_room_for_completion", "no_prompt_token", "empty_completion", "empty_prompt", "no_learned_turn")
_CONVERSATIONS = ("messages", "conversations", "prompt", "chosen")


Learns = Literal["given", "all", "completions", "answers", "all_answers"]
"""What of a row is learned: all of a raw row, and of an encoded one what it says; all; its completion, so that a cut
leaves some of it; what the assistant says, of a prompt's completion or of a whole conversation; or in prompts too."""


class SFTRowReader(NamedTuple):
    """Makes encoded rows of datasets.

    A row is one text (of a column or a formatting function), a conversation, or a prompt with its completion; of
    people's feedback, what they liked is learned from. One that is encoded already keeps its columns.
    """

    tokenizer: PreTrainedTokenizerBase | None
    """Tokenizer of the model; only raw rows need it."""
    max_length: int | None
    """Tokens of a row, at most; None cuts none."""
    text_field: str | None = None
    """Column of the text; None reads conversations, unless there is a formatting function."""
    formatting_func: FormattingFunction | None = None
    """Called with columns of several rows, gives a list of texts."""
    learns: Learns = "given"
    """What of a row is learned."""
    add_special_tokens: bool = True
    """Whether the tokenizer adds its own special tokens to texts."""
    appends_eos: bool = True
    """Whether an EOS stands behind each text that has none and isn't cut."""
    batch_size: int | None = 1000
    """Rows that are encoded together; None or 0 takes all."""
    num_proc: int | None = None
    """Processes that encode raw rows."""
    keeps_columns: bool = False
    """Whether further columns of encoded rows are kept."""

    def check(self, dataset: Dataset, *, name: str) -> None:
        """See that the dataset has columns to read, without reading them.

        Raises:
            ValueError: it has none of them, or no rows.
        """
        columns = dataset.column_names
        if not len(dataset):
            raise ValueError(f"{name}: expected rows, found none")
        if self.text_field is not None:
            if self.text_field not in columns:
                raise ValueError(
                    f"{name}: expected texts in a column {self.text_field!r}, found columns {', '.join(columns)}; "
                    "dataset_text_field names it"
                )
        elif self.formatting_func is None and not is_encoded(dataset) and set(_CONVERSATIONS).isdisjoint(columns):
            raise ValueError(
                f"{name}: expected input_ids, messages, or prompt and completion, found columns {', '.join(columns)}; "
                "name the column of the text as dataset_text_field, or give a formatting_func"
            )
        elif self._has_prompts_alone(dataset):
            raise ValueError(
                f"{name}: expected a column completion beside prompt, found {', '.join(columns)}; rename the one that "
                "holds the completions"
            )

    def _has_prompts_alone(self, dataset: Dataset) -> bool:
        found = {"completion", *_CONVERSATIONS} & {*dataset.column_names}
        return self.formatting_func is None and not is_encoded(dataset) and found == {"prompt"}

    def read(self, dataset: Dataset, *, name: str) -> tuple[Dataset, LeftOut]:
        """Rows with `input_ids` and, where a row has a prompt, `prompt_length`; and what was left out.

        Args:
            dataset: what a trainer was given.
            name: what to call it in messages.

        Raises:
            ValueError: it has no such columns, nothing to learn from, or raw rows come without a tokenizer.
        """
        self.check(dataset, name=name)
        if self.text_field is None and self.formatting_func is None and is_encoded(dataset):
            rows, counts = self._liked(dataset, name)
        else:
            rows, counts = self._encoded(dataset, name)
        left_out = LeftOut({reason: count for reason, count in counts.items() if count})
        if left_out.counts:
            logger.warning("%s: left out of %d rows: %s", name, len(dataset), left_out)
        if not len(rows):
            raise ValueError(f"{name}: expected rows to learn from, found none left ({left_out})")
        return rows, left_out

    def stream(self, dataset: IterableDataset, *, name: str) -> IterableDataset:
        """The same of a stream, whose rows are encoded as they are asked for; what is left out is logged then.

        Raises:
            ValueError: raw rows come without a tokenizer; later, what a row of the stream makes `read` raise.
        """
        columns = dataset.column_names or list(next(iter(dataset)))
        if self.text_field is None and self.formatting_func is None and "input_ids" in columns:
            self._check_answers(columns, name)
            kept = [column for column in columns if column in _ENCODED or (self.keeps_columns and column != "label")]
            liked = dataset.filter(_is_liked, fn_kwargs={"name": name}) if "label" in columns else dataset
            masks = self._masks(columns)
            if masks:
                liked = liked.map(_labels_of_masks, fn_kwargs={"masks": masks})
            return liked.remove_columns([column for column in columns if column not in kept])
        encoded = dataset.map(
            self._encode,
            batched=True,
            batch_size=self.batch_size if self.batch_size and self.batch_size > 0 else 1000,
            remove_columns=columns,
            with_indices=True,
            fn_kwargs={"name": name},
        )
        is_text = self.text_field is not None or self.formatting_func is not None
        # Where all of a raw row is learned, what its prompt is plays no part.
        unread = [*OF_COMPLETIONS] if not is_text and self.learns in {"given", "all"} else []
        return encoded.filter(_is_kept, fn_kwargs={"name": name}).remove_columns(["left_out", "is_cut", *unread])

    def _encode(self, rows: Mapping[str, Sequence[Any]], indices: Sequence[int], *, name: str) -> dict[str, list[Any]]:
        if self.tokenizer is None:
            raise ValueError(f"{name}: expected a tokenizer to encode raw rows with, found none")
        is_text = self.text_field is not None or self.formatting_func is not None
        return (encode_texts if is_text else encode_conversations)(rows, indices, reader=self)

    def _liked(self, dataset: Dataset, name: str) -> tuple[Dataset, Counter[str]]:
        """Encoded rows that people liked, and those that nobody judged."""
        if "input_ids" not in dataset.column_names:
            raise ValueError(
                f"{name}: expected single rows with a column input_ids, found {', '.join(dataset.column_names)}"
            )
        self._check_answers(dataset.column_names, name)
        counts: Counter[str] = Counter()
        masks = self._masks(dataset.column_names)
        rows = dataset.map(_labels_of_masks, fn_kwargs={"masks": masks}) if masks else dataset
        if "label" in dataset.column_names:
            kept = [index for index, label in enumerate(dataset["label"]) if label is None or label]
            counts["undesired"] = len(dataset) - len(kept)
            rows = rows.select(kept) if counts["undesired"] else rows
        columns = [column for column in _ENCODED if column in rows.column_names]
        return (rows if self.keeps_columns else rows.select_columns(columns)), counts

    def _masks(self, columns: Sequence[str]) -> list[str]:
        """Columns of encoded rows that say which tokens are learned, where `labels` don't."""
        if "labels" in columns:
            return []
        asked = ["assistant_masks", *([] if self.learns in {"all", "all_answers"} else ["completion_mask"])]
        return [column for column in asked if column in columns]

    def _check_answers(self, columns: Sequence[str], name: str) -> None:
        known = {"labels", "assistant_masks", *(["prompt_length"] if self.learns == "answers" else [])}
        if self.learns in {"answers", "all_answers"} and known.isdisjoint(columns):
            raise ValueError(
                f"{name}: assistant_only_loss: expected encoded rows that say what the assistant said, by one of "
                f"{', '.join(sorted(known))}, found columns {', '.join(columns)}; give messages instead"
            )

    def _encoded(self, dataset: Dataset, name: str) -> tuple[Dataset, Counter[str]]:
        is_text = self.text_field is not None or self.formatting_func is not None
        encoded = dataset.map(
            self._encode,
            batched=True,
            batch_size=self.batch_size if self.batch_size and self.batch_size > 0 else None,
            remove_columns=dataset.column_names,
            num_proc=self.num_proc,
            with_indices=True,
            fn_kwargs={"name": name},
            desc=f"Encoding the {name}",
        )
        counts = Counter(reason for reason in encoded["left_out"] if reason)
        if counts:
            encoded = encoded.select([index for index, reason in enumerate(encoded["left_out"]) if not reason])
        num_cut = sum(encoded["is_cut"])
        if num_cut:
            logger.warning("%s: cut %d of %d rows to %s tokens", name, num_cut, len(encoded), self.max_length)
        rows = encoded.remove_columns(["left_out", "is_cut"])
        return (rows if is_text else without_needless_spans(rows)), counts


def _labels_of_masks(row: Mapping[str, Any], *, masks: Sequence[str]) -> dict[str, list[int]]:
    columns = zip(row["input_ids"], *(row[mask] for mask in masks), strict=True)
    return {"labels": [token if all(learned) else IGNORED for token, *learned in columns]}


def _is_liked(row: Mapping[str, Any], *, name: str) -> bool:
    return _is_kept({"left_out": "" if row["label"] is None or row["label"] else "undesired"}, name=name)


def _is_kept(row: Mapping[str, Any], *, name: str) -> bool:
    if row["left_out"]:
        logger.warning("%s: left out of the stream: a row, %s", name, row["left_out"])
    return not row["left_out"]


def encode_texts(
    rows: Mapping[str, Sequence[Any]],
    indices: Sequence[int],
    *,
    reader: SFTRowReader,
) -> dict[str, list[Any]]:
    """Columns of the encoded texts of a batch of rows; those to leave out carry a reason in `left_out`.

    Raises:
        ValueError: a text isn't a string, or the formatting function gives no list.
    """
    texts = reader.formatting_func(rows) if reader.formatting_func is not None else rows[reader.text_field or ""]
    if reader.formatting_func is None:
        for index, text in zip(indices, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"row {index}: expected a text in column {reader.text_field}, found {text!r:.60}")
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"expected a list of texts for the rows of a batch, found {type(texts).__name__} {texts!r:.60}; a "
            "formatting_func is called with columns of several rows, and gives a list"
        )
    tokenizer: Any = reader.tokenizer
    encoded = tokenizer(list(texts), add_special_tokens=reader.add_special_tokens, truncation=False, verbose=False)
    ends = [tokenizer.eos_token_id] if reader.appends_eos and tokenizer.eos_token_id is not None else []
    cells = []
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        own = with_single_ends(tokenizer, text, ids)
        whole = [*own, *(ends if own[-1:] != ends else [])]
        kept = whole[: reader.max_length]
        cells.append((kept, len(kept) < len(whole), "" if text.strip() else "empty_text"))
    return dict(zip(("input_ids", "is_cut", "left_out"), map(list, zip(*cells, strict=True)), strict=True))


def encode_conversations(
    rows: Mapping[str, Sequence[Any]], indices: Sequence[int], *, reader: SFTRowReader
) -> dict[str, list[Any]]:
    """The same of conversations and of prompts with completions, with what of them is learned and what it weighs.

    Raises:
        ValueError: a row can't be read, or there is no chat template for it.
    """
    tokenizer: Any = reader.tokenizer
    renderers = RowRenderers(tokenizer)
    cells: list[tuple[list[int], int, list[int], list[float], bool, float, str]] = []
    for position, index in enumerate(indices):
        raw = own_cells({column: values[position] for column, values in rows.items()})
        try:
            feedback = read_feedback(raw)
            if feedback.label is False:
                cells.append(([], 0, [0, 0], [1.0], False, 1.0, "undesired"))
            else:
                if reader.learns in {"answers", "all_answers"}:
                    is_whole = reader.learns == "all_answers" or not {"messages", "conversations"}.isdisjoint(raw)
                    feedback = _with_answers(feedback, is_whole=is_whole)
                cells.append((*_encode_conversation(feedback, renderers.of(raw), reader), feedback.weight, ""))
        except RejectedRowError as rejected:
            if rejected.reason not in _LEFT_OUT:
                raise ValueError(refusal(index, rejected)) from None
            cells.append(([], 0, [0, 0], [1.0], False, 1.0, rejected.reason))
    names = ("input_ids", "prompt_length", "spans", "span_weights", "is_cut", "weight", "left_out")
    return dict(zip(names, map(list, zip(*cells, strict=True)), strict=True))


def _encode_conversation(
    feedback: Feedback, renderer: ChatRenderer, reader: SFTRowReader
) -> tuple[list[int], int, list[int], list[float], bool]:
    """Ids, length of the prompt, what of the completion is learned and what that weighs, and whether they were cut."""
    if not feedback.completions:
        raise RejectedRowError("empty_completion", "expected an answer of the assistant, found none")
    text = renderer.render(
        _as_turns(feedback.prompt, "user"),
        [_as_turns(feedback.completions[0], "assistant")],
        are_complete=feedback.are_complete[:1],
        tools=feedback.tools,
    )
    row = encode_row(
        renderer.tokenizer,
        prompt=text.prompt,
        completion=text.completions[0],
        is_complete=feedback.are_complete[0] and reader.appends_eos,
        spans=flat(text.spans[0]),
    )
    if reader.learns in {"completions", "answers", "all_answers"}:
        cut = truncate_together([row], max_length=reader.max_length)[0]
        spans = [0, len(cut.input_ids) - cut.prompt_length] if cut.spans is None else cut.spans
        weights = cut_weights(text.weights[0], spans) or [1.0] * (len(spans) // 2)
        return cut.input_ids, cut.prompt_length, spans, weights, cut.truncated
    if not _weigh_alike(feedback):
        raise RejectedRowError(
            "bad_weight",
            "expected completion_only_loss=True where messages have a weight other than 1, found that all of a row is "
            "learned; set it, or take the weights out",
        )
    ids = [*row.prompt_ids, *row.completion_ids]
    kept = ids[: reader.max_length]
    length = min(len(row.prompt_ids), len(kept))
    return kept, length, [0, len(kept) - length], [1.0], len(kept) < len(ids)


def _weigh_alike(feedback: Feedback) -> bool:
    texts = [feedback.prompt, *feedback.completions[:1]]
    messages = [message for text in texts if not isinstance(text, str) for message in text]
    return all(message.get("weight", 1.0) == 1.0 for message in messages if message["role"] == "assistant")


def _with_answers(feedback: Feedback, *, is_whole: bool) -> Feedback:
    """The row with all turns of the assistant in its completion, or those that stand there if it isn't whole.

    Raises:
        RejectedRowError: it is no conversation, or its prompt ends within an answer.
    """
    if isinstance(feedback.prompt, str):
        raise RejectedRowError(
            "bad_messages",
            "assistant_only_loss: expected a conversation, found plain text; use completion_only_loss",
        )
    if not is_whole or not feedback.completions:
        return feedback
    if feedback.prompt[-1:] and feedback.prompt[-1]["role"] == "assistant":
        raise RejectedRowError(
            "unclear_turns",
            "assistant_only_loss: expected a prompt that ends with a question, found one with an answer",
        )
    turns = [*feedback.prompt, *_as_turns(feedback.completions[0], "assistant")]
    # What nothing stands before can't be predicted from anything.
    first = next((place for place, turn in enumerate(turns) if place and turn["role"] == "assistant"), len(turns))
    return feedback._replace(prompt=turns[:first], completions=(turns[first:],))


def _as_turns(text: Text, role: str) -> Text:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
