"""What the learner computes with: log-probabilities of a policy, values of a critic.

The head is applied only where a trainable token is predicted: with a real vocabulary and mostly
retrieved text, this is most of the memory.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from searchrl.training.batch import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_logprobs(
    model: PreTrainedModel, batch: TokenBatch, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every trainable token, and the entropy where it was drawn.

    Args:
        model: a causal language model with a ``model`` trunk and an ``lm_head``.
        batch: the episodes.
        temperature: the one the tokens were sampled with; the distribution is the same.

    Returns:
        Two ``[A]`` vectors, in nats.
    """
    hidden_AD = _hidden(model.model, batch)
    logits_AV = model.lm_head(hidden_AD).float() / temperature
    logprobs_AV = torch.log_softmax(logits_AV, dim=-1)
    chosen_A = logprobs_AV.gather(1, batch.targets_A.unsqueeze(1)).squeeze(1)
    entropy_A = -(logprobs_AV.exp() * logprobs_AV).sum(dim=-1)
    return chosen_A, entropy_A


class Critic(nn.Module):
    """A copy of the searcher's trunk with one number for a head, 0 everywhere at first."""

    def __init__(self, searcher: PreTrainedModel) -> None:
        super().__init__()
        # A copy keeps what a new trunk would lose: device, buffers in full precision, no dropout.
        self.trunk = copy.deepcopy(searcher.model)
        self.head = nn.Linear(
            searcher.config.hidden_size,
            1,
            bias=False,
            device=searcher.device,
            dtype=searcher.dtype,
        )
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Value of the state in which each trainable token was sampled, ``[A]``."""
        values_A: torch.Tensor = self.head(_hidden(self.trunk, batch)).squeeze(-1).float()
        return values_A


def _hidden(trunk: nn.Module, batch: TokenBatch) -> torch.Tensor:
    """Hidden states that predict the trainable tokens, ``[A, D]``."""
    output = trunk(input_ids=batch.tokens_BT, use_cache=False)
    hidden_AD: torch.Tensor = output.last_hidden_state[:, :-1][batch.predicting_BT]
    return hidden_AD
