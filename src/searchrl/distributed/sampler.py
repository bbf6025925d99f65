"""Which episodes of a step are learned from, and when a step is given up.

verl's own buffer takes the reward of a group's only episode for its advantage, waits for ever for a
worker that died, and knows no limit to failures. Here a group that is smaller than its baseline
needs leaves the step; a step in which nothing moves ends the attempt, and the run goes on from its
last checkpoint; too many failed episodes end it with the reason.
"""

from __future__ import annotations

import time
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from searchrl.distributed.episode_facts import FACTS, means, share_of_equal
from searchrl.distributed.failure_rules import check_failures, groups_below, session_of
from searchrl.errors import InfrastructureError

_POLL_SECONDS = 0.2
"""verl looks every two seconds, which is longer than a small model's whole rollout."""


class EpisodeSampler(ReplayBuffer):  # type: ignore[misc]
    """verl's replay buffer with the failure rules of the in-process trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"poll_interval": _POLL_SECONDS, **kwargs})
        options = self.sampler_kwargs
        self._group_size = int(options["group_size"])
        self._smallest_group = int(options["smallest_group"])
        self._max_failed = float(options["max_failed"])
        self._stall_seconds = float(options["stall_seconds"])
        self._moved_at = time.monotonic()
        self._state: object = None

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, Any]:
        """The episodes of a step, and its metrics.

        Raises:
            InfrastructureError: too many episodes failed, or none ended for too long.
        """
        self._moved_at = time.monotonic()
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id == "val":
            return batch, metrics
        sessions = {session_of(key) for key in batch.keys}
        asked = batch_size * self._group_size
        failed = asked - len(sessions)
        check_failures(failed, asked, self._max_failed)
        small = groups_below(sessions, self._smallest_group)
        self._drop(batch, [key for key in batch.keys if session_of(key)[0] in small])
        counts = {"episodes/failed": float(failed), "episodes/failed_share": failed / asked}
        return batch, metrics | self._facts(batch) | counts

    def _drop(self, batch: Any, keys: list[str]) -> None:
        """Take trajectories out of a batch and out of the store."""
        if not keys:
            return
        if len(keys) == len(batch.keys):
            raise InfrastructureError("no group of this step has enough episodes to learn from")
        left = [pair for pair in zip(batch.keys, batch.tags, strict=True) if pair[0] not in keys]
        batch.keys, batch.tags = ([pair[0] for pair in left], [pair[1] for pair in left])
        tq.kv_clear(keys=keys, partition_id=batch.partition_id)

    def _facts(self, batch: Any) -> dict[str, float]:
        found = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
        )
        fields = [getattr(value, "data", value) for value in found["extra_fields"]]
        # The rows of one session carry the same facts.
        own = {session_of(key): f[FACTS] for key, f in zip(batch.keys, fields, strict=True)}
        return means(own.values()) | {"groups/all_equal": share_of_equal(own)}

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        state = (
            len(self.partitions[partition_id]),
            len(self.finished_keys[partition_id]),
            len(self.failure_keys[partition_id]),
        )
        now = time.monotonic()
        if state != self._state:
            self._state, self._moved_at = state, now
        elif now - self._moved_at > self._stall_seconds:
            raise InfrastructureError(
                f"no episode ended in {self._stall_seconds:.0f} s: a worker or a rollout server is "
                "gone, or verl.stall_seconds is less than an episode takes"
            )
        waited: float = super()._wait_for_next_poll(partition_id, last_debug_time)
        return waited
