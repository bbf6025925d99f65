"""Supervised training: its loss, its invariances, and that it learns."""

from __future__ import annotations

import copy
import math
import random
from itertools import repeat

import pytest
import torch

from searchrl.errors import SearchRLError
from searchrl.training.supervised import Example, SupervisedSettings, train_supervised
from tests.training_fixtures import VOCABULARY, assert_close, tiny_model


def examples(count: int, seed: int = 0) -> list[Example]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        length = draw.randint(3, 12)
        tokens = tuple(draw.randrange(VOCABULARY) for _ in range(length))
        made.append(Example(tokens, tuple(draw.choice([0.0, 0.05, 1.0]) for _ in tokens)))
    return made


def one_step(
    rows: list[Example], budget: int = 10_000
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and the change of every weight after a step on all rows."""
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    seen: list[dict[str, float]] = []
    settings = SupervisedSettings(
        steps=1,
        tokens_per_step=sum(len(row.token_ids) for row in rows),
        tokens_per_micro_batch=budget,
        warmup_steps=0,
    )
    train_supervised(model, iter(rows), settings, lambda step, metrics: seen.append(metrics))
    after = model.state_dict()
    return seen[0], {name: after[name] - before[name] for name in after}


def test_the_loss_is_the_weighted_mean_over_the_step() -> None:
    rows, model = examples(5), tiny_model()
    total = weight = 0.0
    hits, counted = 0, 0
    with torch.no_grad():
        for row in rows:
            logprobs = torch.log_softmax(model(torch.tensor([row.token_ids])).logits[0], -1)
            for place in range(1, len(row.token_ids)):
                total -= row.weights[place] * float(logprobs[place - 1, row.token_ids[place]])
                weight += row.weights[place]
                if row.weights[place] == 1.0:
                    counted += 1
                    hits += int(logprobs[place - 1].argmax()) == row.token_ids[place]
    metrics, _ = one_step(rows)
    assert metrics["loss"] == pytest.approx(total / weight, rel=1e-5)
    assert metrics["accuracy"] == hits / counted
    assert metrics["tokens"] == sum(len(row.token_ids) for row in rows)


def test_micro_batches_change_nothing() -> None:
    rows = examples(8)
    metrics, change = one_step(rows)
    for budget in (1, 30):
        other_metrics, other_change = one_step(rows, budget)
        assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
        assert other_metrics["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-5)
        # AdamW's first step divides each gradient by itself, so small ones show rounding.
        assert_close(other_change, change, 0.05)


def test_tokens_without_a_weight_teach_nothing() -> None:
    tokens = (3, 4, 5, 6)
    one, _ = one_step([Example(tokens, (0.0, 1.0, 0.0, 0.0))])
    other, _ = one_step([Example((3, 4, 9, 9), (0.0, 1.0, 0.0, 0.0))])
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.pipeline
def test_a_tiny_model_learns_one_sequence_by_heart() -> None:
    draw = random.Random(0)
    tokens = tuple(draw.sample(range(VOCABULARY), 16))
    model, losses = tiny_model(), []
    settings = SupervisedSettings(steps=150, tokens_per_step=16, learning_rate=3e-3, warmup_steps=5)
    train_supervised(
        model,
        repeat(Example(tokens, (1.0,) * 16)),
        settings,
        lambda step, metrics: losses.append(metrics["loss"]),
    )
    assert losses[0] > 2
    assert losses[-1] < 0.05
    assert not model.training


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    settings = SupervisedSettings(steps=100, learning_rate=1.0, warmup_steps=10)
    assert [settings.rate(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    rates = [settings.rate(step) for step in range(10, 101)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_examples_that_end_too_early_are_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(SearchRLError, match="examples ended"):
        train_supervised(tiny_model(), iter(examples(2)), SupervisedSettings(steps=1))


def test_a_step_without_any_weight_is_an_error() -> None:
    row = Example((1, 2, 3), (1.0, 0.0, 0.0))
    with pytest.raises(SearchRLError, match="no token"):
        one_step([row])


def test_a_gradient_that_is_not_finite_leaves_the_weights() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    row = Example((1, 2, 3), (0.0, math.inf, 1.0))
    with pytest.raises(SearchRLError, match="not finite"):
        train_supervised(model, repeat(row), SupervisedSettings(steps=1, tokens_per_step=3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
