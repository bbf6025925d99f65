"""Two places of verl that name a GPU and have no setting."""

from __future__ import annotations

from functools import partial
from typing import Any

import verl.utils.distributed
import verl.utils.model
from transformers import AutoModelForTokenClassification, PreTrainedModel


def load_critic(
    local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool
) -> PreTrainedModel:
    """verl's critic, without flash attention."""
    return AutoModelForTokenClassification.from_pretrained(  # type: ignore[no-any-return]
        local_path, dtype=torch_dtype, config=model_config, attn_implementation="sdpa"
    )


verl.utils.model.load_valuehead_model = load_critic
# The default names a backend for processors and one for the device, here the same twice.
verl.utils.distributed.initialize_global_process_group_ray = partial(
    verl.utils.distributed.initialize_global_process_group_ray, backend="cpu:gloo"
)
