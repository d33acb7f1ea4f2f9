"""Losses over preference pairs: Direct Preference Optimization (DPO), Rafailov et al. 2023, and its kin.

DPO's paper is https://arxiv.org/abs/2305.18290; that of each loss stands in its row of `PAIR_LOSSES`. A loss is a
function of `PairLogps` and `PairSettings` that gives one loss per pair, of which a batch takes the mean. In what
follows, c and r are the log-ratios (policy minus reference) of the chosen and the rejected completion, h = c - r is
the margin, and the reward of a completion is beta times its log-ratio.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from stages.contracts.named_function import named_function
from stages.losses.pairs import PairLogps, PairSettings
from stages.losses.shapes import check_losses
from stages.losses.token_terms import nll_losses

PairLoss = Callable[[PairLogps, PairSettings], Tensor]


def sigmoid_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Cross-entropy of telling chosen from rejected by their rewards; with label_smoothing, conservative DPO (cDPO).

    -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), with e the label_smoothing; least at beta h = logit(1 - e).
    cDPO is https://ericmitchell.ai/cdpo.pdf.
    """
    return _smoothed(settings.beta * settings.margins(logps), settings.label_smoothing)


def robust_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """DPO's loss, unbiased where a share e of the pairs, label_smoothing, has its labels swapped.

    (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e), whose mean over swapped and unswapped labels
    is the loss under the right ones. It has no lower bound.
    """
    rewards, share = settings.beta * settings.margins(logps), settings.label_smoothing
    return (share * logsigmoid(-rewards) - (1 - share) * logsigmoid(rewards)) / (1 - 2 * share)


def hinge_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """What the margin of rewards falls short of 1, max(0, 1 - beta h): the loss of SLiC, relative to a reference."""
    return relu(1 - settings.beta * settings.margins(logps))


def ipo_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Squared distance of the margin from its target: (h - 1 / (2 beta)) ^ 2; a margin beyond it is pulled back.

    With `ipo_averages` the log-ratios in h are means over tokens, so that pairs of any length share the target.
    """
    margins = settings.margins(logps.per_token() if settings.ipo_averages else logps)
    return (margins - 1 / (2 * settings.beta)).square()


def exo_pair_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Divergence of the policy's preference from the raters', in the direction that seeks modes (EXO).

    KL of (sigmoid(beta h), sigmoid(-beta h)) relative to (1 - e, e), with e the label_smoothing; the paper takes 0.001.

    Raises:
        ValueError: label_smoothing is 0, under which all losses are infinite.
    """
    share = settings.label_smoothing
    if share == 0:
        raise ValueError("expected label_smoothing above 0 for exo_pair, found 0; its paper takes 1e-3")
    rewards = settings.beta * settings.margins(logps)
    chosen = rewards.sigmoid() * (logsigmoid(rewards) - math.log1p(-share))
    return chosen + (-rewards).sigmoid() * (logsigmoid(-rewards) - math.log(share))


def nca_pair_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Noise contrastive alignment (NCA): each completion is told from one of the reference by its own reward.

    -log sigmoid(beta c) - log sigmoid(-beta c) / 2 - log sigmoid(-beta r) / 2. The middle term holds the reward of
    the chosen completion: it settles at beta c = log 2, where DPO lets it sink as long as the other sinks faster.
    """
    chosen, rejected = (settings.beta * ratios for ratios in logps.log_ratios())
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def apo_zero_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Anchored preference optimization for chosen completions that are better than the policy's own (APO-zero).

    sigmoid(-beta c) + sigmoid(beta r): raises the chosen and lowers the rejected completion, each by itself.
    """
    chosen, rejected = (settings.beta * ratios for ratios in logps.log_ratios())
    return (-chosen).sigmoid() + rejected.sigmoid()


