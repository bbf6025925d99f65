"""The directory of one run: its form, its lock, and what a resumed run may rely on.

``config.json`` is the resolved recipe and re-runs it. ``STATUS`` is one of started, success, error,
cancelled. A run directory has one writer at a time; a second process is refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from searchrl.agents.episode import Episode
from searchrl.data.jsonl import write_jsonl
from searchrl.data.locks import hold
from searchrl.data.questions import Question
from searchrl.data.storage import write_json, write_text
from searchrl.errors import InputError
from searchrl.recipe import Recipe
from searchrl.recipe_file import leaves, load_recipe
from searchrl.training.interruption import uninterrupted

Status = Literal["started", "success", "error", "cancelled"]
_PACKAGES = ("searchrl", "torch", "transformers", "PyStemmer", "regex", "numpy")


class RunDirectory:
    """Paths and small files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.episodes = path / "episodes"
        self.checkpoints = path / "checkpoints"
        self.report = path / "report.html"
        self.config = path / "config.json"
        self.data = path / "data.json"

    @contextmanager
    def open(self, recipe: Recipe, resume: bool, processes: int = 1) -> Iterator[None]:
        """Hold the run for writing; ``STATUS`` says how the block ended.

        Args:
            recipe: of the run.
            resume: whether it may have been begun.
            processes: how many train together, for the record.

        Raises:
            InputError: the directory holds another run, or this one without ``resume``, or a
                resumed run whose recipe differs in what it learns, or another process has it.
        """
        with hold(self.path, ".lock", "writing this run"):
            self._check(recipe, resume)
            write_json(self.config, recipe.model_dump(mode="json"))
            write_json(self.path / "env.json", _environment() | {"processes": processes})
            try:
                self.set_status("started")
                yield
            except KeyboardInterrupt:
                self.set_status("cancelled")
                raise
            except BaseException:
                self.set_status("error")
                raise
            self.set_status("success")

    def set_status(self, status: Status) -> None:
        """Write ``STATUS``, which a second Ctrl-C does not keep from saying what the first did."""
        with uninterrupted():
            write_text(self.path / "STATUS", status + "\n")

    def identity(self) -> str:
        """What tells this run from all others, wherever it is known; the same when resumed."""
        file = self.path / "ID"
        if not file.is_file():
            write_text(file, secrets.token_hex(8) + "\n")
        return file.read_text(encoding="utf-8").strip()

    def write_episodes(self, step: int, episodes: Iterable[Episode]) -> None:
        """Keep the episodes of a step for reading."""
        rows = (episode.to_row() for episode in episodes)
        write_jsonl(self.episodes / f"step_{step:06d}.jsonl", rows)

    def drop_episodes_after(self, step: int) -> None:
        """Remove the episodes of later steps, which a resumed run makes again."""
        for file in self.episodes.glob("step_*.jsonl"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()

    def pin_questions(self, questions: Sequence[Question]) -> None:
        """Note what is trained on; a resumed run has to train on the same, in the same order.

        Raises:
            InputError: the run was begun with other questions.
        """
        text = json.dumps([question.to_row() for question in questions])
        facts = {
            "training_questions": len(questions),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        if not self.data.is_file():
            write_json(self.data, facts)
        elif self.data.read_bytes() != (json.dumps(facts, indent=2) + "\n").encode():
            raise InputError(
                f"{self.data}: this run was begun with other training questions than the "
                f"{len(questions)} there are now; bring them back or choose another --out"
            )

    def _check(self, recipe: Recipe, resume: bool) -> None:
        if not self.config.is_file():
            if self.metrics.exists() or self.checkpoints.exists():
                raise InputError(
                    f"{self.path}: holds a run without its config.json; choose another --out"
                )
            return
        if not resume:
            raise InputError(
                f"{self.path}: holds a run already; add --resume or choose another --out"
            )
        before = leaves(load_recipe(str(self.config)).model_dump(mode="json"))
        after = leaves(recipe.model_dump(mode="json"))
        changed = [
            f"{key} ({before.get(key)} there, {after.get(key)} now)"
            for key in sorted(before.keys() | after.keys())
            if not _may_change(key) and before.get(key) != after.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.config}: differs from the recipe in {', '.join(changed)}; "
                "a resumed run may change run.steps, run.parallel, guards and tracking only"
            )


def _may_change(key: str) -> bool:
    """Whether a resumed run is the same run with another value here."""
    return key in ("run.steps", "run.parallel") or key.startswith(("guards.", "tracking."))


def _environment() -> dict[str, str | int | None]:
    versions: dict[str, str | int | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        **versions,
    }
