"""Models, tokenizers and rows small enough that a test trains on them in a moment."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from stages.trainers.bco.trainer import BCOConfig, BCOTrainer
from stages.trainers.core.config import PreferenceConfig
from stages.trainers.core.preference import PreferenceTrainer
from stages.trainers.dpo.trainer import DPOConfig, DPOTrainer
from stages.trainers.kto.trainer import KTOConfig, KTOTrainer


class SecondOfTwo:
    """A process's accelerator, that takes itself for the second of two processes in the last step of an epoch."""

    num_processes, process_index = 2, 1

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.gradient_state = SimpleNamespace(end_of_dataloader=True, sync_gradients=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


_TEXT = "what is the sky a sea blue green red fine bad good word of and or not yes no it"
WORDS = _TEXT.split()
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with begin, end and pad."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def tiny_llama(*, seed: int = 0, dropout: float = 0.0) -> LlamaForCausalLM:
    """Two layers of width 32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            attention_dropout=dropout,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()


def tiny_t5() -> T5ForConditionalGeneration:
    """An encoder and a decoder of two layers of width 32."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, dropout_rate=0.1,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def tiny_mixtral(**settings: Any) -> MixtralForCausalLM:
    """Two layers of width 32 with four experts each."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **settings,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def raw_rows(number: int = 12) -> list[dict[str, Any]]:
    """Unpaired rows with both labels, of various lengths."""
    return [
        {
            "prompt": f"what is {WORDS[index % 7]}",
            "completion": " " + " ".join(WORDS[(index * 3 + j) % len(WORDS)] for j in range(1 + index % 4)),
            "label": index % 3 != 0,
        }
        for index in range(number)
    ]


def encoded_rows(number: int = 12, *, seed: int = 0) -> Dataset:
    """Rows as the stages make them, with log-probabilities of some reference."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(number):
        length = 5 + index % 5
        ids = torch.randint(3, 32, (length,), generator=generator).tolist()
        rows.append(
            {
                "row_id": f"id{index}",
                "input_ids": ids,
                "prompt_length": 2 + index % 3,
                "label": index % 3 != 0,
                "weight": 1.0,
                "reference_logps": float(-10 - index % 4),
            }
        )
    return Dataset.from_list(rows)


def raw_pairs(number: int = 12) -> list[dict[str, Any]]:
    """Pairs of various lengths, whose completions differ."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": " " + " ".join(WORDS[(index + 2 * j) % len(WORDS)] for j in range(2 + index % 3)),
        }
        for index, row in enumerate(raw_rows(number))
    ]


def encoded_pairs(number: int = 12, *, seed: int = 0) -> Dataset:
    """Pairs as the stages make them, with log-probabilities of some reference."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(number):
        length = 2 + index % 3
        prompt = torch.randint(3, 32, (length,), generator=generator).tolist()
        row: dict[str, Any] = {"row_id": f"id{index}", "weight": 1.0}
        for side, tokens in (("chosen", 2 + index % 4), ("rejected", 1 + index % 3)):
            completion = torch.randint(3, 32, (tokens,), generator=generator).tolist()
            row |= {f"{side}_input_ids": prompt + completion, f"{side}_prompt_length": length}
            row[f"reference_{side}_logps"] = float(-3 * tokens - index % 4)
        rows.append(row)
    return Dataset.from_list(rows)


class Method(NamedTuple):
    """A trainer, its configuration, and rows for it."""

    trainer: type[PreferenceTrainer]
    config: type[PreferenceConfig]
    raw: Callable[[int], list[dict[str, Any]]]
    encoded: Callable[..., Dataset]


METHODS = {
    "bco": Method(BCOTrainer, BCOConfig, raw_rows, encoded_rows),
    "kto": Method(KTOTrainer, KTOConfig, raw_rows, encoded_rows),
    "dpo": Method(DPOTrainer, DPOConfig, raw_pairs, encoded_pairs),
}


def method_config(method: str, folder: Path, **arguments: Any) -> Any:
    """A short, silent run on the CPU."""
    defaults: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return METHODS[method].config(str(folder), **{**defaults, **arguments})


def method_trainer(method: str, folder: Path, *, model: Any = None, rows: Any = None, **arguments: Any) -> Any:
    """A trainer of `tiny_llama`; arguments of the trainer itself are told apart from those of its config."""
    kind = METHODS[method]
    shared = inspect.signature(BCOTrainer).parameters
    own = {name: arguments.pop(name) for name in shared if name in arguments}
    return kind.trainer(
        None if "model_init" in own else (model if model is not None else tiny_llama()),
        args=method_config(method, folder, **arguments),
        train_dataset=kind.encoded() if rows is None else rows,
        processing_class=own.pop("processing_class", None) or tiny_tokenizer(),
        **own,
    )


def lines(trainer: Any, name: str = "loss") -> list[dict[str, Any]]:
    """Lines of the log that have `name`."""
    return [line for line in trainer.state.log_history if name in line]


bco_config = partial(method_config, "bco")
bco_trainer = partial(method_trainer, "bco")
kto_trainer = partial(method_trainer, "kto")
dpo_trainer = partial(method_trainer, "dpo")


def embed(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Counts of words, averaged over all positions, padding included, as users write it."""
    return torch.nn.functional.one_hot(input_ids, 32).float().mean(dim=1)


def shifted_rows(number: int = 40) -> Dataset:
    """Prompts about the sea are mostly desired, those about the sky mostly not."""
    rows = []
    for index in range(number):
        is_sea = index % 2 == 0
        label = is_sea if index % 5 else not is_sea
        topic = "a sea" if is_sea else "what is the sky"
        rows.append({"prompt": f"{topic} {WORDS[index % 7]}", "completion": " fine", "label": label})
    return Dataset.from_list(rows)
