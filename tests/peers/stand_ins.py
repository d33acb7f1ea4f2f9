"""A cache of the model hub in which the names that TRL's suites load are tiny models, made here.

Sizes are those of the models on the hub where a suite counts weights or looks at shapes.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tests.models.tiny_diffusion import save_tiny

_REVISION = "0" * 40
# Transformers 4 had one for every tokenizer.
_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
_SIZES = {
    "vocab_size": 1024, "max_position_embeddings": 512, "n_positions": 512, "hidden_size": 32, "n_embd": 32,
    "d_model": 32, "num_hidden_layers": 5, "n_layer": 5, "num_layers": 5, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_encoder_layers": 2, "num_attention_heads": 4, "n_head": 4,
    "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "intermediate_size": 37, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "d_ff": 37, "d_kv": 8, "ffn_dim": 32, "word_embed_proj_dim": 32, "rotary_dim": 4, "num_experts": 2,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 2, "src_vocab_size": 1024,
    "tgt_vocab_size": 1024, "attention_window": 8, "attention_types": [[["global"], 5]],
    "max_encoder_position_embeddings": 512, "max_decoder_position_embeddings": 512, "attention_type": "original_full",
    "forced_eos_token_id": None,
    "n_ctx": 512, "activation_dropout": 0.0,
}  # fmt: skip


def write_hub(cache: Path, texts: Iterable[str], names: Iterable[str]) -> None:
    """Write the cache.

    Args:
        cache: folder that HF_HUB_CACHE names.
        texts: what the tokenizer has to know whole words of.
        names: models besides those that the suites ask a tokenizer of, whose last part ends with their class.
    """
    tokenizer = _tokenizer(texts)
    vocabulary = max(6000, len(tokenizer))
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=5,
            n_head=4,
            n_positions=512,
            bos_token_id=0,
            eos_token_id=0,
            # A reward model gives one score; and it has to find where rows end.
            pad_token_id=0,
            num_labels=1,
        )
    )
    bloom = _model("BloomForCausalLM", vocab_size=vocabulary)
    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary,
            d_model=32,
            d_kv=8,
            d_ff=37,
            num_layers=5,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )
    with_tokenizers = {
        "gpt2": gpt2,
        "trl-internal-testing/dummy-GPT2-correct-vocab": gpt2,
        "trl-internal-testing/tiny-BloomForCausalLM-correct-vocab": bloom,
        "trl-internal-testing/tiny-T5ForConditionalGeneration-correct-vocab": t5,
    }
    for name, model in with_tokenizers.items():
        folder = _folder(cache, name)
        model.save_pretrained(folder)
        own = _tokenizer(texts)
        if model is not gpt2:
            own.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>"})
        own.save_pretrained(folder)
    for name in names:
        if name in with_tokenizers:
            continue
        kind = re.sub(r"^.*tiny-random-|-(safetensors|sharded).*$", "", name)
        # In one of the sharded ones several files hold the weights.
        _model(kind).save_pretrained(
            _folder(cache, name), **({"max_shard_size": "100KB"} if name.endswith("sharded") else {})
        )
    save_tiny(_folder(cache, "hf-internal-testing/tiny-stable-diffusion-torch"))


def _folder(cache: Path, name: str) -> Path:
    """Where a cache of the hub holds the files of a repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(_REVISION)
    folder = repository / "snapshots" / _REVISION
    folder.mkdir(parents=True)
    return folder


def _model(kind: str, **settings: Any) -> Any:
    model = getattr(transformers, kind)
    known = model.config_class().to_dict()
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    if "T5" in kind or "Switch" in kind:
        sizes["decoder_start_token_id"] = 2
    return model(model.config_class(**{**sizes, **settings}))


def _tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Splits as GPT-2's does, and has the words of `texts` as one token each."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=50_000,
        min_frequency=1,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Word by word, so that signs don't become one token with what stands before them.
    backend.train_from_iterator(
        (word for text in texts for word in re.findall(r" ?\w+| ?#+|\s|[^\w\s]", text)), trainer
    )
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end, chat_template=_TEMPLATE
    )
