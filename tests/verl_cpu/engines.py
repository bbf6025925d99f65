"""verl's FSDP engines under the name of the processor."""

from __future__ import annotations

from torch.distributed.fsdp import OffloadPolicy
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import (
    FSDPEngineWithLMHead,
    FSDPEngineWithValueHead,
)

EngineRegistry.register("language_model", ["fsdp", "fsdp2"], device="cpu")(FSDPEngineWithLMHead)
EngineRegistry.register("value_model", ["fsdp", "fsdp2"], device="cpu")(FSDPEngineWithValueHead)
# The reference model's weights wait in the machine's memory, which is where they already are.
transformer_impl.CPUOffloadPolicy = lambda pin_memory: OffloadPolicy()
