"""vLLM in this process, with the weights of a model that is trained here.

All that this package knows of vLLM's interface stands here and in ``vllm_transfer``. vLLM is
opened from a configuration, with random weights: nothing it computes with comes from anywhere but
``take``. It keeps keys and values of prefixes, and forgets them whenever weights are taken.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from searchrl.errors import InputError, SearchRLError
from searchrl.models.canary import Scored
from searchrl.models.options import CPU_CACHE, VllmOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step did for one request: its new tokens, each with its log-probability."""

    name: str
    tokens: tuple[tuple[int, float], ...]
    ended: bool


class VllmEngine:
    """One instance of vLLM.

    Args:
        model: whose architecture it has; ``take`` brings the weights.
        options: its number form and its share of the machine.

    Raises:
        InputError: vLLM is not installed, or cannot be opened like this.
    """

    def __init__(self, model: PreTrainedModel, options: VllmOptions) -> None:
        _check_placement(model)
        vllm = _import()
        self._vllm = vllm
        self._sleeps = options.sleep and bool(vllm.platforms.current_platform.is_cuda_alike())
        self._asleep = False
        with _as_found(), _configuration(model) as folder:
            try:
                self._llm = vllm.LLM(**_arguments(folder, options, self._sleeps))
            except (ValueError, RuntimeError, NotImplementedError) as error:
                # What vLLM raises for memory it does not get, and for architectures it lacks.
                reason = " ".join(str(error).split())
                raise InputError(
                    f'rollout.engine = "vllm": vLLM {vllm.__version__} cannot be opened: '
                    f"{reason[:300]}"
                ) from error
        self._llm.init_weight_transfer_engine({"init_info": {}})

    @property
    def version(self) -> str:
        """Of the library."""
        return str(self._vllm.__version__)

    @property
    def max_length(self) -> int:
        """Longest prompt plus completion that its memory has room for."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    @property
    def asleep(self) -> bool:
        """Whether its weights are gone until the next are taken."""
        return self._asleep

    def add(self, name: str, prompt: Sequence[int], settings: Mapping[str, Any]) -> None:
        """Take a request in; ``settings`` are those of ``sampling_settings``."""
        kind = self._vllm.sampling_params.RequestOutputKind.DELTA
        wanted = self._vllm.SamplingParams(**settings, output_kind=kind)
        self._llm.llm_engine.add_request(name, {"prompt_token_ids": list(prompt)}, wanted)

    def step(self) -> list[Progress]:
        """Compute one step for everything that was taken in."""
        made = []
        for output in self._llm.llm_engine.step():
            said = output.outputs[0]
            pairs = zip(said.token_ids, said.logprobs or (), strict=True)
            tokens = tuple((token, entry[token].logprob) for token, entry in pairs)
            made.append(Progress(output.request_id, tokens, output.finished))
        return made

    def abort(self, names: Sequence[str]) -> None:
        """Let go of requests."""
        self._llm.llm_engine.abort_request(list(names))

    def take(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Exchange all weights, with no request under way; wakes it up where it sleeps."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {"tensors": weights}})
        self._llm.finish_weight_update()
        if self._asleep:
            if not self._llm.wake_up(tags=["kv_cache"]):
                raise SearchRLError(
                    f"vLLM {self.version} did not wake up; set rollout.vllm.sleep = false"
                )
            self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise SearchRLError(
                f"vLLM {self.version} kept keys and values of weights that were exchanged; "
                'set rollout.engine = "native"'
            )

    def score(self, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[Scored]:
        """Continue prompts, with the log-probability of each of their tokens but the first."""
        wanted = self._vllm.SamplingParams(**settings, prompt_logprobs=0)
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(asked, wanted, use_tqdm=False)
        scored = []
        for output in outputs:
            prompt, said = output.prompt_token_ids, output.outputs[0]
            read = [
                entry[token].logprob
                for token, entry in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
            ]
            drawn = [
                entry[token].logprob
                for token, entry in zip(said.token_ids, said.logprobs, strict=True)
            ]
            scored.append(Scored(tuple(prompt), tuple(said.token_ids), tuple(read), tuple(drawn)))
        return scored

    def sleep(self) -> None:
        """Give up a GPU's memory until weights are taken again; nothing on a CPU."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = True


def _import() -> Any:
    """vLLM, set to stay in this process and to tell nobody of its use."""
    # Read by vLLM when it is imported or opened. Weights are handed over by reference, so its
    # engine must not move to a process of its own.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
        import vllm.platforms
        import vllm.sampling_params
    except ImportError as error:
        raise InputError(
            f"{error}; rollout.engine = \"vllm\" wants pip install 'searchrl[vllm]' in an "
            'environment of its own; or set rollout.engine = "native"'
        ) from error
    return vllm


def _arguments(folder: str, options: VllmOptions, sleeps: bool) -> dict[str, Any]:
    from vllm.platforms import current_platform

    from searchrl.models.vllm_transfer import BACKEND

    if current_platform.is_cpu():
        # Compiling takes minutes there, and vLLM would reserve a share of all memory.
        place: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE}
    else:
        place = {"gpu_memory_utilization": options.memory_share, "enable_sleep_mode": sleeps}
    return {
        "model": folder,
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "dtype": options.dtype,
        # As long as the memory has room for, the model's own context at most.
        "max_model_len": -1,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": BACKEND},
        **place,
    }


def _check_placement(model: PreTrainedModel) -> None:
    if model.device.index:
        raise InputError(
            f'searcher.device = "{model.device}": vLLM in this process takes the first GPU it '
            f'sees; set CUDA_VISIBLE_DEVICES={model.device.index} and searcher.device = "cuda"'
        )


@contextmanager
def _configuration(model: PreTrainedModel) -> Iterator[str]:
    """A directory with a model's configuration and nothing else."""
    with tempfile.TemporaryDirectory(prefix="searchrl-vllm-") as folder:
        config = model.config.__class__.from_dict(model.config.to_dict())
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        yield folder


@contextmanager
def _as_found() -> Iterator[None]:
    """Undo what opening vLLM does to the process: global random streams and thread settings."""
    import random

    import numpy

    state, arrays = random.getstate(), numpy.random.get_state()
    set_threads = torch.set_num_threads
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
        numpy.random.set_state(arrays)
        torch.set_num_threads = set_threads
