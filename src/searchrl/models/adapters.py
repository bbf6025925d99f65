"""Low-rank adapters (LoRA, arXiv 2106.09685) on a model of transformers, through PEFT.

An adapter is put into a model in place: its matrices become PEFT's layers, which hold the frozen
matrix and two small factors. The factors have the model's own number form, so that packed rows,
rollouts and updates compute as they do without; where that form is small, the optimizer keeps
exact copies (``training.adamw``).

Invariants: the frozen weights are never written, so a model without the adapter is a second tree of
modules over the same weights, and the reference of a run costs no memory; a merged weight is always
the frozen one plus the product of the factors, so a merged directory and an adapter that is merged
as it is loaded are the same model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from searchrl.errors import InputError
from searchrl.models.adapter_files import CONFIG, WEIGHTS, write_base
from searchrl.models.options import LoraOptions
from searchrl.models.weights import weights_identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Module = TypeVar("_Module", bound=torch.nn.Module)

_PREFIX = "base_model.model."
"""Of every name in PEFT's files: the path of the model inside PEFT's own wrapper."""


def add_adapter(model: PreTrainedModel, options: LoraOptions, base: str, seed: int) -> None:
    """Freeze a model and put a fresh adapter into it, which changes nothing yet.

    Args:
        model: changed in place.
        options: the adapter's size and places.
        base: the name that ``model`` was loaded by.
        seed: of the first factors; the second ones are 0.

    Raises:
        InputError: PEFT is not installed, or a target names no matrix.
    """
    peft = _peft()
    targets = "all-linear" if options.targets is None else sorted(options.targets)
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=_lasting_name(base),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(peft, config, model)


def has_adapter(model: torch.nn.Module) -> bool:
    """Whether an adapter has been put into a model."""
    return next(_layers(model), None) is not None


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is with its adapter off, on the same weights."""
    plain = _sharing(model, model.parameters())
    for name, layer in list(_layers(plain)):
        _replace(plain, name, layer.get_base_layer())
    vars(plain).pop("peft_config", None)
    return plain


def copy_of_trained(module: _Module) -> _Module:
    """A copy that has trained weights of its own and shares those that are frozen."""
    return _sharing(module, (p for p in module.parameters() if not p.requires_grad))


def merged_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What ``without_adapter(model)`` would hold if the adapter were part of it."""
    weights: dict[str, torch.Tensor] = dict(without_adapter(model).state_dict())
    for name, layer in _layers(model):
        weights[f"{name}.weight"] = _merged(layer).cpu()
    return weights


def merge_adapter(model: PreTrainedModel) -> None:
    """Make a model's adapter part of its weights, in place."""
    with torch.no_grad():
        for name, layer in list(_layers(model)):
            base = layer.get_base_layer()
            base.weight.copy_(_merged(layer))
            _replace(model, name, base)
    vars(model).pop("peft_config", None)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter in PEFT's form into a directory that exists."""
    peft = _peft()
    factors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {f"{_PREFIX}{name}": value.contiguous() for name, value in factors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config: Any = next(iter(model.peft_config.values()))
    # PEFT's own writer leaves the order of a set to chance.
    text = json.dumps(config.to_dict() | {"inference_mode": True}, indent=2, default=sorted)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    write_base(folder, _identity(config.base_model_name_or_path))


def load_factors(model: PreTrainedModel, folder: Path) -> None:
    """Put the factors that ``save_adapter`` wrote into a model that has such an adapter.

    Raises:
        InputError: they are of another adapter.
    """
    place, peft = folder / WEIGHTS, _peft()
    if not place.is_file():
        raise InputError(f"{place}: no such file; copy all files of the adapter")
    found = {name.removeprefix(_PREFIX): value for name, value in load_file(place).items()}
    wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted({*found, *wanted}):
        one, other = found.get(name), wanted.get(name)
        if one is None or other is None or one.shape != other.shape:
            raise InputError(f"{place}: does not fit this recipe's adapter ({name})")
    peft.set_peft_model_state_dict(model, found)


def apply_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapter of a directory, in PEFT's form, into the weights of its base.

    Raises:
        InputError: PEFT is not installed, or the files are no adapter for this model.
    """
    peft = _peft()
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{folder / CONFIG}: cannot be read ({error})") from error
    if config.peft_type != peft.PeftType.LORA or config.use_dora or config.bias != "none":
        raise InputError(f"{folder / CONFIG}: is no plain LoRA, which is what can be read")
    if config.modules_to_save:
        raise InputError(
            f"{folder / CONFIG}: trains {sorted(config.modules_to_save)} as well; merge it "
            "with PEFT and name the merged model"
        )
    _inject(peft, config, model)
    load_factors(model, folder)
    merge_adapter(model)


def _inject(peft: Any, config: Any, model: PreTrainedModel) -> None:
    try:
        peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"lora.targets: {reason[:300]}") from error
    for _, layer in _layers(model):
        layer.to(layer.get_base_layer().weight.dtype)


@cache
def _identity(base: str) -> str:
    """Checksums of large files, once a process: a base is not written while it is trained on."""
    return weights_identity(base)


def _sharing(module: _Module, shared: Iterable[torch.nn.Parameter]) -> _Module:
    return copy.deepcopy(module, {id(parameter): parameter for parameter in shared})


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Each matrix with factors, and its name in the model."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


def _merged(layer: Any) -> torch.Tensor:
    with torch.no_grad():
        [adapter] = layer.active_adapters
        merged: torch.Tensor = layer.get_base_layer().weight + layer.get_delta_weight(adapter)
    return merged


def _replace(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _lasting_name(base: str) -> str:
    """A name that still leads to the model from another directory."""
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("lora needs PEFT: pip install 'searchrl[lora]'") from error
    return peft
