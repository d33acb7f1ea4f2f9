"""Stage `base_model`: name the model to improve, which is also the reference it is compared with.

Three sources: a Hugging Face repository at a commit, a folder of this machine, or `scratch`, a small model and its
tokenizer made from demonstrations in under a minute, which is the demo's. The artifact is a pointer with
fingerprints; only a model from scratch lies in it.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.contracts.stage import Input, Output, Section, stage_main


class ScratchParams(Section):
    """Section `base_model.scratch` of params.yaml: the demo's model and how it is trained."""

    vocab_size: int = Field(1024, gt=256 + 5)
    """Tokens of the tokenizer at most; 256 bytes and 5 special tokens are among them."""
    hidden_size: int = Field(96, gt=0)
    """Width of the model; a multiple of twice `num_heads`."""
    num_layers: int = Field(2, gt=0)
    """Layers of the model."""
    num_heads: int = Field(4, gt=0)
    """Attention heads of a layer."""
    intermediate_size: int = Field(256, gt=0)
    """Width inside a layer's feed-forward part."""
    num_epochs: int = Field(3, gt=0)
    """Passes over the demonstrations."""
    batch_size: int = Field(32, gt=0)
    """Demonstrations of a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate."""


class BaseModelParams(Section):
    """Section `base_model` of params.yaml."""

    source: Literal["scratch", "local", "hub"] = "scratch"
    """`scratch` makes a model from the demonstrations at `inputs.base_model`; `local` takes the model folder there;
    `hub` takes `repository` at `revision`."""
    repository: str | None = None
    """Hugging Face repository, for `hub`."""
    revision: str | None = None
    """Commit of that repository, 40 hexadecimal digits; a branch or a tag could move."""
    trust_remote_code: bool = False
    """Whether code that the model brings may run. It runs with your rights: read it first."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which the weights are loaded where no other section says one."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    """How attention is computed, by its name in transformers, in all stages alike; null leaves it to transformers."""
    quantisation: Literal["8bit", "4bit"] | None = None
    """Bits that the weights are held in, in all stages alike: needs bitsandbytes, and `lora` to train. Null for all
    bits of the type."""
    scratch: ScratchParams = ScratchParams()
    """Sizes and training of a model from scratch."""
    seed: int = Field(0, ge=0)
    """Seed of a model from scratch."""


def run(*, source: Input | None = None, base_model: Output, params: BaseModelParams) -> None:
    """Write the pointer to the base model, after making the model if it is to come from scratch.

    Args:
        source: folder of the model (`local`) or JSONL of demonstrations (`scratch`); `hub` reads none.
        base_model: artifact `base_model` to write.
        params: where the model comes from, and what may be done with it.

    Raises:
        ValueError: the model is missing, has no safetensors or no usable tokenizer, needs code that isn't trusted, or
            `hub` has no repository or no commit.
    """
    from stages.models.pointer import download_snapshot, weights_folder

    base_model.mkdir(parents=True, exist_ok=True)
    if params.source == "hub":
        repository, revision = _repository(params)
        model = download_snapshot(repository, revision, trust_remote_code=params.trust_remote_code)
    elif source is None:
        raise ValueError(f"base_model.source is {params.source}: expected inputs.base_model in params.yaml, found none")
    elif params.source == "local":
        model = source
    else:
        _make_model(source, base_model, params)
        model = base_model
    _write_checked_pointer(base_model, weights_folder(model), params)


def _repository(params: BaseModelParams) -> tuple[str, str]:
    if params.repository is None:
        raise ValueError(
            "base_model.source is hub: expected base_model.repository, found none; name one, as owner/name"
        )
    if params.revision is None or not re.fullmatch(r"[0-9a-f]{40}", params.revision):
        raise ValueError(
            f"base_model.revision: expected a commit of 40 hexadecimal digits, found {params.revision!r}, which could "
            f"name another model tomorrow; copy one from the history of {params.repository}"
        )
    return params.repository, params.revision


def _make_model(source: Path, base_model: Path, params: BaseModelParams) -> None:
    from stages.demo.scratch_model import ModelSize, encode, make_model, read_demonstrations, train, train_tokenizer

    if source.is_dir():
        raise ValueError(
            f"{source}: expected a file of demonstrations to make a model from, found a folder; for the model in it "
            "set base_model.source to local"
        )
    settings = params.scratch
    demonstrations = read_demonstrations(source)
    tokenizer = train_tokenizer(demonstrations, vocab_size=settings.vocab_size)
    size = ModelSize(settings.hidden_size, settings.num_layers, settings.num_heads, settings.intermediate_size)
    model = make_model(tokenizer, size, seed=params.seed)
    loss = train(
        model,
        *encode(tokenizer, demonstrations),
        num_epochs=settings.num_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=params.seed,
    )
    model.save_pretrained(base_model)
    tokenizer.save_pretrained(base_model)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, loss {loss:.3f} nats a token")


def _write_checked_pointer(base_model: Path, model: Path, params: BaseModelParams) -> None:
    from stages.models.loading import check_causal_lm
    from stages.models.pointer import (
        POINTER_FILE,
        ModelPointer,
        fingerprint,
        tokenizer_fingerprint,
        trusts_code,
        write_pointer,
    )
    from stages.models.tokenizers import load_tokenizer

    # Loading believes a pointer; here it is whoever made the model that wrote it.
    if trusts_code(model) and not params.trust_remote_code:
        raise ValueError(
            f"{model / POINTER_FILE} lets code run that the model brings, and base_model.trust_remote_code is false; "
            "read that code and set it to true, or remove the file"
        )
    tokenizer = load_tokenizer(model, trust_remote_code=params.trust_remote_code)
    check_causal_lm(model, tokenizer, trust_remote_code=params.trust_remote_code)
    is_hub = params.source == "hub"
    pointer = ModelPointer(
        source=params.source,
        path=model.as_posix() if params.source == "local" else None,
        repository=params.repository if is_hub else None,
        revision=params.revision if is_hub else None,
        fingerprint=fingerprint(model, trust_remote_code=params.trust_remote_code),
        tokenizer_fingerprint=tokenizer_fingerprint(model),
        trust_remote_code=params.trust_remote_code,
        dtype=params.dtype,
        attention=params.attention,
        quantisation=params.quantisation,
        pad_token=str(tokenizer.pad_token),
        pad_token_is_eos=tokenizer.pad_token == tokenizer.eos_token,
    )
    write_pointer(base_model, pointer)
    print(f"base model: {params.source}, fingerprint {pointer.fingerprint[:12]}")


if __name__ == "__main__":
    stage_main(run)
