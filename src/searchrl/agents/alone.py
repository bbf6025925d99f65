"""Methods in which one model answers alone, without a search: chain of thought, and fine-tuned.

``cot`` asks the frozen generator's model to think first; its answer is what it wrote between answer
tags, or all it wrote where it used none. ``sft`` asks a searcher that was fine-tuned on questions
and answers for the answer itself, with the very prompt it was fine-tuned on.

Differs from the paper: CoT's answer leaves out a reasoning model's thinking block (s3 hands the
whole text to its judge).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from searchrl.agents.agent import Draw
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Turn
from searchrl.agents.generator import strip_reasoning
from searchrl.agents.prompts import Style, cot_prompt, reader_prompt
from searchrl.agents.protocol import body
from searchrl.agents.transcript import ask
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.models.protocol import LanguageModel, Message


class AloneAgent:
    """Makes one request and takes the answer from it.

    Args:
        name: of the method.
        model: who answers.
        prompt: the chat for a question.
        answer: what counts as the answer in what the model said.
        max_tokens: budget of the output, reasoning included.
    """

    def __init__(
        self,
        name: str,
        model: LanguageModel,
        prompt: Callable[[str], Sequence[Message]],
        answer: Callable[[str], str],
        max_tokens: int,
    ) -> None:
        self.name = name
        self._model = model
        self._prompt = prompt
        self._answer = answer
        self._max_tokens = max_tokens

    async def run(self, question: Question, draw: Draw) -> Episode:
        """Attempt one question."""
        started = time.perf_counter()
        episode = Episode(question, self.name, answers_itself=True)
        messages = self._prompt(question.text)
        try:
            text = await ask(self._model, episode, messages, draw, self._max_tokens)
        except InfrastructureError as error:
            episode.fail(error)
        else:
            if text is None:
                episode.end = EndReason.TRUNCATED
            else:
                episode.answer = self._answer(text)
                episode.turns.append(Turn(Action(ActionKind.ANSWER, answer=episode.answer)))
        episode.seconds = time.perf_counter() - started
        return episode


def cot(model: LanguageModel, style: Style, max_tokens: int) -> AloneAgent:
    """Chain of thought without passages."""
    return AloneAgent("cot", model, lambda text: cot_prompt(text, style), _tagged, max_tokens)


def sft(model: LanguageModel, style: Style, max_tokens: int) -> AloneAgent:
    """The answer at once, from a model that was fine-tuned on ``sft_prompt``."""
    return AloneAgent(
        "sft", model, lambda text: sft_prompt(text, style), strip_reasoning, max_tokens
    )


def sft_prompt(question: str, style: Style) -> list[Message]:
    """The chat that a model is fine-tuned to answer at once: the reader's, without passages."""
    return reader_prompt(question, (), style)


def _tagged(text: str) -> str:
    tagged = body(text, "answer")
    return strip_reasoning(text) if tagged is None else tagged
