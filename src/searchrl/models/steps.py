"""How a step of fixed shapes is run: as it is, compiled, or recorded as a CUDA graph and replayed.

Graphs are recorded by hand and not by ``torch.compile(mode="reduce-overhead")``. A recording takes
as long as two steps, so each of some dozens of shapes can have one, again after every update; the
compiler takes most of a minute for each shape of a large model. The recorded kernels are those of
the step run as it is, so it is the same to the last bit and a failure can go back to that. A replay
is one call, where compiled code first checks what it was compiled for, hundreds of weights a token.
And whatever a model is made of can be recorded, an adapter of PEFT too. What is compiled has fewer
and larger kernels, and is recorded all the same, so both can be had.

Invariant: a recording is replayed only on the tensors it was made on, and on weights that are where
they were. Weights that change in place are seen; where they, or the modules that use them, are
others (``weight_watch.form_of``), all recordings are dropped.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from searchrl.errors import InputError
from searchrl.models.options import Decoding
from searchrl.models.slots import Slots
from searchrl.models.static_step import static_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Step = Callable[["PreTrainedModel", Slots, int, int], None]
"""As ``static_step``."""
Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes work that has been done before and returns what does it; nothing is done by then."""

_FIXED_ANGLES = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary positions whose angles do not follow the lengths of what is computed."""
_SHAPES = 512
"""That code is compiled for, at most; there are fewer, see ``bucket``."""


class Steps(ABC):
    """Runs ``static_step``."""

    @abstractmethod
    def run(self, model: PreTrainedModel, slots: Slots, count: int, length: int) -> None:
        """One step; see ``static_step``."""

    def forget(self) -> None:
        """Model or slots are others from now on."""
        return


class PlainSteps(Steps):
    """Launches each operation of a step by itself."""

    def run(self, model: PreTrainedModel, slots: Slots, count: int, length: int) -> None:
        """See ``Steps``."""
        static_step(model, slots, count, length)


class CompiledSteps(Steps):
    """Compiles the step for each of its shapes.

    Args:
        backend: of ``torch.compile``.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._plain = PlainSteps()
        self._compiled: Step | None = torch.compile(
            static_step, fullgraph=True, dynamic=False, backend=backend
        )

    def run(self, model: PreTrainedModel, slots: Slots, count: int, length: int) -> None:
        """See ``Steps``; what cannot be compiled runs as it is from then on."""
        if self._compiled is not None:
            try:
                # Every model and shape of a process is counted together.
                with torch._dynamo.config.patch(
                    recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES
                ):
                    return self._compiled(model, slots, count, length)
            except torch._dynamo.exc.TorchDynamoException as error:
                _warn("compiled", error)
                self._compiled = None
        return self._plain.run(model, slots, count, length)


class RecordedSteps(Steps):
    """Records each shape when it comes up for the second time; the first time warms up.

    Args:
        inner: runs what is recorded.
        recorder: opens what records, anew whenever recordings have been dropped.
    """

    def __init__(self, inner: Steps, recorder: Callable[[], Record]) -> None:
        self._inner = inner
        self._recorder = recorder
        self._broken = False
        self.forget()

    def forget(self) -> None:
        """See ``Steps``."""
        self._inner.forget()
        self._record = self._recorder()
        self._seen: set[tuple[int, int]] = set()
        self.recorded: dict[tuple[int, int], Callable[[], None]] = {}

    def run(self, model: PreTrainedModel, slots: Slots, count: int, length: int) -> None:
        """See ``Steps``; what cannot be recorded runs as it is from then on."""
        shape = (count, length)
        replay = self.recorded.get(shape)
        if replay is None and shape in self._seen and not self._broken:
            replay = self._try(lambda: self._inner.run(model, slots, count, length))
            if replay is not None:
                self.recorded[shape] = replay
        self._seen.add(shape)
        if replay is None:
            self._inner.run(model, slots, count, length)
        else:
            replay()

    def _try(self, work: Callable[[], None]) -> Callable[[], None] | None:
        try:
            return self._record(work)
        except RuntimeError as error:
            # Out of memory, or of what a stream that is recorded refuses: nothing has run by then.
            _warn("recorded", error)
            self._broken = True
            self.recorded.clear()
            return None


def graph_recorder(device: torch.device) -> Record:
    """CUDA graphs that share the memory of what is between their operations: one runs at a time."""
    pool: Any = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Another thread's model may use the device meanwhile.
        recording = torch.cuda.graph(
            graph, pool=pool, stream=_recording_stream(device), capture_error_mode="thread_local"
        )
        # A recording that fails does not go back to the stream that it came from.
        back = torch.cuda.stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), back, recording:
            work()
        return graph.replay

    return record


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: PyTorch keeps work space for each stream that multiplied matrices."""
    return torch.cuda.Stream(device)


def open_steps(model: PreTrainedModel, decoding: Decoding) -> Steps | None:
    """What a recipe's ``decoding`` asks for; ``None`` where steps are not of fixed shapes.

    Raises:
        InputError: it does not go with the model or its device.
    """
    on_cuda = model.device.type == "cuda"
    if decoding == "eager" or (decoding == "auto" and not on_cuda):
        return None
    reason = obstacle(model)
    if reason is not None and decoding != "auto":
        raise InputError(f'decoding = "{decoding}": {reason}; use "eager" or leave it out')
    if decoding == "graph" and not on_cuda:
        raise InputError(
            f'decoding = "graph": records CUDA graphs, and the model is on {model.device.type!r}; '
            'set device = "cuda", use "compiled", or leave it out'
        )
    inner = CompiledSteps() if decoding == "compiled" else PlainSteps()
    return RecordedSteps(inner, partial(graph_recorder, model.device)) if on_cuda else inner


def obstacle(model: PreTrainedModel) -> str | None:
    """Why a model's steps cannot be of fixed shapes and run as a whole; ``None`` if they can."""
    kinds = {getattr(module, "rope_type", "default") for module in model.modules()}
    if not kinds <= _FIXED_ANGLES:
        return f"rotary positions of kind {min(kinds - _FIXED_ANGLES)!r} follow the lengths"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has a hook, which a recorded step would not call"
    return None


def _warn(how: str, error: Exception) -> None:
    reason = " ".join(str(error).split())
    logger.warning("a decoding step cannot be %s and runs as it is: %s", how, reason[:300])
