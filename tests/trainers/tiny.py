"""Models, tokenizers and rows small enough that a test trains on them in a moment."""

import inspect
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stages.trainers.bco import BCOConfig, BCOTrainer

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


def bco_config(folder: Path, **arguments: Any) -> BCOConfig:
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
    return BCOConfig(str(folder), **{**defaults, **arguments})


def bco_trainer(folder: Path, *, model: Any = None, rows: Any = None, **arguments: Any) -> BCOTrainer:
    """A trainer of `tiny_llama`; arguments of the trainer itself are told apart from those of its config."""
    own = {name: arguments.pop(name) for name in inspect.signature(BCOTrainer).parameters if name in arguments}
    return BCOTrainer(
        None if "model_init" in own else (model if model is not None else tiny_llama()),
        args=bco_config(folder, **arguments),
        train_dataset=encoded_rows() if rows is None else rows,
        processing_class=tiny_tokenizer(),
        **own,
    )
