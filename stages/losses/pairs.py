"""What losses over preference pairs are given: log-probabilities of n pairs, and settings."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, get_args

from torch import Tensor

from stages.losses.divergences import divergence_scores
from stages.losses.kl_penalty import Divergence
from stages.losses.shapes import check_rows


class PairLogps(NamedTuple):
    """Log-probabilities of n pairs, summed over the tokens of each completion, in nats; each of shape (n,)."""

    policy_chosen: Tensor
    """Of the chosen completions under the policy, differentiable."""
    policy_rejected: Tensor
    """Of the rejected completions under the policy, differentiable."""
    reference_chosen: Tensor
    """Of the chosen completions under the reference; zeros will do for a loss that needs none."""
    reference_rejected: Tensor
    """Of the rejected completions under the reference; zeros will do for a loss that needs none."""
    chosen_tokens: Tensor
    """Number of tokens of the chosen completions."""
    rejected_tokens: Tensor
    """Number of tokens of the rejected completions."""

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """Policy minus reference, of the chosen and of the rejected completions; each of shape (n,).

        Raises:
            ValueError: the tensors differ in shape.
        """
        self.check()
        return self.policy_chosen - self.reference_chosen, self.policy_rejected - self.reference_rejected

    def margins(self) -> Tensor:
        """Log-ratio of the chosen completion minus that of the rejected one, h in most papers. Shape (n,).

        Raises:
            ValueError: the tensors differ in shape.
        """
        chosen, rejected = self.log_ratios()
        return chosen - rejected

    def per_token(self) -> "PairLogps":
        """The same with means over the tokens in place of sums; a completion without tokens keeps its 0.

        Raises:
            ValueError: the tensors differ in shape.
        """
        self.check()
        chosen, rejected = self.chosen_tokens.clamp(min=1), self.rejected_tokens.clamp(min=1)
        return self._replace(
            policy_chosen=self.policy_chosen / chosen,
            policy_rejected=self.policy_rejected / rejected,
            reference_chosen=self.reference_chosen / chosen,
            reference_rejected=self.reference_rejected / rejected,
        )

    def check(self) -> None:
        """Compare the shapes.

        Raises:
            ValueError: the tensors differ in shape, or have another number of dimensions than one.
        """
        check_rows(self._asdict())


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Numbers that a loss over pairs is set with; each loss reads `beta` and some of the others.

    Raises:
        ValueError: one is out of range.
    """

    beta: float
    """Scale of the implicit reward; the larger, the closer the policy stays to the reference. In IPO the target of the
    margin is 1 / (2 beta), in SimPO it multiplies mean log-probabilities per token (the paper takes 2 to 10), in ORPO
    it is lambda, the weight of the odds ratio beside the likelihood."""
    label_smoothing: float = 0.0
    """Share of the pairs whose two labels are taken to be swapped, from 0 and below 0.5."""
    ipo_averages: bool = True
    """Whether IPO's log-ratios are means over the tokens of a completion. With sums the same difference per token is
    another margin for each length, so that long pairs are pulled back and short ones pushed apart."""
    simpo_gamma: float = 0.5
    """Margin that SimPO wants between the rewards of chosen and rejected, in units of reward."""
    cpo_alpha: float = 1.0
    """Weight of the likelihood of the chosen completion in CPO."""
    discopop_tau: float = 0.05
    """Width, in units of reward, of DiscoPOP's passage from its logistic to its exponential part."""
    detach_kl: bool = True
    """Whether the KL estimates of kto_pair are constants, as in its paper. Otherwise gradients flow through them."""
    reward_shift: Tensor | None = None
    """Running mean of rewards that bco_pair compares rewards with; taken as a constant. Shape ()."""
    f_divergence_type: Divergence = "reverse_kl"
    """Divergence that holds the policy to its reference. Losses that read the margin of a pair take any."""
    f_alpha_divergence_coef: float = 0.5
    """The a of the alpha-divergence, above 0 and up to 1."""

    def margins(self, logps: PairLogps) -> Tensor:
        """Margin of each pair under the divergence, h; of the reverse KL, that of the log-ratios. Shape (n,).

        Raises:
            ValueError: the tensors differ in shape.
        """
        if self.f_divergence_type == "reverse_kl":
            return logps.margins()
        chosen, rejected = (
            divergence_scores(ratios, self.f_divergence_type, coefficient=self.f_alpha_divergence_coef)
            for ratios in logps.log_ratios()
        )
        return chosen - rejected

    def __post_init__(self) -> None:
        """Check the ranges, so that a slip is found before a model is loaded."""
        if not self.beta > 0 or not self.discopop_tau > 0:
            raise ValueError(
                f"expected beta and discopop_tau above 0, found beta {self.beta} and discopop_tau {self.discopop_tau}"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                "expected label_smoothing from 0 and below 0.5, the share of swapped labels, found "
                f"{self.label_smoothing}"
            )
        if not self.simpo_gamma >= 0 or not self.cpo_alpha >= 0:
            raise ValueError(
                "expected simpo_gamma and cpo_alpha from 0, found simpo_gamma "
                f"{self.simpo_gamma} and cpo_alpha {self.cpo_alpha}"
            )
        self._check_divergence()

    def _check_divergence(self) -> None:
        if self.f_divergence_type not in get_args(Divergence):
            raise ValueError(
                f"expected f_divergence_type as one of {', '.join(get_args(Divergence))}, found "
                f"{self.f_divergence_type!r}"
            )
        is_read = self.f_divergence_type == "alpha_divergence"
        if not 0 < self.f_alpha_divergence_coef <= 1:
            raise ValueError(
                f"expected f_alpha_divergence_coef above 0 and up to 1, found {self.f_alpha_divergence_coef}; near 0 "
                "it is the reverse KL, f_divergence_type reverse_kl"
            )
        if self.f_alpha_divergence_coef != 0.5 and not is_read:
            raise ValueError(
                f"f_alpha_divergence_coef is {self.f_alpha_divergence_coef}, but f_divergence_type "
                f"{self.f_divergence_type} doesn't read it; set alpha_divergence, or leave it out"
            )

    def changed(self) -> tuple[str, ...]:
        """Names of the settings that aren't at their default; beta has none and isn't among them."""
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name != "beta"}
        return tuple(name for name, default in defaults.items() if getattr(self, name) != default)
