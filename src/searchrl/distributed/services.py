"""What the episodes of one worker process share: retriever, generator, judge, RAG cache, reward.

Opened once a process from the run's own ``config.json``, so every worker follows the recipe that
the run follows. An episode that met a failed service, a dead rollout server among them, ends in an
``InfrastructureError`` and never in a reward; what becomes of its group is the sampler's to say.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from searchrl.agents.agent import Draw
from searchrl.agents.episode import Episode
from searchrl.agents.trained import open_agent
from searchrl.data.questions import Question
from searchrl.data.storage import write_json
from searchrl.distributed.gathering import GatheringRetriever
from searchrl.experiment import Experiment
from searchrl.models.protocol import LanguageModel
from searchrl.recipe_file import load_recipe
from searchrl.seeding import derive_seed


@cache
def services_of(run: Path) -> Services:
    """The services of a run, the same ones for all episodes of this process.

    Raises:
        InputError: the run's recipe, data or models cannot be used here.
    """
    return Services(Experiment(load_recipe(str(run / "config.json")), run))


class Services:
    """Runs and scores episodes.

    Args:
        experiment: the opened recipe; its directory is the run's.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._recipe = experiment.recipe
        self._retriever = GatheringRetriever(experiment.train.retriever)
        self._reward = experiment.reward()

    @property
    def thinking(self) -> bool:
        """Whether the policy may use a think mode of its own."""
        return self._experiment.local_searcher.thinking

    async def attempt(
        self, question: Question, policy: LanguageModel, step: int, sample: int, temperature: float
    ) -> Episode:
        """One scored episode; its reward has no value where a service failed.

        Args:
            question: what is asked.
            policy: the model under training.
            step: counted from 0.
            sample: the episode's place among those of its question.
            temperature: of its sampling.
        """
        agent = open_agent(self._recipe.agent, policy, self._retriever)
        seed = derive_seed(self._recipe.seed, step, question.id, sample)
        episode = await agent.run(question, Draw(temperature, seed))
        episode.reward = await self._reward.score(episode)
        return episode

    def keep(self, episode: Episode, step: int, place: int) -> None:
        """Write an episode for reading, if it is among those the recipe keeps of a step.

        Args:
            episode: a scored one.
            step: counted from 0.
            place: its place in the step.
        """
        if place < self._recipe.run.keep_episodes:
            folder = kept_episodes(self._experiment.directory, step + 1)
            write_json(folder / f"{place:06d}.json", episode.to_row())

    def place(self, index: int, sample: int) -> int:
        """Where an episode stands in its step, from its question's place in the schedule."""
        size = self._recipe.rollout.group_size
        return index % self._recipe.rollout.questions_per_step * size + sample


def kept_episodes(run: Path, step: int) -> Path:
    """Where the workers put the episodes of a step, counted from 1, one file each."""
    return run / "verl" / "episodes" / f"step_{step:06d}"
