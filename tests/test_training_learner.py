"""One update: exact ratios, exact masks, and gradients against an independent implementation."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from searchrl.agents.episode import Episode, Reward, Segment
from searchrl.data.questions import Question
from searchrl.models.local import LocalModel
from searchrl.models.protocol import Sampling
from searchrl.training import networks
from searchrl.training.advantages import group_advantages
from searchrl.training.learner import Group, Learner
from searchrl.training.options import LearningOptions
from tests.training_fixtures import (
    MIXED,
    PPO,
    VOCABULARY,
    assert_bitwise_equal,
    assert_close,
    episode,
    gradients_of,
    groups,
    learner,
    merged,
    state,
    tiny_model,
    watch_gradients,
)


def trained_critic(subject: Learner) -> Learner:
    """Values that differ from 0 and from one another."""
    assert subject.critic is not None
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        weight = subject.critic.head.weight
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return subject


@pytest.mark.parametrize("budget", [1, 60, 16_384])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_first_on_policy_step_has_a_ratio_of_exactly_1(algorithm: str, budget: int) -> None:
    subject = learner(algorithm=algorithm, tokens_per_micro_batch=budget, temperature=0.7)
    metrics = subject.update(groups(0, MIXED), 0)
    assert metrics["old_kl"] == 0.0
    assert metrics["clip_fraction"] == 0.0


@pytest.mark.parametrize("steps", [{"epochs": 2}, {"mini_batches": 2}, {}])
@pytest.mark.parametrize("values", [{}, PPO])
def test_the_update_repeats_the_very_passes_of_looking_back(
    values: dict[str, Any], steps: dict[str, int]
) -> None:
    """On larger models a pass of other rows rounds otherwise, and the ratio would not be 1."""
    subject = learner(tokens_per_micro_batch=90, **values, **steps)
    passes: dict[bool, list[list[int]]] = {False: [], True: []}

    def note(module: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        passes[torch.is_grad_enabled()].append(given[0].tolist())

    subject.searcher.model.embed_tokens.register_forward_pre_hook(note)
    made = groups(0, MIXED)
    subject.update(made, 0)
    assert len(passes[True]) > 1
    # A single optimizer step looks at every episode once, when it learns from it.
    expected = passes[True][: len(passes[True]) // steps.get("epochs", 1)] if steps else []
    assert passes[False] == expected
    learned = sum(len(row) for row in passes[True]) // steps.get("epochs", 1)
    idle = [] if values else made[1].episodes
    episodes = [one for group in made for one in group.episodes if one not in idle]
    # These episodes share no first token, so their tree holds every token of each.
    assert learned == sum(len(one.token_ids) for one in episodes)


def test_a_second_pass_is_off_policy() -> None:
    metrics = learner(epochs=2, learning_rate=0.05).update(groups(0, MIXED), 0)
    assert metrics["old_kl"] > 0
    assert metrics["clip_fraction"] > 0


def dense_gradients(
    made: Sequence[Group], model: PreTrainedModel, temperature: float, **values: Any
) -> dict[str, torch.Tensor]:
    """GRPO and PPO written out: one unpadded sequence at a time, full logits, Python loops."""
    subject = learner(model, temperature=temperature, **values)
    policy, critic, options = subject.searcher, subject.critic, subject._options
    if critic is not None:
        trained_critic(subject)
    rows, everything = [], []
    for group in made:
        baseline = group_advantages(group.rewards, True) if critic is None else group.rewards
        for one, score in zip(group.episodes, baseline, strict=True):
            places = [i for i, sampled in enumerate(one.trainable_mask) if sampled]
            tokens = torch.tensor([one.token_ids])
            logprobs = torch.log_softmax(policy(tokens).logits[0] / temperature, -1)
            chosen = torch.stack([logprobs[i - 1, one.token_ids[i]] for i in places])
            if critic is None:
                rows.append((chosen, [score] * len(places), None, None))
                continue
            hidden = critic.trunk(tokens).last_hidden_state[0]
            states = torch.stack([critic.head(hidden[i - 1])[0] for i in places])
            advantage, following, advantages = 0.0, 0.0, []
            for place, value in reversed(list(enumerate(states.tolist()))):
                reward = score if place == len(places) - 1 else 0.0
                delta = reward + options.gamma * following - value
                advantage = delta + options.gamma * options.lam * advantage
                advantages.insert(0, advantage)
                following = value
            rows.append((chosen, advantages, states, states.detach() + torch.tensor(advantages)))
            everything += advantages
    total = sum(len(row[0]) for row in rows)
    if critic is not None:
        mean = sum(everything) / total
        spread = (sum((a - mean) ** 2 for a in everything) / (total - 1) + 1e-8) ** 0.5
    loss = torch.zeros(())
    for chosen, advantages, states, returns in rows:
        if states is not None:
            advantages = [(a - mean) / spread for a in advantages]
            loss = loss + 0.5 * ((states - returns) ** 2).sum() / total
        ratio = (chosen - chosen.detach()).exp()
        loss = loss - (ratio * torch.tensor(advantages)).sum() / total
    loss.backward()
    found = {f"searcher.{n}": p.grad for n, p in policy.named_parameters()}
    if critic is not None:
        found |= {f"critic.{n}": p.grad for n, p in critic.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("values", [{}, PPO])
def test_gradients_equal_an_independent_implementation(values: dict[str, Any], tied: bool) -> None:
    model, made = tiny_model(1, tied), groups(5, MIXED)
    subject = learner(model, temperature=0.7, tokens_per_micro_batch=60, **values)
    if subject.critic is not None:
        trained_critic(subject)
    seen = watch_gradients(subject)
    subject.update(made, 0)
    assert_close(merged(seen), dense_gradients(made, model, 0.7, **values), 1e-5)


@pytest.mark.parametrize("values", [{}, PPO])
def test_models_that_cannot_be_packed_learn_the_same(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    made = groups(5, MIXED)
    packed = gradients_of(made, **values)
    monkeypatch.setattr(networks, "packs", lambda config: False)
    assert_close(gradients_of(made, **values), packed, 1e-5)


def test_what_episodes_share_is_passed_through_once() -> None:
    """Three episodes of one prompt: the gradient is that of three prompts, at the cost of one."""
    shape = (("prompt", 20), ("model", 4))
    made = [episode(seed, float(seed % 2), shape) for seed in range(3)]
    for one in made[1:]:
        one.segments[0] = made[0].segments[0]
    subject, sizes = learner(), []
    subject.searcher.model.embed_tokens.register_forward_pre_hook(
        lambda module, taken: sizes.append(taken[0].numel())
    )
    subject.update([Group(tuple(made))], 0)
    assert sizes == [20 + 3 * 4]


def test_the_policy_gradient_equals_finite_differences() -> None:
    made = groups(2, [[1.0, 0.0, 0.0]])
    model = tiny_model(2).double()
    found = gradients_of(made, model)
    scores = group_advantages(made[0].rewards, scale_by_deviation=True)
    total = sum(sum(one.trainable_mask) for one in made[0].episodes)

    def surrogate() -> float:
        """The loss at ratio 1, up to a constant: advantages times log-probabilities."""
        value = 0.0
        with torch.no_grad():
            for one, score in zip(made[0].episodes, scores, strict=True):
                logprobs = torch.log_softmax(model(torch.tensor([one.token_ids])).logits[0], -1)
                for place, sampled in enumerate(one.trainable_mask):
                    if sampled:
                        value -= score * float(logprobs[place - 1, one.token_ids[place]]) / total
        return value

    # Along its own gradient, the slope of the loss is the gradient's norm, tensor by tensor.
    for name, parameter in model.named_parameters():
        gradient = found[f"searcher.{name}"]
        norm, before, step = float(gradient.norm()), parameter.data.clone(), 3e-3
        parameter.data = before + step * gradient / norm
        above = surrogate()
        parameter.data = before - step * gradient / norm
        below = surrogate()
        parameter.data = before
        assert norm == pytest.approx((above - below) / (2 * step), rel=2e-3, abs=1e-5), name


@pytest.mark.parametrize("values", [{}, PPO, PPO | {"entropy_coefficient": 0.1}])
def test_micro_batches_padding_and_order_change_nothing(values: dict[str, Any]) -> None:
    made = groups(8, MIXED)
    expected = gradients_of(made, **values)
    for budget in (1, 40, 100):
        assert_close(gradients_of(made, tokens_per_micro_batch=budget, **values), expected, 1e-5)
    draw = random.Random(1)
    for _ in range(3):
        shuffled = [Group(tuple(draw.sample(g.episodes, len(g.episodes)))) for g in made]
        draw.shuffle(shuffled)
        assert_close(gradients_of(shuffled, tokens_per_micro_batch=70, **values), expected, 1e-5)


@pytest.mark.parametrize("epochs", [1, 2])
def test_groups_with_equal_rewards_leave_everything_as_it_is(epochs: int) -> None:
    subject = learner(weight_decay=0.1, epochs=epochs)
    subject.update(groups(1, MIXED), 0)
    before = state(subject)
    metrics = subject.update(groups(2, [[1.0, 1.0], [0.1, 0.1, 0.1]]), 1)
    assert_bitwise_equal(state(subject), before)
    assert metrics["grad_norm"] == 0.0
    assert metrics["policy_loss"] == 0.0
    assert "entropy" not in metrics


def test_a_group_with_equal_rewards_adds_only_to_the_denominator() -> None:
    made = groups(3, [[1.0, 0.0], [1.0, 1.0]])
    both, one = gradients_of(made), gradients_of(made[:1])
    counts = [sum(sum(e.trainable_mask) for e in group.episodes) for group in made]
    share = counts[0] / sum(counts)
    assert_close(both, {name: share * value for name, value in one.items()}, 1e-5)


def test_entropy_is_the_mean_over_the_sampled_tokens_that_teach() -> None:
    model, made = tiny_model(), groups(4, [[1.0, 0.0], [0.0, 0.0]])
    entropies = []
    for one in made[0].episodes:
        logprobs = torch.log_softmax(model(torch.tensor([one.token_ids])).logits[0], -1)
        values = -(logprobs.exp() * logprobs).sum(-1)
        entropies += [values[i - 1] for i, m in enumerate(one.trainable_mask) if m]
    expected = float(torch.stack(entropies).detach().mean())
    assert learner(model).update(made, 0)["entropy"] == pytest.approx(expected, rel=1e-5)


def samples_of(subject: Learner, made: Sequence[Group]) -> list[Any]:
    grouped = subject._samples(made)
    samples = [sample for group in grouped for sample in group]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "_single", False)
        packed = subject._pack(samples)
        subject._note_reference(packed)
        subject._look_back(grouped, packed, [])
    return samples


def test_the_critic_sees_sampled_tokens_only_and_the_reward_is_on_the_last() -> None:
    subject = trained_critic(learner(whiten_advantages=False, algorithm="ppo", lam=0.0, gamma=1.0))
    made = groups(6, [[1.0], [-1.0]])
    for sample in samples_of(subject, made):
        assert sample.episode.reward is not None
        count = sum(sample.episode.trainable_mask)
        values = sample.old_values.tolist()
        assert len(values) == len(sample.returns) == len(sample.advantages) == count
        # With lambda 0 an advantage is the error of one step.
        steps = [after - before for before, after in itertools.pairwise(values)]
        expected = [*steps, sample.episode.reward.value - values[-1]]
        assert sample.advantages.tolist() == pytest.approx(expected, abs=1e-6)


def test_kl_in_the_reward_is_taken_from_every_token_and_not_from_the_loss() -> None:
    reference, model, made = tiny_model(9), tiny_model(), groups(6, [[1.0], [0.0]])
    common = {"algorithm": "ppo", "whiten_advantages": False, "lam": 1.0, "gamma": 1.0}
    plain = learner(model, **common)
    priced = learner(model, reference, kl_coefficient=0.1, kl_placement="reward", **common)
    for one, other in zip(samples_of(plain, made), samples_of(priced, made), strict=True):
        prices = 0.1 * (other.old_logprobs - other.reference_logprobs)
        # With an untrained critic a return is the sum of what follows.
        following = prices.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(other.advantages, one.advantages - following)
    metrics = priced.update(made, 0)
    assert metrics["reference_kl"] > 0


def test_kl_in_the_loss_pulls_towards_the_reference() -> None:
    reference, model, made = tiny_model(9), tiny_model(), groups(6, [[1.0, 1.0], [0.0, 0.0]])
    values = {"kl_coefficient": 1.0, "kl_placement": "loss", "kl_estimator": "k3"}
    subject = learner(model, reference, **values)
    divergences = [subject.update(made, step)["reference_kl"] for step in range(6)]
    assert divergences[-1] < divergences[0]


def test_a_kl_term_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        learner(kl_coefficient=0.1, kl_placement="loss")


def test_the_same_policy_as_reference_has_no_divergence() -> None:
    model = tiny_model()
    subject = learner(model, copy.deepcopy(model), kl_coefficient=0.1, kl_placement="loss")
    assert subject.update(groups(0, MIXED), 0)["reference_kl"] == 0.0


@pytest.mark.parametrize(("epochs", "mini_batches"), [(1, 1), (1, 3), (2, 2), (3, 1)])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_epochs_and_mini_batches_set_the_number_of_optimizer_steps(
    algorithm: str, epochs: int, mini_batches: int
) -> None:
    subject = learner(algorithm=algorithm, epochs=epochs, mini_batches=mini_batches)
    taken: list[int] = []
    subject.optimizer.register_step_pre_hook(lambda *_: taken.append(1))
    subject.update(groups(0, [[1.0, 0.0, 0.5], [1.0, 0.0, 0.5]]), 0)
    assert len(taken) == epochs * mini_batches


def test_old_logprobs_stay_those_of_the_policy_that_sampled() -> None:
    """With a mini-batch an episode, the second step's ratio is no longer 1."""
    made = groups(0, [[1.0, 0.0]])
    metrics = learner(mini_batches=2, learning_rate=0.05).update(made, 0)
    assert metrics["old_kl"] > 0


