"""Proximal policy optimization (PPO) of a language model, Ziegler et al. 2019, https://arxiv.org/abs/1909.08593.

The trainer takes responses that the policy sampled and their scores, wherever those come from, and makes one step at
a time; `stages.trainers.ppo.run` is the loop around it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.losses.ppo import (
    Advantages,
    TokenRewards,
    compute_advantages,
    entropy_from_logits,
    kl_penalties,
    masked_mean,
    ppo_loss,
    token_rewards,
)
from stages.models.modes import evaluating
from stages.models.value_head import PreTrainedModelWithValueHead
from stages.trainers.ppo.models import PPOModels
from stages.trainers.ppo.passes import TokenPass, joined, logits_pass, token_pass
from stages.trainers.ppo.rollouts import Inputs, Rollouts, as_inputs, check_rollouts, padded_inputs
from stages.trainers.ppo.step_statistics import (
    Statistics,
    Stopwatch,
    as_numpy,
    loss_statistics,
    merged_statistics,
    rollout_statistics,
)


class _Experience(NamedTuple):
    """What the policy that sampled and the reference say of a batch; all of shape (n, t)."""

    logps: Tensor
    values: Tensor
    reference_logps: Tensor
    rewards: Tensor
    non_score_rewards: Tensor
    kls: Tensor


class PPOTrainer(PPOModels):
    """Trains a policy on scored responses, one step at a time. For its arguments see `PPOModels`."""

    # ---- one step ----

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Train on a batch of responses that the policy, as it is, has sampled.

        Args:
            queries: ids of each query; as many as `config.batch_size`. Shape (q,) each.
            responses: ids of each response, without its query. Shape (r,) each.
            scores: of the responses, one number each.
            response_masks: 0 for tokens of a response that the policy didn't choose, such as the output of a tool;
                None keeps all. Shape (r,) each.

        Returns:
            Statistics of the step, by their documented names.

        Raises:
            ValueError: the lists aren't of one length, an item is empty or isn't finite, or the gradient isn't.
        """
        clock = Stopwatch()
        rollouts = check_rollouts(
            queries,
            responses,
            scores,
            response_masks,
            batch_size=self.config.batch_size,
            device=self.accelerator.device,
        )
        padded = padded_inputs(rollouts, self.data_collator, decoder_start=self._decoder_start())
        inputs = as_inputs(rollouts, padded, decoder_start=self._decoder_start())
        learned = self._learned_scores(rollouts.scores)
        found = self._experience(inputs, learned, clock)
        with clock.running("compute_advantages"):
            advantages = self.compute_advantages(found.values, found.rewards, inputs.token_mask)
        with clock.running("optimize_step"):
            train_stats = self.gather_stats(self._optimise(inputs, found, advantages))
        with clock.running("calc_stats"):
            stats = self.record_step_stats(
                self.kl_ctl.value,
                scores=learned,
                logprobs=found.logps,
                ref_logprobs=found.reference_logps,
                non_score_reward=found.non_score_rewards,
                train_stats=train_stats,
                kls=found.kls,
                masks=inputs.token_mask,
                queries=rollouts.queries,
                responses=rollouts.responses,
            )
        self._end_step(stats, rollouts.scores)
        return {**as_numpy(stats), **clock.stats()}

    def _learned_scores(self, scores: Tensor) -> Tensor:
        """Scores scaled and clipped as the config says. Shape (n,)."""
        if self.config.use_score_scaling:
            self.running.update(scores)
            scores = self.running.scaled(scores, shift_mean=self.config.use_score_norm)
        clip = self.config.score_clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def _experience(self, inputs: Inputs, scores: Tensor, clock: Stopwatch) -> _Experience:
        """What policy and reference say of a batch, before anything is learned from it."""
        policy = self._policy()
        parts = []
        with evaluating(policy):
            for start in range(0, len(scores), self.config.mini_batch_size):
                rows = slice(start, start + self.config.mini_batch_size)
                mask = inputs.token_mask[rows]
                with clock.running("forward_pass"):
                    ours = self._pass(policy, inputs.rows(rows), with_logits=self.config.kl_penalty == "full")
                    with self._reference() as reference:
                        theirs = self._pass(reference, inputs.rows(rows), with_logits=self.config.kl_penalty == "full")
                with clock.running("compute_rewards"):
                    rewards = self.compute_rewards(scores[rows], _penalised(ours), _penalised(theirs), mask)
                parts.append((ours.logps, ours.values, theirs.logps, *rewards))
        return _Experience(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _optimise(self, inputs: Inputs, found: _Experience, learned: Advantages) -> Statistics:
        """Passes over the batch with optimizer steps; gives what mini-batches showed on average."""
        self.updates.begin()
        was_training = self.model.training
        batches = []
        for rows in self._mini_batches(len(inputs.token_mask)):
            index = torch.as_tensor(rows, device=self.accelerator.device)
            with self._gradient_sharing():
                self.model.train()
                now = self._pass(self.model, inputs.rows(index), with_entropies=True)
                stats = self.train_minibatch(
                    found.logps[index],
                    learned.values[index],
                    now.logps,
                    None,
                    now.values,
                    inputs.token_mask[index],
                    learned.advantages[index],
                    learned.returns[index],
                    entropies=now.entropies,
                )
            batches.append(stats)
            if self.updates.is_stopped:
                break
        self.model.train(was_training)
        return merged_statistics(batches)

    def _mini_batches(self, num_rows: int) -> Iterator[np.ndarray]:
        for _ in range(self.config.ppo_epochs):
            order = self.random.permutation(num_rows)
            yield from np.split(order, num_rows // self.config.mini_batch_size)

    def _gradient_sharing(self) -> AbstractContextManager[None]:
        """Processes share gradients with the last mini-batch of an optimizer step alone."""
        return nullcontext() if self.updates.next_is_last else self.accelerator.no_sync(self.model)

    def _end_step(self, stats: Statistics, scores: Tensor) -> None:
        self.current_step += 1
        self.kl_ctl.update(float(stats["objective/kl"]), self.config.batch_size * self.accelerator.num_processes)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        if self.config.push_to_hub_if_best_kwargs:
            mean = self.accelerator.reduce(scores.mean(), reduction="mean").item()
            if self.best_score.is_best(mean):
                self.push_to_hub(**self.config.push_to_hub_if_best_kwargs)
        if self.config.optimize_device_cache and torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    # ---- the parts of a step ----

    def prepare_model_inputs(self, queries: list[Tensor], responses: list[Tensor]) -> dict[str, Tensor]:
        """Ids and masks of queries and responses, padded into one batch.

        Args:
            queries: ids. Shape (q,) each.
            responses: ids. Shape (r,) each.
        """
        rollouts = self._rollouts(queries, responses)
        return padded_inputs(rollouts, self.data_collator, decoder_start=self._decoder_start())

    def _rollouts(
        self, queries: list[Tensor], responses: list[Tensor], response_masks: list[Tensor] | None = None
    ) -> Rollouts:
        """Rows without scores, where the models are."""
        device = self.accelerator.device
        masks = None if response_masks is None else [mask.to(device) for mask in response_masks]
        queries, responses = ([ids.to(device) for ids in part] for part in (queries, responses))
        return Rollouts(queries, responses, torch.zeros(len(queries)), masks)

    def batched_forward_pass(  # noqa: PLR0917 - the documented order
        self,
        model: PreTrainedModelWithValueHead,
        queries: list[Tensor],
        responses: list[Tensor],
        model_inputs: dict[str, Tensor],
        return_logits: bool = False,
        response_masks: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Score responses, `config.mini_batch_size` rows at a time.

        Args:
            model: policy or reference with its value head.
            queries: ids. Shape (q,) each.
            responses: ids. Shape (r,) each.
            model_inputs: the same, as `prepare_model_inputs` gives them.
            return_logits: whether all logits are given as well.
            response_masks: 1 for tokens that count; None counts all. Shape (r,) each.

        Returns:
            Log-probabilities, logits or None, values, and the mask of tokens that count. Column j belongs to the
            token that position j predicts; shape (n, t - 1), and (n, t - 1, v) of the logits, for padded ids of t
            columns. What doesn't count is 0 but for the logits.
        """
        rollouts = self._rollouts(queries, responses, response_masks)
        inputs = as_inputs(rollouts, model_inputs, decoder_start=self._decoder_start())
        size = self.config.mini_batch_size
        parts = [slice(start, start + size) for start in range(0, len(queries), size)]
        found = joined([self._pass(model, inputs.rows(part), with_logits=return_logits) for part in parts])
        return found.logps, found.logits, found.values, inputs.token_mask

    def compute_rewards(self, scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, masks: Tensor) -> TokenRewards:
        """Rewards of the tokens: the penalty, and at the last token that counts the score.

        Args:
            scores: shape (n,).
            logprobs: log-probabilities under the policy. Shape (n, t); with `kl_penalty="full"`, those of the whole
                vocabulary, shape (n, t, v).
            ref_logprobs: the same under the reference.
            masks: 1 for tokens that count. Shape (n, t).

        Returns:
            Rewards, the penalty alone, and the distance that is penalised; of shape (n, t).
        """
        kls = kl_penalties(logprobs, ref_logprobs, kind=self.config.kl_penalty)
        return token_rewards(scores, kls, masks, kl_coef=self.kl_ctl.value)

    def compute_advantages(self, values: Tensor, rewards: Tensor, mask: Tensor) -> Advantages:
        """Values, advantages whitened over all processes, and returns of the tokens that count.

        Args:
            values: shape (n, t).
            rewards: shape (n, t).
            mask: 1 for tokens that count. Shape (n, t).
        """
        return compute_advantages(
            values,
            rewards,
            mask,
            gamma=self.config.gamma,
            lam=self.config.lam,
            whiten_rewards=self.config.whiten_rewards,
            add_up=partial(self.accelerator.reduce, reduction="sum"),
        )

    def loss(  # noqa: PLR0917 - the documented order
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logits: Tensor | None,
        vpreds: Tensor,
        logprobs: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
        *,
        entropies: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Statistics]:
        """Losses of a mini-batch; both 0 if its mean ratio is above `config.ratio_threshold`.

        Args:
            old_logprobs: under the policy that sampled. Shape (n, t), as all but the logits.
            values: at that time.
            logits: that predict the tokens now, for the entropy. None where `entropies` are given. Shape (n, t, v).
            vpreds: values now.
            logprobs: log-probabilities now.
            mask: 1 for tokens that count.
            advantages: as `compute_advantages` gives them.
            returns: the same.
            entropies: of the distributions at the tokens, in place of the logits.

        Returns:
            The policy's loss, that of the value head times its coefficient, and statistics.
        """
        if entropies is None:
            if logits is None:
                raise ValueError("expected logits or entropies, found neither")
            entropies = entropy_from_logits(logits)
        found = ppo_loss(
            logprobs,
            vpreds,
            old_logps=old_logprobs,
            old_values=values,
            advantages=advantages,
            returns=returns,
            mask=mask,
            cliprange=self.config.cliprange,
            cliprange_value=self.config.cliprange_value,
        )
        if self._is_left_out(found.ratios, mask):
            # Not a product with 0: 0 * inf, of an infinite ratio, would be NaN.
            nothing = (0.0 * logprobs).nan_to_num(0.0).sum() + (0.0 * vpreds).nan_to_num(0.0).sum()
            found = found._replace(policy=nothing, value=nothing)
        stats = loss_statistics(
            found,
            vf_coef=self.config.vf_coef,
            logps=logprobs,
            values=vpreds,
            old_logps=old_logprobs,
            old_values=values,
            advantages=advantages,
            returns=returns,
            entropies=entropies,
            mask=mask,
        )
        return found.policy, self.config.vf_coef * found.value, stats

    def train_minibatch(  # noqa: PLR0917 - the documented order
        self,
        old_logprobs: Tensor,
        values: Tensor,
        logprobs: Tensor,
        logits: Tensor | None,
        vpreds: Tensor,
        mask: Tensor,
        advantages: Tensor,
        returns: Tensor,
        *,
        entropies: Tensor | None = None,
    ) -> Statistics:
        """Take in the gradient of a mini-batch, and step with every `config.gradient_accumulation_steps`-th.

        Args:
            old_logprobs: under the policy that sampled. Shape (n, t), as all but the logits.
            values: at that time.
            logprobs: log-probabilities now.
            logits: for the entropy; None where `entropies` are given. Shape (n, t, v).
            vpreds: values now.
            mask: 1 for tokens that count.
            advantages: as `compute_advantages` gives them.
            returns: the same.
            entropies: of the distributions at the tokens, in place of the logits.

        Returns:
            Statistics of the mini-batch.
        """
        self.model.train()
        policy_loss, value_loss, stats = self.loss(
            old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns, entropies=entropies
        )
        self.updates.add(
            policy_loss + value_loss,
            policy_kl=stats["policy/policykl"],
            is_left_out=self._is_left_out(stats["policy/ratio"], mask),
        )
        return stats

    def _is_left_out(self, ratios: Tensor, mask: Tensor) -> bool:
        mean = masked_mean(ratios, mask).item()
        return not mean <= self.config.ratio_threshold  # nor is nan

    # ---- statistics ----

    def record_step_stats(self, kl_coef: float, **data: Any) -> Statistics:
        """Statistics of a step.

        Args:
            kl_coef: coefficient of the penalty that the step was made with.
            data: `scores`, `logprobs`, `ref_logprobs`, `non_score_reward`, `kls`, `masks`, `queries`, `responses`, and
                `train_stats`, what mini-batches showed on average over all processes.

        Returns:
            Tensors and numbers by their documented names; means over all processes.
        """
        found = rollout_statistics(
            scores=data["scores"],
            logps=data["logprobs"],
            reference_logps=data["ref_logprobs"],
            non_score_rewards=data["non_score_reward"],
            kls=data["kls"],
            mask=data["masks"],
            queries=data["queries"],
            responses=data["responses"],
        )
        stats = self.gather_stats(found)
        stats["objective/kl_coef"] = torch.tensor(kl_coef, dtype=torch.float64)
        stats.update({f"ppo/{name}": value for name, value in data["train_stats"].items()})
        # Of returns that are all the same nothing is left to explain.
        variance = stats["ppo/returns/var"]
        stats["ppo/val/var_explained"] = torch.where(variance > 0, 1.0 - stats["ppo/val/error"] / variance, 0.0)
        stats["ppo/learning_rate"] = torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)
        return stats

    def gather_stats(self, stats: Statistics) -> Statistics:
        """Statistics of all processes: means of numbers, and arrays one behind the other, filled up with -1.

        Args:
            stats: tensors by name, the same names in all processes.
        """
        if self.accelerator.num_processes == 1:
            return dict(stats)
        gathered = {}
        for name, value in stats.items():
            found = value.to(self.accelerator.device)
            if found.dim() == 0:
                gathered[name] = self.accelerator.reduce(found, reduction="mean")
                continue
            for dim in range(found.dim()):
                found = self.accelerator.pad_across_processes(found, dim=dim, pad_index=-1)
            gathered[name] = self.accelerator.gather(found)
        return gathered

    # ---- passes ----

    def _pass(
        self, model: Any, inputs: Inputs, *, with_logits: bool = False, with_entropies: bool = False
    ) -> TokenPass:
        with self.accelerator.autocast():
            if with_logits:
                return logits_pass(model, inputs)
            return token_pass(model, inputs, with_entropies=with_entropies)

    def _decoder_start(self) -> int | None:
        """Of an encoder-decoder, the id that its answers begin with."""
        policy = self._policy()
        return int(policy.config.decoder_start_token_id) if policy.is_encoder_decoder else None


def _penalised(found: TokenPass) -> Tensor:
    """What the penalty is computed from: the tokens' log-probabilities, or those of the whole vocabulary."""
    return found.logps if found.logits is None else found.logits.log_softmax(-1)