def apo_down_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Anchored preference optimization for chosen completions that are worse than the policy's own (APO-down).

    sigmoid(beta c) + sigmoid(-beta h): lowers the rejected completion, and with it the chosen one as soon as the
    margin is wider than the chosen one's own log-ratio.
    """
    chosen, rejected = (settings.beta * ratios for ratios in logps.log_ratios())
    return chosen.sigmoid() + (rejected - chosen).sigmoid()


def discopop_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """DiscoPOP, found by a search over programs: logistic for wrong margins and exponential for right ones.

    (1 - m) * -log sigmoid(z) + m exp(-z), with z = beta h and m = sigmoid(z / tau). It isn't convex.
    """
    rewards, tau = settings.beta * settings.margins(logps), settings.discopop_tau
    # exp(-z) overflows where m vanishes faster: their product is taken in logarithms.
    exponential = (logsigmoid(rewards / tau) - rewards).exp()
    return exponential - (-rewards / tau).sigmoid() * logsigmoid(rewards)


def sigmoid_norm_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """DPO's loss with log-ratios that are means over the tokens of a completion, so that length brings no reward.

    -log sigmoid(beta h), with h the margin of the means; smoothed as DPO's.
    """
    return _smoothed(settings.beta * settings.margins(logps.per_token()), settings.label_smoothing)


def sppo_hard_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Self-play preference optimization (SPPO) where the chosen completion wins for certain.

    (c - 1 / (2 beta)) ^ 2 + (r + 1 / (2 beta)) ^ 2: each log-ratio has a target of its own.
    """
    chosen, rejected = logps.log_ratios()
    target = 1 / (2 * settings.beta)
    return (chosen - target).square() + (rejected + target).square()


def bco_pair_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Binary classifier optimization on pairs: -log sigmoid(beta c - shift) - log sigmoid(shift - beta r).

    Raises:
        ValueError: the reward shift isn't given.
    """
    if settings.reward_shift is None:
        raise ValueError("expected reward_shift, the running mean of rewards, for bco_pair, found None")
    shift = settings.reward_shift.detach()
    chosen, rejected = (settings.beta * ratios for ratios in logps.log_ratios())
    return -logsigmoid(chosen - shift) - logsigmoid(shift - rejected)


def kto_pair_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """KTO on pairs, where the other side of the batch stands in for mismatched completions.

    sigmoid(beta (K_r - c)) of each chosen completion, then sigmoid(beta (r - K_c)) of each rejected one, with K the
    mean of c or of r over the batch, at least 0. The estimate sees this batch of this process only.

    Returns:
        One loss per completion, those of the chosen ones first. Shape (2 n,).
    """
    chosen, rejected = logps.log_ratios()
    kl_chosen, kl_rejected = (ratios.mean().clamp(min=0) for ratios in (chosen, rejected))
    if settings.detach_kl:
        kl_chosen, kl_rejected = kl_chosen.detach(), kl_rejected.detach()
    return (settings.beta * torch.cat([kl_rejected - chosen, rejected - kl_chosen])).sigmoid()


def simpo_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """SimPO: the reward is beta times the mean log-probability per token, and should differ by gamma.

    -log sigmoid(beta (chosen - rejected) - gamma), smoothed as DPO's; no reference.
    """
    means = logps.per_token()
    rewards = settings.beta * (means.policy_chosen - means.policy_rejected)
    return _smoothed(rewards - settings.simpo_gamma, settings.label_smoothing)


def cpo_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Contrastive preference optimization (CPO): DPO under a uniform reference, and the chosen completion's likelihood.

    -log sigmoid(beta (chosen - rejected)), smoothed as DPO's, plus alpha times the negative log-likelihood of the
    chosen completion per token. A mean over its tokens, and then over pairs, lets all completions count alike.
    """
    likelihood = logps.per_token().policy_chosen
    rewards = settings.beta * (logps.policy_chosen - logps.policy_rejected)
    return _smoothed(rewards, settings.label_smoothing) - settings.cpo_alpha * likelihood


def orpo_losses(logps: PairLogps, settings: PairSettings) -> Tensor:
    """Odds ratio preference optimization (ORPO): likelihood of the chosen completion, and its odds over the other's.

    -chosen - lambda log sigmoid(log(odds of chosen / odds of rejected)), with mean log-probabilities per token, lambda
    the beta and odds = p / (1 - p). The first term is a mean per completion, as in CPO above; no reference.
    """
    means = logps.per_token()
    log_odds = _log_odds(means.policy_chosen) - _log_odds(means.policy_rejected)
    return -means.policy_chosen - settings.beta * logsigmoid(log_odds)