@pytest.mark.parametrize("values", [{}, PPO])
def test_a_gradient_that_is_not_finite_leaves_the_weights(values: dict[str, Any]) -> None:
    subject = learner(**values)
    before = state(subject)
    assert subject.update(groups(0, [[float("nan"), 1.0]]), 0)["skipped_updates"] == 1
    assert_bitwise_equal(state(subject), before)
    assert all(parameter.grad is None for parameter in subject.searcher.parameters())


def test_a_critic_gradient_that_is_not_finite_leaves_the_searcher_too() -> None:
    subject = learner(whiten_advantages=False, **PPO)
    made = groups(0, MIXED)
    before = state(subject)
    assert subject.critic is not None
    hook = subject.critic.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert subject.update(made, 0)["skipped_updates"] == 1
    assert_bitwise_equal(state(subject), before)
    hook.remove()
    fresh = learner(whiten_advantages=False, **PPO)
    assert subject.update(made, 0) == fresh.update(made, 0)
    assert_bitwise_equal(state(subject), state(fresh))


def test_warm_up_is_linear_and_apart_for_the_critic() -> None:
    subject = learner(
        algorithm="ppo",
        learning_rate=0.1,
        critic_learning_rate=1.0,
        warmup_steps=4,
        critic_warmup_steps=2,
    )
    assert subject.critic_optimizer is not None
    rates = []
    for step in range(6):
        subject._set_rates(step)
        rates.append(
            (
                subject.optimizer.param_groups[0]["lr"],
                subject.critic_optimizer.param_groups[0]["lr"],
            )
        )
    assert [rate for rate, _ in rates] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert [rate for _, rate in rates] == pytest.approx([0.5, 1, 1, 1, 1, 1])


