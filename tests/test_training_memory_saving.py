"""What saves memory changes no result: checkpointed blocks, masters, offloading."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from searchrl.errors import InputError
from searchrl.models.adapters import add_adapter
from searchrl.models.options import LoraOptions
from searchrl.training import networks
from searchrl.training.adamw import MasterAdamW, open_adamw
from searchrl.training.placement import Placement
from searchrl.training.recomputation import recompute_blocks
from tests.training_fixtures import (
    assert_bitwise_equal,
    assert_close,
    groups,
    learner,
    merged,
    state,
    tiny_model,
    watch_gradients,
)

CPU = torch.device("cpu")
MADE = groups(0, [[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])


def gradients(**values: Any) -> dict[str, torch.Tensor]:
    """Of one optimizer step, with a pass of the reference before it."""
    model = tiny_model()
    if values.pop("adapted", False):
        add_adapter(model, LoraOptions(rank=4), "base", seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    subject = learner(model, tiny_model(1), kl_coefficient=0.1, kl_placement="loss", **values)
    seen = watch_gradients(subject)
    subject.update(MADE, 0)
    return merged(seen)


@pytest.mark.parametrize(
    "values",
    [
        {"algorithm": "ppo"},
        {"algorithm": "grpo", "adapted": True},
        {"algorithm": "grpo", "autocast": True},
        {"algorithm": "grpo", "tokens_per_micro_batch": 30},
    ],
    ids=str,
)
def test_checkpointed_blocks_give_the_same_gradients(values: dict[str, Any]) -> None:
    whole = gradients(**values)
    assert_bitwise_equal(gradients(**values, gradient_checkpointing=True), whole)


def test_a_head_in_parts_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"algorithm": "grpo", "entropy_coefficient": 0.01}
    whole = gradients(**values)
    monkeypatch.setattr(networks, "STATES_AT_A_TIME", 7)
    assert_close(gradients(**values, gradient_checkpointing=True), whole, 1e-6)


def test_checkpointed_blocks_keep_far_less() -> None:
    def kept(checkpointed: bool) -> int:
        subject = learner(gradient_checkpointing=checkpointed)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            [batch] = subject._pack(subject._samples(MADE)[0])
            subject._logprobs(subject._policy, batch.batch)
        return sum(sizes)

    assert kept(True) < 0.5 * kept(False)


def test_a_model_without_such_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="transformers has none for Linear"):
        recompute_blocks(torch.nn.Linear(2, 2))


class TestMasters:
    def stepped(self, kind: str, steps: int = 3, **values: Any) -> dict[str, torch.Tensor]:
        subject = learner(algorithm=kind, epochs=2, **values)
        for step in range(steps):
            subject.update(groups(step, [[1.0, 0.0]]), step)
        held = state(subject)
        return {name: value for name, value in held.items() if not name.endswith(".master")}

    @pytest.mark.parametrize("kind", ["ppo", "grpo"])
    def test_offloaded_they_are_the_optimizer_itself(self, kind: str) -> None:
        assert_bitwise_equal(self.stepped(kind, offload=True), self.stepped(kind))

    def test_of_small_weights_they_keep_what_those_lose(self) -> None:
        weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = open_adamw([{"params": [weight]}], False, lr=1e-4, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.full_like(weight, 0.5)
            optimizer.step()
            assert weight.grad is None
        assert weight.tolist() == pytest.approx([1 - 100 * 1e-4] * 4, abs=0.004)
        [master] = optimizer.param_groups[0]["params"]
        assert master.dtype == torch.float32
        assert master.tolist() == pytest.approx([0.99] * 4, abs=1e-4)

    def test_full_weights_that_stay_need_none(self) -> None:
        weight = torch.nn.Parameter(torch.ones(4))
        assert not isinstance(open_adamw([{"params": [weight]}], False), MasterAdamW)
        assert isinstance(open_adamw([{"params": [weight]}], True), MasterAdamW)

    def test_a_state_round_trips_bitwise(self) -> None:
        def make() -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
            weight = torch.nn.Parameter(torch.linspace(0, 1, 5).to(torch.bfloat16))
            return weight, open_adamw([{"params": [weight]}], False, lr=1e-3)

        def step(weight: torch.nn.Parameter, optimizer: torch.optim.AdamW) -> None:
            weight.grad = weight.detach() + 1
            optimizer.step()

        weight, optimizer = make()
        other, second = make()
        second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(weight, optimizer)
        second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert torch.equal(other, weight)
        step(weight, optimizer)
        step(other, second)
        one, two = (o.state_dict()["state"][0] for o in (optimizer, second))
        assert_bitwise_equal(one, two)
        assert torch.equal(other, weight)


class TestPlacement:
    class Mover(torch.nn.Module):
        """Notes where it is told to go."""

        def __init__(self) -> None:
            super().__init__()
            self.moves: list[str] = []

        def to(self, place: torch.device) -> Any:
            self.moves.append(str(place))
            return self

    def test_it_works_for_the_while_only_and_goes_home_after_a_failure(self) -> None:
        module = self.Mover()
        place = Placement(module, CPU, torch.device("cuda:0"))
        assert module.moves == ["cpu"]
        with place.at_work():
            assert module.moves == ["cpu", "cuda:0"]
        with pytest.raises(RuntimeError), place.at_work():
            raise RuntimeError
        assert module.moves == ["cpu", *["cuda:0", "cpu"] * 2]

    def test_where_home_is_work_nothing_moves(self) -> None:
        module = self.Mover()
        for place in (Placement(module, CPU, CPU), Placement(None, CPU, torch.device("cuda:0"))):
            with place.at_work():
                pass
        assert module.moves == []

    def test_reference_and_critic_work_one_after_the_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, moves = tiny_model(1), []

        class Spy(Placement):
            def _go(self, place: torch.device) -> None:
                moves.append((type(self._module).__name__, "go"))

        monkeypatch.setattr("searchrl.training.learner.Placement", Spy)
        subject = learner(
            tiny_model(), model, algorithm="ppo", kl_coefficient=0.1, offload=True, epochs=2
        )
        del moves[:]
        subject.update(MADE, 0)
        reference, critic = ("Qwen3ForCausalLM", "go"), ("Critic", "go")
        assert moves == [reference, reference, critic, critic]


def test_micro_batches_of_a_checkpointed_pass_add_up() -> None:
    values = {"algorithm": "ppo", "gradient_checkpointing": True}
    assert_close(gradients(**values, tokens_per_micro_batch=30), gradients(**values), 1e-6)
