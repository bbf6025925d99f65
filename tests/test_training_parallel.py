"""Several processes learn what one would: shares, sums, and who says what went wrong."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Reward, Segment, Turn
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.errors import InputError
from searchrl.retrieval.protocol import Hit
from searchrl.training.batch import tree_shares
from searchrl.training.interruption import Interruption
from searchrl.training.learner import Group, Learner
from searchrl.training.options import LearningOptions
from searchrl.training.parallel import processes as module
from searchrl.training.parallel.episodes import attempt_together, from_json, to_json
from searchrl.training.parallel.layout import Replicated
from searchrl.training.parallel.opening import check_device, open_layout
from searchrl.training.parallel.processes import (
    ALONE,
    DesertedError,
    Launched,
    Processes,
    first_before_others,
    from_first,
    joined,
    share,
    total,
)
from tests.processes import together
from tests.training_fixtures import (
    assert_bitwise_equal,
    assert_close,
    groups,
    merged,
    state,
    tiny_model,
    watch_gradients,
)

REWARDS = [[1.0, 0.0, 0.5], [0.0, 1.0], [0.25, 0.75, 0.0]]
# Made once: threads would take turns at the random numbers.
MODEL, REFERENCE = tiny_model(), tiny_model(1)
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo", "kl_placement": "loss", "kl_coefficient": 0.1, "kl_target": 0.01},
    "ppo": {"algorithm": "ppo", "lam": 0.95, "kl_coefficient": 0.1},
    "ppo of several steps": {"algorithm": "ppo", "epochs": 2, "mini_batches": 3},
    "reinforce++": {"algorithm": "reinforce_plus_plus", "kl_coefficient": 0.1},
    "rloo by episodes": {"algorithm": "rloo", "loss_average": "episode", "mini_batches": 2},
    "masked": {"algorithm": "ppo", "mask_truncated": True, "importance_cap": 1.5},
}

CASES = [
    ("grpo", 2, False),
    ("masked", 2, False),
    ("reinforce++", 2, False),
    ("rloo by episodes", 5, True),
    *(
        pytest.param(name, size, lockstep, marks=pytest.mark.pipeline)
        for name, size, lockstep in [
            ("ppo", 2, False),
            ("ppo", 3, True),
            ("ppo of several steps", 2, False),
            ("ppo of several steps", 3, True),
        ]
    ),
]
"""Algorithms, by how many processes, that pass through a model equally often or not."""


def made(values: dict[str, Any], processes: Processes = ALONE, lockstep: bool = False) -> Learner:
    layout = Replicated(processes)
    layout.lockstep = lockstep
    options = {"learning_rate": 1e-3, "max_grad_norm": 0.5, "tokens_per_micro_batch": 60} | values
    reference = copy.deepcopy(REFERENCE) if values.get("kl_coefficient") else None
    return Learner(copy.deepcopy(MODEL), LearningOptions(**options), 1.0, reference, layout=layout)


def some_groups() -> list[Group]:
    found = groups(3, REWARDS)
    found[0].episodes[1].end = EndReason.TRUNCATED
    return found


Learned = tuple[dict[str, float], dict[str, torch.Tensor], dict[str, torch.Tensor]]


def learn(subject: Learner) -> Learned:
    """Metrics and gradients of an update, and what is held after it."""
    seen = watch_gradients(subject)
    metrics = subject.update(some_groups(), 0)
    return metrics, merged(seen[: 1 if subject.critic is None else 2]), state(subject)


@pytest.mark.parametrize(("name", "size", "lockstep"), CASES)
def test_several_processes_learn_what_one_does(name: str, size: int, lockstep: bool) -> None:
    alone, gradients, _ = learn(made(ALGORITHMS[name]))
    found = together(size, lambda one: learn(made(ALGORITHMS[name], one, lockstep)))
    for metrics, own, held in found:
        assert metrics == found[0][0]
        assert list(metrics) == list(alone)
        assert metrics == pytest.approx(alone, rel=1e-5, abs=1e-7)
        assert_close(own, gradients, 1e-6)
        assert_bitwise_equal(held, found[0][2])


def test_where_nothing_teaches_no_process_takes_a_step() -> None:
    def work(processes: Processes) -> bool:
        subject = made({"algorithm": "grpo"}, processes)
        before = state(subject)
        subject.update(groups(0, [[1.0, 1.0], [0.0, 0.0]]), 0)
        assert_bitwise_equal(state(subject), before)
        return True

    assert together(2, work) == [True, True]


def test_a_gradient_that_is_not_finite_anywhere_stops_the_step_everywhere() -> None:
    def work(processes: Processes) -> float:
        subject = made({"algorithm": "grpo"}, processes)
        broken = [Group(tuple(group.episodes)) for group in groups(0, [[1.0, 0.0], [1.0, 0.0]])]
        broken[0].episodes[0].reward = Reward(math.inf)
        before = state(subject)
        skipped = subject.update(broken, 0)["skipped_updates"]
        assert_bitwise_equal(state(subject), before)
        return skipped

    assert together(2, work) == [1.0, 1.0]


def test_a_parameter_without_a_part_in_any_pass_keeps_no_gradient() -> None:
    def work(processes: Processes) -> list[Any]:
        net = torch.nn.ParameterList([torch.zeros(2), torch.zeros(3), torch.zeros(1)])
        if processes.rank == 0:
            net[0].grad = torch.tensor([1.0, 2.0])
        net[2].grad = torch.tensor([processes.rank + 0.5])
        Replicated(processes).add_gradients(net)
        return [None if p.grad is None else p.grad.tolist() for p in net]

    assert together(2, work) == [[[1.0, 2.0], None, [2.0]]] * 2


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_of_trees_are_whole_and_about_equal(count: int) -> None:
    sequences = [[1, 2, n // 4, n, *range(n % 5)] for n in range(40)]
    shares = tree_shares(sequences, count)
    assert sorted(index for part in shares for index in part) == list(range(40))
    assert max(map(len, shares)) - min(map(len, shares)) <= 40 // count // 2 + 1
    assert len(shares) == count
    if count > 1:
        # Neighbours in order, so that what is shared is shared within a part.
        ordered = [sequences[index] for part in shares for index in part]
        assert ordered == sorted(ordered)


def test_more_processes_than_sequences_leave_some_without() -> None:
    assert sorted(map(len, tree_shares([[1, 2], [3]], 4))) == [0, 0, 1, 1]
    assert tree_shares([], 2) == [[], []]


def full_episode(question: Question) -> Episode:
    hit = Hit(Passage("7", "A \ud800 title", "text"), 0.1 + 0.2)
    search = Turn(Action(ActionKind.SEARCH, "q"), (hit, hit), (1, 0), True)
    return Episode(
        question,
        "s3",
        [Segment("prompt", (1, 2), "p"), Segment("model", (3,), "m", (-1 / 3,))],
        Turn(Action(ActionKind.SEARCH, "own"), (hit,)),
        [search, Turn(Action(ActionKind.ANSWER, answer="42"))],
        (hit,),
        "42",
        True,
        EndReason.MAX_TURNS,
        Reward(math.inf, {"part": 1e-300}),
        None,
        1.25,
    )


def test_an_episode_arrives_as_it_was_sent() -> None:
    question = Question("q", "What?", ("that",))
    failed = Episode(question, "s3", error="down", reward=Reward(None))
    for sent in (full_episode(question), failed):
        assert from_json(json.loads(json.dumps(to_json(sent))), question) == sent
    assert set(to_json(failed)) | {"question"} == set(Episode.__dataclass_fields__)


QUESTIONS = [Question(f"q{n}", "What?", ("that",)) for n in range(5)]


async def attempt(some: Sequence[Question]) -> list[Episode]:
    await asyncio.sleep(0)
    return [Episode(question, f"sample {n}") for question in some for n in range(2)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_process_gets_the_episodes_of_all_in_the_order_of_the_questions(size: int) -> None:
    found = together(
        size,
        lambda one: asyncio.run(attempt_together(attempt, QUESTIONS, one, Interruption())),
    )
    for episodes in found:
        assert episodes == asyncio.run(attempt(QUESTIONS))


def test_a_signal_to_one_process_ends_the_rollouts_of_all() -> None:
    ended: list[int] = []

    def work(processes: Processes) -> None:
        interruption = Interruption()

        async def forever(some: Sequence[Question]) -> list[Episode]:
            if processes.rank == 0:
                return await attempt(some)
            interruption._received = 1
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(processes.rank)
            raise AssertionError("not ended")

        with pytest.raises(KeyboardInterrupt):
            asyncio.run(attempt_together(forever, QUESTIONS, processes, interruption))

    together(2, work)
    assert ended == [1]


def test_a_held_signal_ends_what_looks_for_it_and_waits_for_the_rest() -> None:
    reached: list[str] = []
    interruption = Interruption()

    async def signalled() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
        return "not ended"

    def held() -> None:
        with interruption.watch(), interruption.hold():
            assert asyncio.run(interruption.until_received(attempt(QUESTIONS[:1])))
            assert asyncio.run(interruption.until_received(signalled())) is None
            with interruption.hold():
                reached.append("inner")
            reached.append("outer")

    with pytest.raises(KeyboardInterrupt):
        held()
    assert reached == ["inner", "outer"]
    assert not interruption.insisted


def test_sums_messages_and_turns() -> None:
    order: list[int] = []

    def work(processes: Processes) -> tuple[Any, ...]:
        with first_before_others(processes):
            order.append(processes.rank)
        parts = {"both": 0.5 + processes.rank} | ({"last": 4.0} if processes.rank == 2 else {})
        told = from_first(processes, f"from {processes.rank}")
        return total(processes, parts), told, share(processes, range(5))

    found = together(3, work)
    assert order[0] == 0
    assert [one[:2] for one in found] == [({"both": 4.5, "last": 4.0}, "from 0")] * 3
    assert [list(one[2]) for one in found] == [[0, 3], [1, 4], [2]]


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with joined() as processes:
        assert processes is ALONE
    assert isinstance(open_layout(processes, "fsdp", tiny_model()), Replicated)


def launched(store: HashStore) -> list[Launched]:
    return [Launched(rank, 2, store) for rank in range(2)]


def test_the_process_that_fails_first_speaks_and_the_others_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SECONDS_TO_SPEAK", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    first, second = launched(HashStore())
    module._end(second, InputError("what is wrong"))
    assert first.another_failed()
    assert not second.another_failed()
    with pytest.raises(SystemExit) as silent:
        module._end(first, DesertedError("gone"))
    assert silent.value.code == DesertedError.exit_code
    module._end(second, InputError("again"))
    with pytest.raises(SystemExit):
        module._end(first, KeyboardInterrupt())


def test_of_processes_that_are_interrupted_the_first_says_so() -> None:
    first, second = launched(HashStore())
    module._end(first, KeyboardInterrupt())
    with pytest.raises(SystemExit) as silent:
        module._end(second, KeyboardInterrupt())
    assert silent.value.code == 130


@pytest.mark.parametrize("device", ["cuda:0", "cuda"])
def test_processes_have_a_gpu_each(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(InputError, match=r"searcher.device|process 99 .* no GPU"):
        check_device(device, launched(HashStore())[0])
    check_device("cpu", launched(HashStore())[0])
    check_device(device, ALONE)