def sft_losses(logps: PairLogps, settings: PairSettings) -> Tensor:  # noqa: ARG001 - what all losses are given
    """Negative log-likelihood of the chosen completion per token; the rejected one isn't read, and no reference.

    What mixed preference optimization (MPO) adds to a preference loss, by `loss_weights`.
    """
    logps.check()
    return nll_losses(logps.policy_chosen, logps.chosen_tokens)


def _smoothed(rewards: Tensor, share: float) -> Tensor:
    return -(1 - share) * logsigmoid(rewards) - share * logsigmoid(-rewards)


def _log_odds(logps: Tensor) -> Tensor:
    # A certain completion has infinite odds; it is taken to be certain up to rounding.
    logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return logps - (-logps.expm1()).log()


class PairLossKind(NamedTuple):
    """A loss over pairs, and what a trainer has to know of it."""

    function: PairLoss
    """Gives the losses, one per pair; that of kto_pair one per completion."""
    paper: str
    """Where it comes from: a URL, or "module:function" of the user's own."""
    needs_reference: bool = True
    """Whether it reads log-probabilities under the reference."""
    takes: tuple[str, ...] = ()
    """Fields of `PairSettings` that it reads, besides beta."""
    follows_rewards: bool = False
    """Whether it needs the running mean of the rewards, `reward_shift`."""
    parts: tuple["PairLossKind", ...] = ()
    """Those that it is the weighted sum of."""


_DIVERGENCE = ("f_divergence_type", "f_alpha_divergence_coef")
_SMOOTHED = ("label_smoothing",)
_OF_MARGINS = (*_SMOOTHED, *_DIVERGENCE)

PAIR_LOSSES: dict[str, PairLossKind] = {
    "sigmoid": PairLossKind(sigmoid_losses, "https://arxiv.org/abs/2305.18290", takes=_OF_MARGINS),
    "robust": PairLossKind(robust_losses, "https://arxiv.org/abs/2403.00409", takes=_OF_MARGINS),
    "hinge": PairLossKind(hinge_losses, "https://arxiv.org/abs/2309.06657", takes=_DIVERGENCE),
    "ipo": PairLossKind(ipo_losses, "https://arxiv.org/abs/2310.12036", takes=("ipo_averages", *_DIVERGENCE)),
    "exo_pair": PairLossKind(exo_pair_losses, "https://arxiv.org/abs/2402.00856", takes=_OF_MARGINS),
    "nca_pair": PairLossKind(nca_pair_losses, "https://arxiv.org/abs/2402.05369"),
    "apo_zero": PairLossKind(apo_zero_losses, "https://arxiv.org/abs/2408.06266"),
    "apo_down": PairLossKind(apo_down_losses, "https://arxiv.org/abs/2408.06266"),
    "discopop": PairLossKind(discopop_losses, "https://arxiv.org/abs/2406.08414", takes=("discopop_tau", *_DIVERGENCE)),
    "sigmoid_norm": PairLossKind(sigmoid_norm_losses, "https://arxiv.org/abs/2411.15124", takes=_OF_MARGINS),
    "sppo_hard": PairLossKind(sppo_hard_losses, "https://arxiv.org/abs/2405.00675"),
    "bco_pair": PairLossKind(
        bco_pair_losses, "https://arxiv.org/abs/2404.04656", takes=("reward_shift",), follows_rewards=True
    ),
    "kto_pair": PairLossKind(kto_pair_losses, "https://arxiv.org/abs/2402.01306", takes=("detach_kl",)),
    "simpo": PairLossKind(
        simpo_losses, "https://arxiv.org/abs/2405.14734", needs_reference=False, takes=(*_SMOOTHED, "simpo_gamma")
    ),
    "cpo": PairLossKind(
        cpo_losses, "https://arxiv.org/abs/2401.08417", needs_reference=False, takes=(*_SMOOTHED, "cpo_alpha")
    ),
    "orpo": PairLossKind(orpo_losses, "https://arxiv.org/abs/2403.07691", needs_reference=False),
    "sft": PairLossKind(sft_losses, "https://arxiv.org/abs/2411.10442", needs_reference=False),
}
"""The losses over pairs that can be named."""


