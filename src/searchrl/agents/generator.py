"""The frozen generator: answers a question from the passages it is handed, and is never trained.

Decoding is greedy, so an answer is a function of question, context and model; requests that are
equal while one of them is being answered share its answer. A reasoning model's ``<think>`` block is
not part of its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from searchrl.agents.budget import fit_hits
from searchrl.agents.episode import Episode
from searchrl.agents.prompts import Style, reader_prompt, render_context
from searchrl.models.protocol import ChatModel, Message, Sampling
from searchrl.retrieval.protocol import Hit


class AnswerGenerator(Protocol):
    """The frozen language model that answers from passages."""

    @property
    def fingerprint(self) -> str:
        """Names what decides an answer besides question and context: model, prompt, sampling."""
        ...

    async def answer(self, question: str, context: Sequence[Hit]) -> str:
        """Answer a question from passages, in the order given.

        Raises:
            InfrastructureError: the model failed after its retries.
        """
        ...


async def final_answer(episode: Episode, generator: AnswerGenerator | None) -> str | None:
    """An episode's answer, given by the generator where its method does not answer itself.

    Args:
        episode: a finished one; its ``answer`` is set.
        generator: may be ``None`` for a method that answers itself.

    Returns:
        ``None`` when a method that answers itself gave no answer.

    Raises:
        InfrastructureError: the generator failed after its retries.
        ValueError: a generator is needed and there is none.
    """
    if episode.answer is None and not episode.answers_itself:
        if generator is None:
            raise ValueError(f"method {episode.method!r} needs a generator for its answers")
        episode.answer = await generator.answer(episode.question.text, episode.context)
    return episode.answer


class Generator:
    """Answers from passages with one language model.

    Args:
        model: where it runs.
        name: what the model is called; part of the fingerprint.
        style: prompt style.
        max_answer_tokens: budget of an answer, reasoning included.
        max_context_tokens: budget of the passages; they are cut to fit it, and further where the
            model's own context is too short for them, the question and an answer.
    """

    def __init__(
        self,
        model: ChatModel,
        name: str,
        style: Style = "full",
        max_answer_tokens: int = 256,
        max_context_tokens: int = 6000,
    ) -> None:
        self._model = model
        self._name = name
        self._style = style
        self._max_answer_tokens = max_answer_tokens
        self._max_context_tokens = max_context_tokens
        self._pending: dict[tuple[Message, ...], asyncio.Task[str]] = {}

    @property
    def fingerprint(self) -> str:
        """Everything about this generator that its answers depend on."""
        budgets = f"{self._max_answer_tokens}/{self._max_context_tokens}"
        return f"{self._name} {self._style} {budgets} greedy"

    async def answer(self, question: str, context: Sequence[Hit]) -> str:
        """The generator's answer.

        Raises:
            InfrastructureError: the model failed after its retries.
            InputError: the question alone is longer than the model's context.
        """
        prompt = self._prompt(question, self.fit(context))
        task = self._pending.get(prompt)
        if task is None:
            task = self._pending[prompt] = asyncio.create_task(self._ask(prompt))
            task.add_done_callback(lambda _: self._pending.pop(prompt))
        # Shielded: who stops waiting must not take the answer from the others.
        return await asyncio.shield(task)

    def _prompt(self, question: str, context: tuple[Hit, ...]) -> tuple[Message, ...]:
        prompt = reader_prompt(question, context, self._style)
        room = self._model.max_length - self._max_answer_tokens
        length = self._model.count_chat(prompt)
        if length > room and context:
            around = length - self._model.count(render_context(context))
            context = fit_hits(context, room - around, render_context, self._model.count)
            prompt = reader_prompt(question, context, self._style)
        return tuple(prompt)

    async def _ask(self, prompt: tuple[Message, ...]) -> str:
        return strip_reasoning(await self._model.chat(prompt, Sampling(self._max_answer_tokens)))

    def context_tokens(self, context: Sequence[Hit]) -> int:
        """Tokens the passages take in the prompt."""
        return self._model.count(render_context(self.fit(context)))

    def fit(self, context: Sequence[Hit]) -> tuple[Hit, ...]:
        """The passages, cut to the context budget."""
        return fit_hits(context, self._max_context_tokens, render_context, self._model.count)


def strip_reasoning(text: str) -> str:
    """The text after the last closed ``<think>`` block, up to one that never closes."""
    answer = text.rpartition("</think>")[2]
    return answer.partition("<think>")[0].strip()
