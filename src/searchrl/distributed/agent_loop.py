"""Our agents as a verl agent loop: one episode with its reward a call.

The loop is the agent itself, the one that runs in process; only the model behind it is verl's. What
an episode came to goes along in ``extra_fields``, for the sampler's metrics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from searchrl.agents.episode import Episode
from searchrl.data.questions import question_from_row
from searchrl.distributed.episode_facts import FACTS, facts_of
from searchrl.distributed.services import services_of
from searchrl.distributed.token_server import ServedPolicy
from searchrl.distributed.trajectory import Trajectory, trajectories
from searchrl.errors import InfrastructureError

_DECIDED_HERE = ("temperature", "max_tokens", "stop", "seed", "logprobs")


class SearchLoop(AgentLoopBase):  # type: ignore[misc]
    """Runs the agent that the run's recipe trains."""

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[AgentLoopOutput]:
        """One episode: a row for each prompt of it, nothing where it sampled no token.

        Args:
            sampling_params: verl's, for the run.
            row: of the data set, with ``session_id``, the episode's place in its group.

        Raises:
            InfrastructureError: a service failed; verl counts the episode as failed.
        """
        services = services_of(Path(self.data_config.searchrl.run))
        step, sample = int(row["step"]), int(row["session_id"])
        question = question_from_row(dict(row["question"]), where="row of the schedule")
        policy = ServedPolicy(
            self.server_manager,
            self.tokenizer,
            self._max_length(),
            uuid4().hex,
            {name: v for name, v in sampling_params.items() if name not in _DECIDED_HERE},
            services.thinking,
        )
        temperature = float(sampling_params["temperature"])
        episode = await services.attempt(question, policy, step, sample, temperature)
        services.keep(episode, step, services.place(int(row["index"]), sample))
        if episode.error is not None or episode.reward is None or episode.reward.value is None:
            raise InfrastructureError(episode.error or "no reward")
        fields = {**policy.versions, FACTS: facts_of(episode), "reward_extra_info": {}}
        return [_output(part, episode, dict(fields)) for part in trajectories(episode)]

    def _max_length(self) -> int:
        rollout = self.rollout_config
        return int(rollout.max_model_len or rollout.prompt_length + rollout.response_length)


def _output(part: Trajectory, episode: Episode, fields: dict[str, Any]) -> AgentLoopOutput:
    assert episode.reward is not None
    return AgentLoopOutput(
        prompt_ids=list(part.prompt),
        response_ids=list(part.response),
        response_mask=list(part.mask),
        response_logprobs=list(part.logprobs),
        reward_score=episode.reward.value,
        num_turns=len(episode.turns),
        metrics=AgentLoopMetrics(),
        extra_fields=fields,
    )
