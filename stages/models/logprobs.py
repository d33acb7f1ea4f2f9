"""Log-probability of completions under a causal language model, without the logits of whole sequences.

A model's logits over n rows of t tokens and a vocabulary of v hold n * t * v numbers, most of which no loss reads.
Here the model's own forward runs with its output head handed no positions; the hidden states that would have
entered the head are kept, and those that predict a token of a completion are projected onto the vocabulary in
chunks. The model still does everything else itself: routing losses, adapters, checkpointing, wrappers around it.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Logits of up to this many bytes are kept from the forward to the backward pass instead of being computed again.
KEPT_LOGITS_BYTES = 64 * 2**20
# What the head is made to answer, to see what the model does to its logits: near zero, ordinary, and huge. The
# outer ones and the small ones are powers of two, so that a scale is read off them without rounding.
_PROBE = (-(2.0**20), -40.0, -5.0, -(2.0**-10), 0.0, 2.0**-10, 5.0, 40.0, 2.0**20)


class CompletionLogps(NamedTuple):
    """Log-probabilities of the completions of n rows of t tokens, in nats."""

    logps: Tensor
    """Sum over the completion's tokens; 0 for a row without completion. Shape (n,)."""
    num_tokens: Tensor
    """Tokens of the completion. int64, shape (n,)."""
    token_logps: Tensor
    """Entry j is that of token j + 1; 0 outside the completion. Shape (n, t - 1)."""
    mean_logits: Tensor
    """Mean over completion tokens of the mean logit over the vocabulary; detached. Shape (n,)."""
    aux_loss: Tensor | None = None
    """What a mixture of experts adds for balanced routing if its config has `output_router_logits`. Shape ()."""
    entropies: Tensor | None = None
    """Entropy of the distribution that each token was drawn from, in nats, where it was asked for; 0 outside the
    completion; detached. Shape (n, t - 1)."""
    collision_entropies: Tensor | None = None
    """-log of the probability that two tokens drawn from that distribution are the same, summed over the completion, in
    nats, where it was asked for; detached. Shape (n,)."""


class LogitMap(NamedTuple):
    """What a model does to its head's output z: scale * z, or cap * tanh(scale * z / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, outputs: Tensor) -> Tensor:
        """Logits of the head's outputs. Same shape."""
        logits = outputs if self.scale == 1.0 else outputs * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def pull_back(self, gradients: Tensor, logits: Tensor) -> Tensor:
        """Gradients with respect to the head's outputs, of those with respect to the logits; changed in place."""
        if self.cap is not None:
            gradients.mul_(1.0 - (logits / self.cap).square())
        return gradients if self.scale == 1.0 else gradients.mul_(self.scale)


class _Captured(NamedTuple):
    hidden: Tensor  # (n, t, d), what would have entered the head
    dtype: torch.dtype  # that the head would have computed in


_LOGIT_MAPS: WeakKeyDictionary[nn.Module, LogitMap] = WeakKeyDictionary()


def completion_logps(
    model: nn.Module,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    position_ids: Tensor | None = None,
    chunk_size: int = 1024,
    fixed_shape: bool = False,
    with_entropies: bool = False,
    with_collision_entropies: bool = False,
) -> CompletionLogps:
    """Log-probability of each row's completion given what stands before it, differentiable in the model's weights.

    Args:
        model: a causal language model of transformers, plain or wrapped (PEFT, data parallel).
        input_ids: token ids, padded on either side. Shape (n, t).
        attention_mask: 1 for tokens, 0 for padding. Shape (n, t).
        completion_mask: 1 for tokens of the completion. The first column isn't read, for nothing predicts it.
            Shape (n, t).
        position_ids: places of the tokens in their documents, where several stand in a row and don't see each other;
            they begin anew at each document, and the mask isn't read. Shape (n, t). None numbers what the mask keeps.
        chunk_size: positions projected onto the vocabulary at once; bounds memory and changes no result beyond
            rounding.
        fixed_shape: whether the last chunk is filled up to `chunk_size`, so that a row's value has the same bits
            whatever the other rows' completions are. Costs time where completions are few.
        with_entropies: whether entropies are computed as well, for one more projection onto the vocabulary.
        with_collision_entropies: the same of collision entropies.

    Returns:
        Sums, counts and token values; float32, or float64 for a model in float64.

    Raises:
        ValueError: the three tensors differ in shape, or the model does something to its logits that isn't
            understood, so that the result would be wrong.
    """
    shapes = {tuple(tensor.shape) for tensor in (input_ids, attention_mask, completion_mask)}
    if len(shapes) > 1 or input_ids.dim() != 2 or chunk_size < 1:
        raise ValueError(f"expected ids and masks of one shape (n, t) and chunks of at least 1, found {shapes}")
    unwrapped = _unwrap(model)
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    if position_ids is not None:
        # Without a mask, transformers reads off the positions where a document ends.
        inputs["position_ids"] = position_ids
    else:
        inputs["attention_mask"] = attention_mask
        if takes_positions(unwrapped) and not _learns_prompts(model):
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    head = unwrapped.get_output_embeddings()
    captured, outputs = _forward_without_logits(model, head, inputs)
    logit_map = _logit_map(unwrapped, outputs.logits)

    # A prompt of learned vectors stands before the tokens and has hidden states of its own.
    predicted = completion_mask[:, 1:].bool()
    hidden = captured.hidden[:, -input_ids.shape[1] :][:, :-1][predicted].to(captured.dtype)
    flat, means = _project(
        head,
        hidden,
        input_ids[:, 1:][predicted],
        logit_map=logit_map,
        chunk_size=chunk_size,
        fixed_shape=fixed_shape,
    )
    token_logps = flat.new_zeros(predicted.shape).masked_scatter(predicted, flat)
    num_tokens = predicted.sum(-1)
    mean_logits = means.new_zeros(predicted.shape).masked_scatter(predicted, means).sum(-1) / num_tokens.clamp(min=1)

    def at_tokens(measure: Callable[[Tensor], Tensor]) -> Tensor:
        found = _of_logits(measure, head, hidden.detach(), logit_map=logit_map, chunk_size=chunk_size)
        return found.new_zeros(predicted.shape).masked_scatter(predicted, found)

    return CompletionLogps(
        token_logps.sum(-1),
        num_tokens,
        token_logps,
        mean_logits,
        outputs.get("aux_loss"),
        at_tokens(entropies_of) if with_entropies else None,
        at_tokens(collision_entropies_of).sum(-1) if with_collision_entropies else None,
    )


