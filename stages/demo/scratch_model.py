"""A small causal language model and its tokenizer, made from nothing but demonstrations."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_POSITIONS = 512
IGNORED = -100
"""Label of a token that has no part in the loss."""


class Demonstration(NamedTuple):
    """One conversation of two turns."""

    prompt: str
    completion: str


class ModelSize(NamedTuple):
    """Sizes of a Llama-type model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Demonstrations in a JSONL file of conversational rows: `prompt` and `completion` are one message each.

    Raises:
        ValueError: the file is missing or empty, or a line is no such row.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected demonstrations as JSONL, found no file; run `dvc repro demo_feedback`")
    found = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                (prompt,), (completion,) = row["prompt"], row["completion"]
                found.append(Demonstration(prompt["content"], completion["content"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f'{path}:{number}: expected {{"prompt": [message], "completion": [message]}}, found '
                    f"{line.strip()[:80]!r}; correct the line, or set base_model.source to local or hub"
                ) from None
    if not found:
        raise ValueError(f"{path}: expected demonstrations as JSONL, found no line; run `dvc repro demo_feedback`")
    return found


def train_tokenizer(demonstrations: Sequence[Demonstration], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, with a chat template that ends each turn, the assistant's too, by its EOS.

    It knows every byte, so it encodes any text, and a word at the start of a turn is the same token as elsewhere.

    Args:
        demonstrations: texts to learn from.
        vocab_size: tokens at most, special ones and 256 bytes included.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # The space that was put before a turn goes again, so that decoding gives back what was encoded.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in demonstrations for text in row), trainer)
    # Named with a type because the class declares none for its arguments.
    wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return wrap(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, size: ModelSize, *, seed: int) -> LlamaForCausalLM:
    """An untrained Llama-type model with tied embeddings, the same for the same seed.

    Raises:
        ValueError: the width can't be shared out evenly, in pairs, among the heads.
    """
    if size.hidden_size % (2 * size.num_heads):
        raise ValueError(
            f"expected a hidden_size that is a multiple of 2 * num_heads ({2 * size.num_heads}), found "
            f"{size.hidden_size}; change base_model.scratch"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, demonstrations: Sequence[Demonstration]) -> tuple[Tensor, Tensor]:
    """Ids and labels of each conversation, padded on the right to the longest; prompts have no label.

    Returns:
        Two tensors of shape (n, t).
    """
    rows = []
    for prompt, completion in demonstrations:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        completion_ids = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((prompt_ids, completion_ids))
    width = max(len(prompt_ids) + len(completion_ids) for prompt_ids, completion_ids in rows)
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    for i, (prompt_ids, completion_ids) in enumerate(rows):
        end = len(prompt_ids) + len(completion_ids)
        input_ids[i, :end] = torch.tensor(prompt_ids + completion_ids)
        labels[i, len(prompt_ids) : end] = torch.tensor(completion_ids)
    return input_ids, labels


def train(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    labels: Tensor,
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Train in place by next-token cross-entropy on the labelled tokens.

    Args:
        model: what to train; it is left in evaluation mode.
        input_ids: ids padded on the right, shape (n, t).
        labels: the same ids, `IGNORED` where there is no loss, shape (n, t).
        num_epochs: passes over the rows.
        batch_size: rows of a step.
        learning_rate: peak of a schedule that warms up for a twentieth of the steps and then falls as a cosine.
        seed: seed of the order of the rows.

    Returns:
        Mean loss of the last tenth of the steps, in nats per token.
    """
    batches = list(_shuffled_batches(len(input_ids), num_epochs=num_epochs, batch_size=batch_size, seed=seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, len(batches) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * step / len(batches))),
    )
    losses = []
    model.train()
    progress = tqdm(batches, desc="base_model", unit="step", mininterval=1.0)
    for rows in progress:
        # Padding stands on the right of causal attention, so it needs no mask.
        hidden = model.model(input_ids=input_ids[rows, :-1]).last_hidden_state
        targets = labels[rows, 1:]
        counted = targets != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), targets[counted])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.train(False)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def _shuffled_batches(rows: int, *, num_epochs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_epochs):
        yield from torch.split(torch.randperm(rows, generator=generator), batch_size)
