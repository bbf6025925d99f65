"""Tensors that may be cut among processes: as a whole, and in the form of another.

A checkpoint holds whole tensors, whatever wrote it; these two functions are all that saving and
loading have to know of how a model is laid out.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; where it is cut, every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(form: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every process has, cut as ``form`` is; itself where that is not.

    A value of another shape comes back as it is, for whoever takes it to refuse.
    """
    if not isinstance(form, DTensor) or form.shape != value.shape:
        return value
    on_device = value.to(form.device, form.dtype)
    return distribute_tensor(on_device, form.device_mesh, form.placements, src_data_rank=None)
