"""Our agents and rewards under TRL's GRPO trainer, by its ``rollout_func``.

    rollout = SearchRollout(Experiment(load_recipe("tiny-grpo"), Path("runs/trl")))
    trainer = GRPOTrainer(
        model, search_reward, GRPOConfig("out", **grpo_arguments(recipe)),
        train_dataset=Dataset.from_list(rollout.rows()), rollout_func=rollout,
    )

Episodes are drawn in process from the trainer's own weights; ``env_mask`` keeps observations out of
the loss. A failed service makes no reward: TRL leaves a completion whose reward is ``None`` out of
its group's baseline and out of the loss. It has no critic; PPO is trained in process or with verl.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from searchrl.agents.agent import Draw
from searchrl.agents.episode import Episode
from searchrl.agents.lengths import episode_lengths
from searchrl.agents.trained import open_agent
from searchrl.data.questions import Question
from searchrl.distributed.trajectory import Trajectory, trajectories
from searchrl.errors import InputError
from searchrl.experiment import Experiment
from searchrl.models.local import LocalModel
from searchrl.recipe import Recipe
from searchrl.seeding import derive_seed
from searchrl.training.questions import training_questions

Prompt = str | Sequence[dict[str, Any]]


class SearchRollout:
    """TRL's rollout function for a recipe; naive RAG is precomputed when it is made.

    Args:
        experiment: the opened recipe.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._recipe = experiment.recipe
        self._thinking = experiment.local_searcher.thinking
        self._retriever = experiment.train.retriever
        questions = asyncio.run(training_questions(experiment))
        # After naive RAG's scores, which it takes with it.
        self._reward = experiment.reward()
        self._questions = {question.text: question for question in questions}

    def rows(self) -> list[dict[str, str]]:
        """The training questions as rows of TRL's data set."""
        return [{"prompt": text} for text in self._questions]

    def __call__(self, prompts: Sequence[Prompt], trainer: Any) -> dict[str, list[Any]]:
        """One scored episode for each prompt, those of one question drawn apart.

        Args:
            prompts: questions, each as often as it is to be attempted.
            trainer: the GRPO trainer, with the weights that draw.

        Raises:
            InputError: a prompt is none of the training questions.
        """
        model = trainer.accelerator.unwrap_model(trainer.model)
        policy = LocalModel(model, trainer.processing_class, self._thinking)
        episodes = asyncio.run(self._attempt(prompts, policy, trainer))
        rows = [_row(episode, policy) for episode in episodes]
        return {
            "prompt_ids": [list(row.prompt) for row in rows],
            "completion_ids": [list(row.response) for row in rows],
            "logprobs": [list(row.logprobs) for row in rows],
            "env_mask": [list(row.mask) for row in rows],
            "reward": [_value(episode) for episode in episodes],
        }

    async def _attempt(
        self, prompts: Sequence[Prompt], policy: LocalModel, trainer: Any
    ) -> list[Episode]:
        agent = open_agent(self._recipe.agent, policy, self._retriever)
        step, process = trainer.state.global_step, trainer.accelerator.process_index
        seen: Counter[str] = Counter()
        tasks = []
        for prompt in prompts:
            question = self._question(prompt)
            sample = process * len(prompts) + seen[question.id]
            seen[question.id] += 1
            seed = derive_seed(self._recipe.seed, step, question.id, sample)
            tasks.append(agent.run(question, Draw(self._recipe.rollout.temperature, seed)))
        episodes = await asyncio.gather(*tasks)
        rewards = await asyncio.gather(*(self._reward.score(episode) for episode in episodes))
        for episode, reward in zip(episodes, rewards, strict=True):
            episode.reward = reward
        return list(episodes)

    def _question(self, prompt: Prompt) -> Question:
        text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        question = self._questions.get(text)
        if question is None:
            raise InputError(f"prompt {text[:80]!r} is none of the recipe's training questions")
        return question


def search_reward(*, reward: Sequence[float | None], **_: Any) -> list[float | None]:
    """TRL's reward function: what each episode came to; ``None`` where a service failed."""
    return list(reward)


def grpo_arguments(recipe: Recipe, processes: int = 1) -> dict[str, Any]:
    """The arguments of TRL's ``GRPOConfig`` that a recipe stands for.

    Args:
        recipe: a recipe for GRPO.
        processes: how many train together.

    Raises:
        InputError: TRL cannot do what a key asks for; the line names the key and the fix.
    """
    learning, rollout = recipe.learning, recipe.rollout
    _check(recipe)
    episodes = rollout.questions_per_step * rollout.group_size
    share, rest = divmod(episodes, learning.mini_batches * processes)
    if rest:
        raise InputError(
            f"learning.mini_batches = {learning.mini_batches}: {episodes} episodes do not spread "
            f"over that many mini-batches of {processes} processes"
        )
    updates = learning.mini_batches * learning.epochs
    return {
        "seed": recipe.seed,
        "num_generations": rollout.group_size,
        "temperature": rollout.temperature,
        "per_device_train_batch_size": share,
        "steps_per_generation": learning.mini_batches,
        "num_iterations": learning.epochs,
        "max_steps": recipe.run.steps * updates,
        "save_steps": recipe.run.save_every * updates,
        "max_completion_length": episode_lengths(recipe.agent).response,
        "learning_rate": learning.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": learning.warmup_steps * updates,
        "weight_decay": learning.weight_decay,
        "max_grad_norm": learning.max_grad_norm,
        "epsilon": learning.clip_low,
        "epsilon_high": learning.clip_high,
        "beta": learning.kl_coefficient,
        "scale_rewards": "group" if learning.scale_by_deviation else "none",
        # A token's loss is divided by the tokens of its optimizer step, as here.
        "loss_type": "dapo",
        "bf16": learning.autocast,
    }


def _check(recipe: Recipe) -> None:
    learning = recipe.learning
    if learning.algorithm != "grpo":
        raise InputError(
            f'learning.algorithm = "{learning.algorithm}": TRL trains without a critic; '
            'set "grpo", or train in process or with verl'
        )
    if recipe.rollout.engine != "native":
        raise InputError(
            f'rollout.engine = "{recipe.rollout.engine}": under TRL the rollout function decodes '
            'with the trainer\'s own weights; set "native"'
        )
    if recipe.lora is not None:
        raise InputError("lora: TRL is given its adapter by its own peft_config; leave it out")
    if learning.offload:
        raise InputError("learning.offload: TRL keeps its optimizer where it is; leave it out")
    if learning.entropy_coefficient:
        raise InputError("learning.entropy_coefficient: TRL has no entropy bonus; set it to 0")
    if not learning.mask_retrieved:
        raise InputError(
            "learning.mask_retrieved = false: TRL learns from sampled tokens alone; leave it out"
        )
    if learning.kl_coefficient and learning.kl_estimator != "k3":
        raise InputError(
            f'learning.kl_estimator = "{learning.kl_estimator}": TRL knows k3 alone; set "k3"'
        )


def _row(episode: Episode, policy: LocalModel) -> Trajectory:
    """The episode's row; for one that sampled nothing, a row that nothing is learned from."""
    rows = trajectories(episode)
    if len(rows) > 1:
        raise InputError(f"method {episode.method!r} makes several requests; TRL takes one row")
    if rows:
        return rows[0]
    end = policy.tokenizer.eos_token_id
    assert isinstance(end, int)
    read = tuple(episode.token_ids) or (end,)
    return Trajectory(read, (end,), (0,), (0.0,))


def _value(episode: Episode) -> float | None:
    said = any(episode.trainable_mask)
    if episode.error is not None or episode.reward is None or not said:
        return None
    return episode.reward.value
