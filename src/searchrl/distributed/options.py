"""What a recipe says about a cluster: ``[verl]``, read by ``train --backend verl`` alone."""

from __future__ import annotations

from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt

from searchrl.options import Options


class VerlOptions(Options):
    """Training on Ray with verl: machines, rollout servers, restarts."""

    nodes: PositiveInt = 1
    """Machines."""
    gpus_per_node: PositiveInt = 8
    """GPUs of a machine."""
    tensor_parallel: PositiveInt = 1
    """GPUs that one rollout server is spread over."""
    sequence_parallel: PositiveInt = 1
    """GPUs that one sequence is spread over in the update (Ulysses)."""
    rollout_memory: float = Field(0.6, gt=0, lt=1)
    """Share of a GPU's memory that its rollout server may take."""
    max_sequences: PositiveInt = 256
    """Sequences that one rollout server decodes at a time."""
    offload: bool = False
    """Keep weights and optimizer in the machine's memory while episodes are made."""
    agent_workers: PositiveInt = 8
    """Processes that run agents; each has one client of the retriever and of the generator."""
    restarts: NonNegativeInt = 3
    """How often a run that died starts again without a new checkpoint in between."""
    stall_seconds: PositiveFloat = 1_800.0
    """A step in which no episode ends for so long is given up, and the run restarted."""
    machine_seconds: PositiveFloat = 1_800.0
    """How long a restart on a running cluster waits for the GPUs of a machine that died."""
    settings: dict[str, JsonValue] | None = None
    """Settings of verl by their own names, set over what the recipe is translated to."""
