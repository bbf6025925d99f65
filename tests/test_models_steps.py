"""How steps of fixed shapes are chosen, and how they are recorded on a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from searchrl.errors import InputError
from searchrl.models.local import LocalModel
from searchrl.models.steps import graph_recorder, open_steps
from tests.test_models_packed_attention import SIZES


@pytest.mark.parametrize(
    ("decoding", "reason"),
    [("graph", "the model is on 'cpu'"), ("graph", "'dynamic'"), ("compiled", "'dynamic'")],
)
def test_what_does_not_go_together_is_refused_in_one_line(decoding: Any, reason: str) -> None:
    scaling = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    kind = scaling if "dynamic" in reason else {}
    other: Any = LlamaForCausalLM(LlamaConfig(**SIZES, **kind))
    with pytest.raises(InputError, match=f'decoding = "{decoding}": .*{reason}') as refusal:
        open_steps(other, decoding)
    assert "\n" not in str(refusal.value)


def test_padded_models_are_refused_and_on_a_cpu_auto_is_eager(random_model: LocalModel) -> None:
    other: Any = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40))
    with pytest.raises(InputError, match=r'"graph": a .gpt2. model is decoded on padded'):
        LocalModel(other, random_model.tokenizer, decoding="graph")
    LocalModel(other, random_model.tokenizer)
    assert open_steps(random_model.model, "auto") is None
    assert open_steps(random_model.model, "eager") is None


def test_graphs_are_recorded_on_one_stream_of_their_device_in_one_pool() -> None:
    """The calls alone, held against their real signatures: there may be no GPU."""
    device, opened = torch.device("cuda", 1), []
    with ExitStack() as stack:
        for name in ("graph_pool_handle", "CUDAGraph", "device", "stream", "current_stream"):
            stack.enter_context(mock.patch.object(torch.cuda, name))
        graph = stack.enter_context(mock.patch.object(torch.cuda, "graph", autospec=True))
        stack.enter_context(mock.patch.object(torch.cuda, "Stream", side_effect=opened.append))
        record, worked = graph_recorder(device), []
        replays = [record(lambda number=n: worked.append(number)) for n in range(2)]
        torch.cuda.device.assert_called_with(device)
        assert replays[0] is torch.cuda.CUDAGraph.return_value.replay
    assert worked == [0, 1]
    assert opened == [device]
    pools = {call.kwargs["pool"] for call in graph.call_args_list}
    assert len(pools) == 1
