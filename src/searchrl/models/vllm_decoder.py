"""Decoding by vLLM, with the weights of the model in this process that is being trained.

Prompts go in and tokens come out as ids; when a row ends is decided here, by the same rules as with
every other decoder, so a completion holds the same tokens whichever made it. Each row draws with
its own seed, by vLLM's sampler: other tokens than the decoders of this package draw with that seed,
from the same distribution up to the rounding of other kernels, and the log-probability kept is that
of the distribution drawn from.

Weights go over when the first row comes after they have changed, and the canary (``canary``) looks
at the outcome before anything is decoded with them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from searchrl.errors import SearchRLError
from searchrl.models.canary import TEMPERATURE, TOLERANCES, Canary, Scored
from searchrl.models.decoder import Decoder
from searchrl.models.drawing import Row
from searchrl.models.options import VllmOptions
from searchrl.models.protocol import StopReason
from searchrl.models.vllm_engine import Progress, VllmEngine
from searchrl.models.weight_watch import WeightWatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class VllmDecoder(Decoder):
    """Decodes rows with vLLM.

    Args:
        model: the one that is trained.
        tokenizer: its tokenizer.
        max_length: longest prompt plus completion that the model is made for; what vLLM's memory
            has room for may be less.
        engine: vLLM, opened for this model.
        tolerance: how far vLLM may be from the model, in nats a token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        engine: VllmEngine,
        tolerance: float,
    ) -> None:
        super().__init__(model, tokenizer, min(max_length, engine.max_length))
        self._engine = engine
        self._canary = Canary(
            model, tokenizer, self.max_length, tolerance, f"vLLM {engine.version}"
        )
        self._watch = WeightWatch(model)
        self._current = False
        self._rows: dict[str, Row] = {}
        self._numbers = itertools.count()
        self._measures: dict[str, float] = {}

    @property
    def active(self) -> int:
        """Rows that vLLM has."""
        return len(self._rows)

    def admit(self, rows: Sequence[Row]) -> int:
        """Hand all rows to vLLM, which queues what it has no room for."""
        if not self._rows:
            self._bring_up_to_date()
        for row in rows:
            name = str(next(self._numbers))
            settings = sampling_settings(row, self.drawing.ends)
            self._engine.add(name, row.request.prompt, settings)
            self._rows[name] = row
        return len(rows)

    def advance(self) -> list[Row]:
        """Decode until a row ends."""
        ended: list[Row] = []
        while self._rows and not ended:
            ended = [row for made in self._engine.step() for row in self._note(made)]
        return ended

    def drop(self, rows: Sequence[Row]) -> None:
        """Stop decoding rows that nobody waits for any more."""
        for row in rows:
            row.stop = row.stop or StopReason.LENGTH
        self._let_go([name for name, row in self._rows.items() if row.stop is not None])

    def forget(self) -> None:
        """Drop every row."""
        self._let_go(list(self._rows))

    def rest(self) -> None:
        """Give up a GPU's memory until rows come again."""
        self._engine.sleep()

    def measures(self) -> dict[str, float]:
        """What the last sync took, and how far vLLM then was from the trainer."""
        return self._measures

    def _note(self, made: Progress) -> list[Row]:
        """Add a request's new tokens to its row; returns the row if it has ended."""
        row = self._rows.get(made.name)
        if row is None:
            return []
        for token, logprob in made.tokens:
            self.drawing.note(row, token, logprob)
            if row.stop is not None:
                # Tokens after that were computed ahead, and are nobody's.
                self._rows.pop(made.name)
                if not made.ended:
                    self._engine.abort([made.name])
                return [row]
        if made.ended:
            raise SearchRLError(
                f"vLLM {self._engine.version} ended a completion after {len(row.token_ids)} tokens "
                'without a reason to; set rollout.engine = "native"'
            )
        return []

    def _let_go(self, names: Sequence[str]) -> None:
        for name in names:
            del self._rows[name]
        if names:
            self._engine.abort(names)

    def _bring_up_to_date(self) -> None:
        """Hand over the weights where they have changed, and see that they have arrived."""
        changed = self._watch.changed()
        if self._current and not changed and not self._engine.asleep:
            return
        # Only a sync that the canary has seen to work makes vLLM's weights current.
        self._current = False
        started = time.perf_counter()
        self._engine.take([(name, p.detach()) for name, p in self.model.named_parameters()])
        with self.inferring():
            mismatch = self._canary.check(self._probe)
        seconds = time.perf_counter() - started
        self._measures = {"sync/mismatch": mismatch, "seconds/sync": seconds}
        self._current = True

    def _probe(self, prompts: Sequence[tuple[int, ...]], drawn: int) -> Sequence[Scored]:
        settings = {**_SETTINGS, "temperature": TEMPERATURE, "seed": 0, "max_tokens": drawn}
        return self._engine.score(prompts, settings)


_SETTINGS: dict[str, Any] = {
    # Of the token that was drawn, and of no other.
    "logprobs": 0,
    "detokenize": False,
    # What ends a completion is said by ``stop_token_ids`` alone.
    "ignore_eos": True,
}


def sampling_settings(row: Row, ends: Collection[int]) -> dict[str, Any]:
    """How vLLM is to continue a row: ``SamplingParams`` by name.

    Stop strings are not among them: where they end is seen here, token by token.

    Args:
        row: as it begins.
        ends: the tokens that end a sequence.
    """
    sampling = row.request.sampling
    return {
        **_SETTINGS,
        "temperature": sampling.temperature,
        "seed": sampling.seed if sampling.temperature > 0 else None,
        "max_tokens": row.limit,
        "stop_token_ids": sorted(ends),
    }


def open_vllm_decoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    options: VllmOptions,
) -> VllmDecoder:
    """Open vLLM for a model that will be trained.

    Raises:
        InputError: vLLM is not installed, or cannot be opened like this.
    """
    engine = VllmEngine(model, options)
    return VllmDecoder(model, tokenizer, max_length, engine, TOLERANCES[options.dtype])
