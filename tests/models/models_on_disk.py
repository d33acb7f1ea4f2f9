"""Folders of models as users have them."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stages.demo.scratch_model import Demonstration, ModelSize, make_model, train_tokenizer
from stages.models.pointer import ModelPointer, fingerprint, tokenizer_fingerprint, write_pointer

SIZE = ModelSize(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of few tokens."""
    return train_tokenizer([Demonstration("Say hello.", "hello")], vocab_size=270)


def write_model(folder: Path, *, seed: int = 0) -> LlamaForCausalLM:
    """Save a tiny Llama and its tokenizer in a folder, and give the model."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, SIZE, seed=seed).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def write_local_pointer(folder: Path, model: Path, **changes: object) -> Path:
    """Write an artifact `base_model` that names the model in another folder."""
    folder.mkdir()
    facts = {
        "source": "local",
        "path": str(model),
        "fingerprint": fingerprint(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(model),
        "pad_token": "<|pad|>",
        "pad_token_is_eos": False,
    }
    write_pointer(folder, ModelPointer.model_validate({**facts, **changes}))
    return folder


def input_ids() -> torch.Tensor:
    """Ids that any of these models can read."""
    return torch.tensor([[1, 2, 3, 4]])