def test_rates_fall_linearly_to_their_share_at_the_last_step() -> None:
    options = LearningOptions(algorithm="grpo", learning_rate=0.1, warmup_steps=2, final_rate=0.2)
    subject = Learner(tiny_model(), options, 1.0, steps=7)
    rates = []
    for step in range(9):
        subject._set_rates(step)
        rates.append(subject.optimizer.param_groups[0]["lr"])
    expected = [0.05, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.02, 0.02]
    assert rates == pytest.approx(expected)


def test_gradients_are_cut_to_the_norm() -> None:
    subject = learner(max_grad_norm=0.01)
    seen = watch_gradients(subject)
    metrics = subject.update(groups(0, MIXED), 0)
    assert metrics["grad_norm"] > 0.01
    norm = sum(float((g**2).sum()) for g in merged(seen).values()) ** 0.5
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_an_update_raises_what_was_rewarded() -> None:
    made = groups(0, [[1.0, 0.0, 0.0, 1.0]])
    subject = learner(learning_rate=1e-3)

    def likelihoods() -> list[float]:
        return [float(sample.old_logprobs.sum()) for sample in samples_of(subject, made)]

    before = likelihoods()
    for step in range(3):
        subject.update(made, step)
    for one, b, a in zip(made[0].episodes, before, likelihoods(), strict=True):
        assert one.reward is not None
        assert (a > b) is (one.reward.value == 1.0)


