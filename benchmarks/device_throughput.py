"""Tokens and operations a second of the stages that run a model, beside the same work done with whole logits.

    python -m benchmarks.device_throughput --rows 512

On whatever device the stages would take. The model has the shape of Llama 3.2 1B and random weights; lengths are drawn
log-normal with a mean of about 294 tokens, half of them the prompt's. Each line is one measurement after a warm-up:

- `reference_logprobs`: the stage's scorer, which projects only the completions onto the vocabulary.
- `reference, whole logits`: batches in the order of the rows, padded to the longest, all logits at once.
- `training@bco`: steps of `BCOTrainer`, the reference's log-probabilities being a column.
- `training, whole logits, live reference`: the same loss with both models in the loop, each giving all logits.

Operations are counted as 2 (forward) or 6 (forward and backward) per weight and token, padding not counted.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from stages.models.devices import default_device
from stages.models.row_logps import row_logps
from stages.rows.batching import padded
from stages.trainers.bco.trainer import BCOConfig, BCOTrainer
from tests.trainers.tiny import tiny_tokenizer

BATCH = 16


def made_model(layers: int) -> LlamaForCausalLM:
    """The model in bfloat16 on the device, with `layers` layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(default_device()):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def made_rows(number: int) -> list[dict[str, Any]]:
    """Encoded rows with a reference of zero."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.5, 0.6, number), 16, 1024).astype(int)
    return [
        {
            "row_id": f"{i:032d}",
            "input_ids": draw.integers(3, 128_000, length).tolist(),
            "prompt_length": int(length // 2),
            "label": i % 2 == 0,
            "weight": 1.0,
            "reference_logps": -10.0 * (length - length // 2),
        }
        for i, length in enumerate(lengths)
    ]


def batches(rows: list[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, attention and completion masks in the order of the rows."""
    device = default_device()
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        ids, attention = padded([row["input_ids"] for row in some], pad_id=0)
        starts = torch.tensor([row["prompt_length"] for row in some])[:, None]
        completion = attention.bool() & (torch.arange(ids.shape[1])[None] >= starts)
        yield ids.to(device), attention.to(device), completion.to(device)


def whole_logits(model: LlamaForCausalLM, rows: list[dict[str, Any]]) -> Iterator[torch.Tensor]:
    """Sums of log-probabilities of each batch, by all logits in float32."""
    for ids, attention, completion in batches(rows):
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        yield (chosen * completion[:, 1:]).sum(-1)


def score(model: LlamaForCausalLM, rows: list[dict[str, Any]]) -> None:
    """As stage `reference_logprobs` does."""
    row_logps(model, [row["input_ids"] for row in rows], [row["prompt_length"] for row in rows], batch_size=BATCH)


def score_plainly(model: LlamaForCausalLM, rows: list[dict[str, Any]]) -> None:
    """With whole logits."""
    with torch.inference_mode():
        for logps in whole_logits(model, rows):
            logps.cpu()


def train(model: LlamaForCausalLM, rows: list[dict[str, Any]]) -> None:
    """As stage `training` does for BCO."""
    config = BCOConfig(
        "checkpoints/device_throughput",
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-6,
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        report_to="none",
        optim="sgd",
    )
    BCOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()).train()


def train_plainly(model: LlamaForCausalLM, rows: list[dict[str, Any]]) -> None:
    """The same loss from whole logits, with a reference in the loop."""
    reference = made_model(len(model.model.layers))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    signs = torch.tensor([1.0 if row["label"] else -1.0 for row in rows], device=default_device()).split(BATCH)
    with torch.inference_mode():
        baseline = whole_logits(reference, rows)
    for policy, sign in zip(whole_logits(model, rows), signs, strict=True):
        with torch.inference_mode():
            reference_logps = next(baseline)
        loss: torch.Tensor = -torch.nn.functional.logsigmoid(0.1 * (policy - reference_logps.clone()) * sign).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def measured(work: Callable[..., None], model: LlamaForCausalLM, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds and GB at the most, after a warm-up on some of the rows."""
    work(model, rows[: 2 * BATCH])
    on_cuda = default_device().type == "cuda"
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work(model, rows)
    if on_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 1e9 if on_cuda else float("nan")


def main() -> None:
    """Print a line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--layers", type=int, default=16)
    arguments = parser.parse_args()
    rows = made_rows(arguments.rows)
    tokens = sum(len(row["input_ids"]) for row in rows)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else default_device().type
    model = made_model(arguments.layers)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name}: {weights / 1e9:.2f}e9 weights, {len(rows):,} rows, {tokens:,} tokens, torch {torch.__version__}")
    for what, work, operations in (
        ("reference_logprobs", score, 2),
        ("reference, whole logits", score_plainly, 2),
        ("training@bco", train, 6),
        ("training, whole logits, live reference", train_plainly, 6),
    ):
        seconds, memory = measured(work, model, rows)
        rate = operations * weights * tokens / seconds / 1e12
        print(f"{what:40} {seconds:7.2f} s {tokens / seconds:12,.0f} tokens/s {rate:7.2f} TFLOP/s {memory:6.1f} GB")


if __name__ == "__main__":
    main()
