"""How long an agent's episodes can get, which verl has to know ahead of them.

Every agent keeps its own budgets; these are their sums. Inside an episode they are enforced token
for token by the agent, whose model is as long as the two together.
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
    """Tokens before the first sampled one, and tokens from it on, at most."""

    prompt: int
    response: int

    @property
    def total(self) -> int:
        """A whole episode."""
        return self.prompt + self.response

    def within(self, context: int | None) -> Lengths:
        """The same, as a model of so long a context allows it."""
        if context is None or self.total <= context:
            return self
        prompt = min(self.prompt, context - 1)
        return Lengths(prompt, context - prompt)


def episode_lengths(options: AgentOptions) -> Lengths:
    """The longest prompt and the longest rest of an episode."""
    match options:
        case S3Options():
            searches = options.max_turns
            return Lengths(options.max_prompt_tokens, _turns(options, searches))
        case SearchR1Options():
            whole = _turns(options, options.searches)
            return Lengths(options.max_prompt_tokens, min(whole, options.max_context_tokens))
        case DeepRetrievalOptions():
            return Lengths(_QUESTION, options.max_response_tokens)


def _turns(options: S3Options | SearchR1Options, searches: int) -> int:
    between = max(options.max_observation_tokens, _NOTE) + _NOTE
    return (searches + 1) * options.max_response_tokens + searches * between
