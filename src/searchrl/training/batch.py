"""Episodes as padded token batches with exact masks.

Shapes: ``B`` episodes, ``T`` tokens of the longest of them, ``A`` trainable tokens of all episodes
in a batch, in episode order and within one in the order they were sampled. Padding is on the right,
where no real token of a causal model attends, so no attention mask is needed. Everything that is
learned from (log-probabilities, values, advantages) is a flat ``A`` vector, so observation tokens
cannot leak into a loss, a whitening or an advantage: they have no entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from searchrl.agents.episode import Episode


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token arrays of some episodes.

    Attributes:
        tokens_BT: right-padded token ids.
        trainable_BT: True on tokens the model sampled.
        lengths_B: trainable tokens of each episode; they sum to A.
        sampled_logprobs_A: log-probabilities noted when the tokens were sampled.
    """

    tokens_BT: torch.Tensor
    trainable_BT: torch.Tensor
    lengths_B: tuple[int, ...]
    sampled_logprobs_A: torch.Tensor

    @classmethod
    def of(cls, episodes: Sequence[Episode], device: torch.device) -> TokenBatch:
        """Pad the episodes' tokens side by side.

        Raises:
            ValueError: an episode opens with a sampled token, which no output predicts, or has not
                exactly one log-probability a sampled token.
        """
        for episode in episodes:
            _check(episode)
        width = max(len(episode.token_ids) for episode in episodes)
        shape = (len(episodes), width)
        tokens_BT = torch.zeros(shape, dtype=torch.long)
        trainable_BT = torch.zeros(shape, dtype=torch.bool)
        for row, episode in enumerate(episodes):
            length = len(episode.token_ids)
            tokens_BT[row, :length] = torch.tensor(episode.token_ids)
            trainable_BT[row, :length] = torch.tensor(episode.trainable_mask)
        return cls(
            tokens_BT.to(device),
            trainable_BT.to(device),
            tuple(sum(episode.trainable_mask) for episode in episodes),
            torch.tensor(
                [v for e in episodes for v in e.logprobs], dtype=torch.float32, device=device
            ),
        )

    @property
    def predicting_BT(self) -> torch.Tensor:
        """True where the model's output predicts a trainable token: one place to the left."""
        return self.trainable_BT[:, 1:]

    @property
    def targets_A(self) -> torch.Tensor:
        """The trainable tokens themselves."""
        return self.tokens_BT[:, 1:][self.predicting_BT]


def _check(episode: Episode) -> None:
    mask, name = episode.trainable_mask, episode.question.id
    if mask[0]:
        raise ValueError(f"episode {name!r} opens with a sampled token; a prompt comes first")
    if len(episode.logprobs) != sum(mask):
        raise ValueError(
            f"episode {name!r} has {len(episode.logprobs)} log-probabilities for {sum(mask)} "
            "sampled tokens"
        )


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
