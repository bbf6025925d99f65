"""Fused norm and rotation against transformers' own, and their gradients against differences."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from searchrl.models import fused


@pytest.fixture(params=[1, 24, 10**6], ids=["row by row", "some rows", "all rows"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_NUMBERS_AT_A_TIME", request.param)


def angles(tokens: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    turns = torch.randn(tokens, 1, pairs, dtype=torch.float64)
    return turns.cos(), turns.sin()


@pytest.mark.usefixtures("pieces")
def test_the_norm_and_its_gradients() -> None:
    torch.manual_seed(0)
    module = Qwen3RMSNorm(6, eps=1e-3).double()
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    module.weight.data = weight.data
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    # The module computes in single precision whatever it is given.
    torch.testing.assert_close(fused.rms_norm(x, weight, 1e-3), module(x), atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda *xw: fused.rms_norm(*xw, 1e-3), (x, weight))


@pytest.mark.usefixtures("pieces")
def test_the_rotation_and_its_gradient() -> None:
    torch.manual_seed(0)
    cosines, sines = angles(5, 3)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    whole = [torch.cat([part, part], dim=-1).transpose(0, 1) for part in (cosines, sines)]
    heads = x.transpose(0, 1).unsqueeze(0)
    expected, _ = apply_rotary_pos_emb(heads, heads, *whole)
    found = fused.rotate(x, cosines, sines)
    torch.testing.assert_close(found, expected[0].transpose(0, 1), atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: fused.rotate(x, cosines, sines), (x,))
