"""Which algorithm credits which token: from rewards to advantages.

The one place where ``learning.algorithm`` is told apart. Everything runs over trainable tokens, and
a group is a list of episodes made from one question. An episode that is left out of the loss still
takes part in its group's baseline, and in no average over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from searchrl.training.advantages import generalized_advantages, group_advantages, whiten
from searchrl.training.losses import kl_estimates
from searchrl.training.options import LearningOptions
from searchrl.training.reinforce_plus_plus import centred, returns_to_go
from searchrl.training.rloo import leave_one_out_advantages


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one episode's credit is made from; vectors hold its trainable tokens.

    Attributes:
        reward: of the whole episode; it falls on the last token.
        counted: whether the episode takes part in the loss.
        old_logprobs_T: under the weights that sampled.
        reference_logprobs_T: under the searcher that training began with; needed for a KL term.
        values_T: the critic's; needed for PPO.
    """

    reward: float
    counted: bool
    old_logprobs_T: torch.Tensor
    reference_logprobs_T: torch.Tensor | None = None
    values_T: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Credit:
    """What an episode's tokens are worth; ``returns_T`` is what a critic should have said."""

    advantages_T: torch.Tensor
    returns_T: torch.Tensor


def assign_credit(
    groups: Sequence[Sequence[Evidence]], options: LearningOptions, kl_coefficient: float
) -> list[list[Credit]]:
    """Credit of every episode of a step, in the form of the groups.

    Args:
        groups: the episodes of each question.
        options: the algorithm and its numbers.
        kl_coefficient: the weight of a KL term taken from the reward; 0 where there is none.
    """
    if options.algorithm in ("grpo", "rloo"):
        return [_compare(group, options, kl_coefficient) for group in groups]
    if options.algorithm == "ppo":
        credits = [[_estimate(e, options, kl_coefficient) for e in group] for group in groups]
        return _normalise(groups, credits) if options.whiten_advantages else credits
    returns = [
        [
            returns_to_go(row, options.gamma)
            for row in _plain_rewards(group, options, kl_coefficient)
        ]
        for group in groups
    ]
    return _normalise(groups, [[Credit(row, row) for row in group] for group in returns])


def known_to_be_idle(
    rewards: Sequence[Sequence[float]], options: LearningOptions
) -> list[list[bool]]:
    """Which advantages are zero throughout, said by the rewards alone.

    Such an episode's policy loss has no gradient, so no pass has to be made for it.
    """
    if options.algorithm == "ppo" or _priced(options):
        return [[False] * len(group) for group in rewards]
    if options.algorithm in ("grpo", "rloo"):
        return [[value == 0 for value in _compared(group, options)] for group in rewards]
    by_group = options.algorithm == "reinforce_plus_plus_baseline"
    levels = [value for group in rewards for value in (centred(group) if by_group else group)]
    return [[len(set(levels)) == 1] * len(group) for group in rewards]


def _estimate(episode: Evidence, options: LearningOptions, kl_coefficient: float) -> Credit:
    if episode.values_T is None:
        raise ValueError("PPO needs the critic's values")
    rewards_T = _token_rewards(episode, options, kl_coefficient)
    return Credit(*generalized_advantages(rewards_T, episode.values_T, options.gamma, options.lam))


def _plain_rewards(
    group: Sequence[Evidence], options: LearningOptions, kl_coefficient: float
) -> list[torch.Tensor]:
    """REINFORCE++'s token rewards; its variant takes the group's mean from the last."""
    if options.algorithm == "reinforce_plus_plus":
        return [_token_rewards(episode, options, kl_coefficient) for episode in group]
    values = centred([episode.reward for episode in group])
    return [_on_last(episode, value) for episode, value in zip(group, values, strict=True)]


def _compare(
    group: Sequence[Evidence], options: LearningOptions, kl_coefficient: float
) -> list[Credit]:
    """One advantage an episode, from its group alone."""
    totals = [episode.reward for episode in group]
    if _priced(options):
        # RLOO takes the divergence of the whole episode from its reward, ahead of the baseline.
        totals = [float(_token_rewards(e, options, kl_coefficient).sum()) for e in group]
    return [
        Credit(torch.full_like(episode.old_logprobs_T, value), episode.old_logprobs_T[:0])
        for episode, value in zip(group, _compared(totals, options), strict=True)
    ]


def _compared(rewards: Sequence[float], options: LearningOptions) -> list[float]:
    if options.algorithm == "rloo":
        return leave_one_out_advantages(rewards)
    if options.lone_episodes:
        return list(rewards)
    return group_advantages(rewards, options.scale_by_deviation)


def _token_rewards(
    episode: Evidence, options: LearningOptions, kl_coefficient: float
) -> torch.Tensor:
    """The reward on the last token, less the price of divergence on each."""
    rewards_T = _on_last(episode, episode.reward)
    if _priced(options):
        if episode.reference_logprobs_T is None:
            raise ValueError("a KL term needs the reference's log-probabilities")
        rewards_T -= kl_coefficient * kl_estimates(
            episode.old_logprobs_T, episode.reference_logprobs_T, options.kl_estimator
        )
    return rewards_T


def _on_last(episode: Evidence, reward: float) -> torch.Tensor:
    rewards_T = torch.zeros_like(episode.old_logprobs_T)
    rewards_T[-1] = reward
    return rewards_T


def _priced(options: LearningOptions) -> bool:
    """Whether a KL term is taken from the rewards."""
    return options.kl_coefficient > 0 and options.kl_placement == "reward"


def _normalise(
    groups: Sequence[Sequence[Evidence]], credits: Sequence[Sequence[Credit]]
) -> list[list[Credit]]:
    """Whiten over the tokens of all episodes that count; what does not count gets zeros."""
    rows = [
        credit.advantages_T
        for group, made in zip(groups, credits, strict=True)
        for episode, credit in zip(group, made, strict=True)
        if episode.counted
    ]
    parts = iter(whiten(torch.cat(rows)).split([row.numel() for row in rows]) if rows else ())
    return [
        [
            Credit(
                next(parts) if episode.counted else torch.zeros_like(credit.advantages_T),
                credit.returns_T,
            )
            for episode, credit in zip(group, made, strict=True)
        ]
        for group, made in zip(groups, credits, strict=True)
    ]
