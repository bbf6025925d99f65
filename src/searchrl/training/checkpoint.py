"""Checkpoints: everything a resumed run needs, whole or absent.

``step_N`` holds the searcher in Hugging Face form, the critic, both optimizers as safetensors, and
the KL term's weight; ``final`` and ``best`` are a searcher alone, with a model card. Of a searcher
with an adapter ``step_N`` holds the adapter, in PEFT's form; ``final`` and ``best`` are the model
it is merged into, with the adapter in ``adapter`` beside it. Nothing is pickled. Seeds, learning
rates and data order are functions of the step, so a resumed CPU run ends bitwise equal to an
uninterrupted one. The form is the same however many processes train, in whatever layout: whole
tensors, which each process takes its part of.

``best`` is written ahead of the ``step_N`` it is a copy of: a kill between the two leaves a best of
a step that a resumed run makes again, and which it therefore removes.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from searchrl.data.storage import atomic_directory, read_manifest, verify_directory
from searchrl.errors import InputError, IntegrityError
from searchrl.models.adapter_files import is_adapter
from searchrl.models.adapters import (
    has_adapter,
    load_factors,
    merged_weights,
    save_adapter,
    without_adapter,
)
from searchrl.models.weights import check_base
from searchrl.training.learner import Learner
from searchrl.training.model_card import CARD
from searchrl.training.parallel.tensors import like, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FINAL, BEST, ADAPTER = "final", "best", "adapter"
_STEP = re.compile(r"step_(\d{6,})")
_FORM = 2
"""Of a ``step_N``; form 1 did not name the KL term's weight, which was constant."""


def save_checkpoint(
    folder: Path,
    step: int,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    keep: int,
    writes: bool = True,
) -> None:
    """Write ``step_N`` after ``step`` finished steps, then remove what is not needed any more.

    Stay: the last ``keep`` checkpoints up to this one. Go: earlier ones; later ones, which are of a
    future that a resumed run makes again; and what a killed writer left half done.

    All processes that train together have to call this; one of them ``writes``.
    """
    tensors = {name: _collected(parts, writes) for name, parts in _beside_searcher(learner)}
    if not writes:
        return
    about = {
        "kind": "checkpoint",
        "form": _FORM,
        "step": step,
        "kl_coefficient": learner.kl_coefficient,
    }
    with atomic_directory(folder / f"step_{step:06d}", about) as out:
        tokenizer.save_pretrained(out / "searcher")
        if has_adapter(learner.searcher):
            save_adapter(learner.searcher, out / "searcher")
        else:
            learner.searcher.save_pretrained(out / "searcher")
        for name, values in tensors.items():
            save_file(values, out / name)
    found = sorted(_checkpoints(folder))
    kept = [number for number, _ in found if number <= step][-keep:]
    stale = [path for number, path in found if number not in kept]
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path)
    for path in stale:
        # Under another name first: what is called step_N is whole, even after a kill in here.
        shutil.rmtree(path.rename(folder / f".{path.name}.tmp"))


def save_final(
    folder: Path, searcher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str
) -> Path:
    """Write ``final``: the trained searcher, loadable by ``AutoModelForCausalLM``."""
    return _save_searcher(folder / FINAL, {"kind": "searcher"}, searcher, tokenizer, card)


