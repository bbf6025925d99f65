"""Packed encoders: the vectors of transformers' own forward pass, and one a text in any company."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from searchrl.retrieval.encoder import Runtime, load_encoder, open_encoder
from searchrl.retrieval.options import DenseOptions
from searchrl.retrieval.packed_encoder import PackedNetwork, packs
from tests.encoders import write_dpr, write_encoder

FAMILIES = {
    "bert": (BertModel, BertConfig),
    "roberta": (RobertaModel, RobertaConfig),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig),
}
needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 on this processor"
)


def network(family: str, hidden: int = 32) -> PreTrainedModel:
    torch.manual_seed(0)
    model, config = FAMILIES[family]
    shape = config(
        vocab_size=40,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=200,
    )
    built: PreTrainedModel = model(shape).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no bias is nought
    return built


def texts(count: int, longest: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(5, 40) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@needs_bfloat16
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(family: str) -> None:
    trunk, asked = network(family), texts(9, 60)
    assert packs(trunk)
    with torch.inference_mode():
        found = PackedNetwork(trunk).hidden(asked)
        for tokens, hidden_TD in zip(asked, found, strict=True):
            expected_TD = trunk(input_ids=torch.tensor([tokens])).last_hidden_state[0]
            assert hidden_TD == pytest.approx(expected_TD, abs=1e-4)


@needs_bfloat16
def test_a_text_has_one_vector_to_the_last_bit_in_any_company() -> None:
    # Wide enough that a matrix product sums in another order for another number of rows.
    packed = PackedNetwork(network("bert", 384).bfloat16())
    asked = texts(24, 40)
    with torch.inference_mode():
        alone = [packed.hidden([tokens])[0] for tokens in asked]
        for order in (range(24), range(23, -1, -1), range(5, 12)):
            together = packed.hidden([asked[place] for place in order])
            for place, hidden_TD in zip(order, together, strict=True):
                assert torch.equal(hidden_TD, alone[place])


class TestForms:
    @pytest.fixture
    def plain(self, tmp_path: Path) -> Path:
        return write_encoder(tmp_path / "plain")

    @needs_bfloat16
    @pytest.mark.parametrize("made_for_it", [True, False])
    def test_auto_is_bfloat16_where_the_processor_is_made_for_it(
        self, plain: Path, monkeypatch: pytest.MonkeyPatch, made_for_it: bool
    ) -> None:
        exact = load_encoder(DenseOptions(encoder=str(plain)), "query")
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: made_for_it)
        opened = open_encoder(exact.settings, Runtime(dtype="auto"), plain)
        vectors, expected = (
            opened.encode(["one", "two words", ""]),
            exact.encode(["one", "two words", ""]),
        )
        assert vectors == pytest.approx(expected, abs=0.05)
        assert np.array_equal(vectors, expected) != made_for_it

    @needs_bfloat16
    def test_bfloat16_gives_one_vector_a_text_and_none_for_none(self, plain: Path) -> None:
        asked = ["one", "two words", "", "a text of more words than that", "one"]
        encoder = load_encoder(
            DenseOptions(encoder=str(plain), dtype="bfloat16", batch_size=2), "passage"
        )
        alone = np.concatenate([encoder.encode([text]) for text in asked])
        assert np.array_equal(encoder.encode(asked), alone)
        assert encoder.encode([]).shape == (0, encoder.settings.dimension)

    def test_auto_leaves_other_kinds_as_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = write_dpr(tmp_path / "dpr-ctx")
        exact = load_encoder(DenseOptions(encoder=str(model)), "passage")
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        opened = open_encoder(exact.settings, Runtime(dtype="auto"), model)
        assert np.array_equal(opened.encode(["one"]), exact.encode(["one"]))