def sampled_group(model: LocalModel, temperature: float) -> Group:
    async def sample(seed: int) -> Episode:
        prompt = model.encode(f"Doc {seed} (Title: The Book")
        made = Episode(Question("q", "What?", ("that",)), "s3")
        made.segments.append(Segment("prompt", tuple(prompt), ""))
        for turn in range(2):
            sampling = Sampling(12, temperature, ("</query>",), seed * 10 + turn)
            said = await model.complete(made.token_ids, sampling)
            made.segments.append(Segment("model", said.token_ids, said.text, said.logprobs))
            read = tuple(model.encode("\n<information>Doc 1</information>\n" * (seed + 1)))
            made.segments.append(Segment("environment", read, ""))
        made.reward = Reward(float(seed % 2))
        return made

    async def all_of_them() -> list[Episode]:
        return list(await asyncio.gather(*(sample(seed) for seed in range(6))))

    return Group(tuple(asyncio.run(all_of_them())))


@pytest.mark.parametrize("budget", [40, 16_384])
@pytest.mark.parametrize(
    "values",
    [{}, PPO, PPO | {"kl_coefficient": 0.3}, {"kl_coefficient": 0.3, "kl_placement": "loss"}],
)
def test_a_single_step_learns_what_looking_back_first_would_teach(
    random_model: LocalModel, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], budget: int
) -> None:
    made = [sampled_group(random_model, 1.0)]
    reference = copy.deepcopy(random_model.model) if "kl_coefficient" in values else None

    def gradients() -> dict[str, torch.Tensor]:
        subject = learner(random_model.model, reference, tokens_per_micro_batch=budget, **values)
        if subject.critic is not None:
            trained_critic(subject)
        seen = watch_gradients(subject)
        subject.update(made, 0)
        return merged(seen)

    at_once = gradients()
    monkeypatch.setattr(Learner, "_single", False)
    assert_close(at_once, gradients(), 1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_what_was_sampled_here_is_scored_as_it_was_sampled(
    random_model: LocalModel, temperature: float
) -> None:
    made = sampled_group(random_model, temperature)
    subject = learner(random_model.model, temperature=temperature)
    assert abs(subject.update([made], 0)["mismatch_kl"]) < 1e-7
    wrong = learner(random_model.model, temperature=temperature + 0.3)
    assert wrong.update([made], 0)["mismatch_kl"] > 1e-3


def test_the_critic_is_its_own_copy_of_the_trunk() -> None:
    subject = learner(algorithm="ppo")
    assert subject.critic is not None
    trunk = dict(subject.critic.trunk.named_parameters())
    for name, parameter in subject.searcher.model.named_parameters():
        assert torch.equal(parameter, trunk[name])
        assert parameter.data_ptr() != trunk[name].data_ptr()
    assert not subject.critic.trunk.training
    assert subject.critic.head.weight.abs().sum() == 0
    assert subject.critic.trunk.embed_tokens.num_embeddings == VOCABULARY
