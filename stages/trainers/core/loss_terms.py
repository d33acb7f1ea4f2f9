"""Arguments that preference methods share besides their loss: what is added to it, and what it is compared with.

Light to import, for sections of params.yaml are made of them.
"""

import dataclasses
from typing import Annotated, Any

from annotated_types import Interval
from pydantic import NegativeFloat, NonNegativeFloat, PositiveFloat, PositiveInt

from stages.losses.kl_penalty import Divergence
from stages.trainers.core.fields import check_fields

_Share = Annotated[float, Interval(ge=0, le=1)]
_Part = Annotated[float, Interval(gt=0, le=1)]


@dataclasses.dataclass
class LossTerms:
    """Those of all methods; `stages.losses.token_terms` has the formulas."""

    rpo_alpha: NonNegativeFloat | None = None
    """Weight of the negative log-likelihood per token of chosen or desired completions, added to the loss (RPO,
    https://arxiv.org/abs/2404.19733, which takes 1). None adds none."""
    use_weighting: bool = False
    """Whether losses are weighted by how likely the policy gives the completions itself (WPO,
    https://arxiv.org/abs/2406.11827)."""
    reference_free: bool = False
    """Whether all completions are taken to be as likely as each other under the reference, and none is kept."""
    humanline: bool = False
    """Whether the log-ratio of each token is clamped (https://arxiv.org/abs/2509.24207)."""
    log_epsilon_p: NegativeFloat = -1.0
    """Least log-ratio of a token under `humanline`, in nats."""
    log_epsilon_r: PositiveFloat = 1.5
    """Greatest log-ratio of a token under `humanline`, in nats."""
    sync_ref_model: bool = False
    """Whether the reference follows the policy (TR-DPO, https://arxiv.org/abs/2404.09656)."""
    ref_model_mixup_alpha: _Part = 0.6
    """Share of the policy in the reference when it follows: 1 takes the policy as it is."""
    ref_model_sync_steps: PositiveInt = 512
    """Optimizer steps after which the reference follows, each time."""


@dataclasses.dataclass
class PairTerms:
    """Those of pairs alone."""

    loss_weights: list[float] | None = None
    """What each loss of a list in `loss_type` is multiplied by (MPO, https://arxiv.org/abs/2411.10442). None weighs all
    by 1."""
    f_divergence_type: Divergence = "reverse_kl"
    """Divergence that holds the policy to its reference (f-DPO, https://arxiv.org/abs/2309.16240)."""
    f_alpha_divergence_coef: _Part = 0.5
    """The a of the alpha-divergence, which tends to the reverse KL as a tends to 0 and is the forward KL at 1."""
    ld_alpha: _Share | None = None
    """Weight of the tokens of a completion behind the length of the shorter one of its pair (LD-DPO,
    https://arxiv.org/abs/2409.06411, which takes 0.5). None and 1 weigh all tokens alike."""


LOSS_TERMS = " ".join(field.name for field in dataclasses.fields(LossTerms))
"""Names of the arguments of all methods."""
PAIR_TERMS = " ".join(field.name for field in dataclasses.fields(PairTerms))
"""Names of those of pairs."""
_NEEDS = {
    "log_epsilon_p": "humanline",
    "log_epsilon_r": "humanline",
    "ref_model_mixup_alpha": "sync_ref_model",
    "ref_model_sync_steps": "sync_ref_model",
}


def check_terms(config: Any) -> None:
    """See that the terms of a configuration can be honoured together.

    Args:
        config: has the fields of `LossTerms`, perhaps those of `PairTerms` and `precompute_ref_log_probs`.

    Raises:
        ValueError: a term is out of range, or another argument keeps it from having an effect.
    """
    check_fields(config, of=LossTerms)
    if isinstance(config, PairTerms):
        check_fields(config, of=PairTerms)
    changed = changed_terms(config)
    for name in changed:
        if name in _NEEDS and not getattr(config, _NEEDS[name]):
            raise ValueError(
                f"{name} is {getattr(config, name)}, but {_NEEDS[name]} isn't set; set it, or leave it out"
            )
    live = live_terms(config)
    if live and config.reference_free:
        raise ValueError(f"expected {live[0]} with a reference, found reference_free=True; leave one of the two out")
    divergence = getattr(config, "f_divergence_type", "reverse_kl")
    if config.reference_free and divergence != "reverse_kl":
        raise ValueError(
            f"expected f_divergence_type {divergence} with a reference to diverge from, found reference_free=True; "
            "leave one of the two out"
        )
    if live and config.precompute_ref_log_probs:
        raise ValueError(
            f"expected precompute_ref_log_probs=False with {live[0]}, for {_WHY[live[0]]}, found True; leave one of "
            "the two out"
        )


_WHY = {
    "ld_alpha": "log-probabilities that were computed before are sums over whole completions",
    "humanline": "log-probabilities that were computed before are sums over tokens",
    "sync_ref_model": "log-probabilities that were computed before are those of a reference that stays",
}


def live_terms(config: Any) -> list[str]:
    """Names of the terms for which the reference is run in each step, as its log-probabilities per row won't do."""
    is_length_read = getattr(config, "ld_alpha", None) not in {None, 1.0}
    found = {"ld_alpha": is_length_read, "humanline": config.humanline, "sync_ref_model": config.sync_ref_model}
    return [name for name, is_set in found.items() if is_set]


def why_live(config: Any) -> str | None:
    """The first of `live_terms` and why it is one; None without one."""
    names = live_terms(config)
    return f"{names[0]}: {_WHY[names[0]]}" if names else None


def changed_terms(config: Any) -> list[str]:
    """Names of the terms that aren't at their default."""
    fields = [*dataclasses.fields(LossTerms), *(dataclasses.fields(PairTerms) if isinstance(config, PairTerms) else ())]
    return [field.name for field in fields if getattr(config, field.name) != field.default]
