"""The recipes for one GPU, against the memory of the card they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from searchrl.models.shape import read_shape
from tests.command_line import searchrl

CONFIGS = Path(__file__).parent / "golden" / "configs"
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
}
"""Parameters, as their model cards' files hold them."""
CARDS = {
    "s3-0.6b-12gb": 12,
    "s3-3b-24gb": 24,
    "s3-7b-80gb": 80,
    "search-r1-0.6b-12gb": 12,
    "search-r1-3b-24gb": 24,
    "search-r1-3b-80gb": 80,
}


@pytest.fixture(autouse=True)
def _hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of the models that the recipes name, without a hub."""

    def stored(model: str, name: str) -> str:
        assert name == "config.json"
        return str(CONFIGS / f"{model.replace('/', '--')}.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", stored)


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_sizes_are_those_of_the_published_models(model: str) -> None:
    assert read_shape(model).weights == PUBLISHED[model]


def verdict(name: str, gigabytes: float, *overrides: str) -> dict[str, Any]:
    options = [part for override in overrides for part in ("--set", override)]
    call = ("doctor", "--recipe", name, "--gpu", str(gigabytes), "--memory", "64", "--json")
    found: dict[str, Any] = searchrl(*call, *options).json
    return found


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_fits_its_card_with_a_twentieth_to_spare(name: str) -> None:
    assert verdict(name, 0.95 * CARDS[name])["fits"]


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_uses_its_card_and_needs_what_it_saves(name: str) -> None:
    assert not verdict(name, 0.4 * CARDS[name])["fits"]
    assert not verdict(name, CARDS[name], "learning.gradient_checkpointing=false")["fits"]
