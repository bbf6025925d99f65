"""The episodes of one update, and the micro-batches that they are passed through the models in.

A step is packed once for all of its passes. Several processes get parts of about equal trees, and
pack each its own; where all have to make the same number of passes (``Layout.lockstep``), those
with fewer micro-batches make up for it with passes that come to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from searchrl.agents.episode import Episode
from searchrl.training.batch import TokenBatch, tree_batches, tree_shares
from searchrl.training.parallel.layout import Layout


@dataclass(slots=True)
class Sample:
    """One episode on its way through an update; vectors hold its trainable tokens only.

    ``old_logprobs`` and ``old_values`` stay unset where the update's own pass gives them.
    """

    episode: Episode
    reward: float
    tokens: int
    """Trainable ones."""
    counted: bool
    """Whether it takes part in the loss."""
    teaches: bool
    """Whether its gradient can differ from zero; known before anything is computed."""
    weight: float = 0.0
    """Of each of its tokens in the loss of the policy."""
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_logprobs: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    old_values: torch.Tensor | None = None
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Episodes that are passed through a model together.

    One without samples is passed through for the sake of other processes, and comes to nothing.
    """

    samples: tuple[Sample, ...]
    batch: TokenBatch

    def split(self, values_A: torch.Tensor) -> list[tuple[Sample, torch.Tensor]]:
        """Each episode with its share of a vector over trainable tokens."""
        if not self.samples:
            return []
        parts = values_A.split(list(self.batch.lengths_B))
        return list(zip(self.samples, parts, strict=True))


def pack(
    samples: Sequence[Sample],
    budget: int,
    device: torch.device,
    mask_retrieved: bool,
    layout: Layout,
) -> list[MicroBatch]:
    """This process's micro-batches of what all processes pass through a model.

    Args:
        samples: of all processes.
        budget: tokens of a micro-batch's tree.
        device: where the models are.
        mask_retrieved: see ``TokenBatch.of``.
        layout: how the models lie over the processes.
    """
    sequences = [sample.episode.token_ids for sample in samples]
    cuts = [
        [
            [share[place] for place in places]
            for places in tree_batches([sequences[index] for index in share], budget)
        ]
        for share in tree_shares(sequences, layout.processes.size)
    ]
    own = cuts[layout.processes.rank]
    made: list[MicroBatch] = []
    for indices in own:
        chosen = tuple(samples[index] for index in indices)
        episodes = [sample.episode for sample in chosen]
        made.append(MicroBatch(chosen, TokenBatch.of(episodes, device, mask_retrieved)))
    if layout.lockstep and (owed := max(map(len, cuts)) - len(own)):
        shortest = min(samples, key=lambda sample: len(sample.episode.token_ids)).episode
        made += [MicroBatch((), TokenBatch.of([shortest], device, mask_retrieved))] * owed
    return made
