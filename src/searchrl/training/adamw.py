"""The optimizer of whatever is trained: AdamW, with its numbers where there is room for them.

Weights in bfloat16 lose small updates, and AdamW's moments take twice the memory of the weights.
``MasterAdamW`` steps copies of the weights in single precision, its masters, which may lie on
another device than the model: with the optimizer on the CPU (as in ZeRO-Offload, arXiv 2101.06840)
the model's device holds weights and gradients only. Whether the masters lie here or there changes
no result but for the rounding of the two devices' kernels; on a CPU it is bitwise the AdamW of the
weights themselves where those are in single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Groups = Sequence[dict[str, Any]]
"""Parameters, and what is set for them alone, as PyTorch's optimizers take them."""


def trained_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Those that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def open_adamw(groups: Groups, offload: bool, **settings: Any) -> torch.optim.AdamW:
    """AdamW over parameters in any number form.

    Args:
        groups: what is stepped.
        offload: keep its numbers on the CPU.
        settings: of PyTorch's AdamW.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    if offload or any(parameter.dtype != torch.float32 for parameter in parameters):
        return MasterAdamW(groups, torch.device("cpu") if offload else None, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


class MasterAdamW(torch.optim.AdamW):
    """AdamW on copies of the weights in single precision.

    Invariant: between steps a weight is its master, rounded to the weight's form.

    Args:
        groups: what is stepped; the masters take its place in ``param_groups``.
        home: the device of the masters and moments; each weight's own when left out.
        settings: of PyTorch's AdamW.
    """

    def __init__(self, groups: Groups, home: torch.device | None, **settings: Any) -> None:
        self._weights = [parameter for group in groups for parameter in group["params"]]
        masters = {parameter: _master(parameter, home) for parameter in self._weights}
        own = [group | {"params": [masters[p] for p in group["params"]]} for group in groups]
        super().__init__(own, fused=True, **settings)
        self._masters = list(masters.values())

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take the gradients of the weights to the masters, step those, and round back."""
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight.grad is not None:
                master.grad = weight.grad.to(master.device, master.dtype)
                weight.grad = None
        loss: float | None = super().step(closure)
        self._round()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of weights and masters."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW, with the master of each weight."""
        state = super().state_dict()
        for index, master in enumerate(self._masters):
            state["state"].setdefault(index, {})["master"] = master.detach()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave; the weights follow their masters."""
        left: dict[int, dict[str, Any]] = {}
        with torch.no_grad():
            for index, values in state_dict["state"].items():
                self._masters[index].copy_(values["master"])
                if moments := {name: v for name, v in values.items() if name != "master"}:
                    left[index] = moments
        super().load_state_dict(state_dict | {"state": left})
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.copy_(master)


def _master(weight: torch.Tensor, home: torch.device | None) -> torch.nn.Parameter:
    place = weight.device if home is None else home
    master = weight.detach().to(place, torch.float32, copy=True)
    if weight.is_cuda and place.type == "cpu":
        # From pinned memory the weights come back as fast as the bus allows.
        master = master.pin_memory()
    return torch.nn.Parameter(master)
