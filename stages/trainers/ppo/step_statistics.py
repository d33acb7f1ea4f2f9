"""What PPO reports of a step, under the names that its documentation gives."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stages.losses.ppo import PPOLoss, masked_mean, masked_var

logger = logging.getLogger(__name__)

Statistics = dict[str, Tensor]


def loss_statistics(
    loss: PPOLoss,
    *,
    vf_coef: float,
    logps: Tensor,
    values: Tensor,
    old_logps: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    entropies: Tensor,
    mask: Tensor,
) -> Statistics:
    """Statistics of one mini-batch; numbers of shape (), and advantages and ratios of shape (n, t).

    Args:
        loss: the two losses, as they go into the gradient.
        vf_coef: coefficient of the value loss in the total.
        logps: of each token under the policy as it is. Shape (n, t), as all that follow.
        values: as they are.
        old_logps: under the policy that sampled.
        old_values: at that time.
        advantages: of the tokens.
        returns: of the tokens.
        entropies: of the distributions that the tokens would be drawn from now.
        mask: 1 for tokens that count.
    """
    change = logps - old_logps
    found = {
        "loss/policy": loss.policy,
        "loss/value": loss.value,
        "loss/total": loss.policy + vf_coef * loss.value,
        "policy/entropy": masked_mean(entropies, mask),
        "policy/approxkl": 0.5 * masked_mean(change.square(), mask),
        "policy/policykl": masked_mean(-change, mask),
        "policy/clipfrac": loss.policy_clip_share,
        "policy/advantages": advantages,
        "policy/advantages_mean": masked_mean(advantages, mask),
        "policy/ratio": loss.ratios,
        "returns/mean": masked_mean(returns, mask),
        "returns/var": masked_var(returns, mask),
        "val/vpred": masked_mean(values, mask),
        "val/error": masked_mean((values - returns).square(), mask),
        "val/clipfrac": loss.value_clip_share,
        "val/mean": masked_mean(old_values, mask),
        "val/var": masked_var(old_values, mask),
    }
    return {name: value.detach().float() for name, value in found.items()}


def merged_statistics(batches: Sequence[Statistics]) -> Statistics:
    """Means over mini-batches; advantages and ratios one after the other, of shape (k,), -1 for a ratio of nan."""
    merged = {}
    for name, first in batches[0].items():
        values = [batch[name] for batch in batches]
        merged[name] = torch.stack(values).mean() if first.dim() == 0 else torch.cat([v.flatten() for v in values])
    merged["policy/ratio"] = merged["policy/ratio"].nan_to_num(-1.0, posinf=torch.inf)
    return merged


def rollout_statistics(
    *,
    scores: Tensor,
    logps: Tensor,
    reference_logps: Tensor,
    non_score_rewards: Tensor,
    kls: Tensor,
    mask: Tensor,
    queries: Sequence[Tensor],
    responses: Sequence[Tensor],
) -> Statistics:
    """Statistics of the responses that a step is given.

    Args:
        scores: of the responses, scaled as they are learned from. Shape (n,).
        logps: of each token. Shape (n, t), as all that follow.
        reference_logps: the same under the reference.
        non_score_rewards: the penalty.
        kls: distance from the reference, of the kind that is penalised.
        mask: 1 for tokens that count.
        queries: ids.
        responses: ids.
    """
    distances = (kls * mask).sum(-1)
    found = {
        "objective/kl": distances.mean(),
        "objective/kl_dist": distances,
        "objective/logprobs": logps,
        "objective/ref_logprobs": reference_logps,
        "objective/entropy": (-logps * mask).sum(-1).mean(),
        "ppo/mean_non_score_reward": masked_mean(non_score_rewards, mask),
        "ppo/mean_scores": scores.mean(),
        "ppo/std_scores": _std(scores),
    }
    for name, sequences in (("queries", queries), ("responses", responses)):
        lengths = torch.tensor([len(ids) for ids in sequences], dtype=torch.float32, device=scores.device)
        found[f"tokens/{name}_len_mean"] = lengths.mean()
        found[f"tokens/{name}_len_std"] = _std(lengths)
        found[f"tokens/{name}_dist"] = lengths
    if found["objective/kl"] < -1.0:
        logger.warning(
            "the distance from the reference is %.2f nats, which sampling by the policy itself seldom gives; sample "
            "with temperature 1, top_k 0 and top_p 1, and with dropout off",
            float(found["objective/kl"]),
        )
    return found


def _std(values: Tensor) -> Tensor:
    """Unbiased standard deviation; 0 for a single value. Shape ()."""
    return values.std() if len(values) > 1 else values.new_zeros(())


def as_numpy(statistics: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as plain numbers and arrays, on the CPU."""
    found: dict[str, Any] = {}
    for name, value in statistics.items():
        array = value.detach().cpu().numpy()
        found[name] = float(array) if array.ndim == 0 else array
    return found


class Stopwatch:
    """Seconds spent in the parts of a step."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time inside for `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def stats(self) -> dict[str, float]:
        """The seconds by their documented names."""
        return {
            **{f"time/ppo/{name}": seconds for name, seconds in self._seconds.items()},
            "time/ppo/total": time.perf_counter() - self._start,
        }
