"""Weights & Biases, Trackio and TensorBoard as metric sinks.

Each is an extra that is imported when a recipe asks for it. A resumed run goes on in the same place
and makes the steps after its checkpoint again: TensorBoard forgets the old ones, the other two show
both, by the step that each carries.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any, Literal

from searchrl.errors import InputError
from searchrl.reporting.sinks import BackgroundSink, Opener, RunFacts, Sinks

_LOGIN_SECONDS = 60

Service = Literal["wandb", "trackio", "tensorboard"]


def open_sinks(services: tuple[Service, ...], facts: RunFacts) -> Sinks:
    """Start the services a recipe names; one that cannot be opened warns and is left out."""
    return Sinks([BackgroundSink(name, _OPENERS[name], facts) for name in services])


class WandbSink:
    """A run on Weights & Biases, or on disk where ``WANDB_MODE`` is ``offline``."""

    def __init__(self, facts: RunFacts) -> None:
        wandb = _load("wandb")
        facts.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=facts.project,
            name=facts.name,
            id=facts.identity,
            dir=str(facts.directory),
            config=dict(facts.config),
            resume="allow",
            settings=wandb.Settings(login_timeout=_LOGIN_SECONDS),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step; the service's own counter only ever rises, so ours is a metric."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """End the run and wait for its upload."""
        self._run.finish()


class TrackioSink:
    """A run in Trackio's local database, or where ``TRACKIO_SPACE_ID`` says."""

    def __init__(self, facts: RunFacts) -> None:
        trackio = _load("trackio")
        for module in (trackio, import_module("trackio.run")):
            # It prints to standard output, which is kept for results.
            vars(module)["print"] = partial(print, file=sys.stderr)
        self._run = trackio.init(
            project=facts.project,
            name=f"{facts.name}-{facts.identity}",
            config=dict(facts.config),
            resume="allow",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the run and wait for its writes."""
        self._run.finish()


class TensorboardSink:
    """Event files under ``tensorboard/`` in the run directory."""

    def __init__(self, facts: RunFacts) -> None:
        _load("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(
            str(facts.directory / "tensorboard"), purge_step=facts.step + 1
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Bring the events to the disk."""
        self._writer.close()


_OPENERS: Mapping[Service, Opener] = {
    "wandb": WandbSink,
    "trackio": TrackioSink,
    "tensorboard": TensorboardSink,
}


def _load(package: Service) -> Any:
    """Import a service's package.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(f"{error}; pip install 'searchrl[{package}]'") from error
