"""A rollout server of verl as the language model that an agent speaks through.

Token ids go in and come out, so an episode under verl is the record it is in process. A server that
dies, or gives an answer that is cut off by a weight update, is an ``InfrastructureError``: the
episode leaves the step. Engines differ in where they end a completion; here it ends with the token
that completes a stop string, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from searchrl.errors import InfrastructureError, InputError
from searchrl.models.chat import encode_text, render_chat
from searchrl.models.protocol import Completion, LanguageModel, Message, Sampling, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = frozenset({"abort", "aborted"})
_STEPS = ("min_global_steps", "max_global_steps")


class TokenOutput(Protocol):
    """What verl's servers answer."""

    @property
    def token_ids(self) -> list[int]:
        """New tokens."""
        ...

    @property
    def log_probs(self) -> list[float] | None:
        """One a token."""
        ...

    @property
    def stop_reason(self) -> str | None:
        """Whether the answer is whole."""
        ...

    @property
    def extra_fields(self) -> dict[str, Any]:
        """The versions of the weights, among others."""
        ...


class TokenServers(Protocol):
    """verl's client of its rollout servers."""

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> TokenOutput:
        """Continue a prompt; requests of one id go to one server, which keeps their prefix."""
        ...


class ServedPolicy(LanguageModel):
    """The policy under training, for one episode.

    Args:
        servers: verl's client.
        tokenizer: the policy's.
        max_length: longest prompt plus completion.
        request_id: keeps the episode's requests on one server.
        defaults: sampling parameters that verl sets for the run, top-p and top-k among them.
        thinking: whether it may use a think mode of its own.
    """

    def __init__(
        self,
        servers: TokenServers,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        request_id: str,
        defaults: Mapping[str, Any],
        thinking: bool = True,
    ) -> None:
        self._servers = servers
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._request_id = request_id
        self._defaults = defaults
        self._thinking = thinking
        self._versions: list[int] = []

    @property
    def max_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._max_length

    @property
    def versions(self) -> dict[str, int]:
        """The oldest and the newest weights that spoke, as verl's trainer asks for them."""
        if not self._versions:
            return {}
        return dict(zip(_STEPS, (min(self._versions), max(self._versions)), strict=True))

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat in the policy's own template, up to where the assistant speaks."""
        return render_chat(self._tokenizer, messages, self._thinking)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return encode_text(self._tokenizer, text)

    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue a prompt.

        Raises:
            InfrastructureError: no server answered, or not to the end.
            InputError: the prompt leaves no room for a token.
        """
        prompt = list(prompt_token_ids)
        room = self._max_length - len(prompt)
        if room < 1:
            raise InputError(
                f"a prompt of {len(prompt)} tokens leaves no room in a context of "
                f"{self._max_length}; lower the retrieval or observation budget"
            )
        parameters = dict(self._defaults) | {
            "max_tokens": min(sampling.max_tokens, room),
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "logprobs": True,
        }
        try:
            output = await self._servers.generate(
                self._request_id, prompt_ids=prompt, sampling_params=parameters
            )
        except Exception as error:
            # Ray raises errors of many kinds for an actor that is gone or that failed.
            raise InfrastructureError(f"rollout server: {type(error).__name__}: {error}") from error
        self._note_versions(output.extra_fields)
        return self._completion(output, sampling)

    def _note_versions(self, fields: Mapping[str, Any]) -> None:
        self._versions += [fields[step] for step in _STEPS if isinstance(fields.get(step), int)]

    def _completion(self, output: TokenOutput, sampling: Sampling) -> Completion:
        if output.stop_reason in _UNFINISHED or not output.token_ids:
            raise InfrastructureError(f"rollout server: answer not finished ({output.stop_reason})")
        logprobs = output.log_probs or ()
        if len(logprobs) != len(output.token_ids):
            raise InputError(
                "the rollout server returns no log-probabilities; set "
                "actor_rollout_ref.rollout.calculate_log_probs=True"
            )
        end = self._end(output.token_ids, sampling.stop)
        token_ids = tuple(output.token_ids[: end or None])
        return Completion(
            token_ids,
            tuple(logprobs[: len(token_ids)]),
            self._text(token_ids),
            self._reason(token_ids, end, sampling.max_tokens),
        )

    def _end(self, token_ids: Sequence[int], stop: Sequence[str]) -> int:
        """The number of tokens up to the one that completes a stop string; 0 when none does."""
        if not any(string in self._text(token_ids) for string in stop):
            return 0
        low, high = 1, len(token_ids)
        while low < high:
            middle = (low + high) // 2
            if any(string in self._text(token_ids[:middle]) for string in stop):
                high = middle
            else:
                low = middle + 1
        return low

    def _reason(self, token_ids: Sequence[int], end: int, limit: int) -> StopReason:
        if end:
            return StopReason.STOP_STRING
        cut = len(token_ids) >= limit and token_ids[-1] != self._tokenizer.eos_token_id
        return StopReason.LENGTH if cut else StopReason.END_OF_SEQUENCE

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
