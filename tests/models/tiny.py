"""Language models small enough to build in a test."""

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
)

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS = {
    "llama": LlamaConfig(**_SIZES),
    "qwen2_tied": Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "phi_head_bias": PhiConfig(**_SIZES),
    "gemma2_softcap": Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=3.0),
    "cohere_logit_scale": CohereConfig(**_SIZES, logit_scale=0.25),
    "granite_logits_scaling": GraniteConfig(**_SIZES, logits_scaling=7.0),
    "mixtral": MixtralConfig(**_SIZES, num_local_experts=4, output_router_logits=True),
}


def tiny_model(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, the same in every run, in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype).eval()
    with torch.no_grad():
        # Larger logits than at the start of a training, or a soft cap would change nothing.
        model.get_output_embeddings().weight.mul_(10)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    return model
