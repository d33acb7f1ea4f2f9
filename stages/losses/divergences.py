"""Rewards under other divergences than the reverse KL (f-DPO), Wang et al. 2023, https://arxiv.org/abs/2309.16240.

A policy that maximises a reward less beta times an f-divergence from its reference has the reward beta f'(u) plus what
is the same for all completions of a prompt, where u is its probability over the reference's. Of the reverse KL, f'(u)
is log u. What is the same for all completions cancels in the margin of a pair, and in nothing else.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stages.losses.kl_penalty import Divergence

_MOST = 40.0
"""Exponents are cut here, so that scores and their squares are finite in float32."""


def divergence_scores(log_ratios: Tensor, divergence: Divergence, *, coefficient: float) -> Tensor:
    """What stands for the log-ratio of a completion under a divergence: f'(u) without its constants.

    log u for the reverse KL, -1 / u for the forward KL, log(u / (1 + u)) for the Jensen-Shannon divergence, and
    -u ^ -a / a for the alpha-divergence, which tends to the reverse KL as a tends to 0 and is the forward KL at 1.

    Args:
        log_ratios: log u, policy minus reference, in nats. Shape (n,).
        divergence: which one.
        coefficient: a, above 0 and up to 1; of the alpha-divergence alone.

    Returns:
        Scores that rise with the log-ratios. Shape (n,).
    """
    if divergence == "js_divergence":
        return logsigmoid(log_ratios)
    if divergence == "reverse_kl":
        return log_ratios
    power = 1.0 if divergence == "forward_kl" else coefficient
    return -torch.exp((-power * log_ratios).clamp(max=_MOST)) / power