def entropies_of(logits: Tensor) -> Tensor:
    """Entropy of the distributions that logits of shape (..., v) stand for, in nats. Shape (...)."""
    entropies: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return entropies


def collision_entropies_of(logits: Tensor) -> Tensor:
    """-log of the sum of the squared probabilities of the same, in nats. Shape (...)."""
    return 2 * logits.logsumexp(-1) - (2 * logits).logsumexp(-1)


def takes_positions(model: nn.Module) -> bool:
    """Whether the model, plain or wrapped, can be told the positions of its tokens."""
    return "position_ids" in inspect.signature(_unwrap(model).forward).parameters


def _unwrap(model: nn.Module) -> Any:
    """The model that has the output head; a PEFT model passes the question on by itself."""
    inner: Any = model
    while not hasattr(inner, "get_output_embeddings") and hasattr(inner, "module"):
        inner = inner.module
    while hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if getattr(inner, "get_output_embeddings", None) is None or inner.get_output_embeddings() is None:
        raise ValueError(f"expected a causal language model with an output head, found {type(inner).__name__}")
    return inner


def _learns_prompts(model: Any) -> bool:
    """Whether PEFT puts learned vectors before the tokens; it numbers positions itself then."""
    while hasattr(model, "module") and not hasattr(model, "peft_config"):
        model = model.module
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _forward_without_logits(model: nn.Module, head: nn.Module, inputs: dict[str, Any]) -> tuple[_Captured, Any]:
    """Run the model with a head that sees no positions and answers `_PROBE`."""
    found: list[_Captured] = []

    def keep_hidden(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        autocast = torch.is_autocast_enabled(hidden.device.type)
        found.append(_Captured(hidden, torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype))
        return (hidden[:, :0], *args[1:])

    def answer_probe(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # The sum of nothing ties the answer to the graph, where wrappers look for the parameters that were used.
        return torch.tensor(_PROBE, device=output.device).view(1, -1, 1) + output.sum().float()

    with _hooked(head, keep_hidden, answer_probe):
        outputs = model(**inputs)
    if len(found) != 1:
        raise ValueError(f"expected {type(model).__name__} to use its output head once per pass, found {len(found)}")
    return found[0], outputs


@contextmanager
def _hooked(head: nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    handles = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _logit_map(model: nn.Module, answer: Tensor) -> LogitMap:
    """What the model made of `_PROBE`; read once per model, because reading waits for the device.

    Raises:
        ValueError: it is neither a scale nor a soft cap, as where single tokens of the vocabulary are treated apart.
    """
    if model not in _LOGIT_MAPS:
        probe = torch.tensor(_PROBE, dtype=torch.float64)
        if answer.shape != (1, len(_PROBE), 1):
            raise ValueError(f"{type(model).__name__} gives each token of the vocabulary a logit bias of its own")
        found = answer.detach().view(-1).double().cpu()
        scale = float(found[5] / probe[5])
        candidates = (LogitMap(scale), LogitMap(1.0 if abs(scale - 1.0) < 1e-6 else scale, float(found[-1])))
        fitting = [known for known in candidates if torch.allclose(known.apply(probe), found, rtol=1e-5, atol=1e-8)]
        if scale == 0 or not fitting:
            raise ValueError(
                f"{type(model).__name__} changes its logits in a way that is neither a scale nor a soft cap: it "
                f"made {found.tolist()} of {list(_PROBE)}"
            )
        _LOGIT_MAPS[model] = fitting[0]
    return _LOGIT_MAPS[model]


def _project(
    head: nn.Module, hidden: Tensor, targets: Tensor, *, logit_map: LogitMap, chunk_size: int, fixed_shape: bool
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and mean logit at its position, both of shape (m,)."""
    num_targets = len(targets)
    if fixed_shape:
        missing = -num_targets % chunk_size
        hidden = nn.functional.pad(hidden, (0, 0, 0, missing))
        targets = nn.functional.pad(targets, (0, missing))
    if _is_plain_linear(head):
        linear_logps: Callable[..., tuple[Tensor, Tensor]] = _LinearLogps.apply
        logps, means = linear_logps(hidden, head.weight, head.bias, targets, logit_map, chunk_size)
    else:
        logps, means = _logps_through(head, hidden, targets, logit_map, chunk_size)
    return logps[:num_targets], means[:num_targets]


def _is_plain_linear(head: nn.Module) -> bool:
    """Whether the head is weight and bias alone: no adapter, quantisation, or replaced forward."""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)


def _logps_through(
    head: nn.Module, hidden: Tensor, targets: Tensor, logit_map: LogitMap, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The same for any head: chunks go through its own forward, again in the backward pass."""

    def chunk_logps(chunk: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = logit_map.apply(_upcast(head.forward(chunk)))
        logps = logits.gather(-1, chunk_targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
        return logps, logits.detach().mean(-1)

    empty = hidden.new_zeros(0, dtype=_upcast(hidden[:0]).dtype)
    logps, means = [empty], [empty]
    for start in range(0, len(targets), chunk_size):
        part = slice(start, start + chunk_size)
        chunk = checkpoint(chunk_logps, hidden[part], targets[part], use_reentrant=False)
        logps.append(chunk[0])
        means.append(chunk[1])
    return torch.cat(logps), torch.cat(means)


@torch.no_grad()
def _of_logits(
    measure: Callable[[Tensor], Tensor], head: nn.Module, hidden: Tensor, *, logit_map: LogitMap, chunk_size: int
) -> Tensor:
    """What `measure` gives of the logits at each position; shape (m,)."""
    found = [hidden.new_empty(0, dtype=_upcast(hidden[:0]).dtype)]
    for start in range(0, len(hidden), chunk_size):
        logits = logit_map.apply(_upcast(head.forward(hidden[start : start + chunk_size])))
        found.append(measure(logits))
    return torch.cat(found)


def _upcast(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _LinearLogps(torch.autograd.Function):
    """log softmax(map(h W' + b))[target] of each position, a chunk of positions at a time in both directions."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes arguments by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logit_map: LogitMap,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and mean logits of m positions.

        Args:
            ctx: keeps what the backward pass needs.
            hidden: hidden states. Shape (m, d).
            weight: of the head. Shape (v, d).
            bias: of the head, or None. Shape (v,).
            targets: token ids. Shape (m,).
            logit_map: what the model does to the head's outputs.
            chunk_size: positions at once.

        Returns:
            Two tensors of shape (m,); the second takes no gradient.
        """
        size = len(targets)
        accumulator = _upcast(hidden[:0]).dtype
        logps, means, normalizers = (hidden.new_empty(size, dtype=accumulator) for _ in range(3))
        bytes_needed = size * len(weight) * hidden.element_size()
        keep = any(ctx.needs_input_grad[:3]) and bytes_needed <= KEPT_LOGITS_BYTES
        ctx.kept = {}
        for start in range(0, size, chunk_size):
            part = slice(start, start + chunk_size)
            outputs = _head_outputs(hidden[part], weight, bias)
            if keep:
                ctx.kept[start] = outputs
            logits = logit_map.apply(_upcast(outputs))
            normalizers[part] = logits.logsumexp(-1)
            logps[part] = logits.gather(-1, targets[part, None]).squeeze(-1) - normalizers[part]
            means[part] = logits.mean(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        ctx.logit_map, ctx.chunk_size = logit_map, chunk_size
        ctx.mark_non_differentiable(means)
        return logps, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias; summed in float32 over the chunks."""
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = weight.new_zeros(weight.shape, dtype=normalizers.dtype) if wants_weight else None
        of_bias = weight.new_zeros(len(weight), dtype=normalizers.dtype) if wants_bias else None
        for start in range(0, len(targets), ctx.chunk_size):
            part = slice(start, start + ctx.chunk_size)
            outputs = ctx.kept.get(start)
            if outputs is None:
                outputs = _head_outputs(hidden[part], weight, bias)
            logits = ctx.logit_map.apply(_upcast(outputs))
            # d logp / d logit is 1 at the target, minus the softmax everywhere.
            slopes = (logits - normalizers[part, None]).exp_().mul_(-gradients[part, None])
            slopes.scatter_add_(1, targets[part, None], gradients[part, None])
            slopes = ctx.logit_map.pull_back(slopes, logits)
            if of_bias is not None:
                of_bias += slopes.sum(0)
            slopes = slopes.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[part] = slopes @ weight.to(hidden.dtype)
            if of_weight is not None:
                _add_product(of_weight, slopes.t(), hidden[part])
        weight_gradient = None if of_weight is None else of_weight.to(weight.dtype)
        bias_gradient = None if of_bias is None or bias is None else of_bias.to(bias.dtype)
        return of_hidden, weight_gradient, bias_gradient, None, None, None


def _head_outputs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
