"""Recipes for verl without a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from tests.verl_cpu.names import ROLLOUT

SETTINGS: dict[str, JsonValue] = {
    "actor_rollout_ref.rollout.name": ROLLOUT,
    "actor_rollout_ref.rollout.free_cache_engine": False,
    "actor_rollout_ref.model.use_remove_padding": False,
    "actor_rollout_ref.model.enable_gradient_checkpointing": False,
    "++actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
    "actor_rollout_ref.actor.use_torch_compile": False,
    "actor_rollout_ref.ref.fsdp_config.use_torch_compile": False,
    "critic.model.use_remove_padding": False,
    "critic.model.enable_gradient_checkpointing": False,
    "++critic.model.override_config.attn_implementation": "sdpa",
    "critic.fsdp.use_torch_compile": False,
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
}
"""What verl has to be told beside the translation."""

OWN_RAY: dict[str, JsonValue] = {
    # Numbers that Ray hands out; nothing checks that they are there.
    "ray_kwargs.ray_init.num_cpus": 32,
    "++ray_kwargs.ray_init.num_gpus": 1,
    "++ray_kwargs.ray_init.include_dashboard": False,
}
"""What it has to be told where it starts Ray itself."""

ENVIRONMENT: Mapping[str, str] = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": ",".join(
        f"tests.verl_cpu.{name}" for name in ("platform", "patches", "engines", "rollout")
    ),
    "OMP_NUM_THREADS": "1",
}
"""Variables of every process."""
