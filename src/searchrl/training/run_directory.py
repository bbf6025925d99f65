"""The directory of one run: its form, its lock, and what a resumed run may rely on.

``config.json`` is the resolved recipe and re-runs it. ``STATUS`` is one of started, success, error,
cancelled. A run directory has one writer at a time; a second process is refused.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from searchrl.agents.episode import Episode
from searchrl.data.jsonl import write_jsonl
from searchrl.data.storage import write_json, write_text
from searchrl.errors import InputError
from searchrl.recipe import Recipe

Status = Literal["started", "success", "error", "cancelled"]
_PACKAGES = ("searchrl", "torch", "transformers", "bm25s", "numpy")


class RunDirectory:
    """Paths and small files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.episodes = path / "episodes"
        self.checkpoints = path / "checkpoints"
        self.report = path / "report.html"
        self.config = path / "config.json"

    @contextmanager
    def open(self, recipe: Recipe, resume: bool) -> Iterator[None]:
        """Hold the run for writing; ``STATUS`` says how the block ended.

        Raises:
            InputError: the directory holds another run, or this one without ``resume``, or a
                resumed run whose recipe differs in more than its length, or another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._check(recipe, resume)
            write_json(self.config, recipe.model_dump(mode="json"))
            write_json(self.path / "env.json", _environment())
            self.set_status("started")
            try:
                yield
            except KeyboardInterrupt:
                self.set_status("cancelled")
                raise
            except BaseException:
                self.set_status("error")
                raise
            self.set_status("success")

    def set_status(self, status: Status) -> None:
        """Write ``STATUS``."""
        write_text(self.path / "STATUS", status + "\n")

    def write_episodes(self, step: int, episodes: Iterable[Episode]) -> None:
        """Keep the episodes of a step for reading."""
        rows = (episode.to_row() for episode in episodes)
        write_jsonl(self.episodes / f"step_{step:06d}.jsonl", rows)

    def drop_episodes_after(self, step: int) -> None:
        """Remove the episodes of later steps, which a resumed run makes again."""
        for file in self.episodes.glob("step_*.jsonl"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()

    def _check(self, recipe: Recipe, resume: bool) -> None:
        if not self.config.is_file():
            return
        if not resume:
            raise InputError(
                f"{self.path}: holds a run already; add --resume or choose another --out"
            )
        before = json.loads(self.config.read_text(encoding="utf-8"))
        after = recipe.model_dump(mode="json")
        for values in (before, after):
            values.get("run", {}).pop("steps", None)
        changed = [key for key in after if after[key] != before.get(key)]
        if changed:
            raise InputError(
                f"{self.config}: differs from the recipe in {', '.join(changed)}; "
                "a resumed run may change run.steps only"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.path}: another process is writing this run") from error
            yield


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