def save_best(
    folder: Path,
    step: int,
    score: float,
    searcher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> bool:
    """Write ``best`` where ``score`` beats that of the one there; says whether it did."""
    found = _best(folder)
    if found is not None and not score > found[1]:
        return False
    about = {"kind": "searcher", "step": step, "score": score}
    _save_searcher(folder / BEST, about, searcher, tokenizer, card)
    return True


def drop_best_after(folder: Path, step: int) -> None:
    """Remove a ``best`` of a later step, which a resumed run makes again, or of none."""
    found = _best(folder)
    if (folder / BEST).exists() and (found is None or found[0] > step):
        aside = folder / f".{BEST}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree((folder / BEST).rename(aside))


def _best(folder: Path) -> tuple[int, float] | None:
    """Step and score of ``best``; ``None`` where there is none, or a damaged one."""
    try:
        about = read_manifest(folder / BEST)["about"]
        return int(about["step"]), float(about["score"])
    except (IntegrityError, KeyError, TypeError, ValueError):
        return None


def _save_searcher(
    place: Path,
    about: Mapping[str, Any],
    searcher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> Path:
    with atomic_directory(place, about) as out:
        if has_adapter(searcher):
            plain, merged = without_adapter(searcher), merged_weights(searcher)
            plain.save_pretrained(out, state_dict=merged)
            tokenizer.save_pretrained(out / ADAPTER)
            save_adapter(searcher, out / ADAPTER)
        else:
            searcher.save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / CARD).write_text(card, encoding="utf-8")
    return place


def latest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The newest undamaged ``step_N`` and its step; damaged ones are passed over with a warning.

    Raises:
        IntegrityError: there are checkpoints and every one is damaged.
    """
    found = sorted(_checkpoints(folder), reverse=True)
    problems: list[str] = []
    for step, path in found:
        try:
            verify_directory(path)
        except IntegrityError as error:
            logger.warning("%s; falling back to the checkpoint before", error)
            problems.append(str(error))
        else:
            return step, path
    if problems:
        raise IntegrityError(f"{problems[0]}; no other checkpoint is left to resume from")
    return None


def load_checkpoint(path: Path, learner: Learner) -> None:
    """Put a checkpoint's weights and optimizer states into a learner of the same recipe.

    Raises:
        InputError: the checkpoint is of another model, or of a later version of this program.
    """
    about = read_manifest(path)["about"]
    if (form := about.get("form", 1)) not in (1, _FORM):
        raise InputError(f"{path}: is of form {form}, which a later version of searchrl wrote")
    learner.kl_coefficient = about.get("kl_coefficient", learner.kl_coefficient)
    if has_adapter(learner.searcher):
        check_base(path / "searcher")
        load_factors(learner.searcher, path / "searcher")
    else:
        tied = bool(learner.searcher.config.tie_word_embeddings)
        # One file, or several of 50 GB each.
        files = sorted((path / "searcher").glob("*.safetensors"))
        _load_weights(learner.searcher, files, tied)
    learner.adopt_searcher()
    _load_optimizer(path / "optimizer.safetensors", learner.optimizer)
    if learner.critic is not None and learner.critic_optimizer is not None:
        _load_weights(learner.critic, [path / "critic.safetensors"], tied=False)
        _load_optimizer(path / "critic_optimizer.safetensors", learner.critic_optimizer)


def searcher_path(path: Path) -> Path:
    """The searcher inside a run, a checkpoint or ``final``, verified where it has a manifest.

    An adapter is a searcher as well, where it lies or by its own path.

    Raises:
        InputError: there is no trained searcher at ``path``.
    """
    candidates = (path / "checkpoints" / FINAL, path / "searcher", path)
    for candidate in candidates:
        described = (candidate / "config.json").is_file() or is_adapter(str(candidate))
        if described and (candidate / "tokenizer.json").is_file():
            within = candidate.name in ("searcher", ADAPTER)
            holder = candidate.parent if within else candidate
            if (holder / "manifest.json").is_file():
                verify_directory(holder)
            return candidate
    raise InputError(f"{path}: no trained searcher there; expected a run directory or a checkpoint")


def run_of(path: Path) -> Path | None:
    """The run directory that a searcher's path is, or lies in; ``None`` for a lone checkpoint."""
    path = path.resolve()
    for run in (path, *path.parents[1:3]):
        within = path.relative_to(run).parts
        if within[:1] in ((), ("checkpoints",)) and (run / "checkpoints").is_dir():
            return run if (run / "config.json").is_file() else None
    return None


def _checkpoints(folder: Path) -> Iterable[tuple[int, Path]]:
    for path in folder.glob("step_*") if folder.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match is not None:
            yield int(match[1]), path


def _load_weights(module: torch.nn.Module, files: Sequence[Path], tied: bool) -> None:
    path = files[0]
    try:
        held = module.state_dict()
        values = {
            name: like(held[name], value) if name in held else value
            for file in files
            for name, value in load_file(file).items()
        }
        missing, unexpected = module.load_state_dict(values, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: does not fit this recipe's model ({reason})") from error
    # A tied head is stored once, under the embedding's name.
    missing = [name for name in missing if not (tied and name == "lm_head.weight")]
    # What is frozen is not stored: an adapter's base has it.
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    missing = [name for name in missing if name not in frozen]
    if missing or unexpected:
        raise InputError(f"{path}: does not fit this recipe's model ({[*missing, *unexpected][0]})")


def _trained_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's state without what is frozen."""
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _beside_searcher(
    learner: Learner,
) -> Iterator[tuple[str, Iterable[tuple[str, torch.Tensor]]]]:
    """The files of a checkpoint that hold tensors, but for the searcher's own."""
    yield "optimizer.safetensors", _optimizer_tensors(learner.optimizer)
    if learner.critic is not None and learner.critic_optimizer is not None:
        yield "critic.safetensors", _trained_state(learner.critic).items()
        yield "critic_optimizer.safetensors", _optimizer_tensors(learner.critic_optimizer)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    state: dict[int, dict[str, torch.Tensor]] = optimizer.state_dict()["state"]
    for index, values in state.items():
        for name, value in values.items():
            yield f"{index}.{name}", value


def _collected(tensors: Iterable[tuple[str, torch.Tensor]], keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors in the machine's memory, put together one by one; none where not kept."""
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        found = whole(tensor)
        if keep:
            kept[name] = found.cpu().contiguous()
    return kept


def _load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in load_file(path).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = like(parameters[int(index)], value)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
