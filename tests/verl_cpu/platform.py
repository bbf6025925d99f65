"""The processor as one of verl's platforms."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _nothing(*_: Any, **__: Any) -> None:
    return None


_IGNORED = (
    "empty_cache",
    "ipc_collect",
    "manual_seed",
    "manual_seed_all",
    "reset_peak_memory_stats",
    "set_device",
    "set_rng_state",
    "synchronize",
)
DEVICE = SimpleNamespace(
    **dict.fromkeys(_IGNORED, _nothing),
    current_device=lambda: "cpu",
    device_count=lambda: 1,
    get_device_name=lambda *_: "CPU",
    get_rng_state=torch.get_rng_state,
    is_available=lambda: True,
    max_memory_allocated=lambda *_: 0,
    max_memory_reserved=lambda *_: 0,
    mem_get_info=lambda *_: (1 << 34, 1 << 34),
    memory_allocated=lambda *_: 0,
    memory_reserved=lambda *_: 0,
)
"""What verl asks of ``torch.cuda``."""


@PlatformRegistry.register("cpu")
class ProcessorPlatform(PlatformBase):  # type: ignore[misc]
    """Chosen by ``VERL_PLATFORM=cpu``."""

    device_name = "cpu"
    vendor_name = "processor"
    device_module = DEVICE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        # verl hands it to torch, for which a number is an accelerator.
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        # verl looks for no other resource when it counts what a cluster has.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
