"""The model's side of an episode: what it reads and says, appended token for token.

Every agent with one running token stream speaks through a ``Transcript``, so that
``episode.token_ids`` is always exactly what the model saw and produced, whatever the method. A
method that makes requests apart uses ``ask``: each request is a prompt segment and a model segment.
"""

from __future__ import annotations

from collections.abc import Sequence

from searchrl.agents.agent import Draw
from searchrl.agents.budget import Render, fit_hits
from searchrl.agents.episode import Episode, Segment
from searchrl.models.protocol import LanguageModel, Message, Sampling
from searchrl.retrieval.protocol import Hit
from searchrl.seeding import derive_seed


async def ask(
    model: LanguageModel,
    episode: Episode,
    messages: Sequence[Message],
    draw: Draw,
    max_tokens: int,
    begun: str = "",
) -> str | None:
    """Make one request, record it in the episode, and return what the model said.

    Args:
        model: who is asked.
        episode: gets the request's prompt and output as segments.
        messages: the chat, up to where the model speaks.
        draw: how the model samples; every request of an episode has a seed of its own.
        max_tokens: budget of the output.
        begun: how the model's own message begins already.

    Returns:
        ``None``, and nothing is recorded, when the request does not fit the model's context.

    Raises:
        InfrastructureError: the model failed after its retries.
    """
    prompt = tuple(model.render_chat(messages) + model.encode(begun))
    if len(prompt) + max_tokens > model.max_length:
        return None
    outputs = sum(segment.origin == "model" for segment in episode.segments)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=draw.temperature,
        seed=derive_seed(draw.seed, outputs),
    )
    completion = await model.complete(prompt, sampling)
    text = "\n".join([*(message.content for message in messages), begun])
    episode.segments.append(Segment("prompt", prompt, text))
    episode.segments.append(
        Segment("model", completion.token_ids, completion.text, completion.logprobs)
    )
    return completion.text


class Transcript:
    """Appends segments to an episode, within the model's context.

    Args:
        model: who speaks.
        episode: the record to append to.
        draw: how the model samples; every output has a seed of its own.
        max_response_tokens: budget of one output.
        max_length: longest episode in tokens, where it is to be shorter than the model's context.
    """

    def __init__(
        self,
        model: LanguageModel,
        episode: Episode,
        draw: Draw,
        max_response_tokens: int,
        max_length: int | None = None,
    ) -> None:
        self._model = model
        self._episode = episode
        self._draw = draw
        self._max_response_tokens = max_response_tokens
        self._max_length = min(model.max_length, max_length or model.max_length)
        self._outputs = 0

    @property
    def room(self) -> int:
        """Tokens that may still be appended so that one more output fits after them."""
        return self._max_length - len(self._episode.token_ids) - self._max_response_tokens

    def open(self, prompt: str) -> None:
        """Begin with one user message."""
        self._episode.segments.append(Segment("prompt", tuple(self.render(prompt)), prompt))

    async def speak(self, stop: Sequence[str]) -> str | None:
        """The text of the model's next output, or ``None`` when there is no room for one.

        Raises:
            InfrastructureError: the model failed after its retries.
        """
        if self.room < 0:
            return None
        sampling = Sampling(
            max_tokens=self._max_response_tokens,
            temperature=self._draw.temperature,
            stop=tuple(stop),
            seed=derive_seed(self._draw.seed, self._outputs),
        )
        completion = await self._model.complete(self._episode.token_ids, sampling)
        self._outputs += 1
        segment = Segment("model", completion.token_ids, completion.text, completion.logprobs)
        self._episode.segments.append(segment)
        return completion.text

    def say(self, text: str) -> bool:
        """Append text from the environment; ``False``, and nothing is, when it does not fit."""
        token_ids = tuple(self._model.encode(text))
        if len(token_ids) > self.room:
            return False
        self._episode.segments.append(Segment("environment", token_ids, text))
        return True

    def show(self, found: Sequence[Hit], budget: int, render: Render) -> tuple[Hit, ...] | None:
        """Append results, passages cut so that the rendered block takes ``budget`` tokens at most.

        Returns:
            The hits that are shown, with all of their text; ``None`` when none of them fits: an
            empty block would tell the model that there are no results.
        """
        shown = fit_hits(found, min(budget, self.room), render, self.count)
        if (found and not shown) or not self.say(render(shown)):
            return None
        return tuple(found[: len(shown)])

    def render(self, prompt: str) -> list[int]:
        """Token ids of one user message, up to where the model speaks."""
        return self._model.render_chat([Message("user", prompt)])

    def count(self, text: str) -> int:
        """Length of a text in tokens."""
        return len(self._model.encode(text))
