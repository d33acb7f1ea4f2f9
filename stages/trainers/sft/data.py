"""What supervised fine-tuning reads: which rows, how they are cut or packed, and how they are batched."""

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from stages.losses.sft import IGNORED
from stages.rows.collation import default_collator
from stages.rows.label_collation import LabelCollator
from stages.rows.packing import (
    ConstantLengthDataset,
    Document,
    PackedRow,
    check_packing,
    follow_each_other,
    packed_dataset,
    stay_apart,
)
from stages.rows.raw import LeftOut, is_encoded
from stages.trainers.core.fields import check_choice
from stages.trainers.sft.completion_only import DataCollatorForCompletionOnlyLM
from stages.trainers.sft.rows import OF_COMPLETIONS, Learns, SFTRowReader

logger = logging.getLogger(__name__)

PackingStrategy = Literal["bfd", "bfd_split", "wrapped"]
DATASET_KWARGS = ("add_special_tokens", "append_concat_token")
PACKING_KWARGS = ("keep_documents_apart", "seed", "shuffle")
MAX_SEQ_LENGTH = 1024
"""Tokens of a row, where neither the user nor the tokenizer says less."""


@dataclass(frozen=True)
class SFTData:
    """How `SFTTrainer` makes its rows; what the fields mean is said there."""

    tokenizer: PreTrainedTokenizerBase
    dataset_text_field: str | None = None
    formatting_func: Callable[..., Any] | None = None
    max_seq_length: int | None = None
    packing: bool = False
    num_of_sequences: int = 1024
    chars_per_token: float = 3.6
    dataset_num_proc: int | None = None
    dataset_batch_size: int | None = 1000
    completion_only_loss: bool | None = None
    remove_unused_columns: bool = True
    seed: int = 0
    dataset_kwargs: Mapping[str, Any] = field(default_factory=dict)
    packing_strategy: PackingStrategy | None = None
    assistant_only_loss: bool = False
    padding_free: bool = False

    def __post_init__(self) -> None:
        """Check the settings against each other.

        Raises:
            ValueError: they contradict each other, or one is unknown or out of range.
        """
        known = (*DATASET_KWARGS, *(PACKING_KWARGS if self.packing else ()))
        for name in self.dataset_kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                where = "with packing" if self.packing else "without packing"
                raise ValueError(f"dataset_kwargs: expected names that are known {where}, found {name!r}; {hint}")
        check_packing(
            seq_length=self.seq_length, num_of_sequences=self.num_of_sequences, chars_per_token=self.chars_per_token
        )
        self._check_strategy()
        if self.dataset_text_field is not None and self.formatting_func is not None:
            raise ValueError("expected one of dataset_text_field and formatting_func, found both")
        if self.completion_only_loss and self.reads_texts:
            raise ValueError(
                "completion_only_loss: expected rows that say where their prompt ends, found texts; give prompt and "
                "completion or messages, or DataCollatorForCompletionOnlyLM as data_collator"
            )
        if self.assistant_only_loss and self.reads_texts:
            raise ValueError(
                "assistant_only_loss: expected conversations, found texts; give messages, or "
                "DataCollatorForCompletionOnlyLM as data_collator"
            )

    def _check_strategy(self) -> None:
        if self.packing_strategy is None:
            return
        check_choice("packing_strategy", self.packing_strategy, PackingStrategy)
        if "keep_documents_apart" in self.dataset_kwargs:
            raise ValueError(
                "expected one of packing_strategy and dataset_kwargs['keep_documents_apart'], found both; 'bfd' and "
                "'bfd_split' keep documents apart, 'wrapped' doesn't"
            )

    @property
    def seq_length(self) -> int:
        """Tokens of a row, at most."""
        if self.max_seq_length is not None:
            return self.max_seq_length
        return min(int(self.tokenizer.model_max_length), MAX_SEQ_LENGTH)

    @property
    def reads_texts(self) -> bool:
        """Whether rows are texts."""
        return self.dataset_text_field is not None or self.formatting_func is not None

    @property
    def keeps_documents_apart(self) -> bool:
        """Whether packed texts see no other one."""
        if self.packing_strategy is not None:
            return self.packing and self.packing_strategy != "wrapped"
        return bool(self.dataset_kwargs.get("keep_documents_apart", False))

    @property
    def learns(self) -> Learns:
        """What of a row is learned."""
        if self.assistant_only_loss:
            return "all_answers" if self.completion_only_loss is False else "answers"
        return {None: "given", False: "all", True: "completions"}[self.completion_only_loss]  # type: ignore[return-value]

    def check(self, collator: Any, *given: Any) -> None:
        """See that datasets can be used, without reading them.

        Args:
            collator: what the trainer was given as `data_collator`.
            given: what it was given as datasets.

        Raises:
            ValueError: one can't, or the collator needs to see where rows begin, and they are packed.
        """
        self._check_collator(collator)
        for dataset in given:
            for name, rows in dataset.items() if isinstance(dataset, Mapping) else [("dataset", dataset)]:
                if isinstance(rows, Dataset):
                    self._reader().check(rows, name=name)
                elif isinstance(rows, datasets.IterableDataset):
                    self._check_stream(rows, name)
                elif rows is not None and not isinstance(rows, IterableDataset):
                    raise ValueError(
                        f"{name}: expected a datasets.Dataset or a ConstantLengthDataset, found {type(rows).__name__}; "
                        "Dataset.from_list makes one"
                    )

    def _check_collator(self, collator: Any) -> None:
        if self.packing and isinstance(collator, DataCollatorForCompletionOnlyLM):
            raise ValueError(
                "expected packing=False with DataCollatorForCompletionOnlyLM, which looks for one answer in a row, "
                "found True; to pack, give prompt and completion and completion_only_loss=True"
            )
        if isinstance(collator, DataCollatorForCompletionOnlyLM) and (
            self.assistant_only_loss or self.completion_only_loss
        ):
            raise ValueError(
                "expected one of DataCollatorForCompletionOnlyLM, which finds answers by a template, and "
                "completion_only_loss or assistant_only_loss, found both; leave one out"
            )
        if self.padding_free and collator is not None:
            raise ValueError(
                f"padding_free: expected no data_collator beside it, found {type(collator).__name__}; leave one out"
            )

    def _check_stream(self, rows: datasets.IterableDataset, name: str) -> None:
        if self.packing and not self.reads_texts:
            raise ValueError(
                f"{name}: expected texts to pack as they come, found a stream and neither dataset_text_field nor "
                "formatting_func; name the column, or give a datasets.Dataset"
            )
        first = list(rows.take(1))
        if not first:
            raise ValueError(f"{name}: expected rows, found none")
        if not self.packing:
            self._reader().check(Dataset.from_list(first), name=name)

    def collator(self) -> LabelCollator:
        """What makes batches of these rows."""
        pad_id = default_collator(self.tokenizer, padding_value=None, is_encoder_decoder=False).pad_id
        return LabelCollator(pad_id, learns_prompts=self.learns == "all", flattens=self.padding_free)

    def prepared(self, dataset: Any, *, name: str) -> tuple[Any, LeftOut]:
        """Rows as the collator reads them, and what was left out.

        Args:
            dataset: a dataset that `check` let pass.
            name: what to call it in messages.

        Raises:
            ValueError: there is nothing to learn from, or a row can't be used.
        """
        if isinstance(dataset, datasets.IterableDataset):
            return (self._packer(dataset) if self.packing else self._reader().stream(dataset, name=name)), LeftOut({})
        if isinstance(dataset, IterableDataset):
            if isinstance(dataset, ConstantLengthDataset) and not dataset.infinite:
                return packed_dataset(dataset.rows()), LeftOut({})
            return dataset, LeftOut({})
        if self.packing and self.reads_texts:
            return packed_dataset(self._packer(dataset).rows()), LeftOut({})
        reader = self._reader()
        rows, left_out = reader.read(dataset, name=name)
        was_encoded = not self.reads_texts and is_encoded(dataset)
        if not was_encoded and reader.learns in {"given", "all"} and "prompt_length" in rows.column_names:
            rows = rows.remove_columns([name for name in OF_COMPLETIONS if name in rows.column_names])
        if "weight" in rows.column_names and (set(rows.unique("weight")) == {1.0}):
            rows = rows.remove_columns("weight")
        self._check_weights(rows, name)
        self._check_labels(rows, name)
        if self.packing:
            return packed_dataset(self._packed(rows, name)), left_out
        self._check_lengths(rows, name)
        self._check_padding_free(rows, name)
        return rows, left_out

    def _reader(self) -> SFTRowReader:
        settings = {name: self.dataset_kwargs[name] for name in DATASET_KWARGS if name in self.dataset_kwargs}
        return SFTRowReader(
            self.tokenizer,
            None if self.packing and self.packing_strategy != "bfd" else self.seq_length,
            self.dataset_text_field,
            self.formatting_func,
            learns=self.learns,
            add_special_tokens=settings.get("add_special_tokens", True),
            appends_eos=settings.get("append_concat_token", True),
            batch_size=self.dataset_batch_size,
            num_proc=self.dataset_num_proc,
            keeps_columns=not self.remove_unused_columns,
        )

    def _packer(self, dataset: Any) -> ConstantLengthDataset:
        return ConstantLengthDataset(
            self.tokenizer,
            dataset,
            self.dataset_text_field,
            self.formatting_func,
            seq_length=self.seq_length,
            num_of_sequences=self.num_of_sequences,
            chars_per_token=self.chars_per_token,
            **{
                "seed": self.seed,
                "keep_documents_apart": self.keeps_documents_apart,
                "truncates": self.packing_strategy == "bfd",
                **self.dataset_kwargs,
            },
        )

    def _packed(self, rows: Dataset, name: str) -> Iterator[PackedRow]:
        if found := [column for column in ("weight", "span_weights", "position_ids") if column in rows.column_names]:
            raise ValueError(f"{name}: expected rows without weights and position_ids to pack, found {found[0]}")
        if self.packing_strategy == "bfd":
            self._check_lengths(rows, name)
        labels_of = self.collator().labels_of
        documents = (Document(list(row["input_ids"]), labels_of(row, list(row["input_ids"]))) for row in rows)
        pack = stay_apart if self.keeps_documents_apart else follow_each_other
        return pack(documents, seq_length=self.seq_length)

    def _check_weights(self, rows: Dataset, name: str) -> None:
        """Raise ValueError if answers have weights, and what others said is learned as well."""
        if self.completion_only_loss is False and "span_weights" in rows.column_names:
            raise ValueError(
                f"{name}: expected completion_only_loss=None or True for rows with span_weights, found False, which "
                "learns what others said too"
            )

    def _check_labels(self, rows: Dataset, name: str) -> None:
        """Say how many rows have labels that leave nothing to learn, and raise ValueError if all have."""
        if "labels" not in rows.column_names:
            return
        number = sum(set(labels[1:]) <= {IGNORED} for labels in rows["labels"])
        if number == len(rows):
            raise ValueError(
                f"{name}: expected labels of tokens to learn behind the first of a row, found {IGNORED} alone in all "
                f"{number} rows; leave the column out to learn whole rows"
            )
        if number:
            logger.warning("%s: nothing is learned of %d of %d rows, by their labels", name, number, len(rows))

    def _check_lengths(self, rows: Dataset, name: str) -> None:
        """Rows that are encoded already are never cut, so that a limit that they don't keep to is refused."""
        if self.max_seq_length is None and not self.packing:
            return
        limit = self.seq_length
        longest = max(map(len, rows.with_format("numpy")["input_ids"]))
        if longest > limit:
            raise ValueError(
                f"{name}: expected rows of up to max_seq_length={limit} tokens, found one of {longest}; "
                "cut them where they are encoded"
            )

    def _check_padding_free(self, rows: Dataset, name: str) -> None:
        if not self.padding_free:
            return
        hidden = "attention_mask" in rows.column_names and not all(map(all, rows["attention_mask"]))
        if hidden or {"weight", "span_weights"} & {*rows.column_names}:
            raise ValueError(
                f"{name}: padding_free: expected rows without weights and without tokens hidden by attention_mask, "
                f"found {'hidden tokens' if hidden else 'weights'}; leave the column out, or padding_free"
            )
