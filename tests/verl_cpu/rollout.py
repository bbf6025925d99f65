"""Rollout servers of verl that decode with the in-process engine, one Ray actor a replica."""

from __future__ import annotations

import os
from typing import Any

import ray
import torch
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from searchrl.models.local import load_model
from searchrl.models.protocol import Sampling
from tests.verl_cpu.names import ROLLOUT


@ray.remote
class DecodingServer:
    """Continues prompts with the weights it was sent last."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        self._model = load_model(model)
        self._version = 0

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        sampling = Sampling(
            sampling_params["max_tokens"],
            sampling_params["temperature"],
            tuple(sampling_params["stop"]),
            sampling_params["seed"],
        )
        completion = await self._model.complete(prompt_ids, sampling)
        return TokenOutput(
            token_ids=list(completion.token_ids),
            log_probs=list(completion.logprobs),
            stop_reason="completed",
            extra_fields={"global_steps": self._version},
        )

    async def load(self, weights: dict[str, torch.Tensor], version: int | None) -> None:
        missing, unexpected = self._model.model.load_state_dict(weights, strict=False)
        # A tied head is not sent.
        assert set(missing) <= {"lm_head.weight"}, missing
        assert not unexpected, unexpected
        self._version = self._version if version is None else version

    async def control(self, *_: Any, **__: Any) -> None:
        return None

    sleep = wake_up = abort_all_requests = resume_generation = control
    clear_kv_cache = release_kv_cache = resume_kv_cache = control


class ProcessorReplica(RolloutReplica):  # type: ignore[misc]
    """Starts a server."""

    async def launch_servers(self) -> None:
        server = DecodingServer.options(
            name=_server_name(self.replica_rank), max_concurrency=1000
        ).remote(self.model_config.path)
        self.servers = [server]
        self._server_handle, self._server_address = server, _server_name(self.replica_rank)


class ProcessorRollout(BaseRollout):  # type: ignore[misc]
    """The trainer's side: sends the weights of its rank's replica."""

    async def resume(self, tags: list[str]) -> None:
        return None

    async def release(self) -> None:
        return None

    async def update_weights(self, weights: Any, **options: Any) -> None:
        # Every rank takes part in gathering; one of them sends.
        state = {name: tensor.detach().cpu().float() for name, tensor in weights}
        server = ray.get_actor(_server_name(int(os.environ["RANK"])))
        await server.load.remote(state, options.get("global_steps"))


def _server_name(rank: int) -> str:
    return f"decoding_server_{rank}"


RolloutReplicaRegistry.register(ROLLOUT, lambda: ProcessorReplica)
_ROLLOUT_REGISTRY[(ROLLOUT, "async")] = f"{__name__}.ProcessorRollout"
