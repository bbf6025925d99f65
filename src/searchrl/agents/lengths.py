"""How long an agent's episodes can get, for what has to make room ahead of them.

Every agent keeps its own budgets; these are their sums. Inside an episode they are enforced token
for token by the agent, whose model is as long as prompt and response together.
"""

from __future__ import annotations

from dataclasses import dataclass

from searchrl.agents.deep_retrieval import DeepRetrievalOptions
from searchrl.agents.s3 import S3Options
from searchrl.agents.search_r1 import SearchR1Options
from searchrl.agents.trained import AgentOptions

_NOTE = 64
"""A note after an invalid output may be longer than a small budget of results."""
_QUESTION = 2_048
"""Room for instructions and a question where the agent sets no budget for them."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What an episode has at most.

    Attributes:
        prompt: tokens before the first sampled one.
        response: tokens from it on.
        sampled: those of them that the model writes.
        budget: prompt and response together, where the agent has a budget for the two.
    """

    prompt: int
    response: int
    sampled: int
    budget: int | None = None

    @property
    def window(self) -> int:
        """Room for the longest prompt and the longest response, side by side."""
        return self.prompt + self.response

    @property
    def total(self) -> int:
        """A whole episode."""
        return self.window if self.budget is None else min(self.window, self.budget)

    def within(self, context: int | None) -> Lengths:
        """The same, as a model of so long a context allows it."""
        if context is None or self.window <= context:
            return self
        prompt = min(self.prompt, context - 1)
        response = context - prompt
        return Lengths(prompt, response, min(self.sampled, response), self.budget)


def episode_lengths(options: AgentOptions) -> Lengths:
    """The longest prompt and the longest rest of an episode."""
    match options:
        case S3Options():
            return _over_turns(options, options.max_turns)
        case SearchR1Options():
            lengths, budget = _over_turns(options, options.searches), options.max_context_tokens
            sampled = min(lengths.sampled, budget)
            return Lengths(lengths.prompt, min(lengths.response, budget), sampled, budget)
        case DeepRetrievalOptions():
            written = options.max_response_tokens
            return Lengths(_QUESTION, written, written)


def _over_turns(options: S3Options | SearchR1Options, searches: int) -> Lengths:
    """Every search answered as fully as it may be, and one more output after the last."""
    sampled = (searches + 1) * options.max_response_tokens
    between = max(options.max_observation_tokens, _NOTE) + _NOTE
    return Lengths(options.max_prompt_tokens, sampled + searches * between, sampled)
