"""What losses make of the log-probabilities of single tokens, before or beside their sum over a completion."""

import torch
from torch import Tensor

from stages.losses.shapes import check_rows


def nll_losses(logps: Tensor, num_tokens: Tensor) -> Tensor:
    """Negative log-likelihood of each completion, a mean over its tokens: the term that RPO adds to a preference loss.

    Iterative RPO is Pang et al. 2024, https://arxiv.org/abs/2404.19733. The mean is one over the tokens of a completion
    and then over completions, so that it doesn't depend on how a step is cut into batches.

    Args:
        logps: log-probabilities summed over the tokens of each completion, in nats. Shape (n,).
        num_tokens: how many tokens that are; a completion without tokens costs 0. Shape (n,).

    Raises:
        ValueError: the tensors differ in shape.
    """
    check_rows({"logps": logps, "num_tokens": num_tokens})
    return -logps / num_tokens.clamp(min=1)


def on_policy_weights(logps: Tensor, collision_entropies: Tensor, num_tokens: Tensor) -> Tensor:
    """How likely the policy is to give a completion itself, relative to what it samples on average (WPO).

    exp of the mean over tokens of log p(token) - log(sum over the vocabulary of p^2). Zhou et al. 2024,
    https://arxiv.org/abs/2406.11827. The weight of a pair is the product of those of its completions.

    Args:
        logps: log-probabilities under the policy, summed over the tokens of each completion, in nats. Shape (n,).
        collision_entropies: -log(sum p^2) at each token, summed likewise. Shape (n,).
        num_tokens: how many tokens that are. Shape (n,).

    Returns:
        The weights, detached; they aren't divided by their sum. Shape (n,).

    Raises:
        ValueError: the tensors differ in shape.
    """
    check_rows({"logps": logps, "collision_entropies": collision_entropies, "num_tokens": num_tokens})
    return ((logps + collision_entropies).detach() / num_tokens.clamp(min=1)).exp()


def length_weights(is_completion: Tensor, *, alpha: float) -> Tensor:
    """Weights of tokens under which the longer completion of a pair gains nothing from its length (LD-DPO).

    1 for the tokens of a completion up to the length of the shorter one of its pair, alpha for those behind. Liu et al.
    2024, https://arxiv.org/abs/2409.06411.

    Args:
        is_completion: which positions are tokens of the completion, of the chosen rows and then of the rejected ones.
            Shape (2 n, t).
        alpha: from 0, which leaves out the tokens behind, to 1, which is DPO.

    Returns:
        The weights; 0 outside the completion. Shape (2 n, t).
    """
    mask = is_completion.bool()
    shared = torch.stack(mask.sum(-1).chunk(2)).amin(0).repeat(2)
    return (mask.cumsum(-1) <= shared[:, None]).float().clamp(min=alpha) * mask


def humanline_clamped(policy: Tensor, reference: Tensor, *, low: float, high: float) -> Tensor:
    """Log-probabilities of tokens, held so close to the reference's that no token's log-ratio leaves its bounds.

    Ethayarajh et al. 2025, https://arxiv.org/abs/2509.24207: what is much likelier or unlikelier than under the
    reference isn't perceived as such. A token out of bounds has no gradient.

    Args:
        policy: log-probability of each token under the policy, in nats. Shape (n, t).
        reference: the same under the reference. Shape (n, t).
        low: least log-ratio, below 0; log epsilon_P in the paper's code.
        high: greatest log-ratio, above 0; log epsilon_R there.
    """
    return policy.clamp(reference + low, reference + high)
