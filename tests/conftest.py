"""Fixtures that several test files share: a tokenizer and a random model, made on the spot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

from scripts.tiny_models.tokenizer import train_tokenizer
from searchrl.data.synthwiki import World
from searchrl.models.local import LocalModel
from tests.small_models import small_qwen3

torch.set_num_threads(1)
# No deadline: on a busy machine an example's wall time says nothing.
settings.register_profile("unit", max_examples=50, deadline=None)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Undo what a command did that took all free cores: sums depend on the number of threads."""
    yield
    torch.set_num_threads(1)


# No deadline: on a busy machine an example's wall time says nothing.
settings.register_profile("unit", max_examples=50, deadline=None)
settings.load_profile("unit")


_PROTOCOL = (
    "<question>What is it?</question>\n<information>Doc 1 (Title: </information>\n\n"
    '<important_info>[1, 2]</important_info><query>{"query": "a"}</query>'
    "<search_complete>True</search_complete><search_complete>False</search_complete>"
    "<think>so</think>system\nuser\nassistant\n"
)


def _texts() -> Iterator[str]:
    for passage in World(9_999, 400).passages():
        yield f'Doc 1 (Title: "{passage.title}") {passage.text}\n'
        yield _PROTOCOL


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny models' tokenizer, trained on a few hundred pages."""
    return train_tokenizer(_texts())


@pytest.fixture(scope="session")
def random_model(tiny_tokenizer: PreTrainedTokenizerFast) -> LocalModel:
    """A model of random weights: 2 layers, width 64, a context of 1,024 tokens."""
    model = small_qwen3(tiny_tokenizer, 1024)
    with torch.no_grad():
        # Wider than the default start, so that distributions are far from uniform and ties rare.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return LocalModel(model.eval(), tiny_tokenizer)
