"""Stand-ins for models and retrievers whose every output a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from searchrl.agents.episode import Episode
from searchrl.data.passages import Passage
from searchrl.errors import InfrastructureError
from searchrl.models.chat import control_tokens, encode_text, render_chat
from searchrl.models.protocol import Completion, LanguageModel, Message, Sampling, StopReason
from searchrl.retrieval.protocol import Hit


class ScriptedModel(LanguageModel):
    """Says the given texts one after another and records what it was shown.

    Like a real engine it stops on stop strings and at ``max_tokens``. The last text repeats.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        outputs: Sequence[str],
        max_length: int = 4096,
        fail_at: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.completions: list[Completion] = []
        self._outputs = list(outputs)
        self._max_length = max_length
        self._fail_at = fail_at

    @property
    def max_length(self) -> int:
        return self._max_length

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        return render_chat(self.tokenizer, messages)

    def encode(self, text: str) -> list[int]:
        return encode_text(self.tokenizer, text)

    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        number = len(self.prompts)
        self.prompts.append(list(prompt_token_ids))
        self.samplings.append(sampling)
        await asyncio.sleep(0)
        if number == self._fail_at:
            raise InfrastructureError("model at example:1 did not answer")
        text = self._outputs[min(number, len(self._outputs) - 1)]
        completion = self._cut(text, sampling)
        self.completions.append(completion)
        return completion

    def _cut(self, text: str, sampling: Sampling) -> Completion:
        ends = [text.find(stop) + len(stop) for stop in sampling.stop if stop in text]
        reason = StopReason.STOP_STRING if ends else StopReason.END_OF_SEQUENCE
        token_ids = self.encode(text[: min(ends, default=len(text))])
        if not ends:
            token_ids.append(self.tokenizer.eos_token_id)
        if len(token_ids) > sampling.max_tokens:
            token_ids, reason = token_ids[: sampling.max_tokens], StopReason.LENGTH
        decoded = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        logprobs = tuple(-0.5 - index for index in range(len(token_ids)))
        return Completion(tuple(token_ids), logprobs, decoded, reason)


class ListRetriever:
    """Answers each query from a list of passages and records the calls.

    Without an entry for a query, its answer is the ``k`` next passages in turn.
    """

    def __init__(
        self, passages: Sequence[Passage], answers: dict[str, list[Passage]] | None = None
    ) -> None:
        self.calls: list[tuple[str, int]] = []
        self._passages = list(passages)
        self._answers = answers or {}
        self._next = 0

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._answer(query, k) for query in queries]

    def _answer(self, query: str, k: int) -> list[Hit]:
        self.calls.append((query, k))
        found = self._answers.get(query)
        if found is None:
            found = self._passages[self._next : self._next + k]
            self._next += k
        return [Hit(passage, 10.0 - rank) for rank, passage in enumerate(found[:k])]


class FailingRetriever(ListRetriever):
    """Fails from its ``fail_from``-th call on."""

    def __init__(self, passages: Sequence[Passage], fail_from: int = 0) -> None:
        super().__init__(passages)
        self._fail_from = fail_from

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        if len(self.calls) >= self._fail_from:
            raise InfrastructureError("retriever at example:2 did not answer")
        return await super().search(queries, k)


def passages(count: int, words: int = 6, start: int = 1) -> list[Passage]:
    """Numbered passages with ids ``p1``, ``p2``, ..."""
    return [
        Passage(f"p{n}", f"Title {n}", " ".join([f"text {n}"] + ["word"] * (words - 2)) + ".")
        for n in range(start, start + count)
    ]


def check_record(episode: Episode, model: ScriptedModel) -> None:
    """What holds for every episode: the record is what the model saw and said, exactly."""
    seen: list[int] = []
    outputs = 0
    for segment in episode.segments:
        if segment.origin == "model":
            assert seen == model.prompts[outputs]
            assert segment.token_ids == model.completions[outputs].token_ids
            assert segment.logprobs == model.completions[outputs].logprobs
            assert segment.text == model.completions[outputs].text
            outputs += 1
        else:
            assert segment.logprobs == ()
        seen += segment.token_ids
    assert seen == episode.token_ids
    assert outputs == len(model.completions) == len(episode.turns)
    assert sum(episode.trainable_mask) == sum(len(c.token_ids) for c in model.completions)
    assert len(episode.trainable_mask) == len(episode.token_ids)
    assert episode.logprobs == [value for c in model.completions for value in c.logprobs]
    controls = set(control_tokens(model.tokenizer).values())
    for segment in episode.segments:
        if segment.origin == "environment":
            assert controls.isdisjoint(segment.token_ids)
    if episode.error is None and model.completions:
        assert episode.segments[-1].origin == "model"
    if episode.segments:
        assert episode.segments[0].origin == "prompt"
    assert len({hit.passage.id for hit in episode.context}) == len(episode.context)
