"""Episodes as token batches with exact masks.

Shapes: ``B`` episodes, ``N`` tokens of their tree (see ``token_tree``), ``T`` tokens of the longest
of them, ``A`` trainable tokens of all episodes in a batch, in episode order and within one in the
order they were sampled. Everything that is learned from (log-probabilities, values, advantages) is
a flat ``A`` vector, so observation tokens cannot leak into a loss, a whitening or an advantage:
they have no entry. Only where a recipe turns the masking off (``learning.mask_retrieved``) are they
trainable as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from searchrl.agents.episode import Episode
from searchrl.models.token_tree import TokenTree, build_tree, common_prefix


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token arrays of some episodes.

    Attributes:
        tree: the episodes' tokens, merged at common prefixes.
        rows_A: the episode of each trainable token.
        columns_A: the place in its episode of the token before it, whose output predicts it.
        targets_A: the trainable tokens themselves.
        lengths_B: trainable tokens of each episode; they sum to A.
        sampled_logprobs_A: log-probabilities noted when the tokens were sampled.
        was_sampled_A: whether there is one; retrieved tokens that are learned from have none.
    """

    tree: TokenTree
    rows_A: torch.Tensor
    columns_A: torch.Tensor
    targets_A: torch.Tensor
    lengths_B: tuple[int, ...]
    sampled_logprobs_A: torch.Tensor
    was_sampled_A: torch.Tensor

    @classmethod
    def of(
        cls, episodes: Sequence[Episode], device: torch.device, mask_retrieved: bool = True
    ) -> TokenBatch:
        """Pack the episodes' tokens.

        Args:
            episodes: with all of their tokens.
            device: where the batch is passed through a model.
            mask_retrieved: learn from sampled tokens alone; see ``learned_mask``.

        Raises:
            ValueError: an episode opens with a sampled token, which no output predicts, or has not
                exactly one log-probability a sampled token.
        """
        for episode in episodes:
            _check(episode)
        learned = [np.flatnonzero(learned_mask(e, mask_retrieved)) for e in episodes]
        sampled = [np.asarray(e.trainable_mask)[p] for e, p in zip(episodes, learned, strict=True)]
        lengths = [len(places) for places in learned]
        targets = [np.asarray(e.token_ids)[p] for e, p in zip(episodes, learned, strict=True)]
        was_sampled_A = torch.from_numpy(np.concatenate(sampled))
        noted_A = torch.zeros(len(was_sampled_A))
        noted_A[was_sampled_A] = torch.tensor([v for e in episodes for v in e.logprobs])
        return cls(
            build_tree([episode.token_ids for episode in episodes]),
            torch.from_numpy(np.repeat(np.arange(len(episodes)), lengths)).to(device),
            torch.from_numpy(np.concatenate(learned) - 1).to(device),
            torch.from_numpy(np.concatenate(targets)).to(device),
            tuple(lengths),
            noted_A.to(device),
            was_sampled_A.to(device),
        )

    @property
    def places_A(self) -> torch.Tensor:
        """Where in the tree the token is whose output predicts each trainable token."""
        rows, columns = self.rows_A.tolist(), self.columns_A.tolist()
        found = [
            int(self.tree.places[row][column]) for row, column in zip(rows, columns, strict=True)
        ]
        return torch.tensor(found, device=self.rows_A.device)

    @property
    def padded_BT(self) -> torch.Tensor:
        """Right-padded token ids; no real token of a causal model sees the padding."""
        width = max(len(places) for places in self.tree.places)
        tokens_BT = np.zeros((len(self.tree.places), width), dtype=np.int64)
        for row, places in enumerate(self.tree.places):
            tokens_BT[row, : len(places)] = self.tree.token_ids[places]
        return torch.from_numpy(tokens_BT).to(self.rows_A.device)


def learned_mask(episode: Episode, mask_retrieved: bool) -> list[bool]:
    """Which tokens are learned from: sampled ones, and without masking observations as well."""
    if mask_retrieved:
        return episode.trainable_mask
    return [segment.origin != "prompt" for segment in episode.segments for _ in segment.token_ids]


def _check(episode: Episode) -> None:
    mask, name = episode.trainable_mask, episode.question.id
    if mask[0]:
        raise ValueError(f"episode {name!r} opens with a sampled token; a prompt comes first")
    if len(episode.logprobs) != sum(mask):
        raise ValueError(
            f"episode {name!r} has {len(episode.logprobs)} log-probabilities for {sum(mask)} "
            "sampled tokens"
        )


def tree_shares(sequences: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Indices of the sequences in so many parts of about equal trees; some may be empty.

    Those that share most stay together, but for the ends of the parts.
    """
    if count == 1:
        return [list(range(len(sequences)))]
    rows = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    order = sorted(range(len(rows)), key=lambda index: (tuple(sequences[index]), index))
    added = [
        len(rows[index]) - (common_prefix(rows[before], rows[index]) if before is not None else 0)
        for before, index in zip([None, *order], order, strict=False)
    ]
    shares: list[list[int]] = [[] for _ in range(count)]
    whole, passed = sum(added), 0
    for index, size in zip(order, added, strict=True):
        # By its middle, so that no part is all of a tree while another has none of it.
        shares[min(count - 1, (2 * passed + size) * count // (2 * whole))].append(index)
        passed += size
    return shares


def tree_batches(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Indices of sequences that share most together, each batch's tree within the token budget."""
    rows = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    batch: list[int] = []
    size = 0
    for index in sorted(range(len(rows)), key=lambda index: (tuple(sequences[index]), index)):
        added = len(rows[index]) - (common_prefix(rows[batch[-1]], rows[index]) if batch else 0)
        if batch and size + added > budget:
            yield batch
            batch, size, added = [], 0, len(rows[index])
        batch.append(index)
        size += added
    if batch:
        yield batch


def micro_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of similar length together, each batch's padded size within the token budget."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
