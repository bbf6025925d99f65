"""What the learner computes with: log-probabilities of a policy, values of a critic.

A batch runs as one token tree, so what episodes share is computed once; models that cannot be
packed run on padded rows, to the same result. The head is applied only where a trainable token is
predicted: with a real vocabulary and mostly retrieved text, this is most of the memory.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from searchrl.models.adapters import copy_of_trained
from searchrl.models.packed_attention import TreeAttention
from searchrl.models.packed_blocks import packs, run_packed
from searchrl.training.batch import TokenBatch
from searchrl.training.memory import STATES_AT_A_TIME
from searchrl.training.recomputation import recomputing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def token_logprobs(
    model: PreTrainedModel, batch: TokenBatch, temperature: float, checkpointed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every trainable token, and the entropy where it was drawn.

    Args:
        model: a causal language model with a ``model`` trunk and an ``lm_head``.
        batch: the episodes.
        temperature: the one the tokens were sampled with; the distribution is the same.
        checkpointed: hold the distributions of a few states at a time, and compute them anew in the
            backward pass.

    Returns:
        Two ``[A]`` vectors, in nats.
    """
    hidden_UD, states_A = _states(model.model, batch)
    if not checkpointed:
        return _predict(model.lm_head, temperature, hidden_UD, states_A, batch.targets_A)
    places, parts = [], []
    for start in range(0, len(hidden_UD), STATES_AT_A_TIME):
        end = start + STATES_AT_A_TIME
        own = torch.nonzero((states_A >= start) & (states_A < end)).flatten()
        arguments = hidden_UD[start:end], states_A[own] - start, batch.targets_A[own]
        head = partial(_predict, model.lm_head, temperature)
        parts.append(checkpoint(head, *arguments, use_reentrant=False))
        places.append(own)
    order = torch.cat(places).argsort()
    logprobs_A, entropy_A = (torch.cat(column)[order] for column in zip(*parts, strict=True))
    return logprobs_A, entropy_A


def _predict(
    head: nn.Module,
    temperature: float,
    hidden_UD: torch.Tensor,
    states_A: torch.Tensor,
    targets_A: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_UV = head(hidden_UD).float() / temperature
    logprobs_UV = torch.log_softmax(logits_UV, dim=-1)
    entropy_U = -(logprobs_UV.exp() * logprobs_UV).sum(dim=-1)
    return logprobs_UV[states_A, targets_A], entropy_U[states_A]


class Policy(nn.Module):
    """A searcher as the update calls it: one pass, from a batch to ``token_logprobs``."""

    def __init__(self, searcher: PreTrainedModel) -> None:
        super().__init__()
        self.searcher = searcher

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        trunk: nn.Module = self.searcher.model
        return trunk

    def forward(
        self, batch: TokenBatch, temperature: float, checkpointed: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``token_logprobs``."""
        return token_logprobs(self.searcher, batch, temperature, checkpointed)


class Critic(nn.Module):
    """A copy of the searcher's trunk with one number for a head, 0 everywhere at first.

    Where the searcher has an adapter the trunk has one of its own, on the same frozen weights.
    """

    def __init__(self, searcher: PreTrainedModel) -> None:
        super().__init__()
        # A copy keeps what a new trunk would lose: device, buffers in full precision, no dropout.
        self.trunk = copy_of_trained(searcher.model)
        # In single precision whatever the trunk's form: bfloat16 tells too few values apart.
        self.head = nn.Linear(searcher.config.hidden_size, 1, bias=False, device=searcher.device)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Value of the state in which each trainable token was sampled, ``[A]``."""
        hidden_UD, states_A = _states(self.trunk, batch)
        values_A: torch.Tensor = self.head(hidden_UD.float()).squeeze(-1).float()[states_A]
        return values_A


def _states(trunk: nn.Module, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The states in which the trainable tokens were sampled.

    Returns:
        ``[U, D]`` distinct hidden states, and for each trainable token which of them is its own.
    """
    config: PretrainedConfig = trunk.config  # type: ignore[assignment]
    if not packs(config):
        with recomputing(trunk):
            output = trunk(input_ids=batch.padded_BT, use_cache=False)
        hidden_AD = output.last_hidden_state[batch.rows_A, batch.columns_A]
        return hidden_AD, torch.arange(len(hidden_AD), device=hidden_AD.device)
    device, tree = batch.rows_A.device, batch.tree
    places_U, states_A = batch.places_A.unique(return_inverse=True)
    with recomputing(trunk):
        hidden_UD = run_packed(
            trunk,
            torch.from_numpy(tree.token_ids).to(device),
            torch.from_numpy(tree.positions).to(device),
            TreeAttention(tree, device, places_U.numpy(force=True)),
            places_U,
        )
    return hidden_UD, states_A