def pair_loss_kind(name: str | Sequence[str], weights: Sequence[float] | None = None) -> PairLossKind:
    """The loss of this name, or the weighted sum of several as mixed preference optimization (MPO) takes it.

    MPO is Wang et al. 2024, https://arxiv.org/abs/2411.10442.

    Args:
        name: one of `PAIR_LOSSES`, or "module:function" for one from outside the repository, which is taken to read
            the reference and every setting except the reward shift; or a list of such names.
        weights: what the losses of each name are multiplied by, from 0. None weighs all by 1.

    Raises:
        ValueError: there is no such name, module or function, or the weights are none of these names.
    """
    if isinstance(name, str) and weights is None:
        return _named(name)
    names = [name] if isinstance(name, str) else list(name)
    weights = [1.0] * len(names) if weights is None else list(weights)
    if not names or len(weights) != len(names) or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ValueError(
            f"expected loss_type as one name or several, and as many loss_weights, from 0 and not all 0, found "
            f"{len(names)} names and the weights {weights}"
        )
    return _mixed([_named(each) for each in names], weights)


def _mixed(kinds: Sequence[PairLossKind], weights: Sequence[float]) -> PairLossKind:
    def losses(logps: PairLogps, settings: PairSettings) -> Tensor:
        number = len(logps.policy_chosen)
        found = [kind.function(logps, settings) for kind in kinds]
        # Of losses per completion, the pair's is their mean.
        of_pairs = [each.view(len(each) // max(1, number), number).mean(0) for each in found]
        return torch.stack([weight * each for weight, each in zip(weights, of_pairs, strict=True)]).sum(0)

    return PairLossKind(
        losses,
        " + ".join(kind.paper for kind in kinds),
        needs_reference=any(kind.needs_reference for kind in kinds),
        takes=tuple(dict.fromkeys(setting for kind in kinds for setting in kind.takes)),
        follows_rewards=any(kind.follows_rewards for kind in kinds),
        parts=tuple(kinds),
    )


def _named(name: str) -> PairLossKind:
    if name in PAIR_LOSSES:
        return PAIR_LOSSES[name]
    settings = (field.name for field in dataclasses.fields(PairSettings))
    takes = tuple(setting for setting in settings if setting not in {"beta", "reward_shift"})
    return PairLossKind(named_function(name, where="loss_type", known=PAIR_LOSSES), name, takes=takes)


def unread_settings(kind: PairLossKind, settings: PairSettings) -> tuple[str, ...]:
    """Names of the settings that were changed from their default and that this loss doesn't read."""
    return tuple(name for name in settings.changed() if name not in kind.takes)


def check_pair_loss(kind: PairLossKind, settings: PairSettings) -> None:
    """Compute the losses of three made-up pairs, so that what can't work is found before a model is loaded.

    Args:
        kind: the loss, of the table or of the user's own.
        settings: what it is to be set with; a missing `reward_shift` is taken to be 0.

    Raises:
        ValueError: it refuses the settings, or doesn't give one finite, differentiable loss per pair or completion.
    """
    if kind.follows_rewards and settings.reward_shift is None:
        settings = dataclasses.replace(settings, reward_shift=torch.zeros(()))
    sums = torch.tensor([[-3.0, -9.0, -20.0], [-4.0, -8.0, -30.0], [-3.5, -9.0, -19.0], [-3.0, -9.0, -31.0]])
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = sums
    tokens = torch.tensor([2, 5, 11])
    logps = PairLogps(
        policy_chosen.clone().requires_grad_(),
        policy_rejected.clone().requires_grad_(),
        reference_chosen,
        reference_rejected,
        tokens,
        tokens + 1,
    )
    losses = kind.function(logps, settings)
    check_losses(losses, counts=(3, 6), name=kind.paper)
    plain = dataclasses.replace(settings, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5)
    if settings.f_divergence_type == "reverse_kl":
        return
    for part in [part for part in kind.parts if part.needs_reference]:
        check_pair_loss(part, settings)
    if torch.equal(losses, kind.function(logps, plain)):
        raise ValueError(
            f"expected f_divergence_type reverse_kl, found {settings.f_divergence_type}: {kind.paper} doesn't read the "
            "margin of a pair, in which alone another divergence is known; take sigmoid, robust, hinge, ipo, exo_pair, "
            "discopop or sigmoid_norm"
        )
