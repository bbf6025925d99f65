"""The canary: does another engine compute what the trainer does, now that it has its weights?

A sync of weights can go wrong without a word: names that do not fit, a copy that kernels do not
read, a buffer that was packed before. After every sync the engine therefore continues a few fixed
prompts, and the trainer computes the same log-probabilities. Two things end a run: numbers further
apart than two engines in that number form are, and numbers that are exactly those from before the
sync although the trainer's have moved, which is how a sync that does nothing looks while the steps
are still small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from searchrl.errors import UnstableError
from searchrl.models.chat import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
"""How far the engine may be from the trainer in each number form of its own, in nats a token."""
TEMPERATURE = 0.7
"""Continuations are drawn at this one: not 1, so that scaling is seen to be done."""
_TEXTS = (
    "The river Seine runs through Paris, the capital of France.",
    "Question: who wrote the first of the 12 letters, and in which year?\nAnswer:",
    "<think>I do not know this yet.</think>\n<query>a search for what is missing</query>",
)
_DRAWN = 8
"""Tokens that each prompt is continued by."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A prompt and its continuation, with the log-probability of all its tokens but the first.

    Attributes:
        prompt: its tokens.
        drawn: the continuation's.
        read_logprobs: of the prompt's tokens from the second on, at temperature 1.
        drawn_logprobs: of the continuation's, at ``TEMPERATURE``.
    """

    prompt: tuple[int, ...]
    drawn: tuple[int, ...]
    read_logprobs: tuple[float, ...]
    drawn_logprobs: tuple[float, ...]


Probe = Callable[[Sequence[tuple[int, ...]], int], Sequence[Scored]]
"""Has the engine continue prompts by a number of tokens."""


class Canary:
    """Compares an engine with the model that is trained.

    Args:
        model: the one that is trained.
        tokenizer: its tokenizer.
        max_length: longest prompt plus completion.
        tolerance: how far apart they may be, in nats a token.
        engine: what the engine is called where it is complained of.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        tolerance: float,
        engine: str,
    ) -> None:
        longest = max(2, max_length - _DRAWN)
        self._prompts = [tuple(encode_text(tokenizer, text))[:longest] for text in _TEXTS]
        self._model = model
        self._tolerance = tolerance
        self._engine = engine
        self._before: tuple[list[float], list[float]] | None = None

    def check(self, probe: Probe) -> float:
        """See that the engine computes what the trainer does.

        Returns:
            How far apart they are: the mean difference in nats a token.

        Raises:
            UnstableError: too far, or the engine computes what it did before.
        """
        scored = probe(self._prompts, _DRAWN)
        theirs_read = [value for one in scored for value in one.read_logprobs]
        theirs_drawn = [value for one in scored for value in one.drawn_logprobs]
        ours = [self._ours(one) for one in scored]
        ours_read = [value for read, _ in ours for value in read]
        ours_drawn = [value for _, drawn in ours for value in drawn]
        mismatch = self._compare(theirs_read + theirs_drawn, ours_read + ours_drawn)
        self._refuse_stale(theirs_read, ours_read)
        self._before = theirs_read, ours_read
        return mismatch

    def _compare(self, theirs: Sequence[float], ours: Sequence[float]) -> float:
        mismatch = _mean([abs(one - other) for one, other in zip(theirs, ours, strict=True)])
        # Written so that a mismatch that is not a number does not pass.
        if not mismatch <= self._tolerance:
            raise UnstableError(
                f"{self._engine} does not compute what the trainer does: after a sync of weights "
                f"its mean log-probability of the canary's tokens is {_mean(theirs):.4f} and the "
                f"trainer's {_mean(ours):.4f}, {mismatch:.3g} nats a token apart where "
                f'{self._tolerance:g} are allowed; set rollout.engine = "native"'
            )
        return mismatch

    def _refuse_stale(self, theirs: list[float], ours: list[float]) -> None:
        if self._before is None or theirs != self._before[0]:
            return
        moved = max(abs(new - old) for new, old in zip(ours, self._before[1], strict=True))
        # Below that, rounding to the engine's number form may hide the change.
        if moved > self._tolerance / 10:
            raise UnstableError(
                f"{self._engine} did not take the weights: after a sync its log-probabilities of "
                f"the canary's tokens are unchanged at a mean of {_mean(theirs):.4f} while the "
                f"trainer's, now {_mean(ours):.4f}, moved by up to {moved:.3g} nats; "
                'set rollout.engine = "native"'
            )

    @torch.no_grad()
    def _ours(self, scored: Scored) -> tuple[list[float], list[float]]:
        tokens = torch.tensor([[*scored.prompt, *scored.drawn]], device=self._model.device)
        logits_TV = self._model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        targets_T1, read = tokens[0, 1:, None], len(scored.prompt) - 1
        read_T = torch.log_softmax(logits_TV[:read], -1).gather(1, targets_T1[:read])
        drawn_T = torch.log_softmax(logits_TV[read:] / TEMPERATURE, -1).gather(1, targets_T1[read:])
        return read_T.flatten().tolist(), drawn_T.flatten().tolist()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
