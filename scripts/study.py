"""What the comparisons on SynthWiki share: a seed's worlds, its lessons, and its runs.

Every searcher of a seed is trained on one world and evaluated on another, with the same index, the
same three searches of three passages and the same number of policy updates. Runs lie at the same
place whichever script needs them, so that each is made once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.parts import Part, pin
from scripts.tiny_models.format_lessons import SEARCHES, K
from scripts.tiny_models.teaching import RECORD
from searchrl.errors import InputError

SAVE_EVERY = 2
"""Steps between the checkpoints of a run, all of which are kept."""
GOOD = 2_000
"""Good demonstrations, shown first; as many as the searcher of s3 was shown."""
SEARCH_R1: Mapping[str, Any] = {
    "agent.k": K,
    "agent.max_turns": SEARCHES,
    # The demonstrations hold no notice of it.
    "agent.announce_budget": False,
}


@dataclass(frozen=True, slots=True)
class Lesson:
    """How a format is taught.

    Attributes:
        right: share of right queries in the demonstrations after the good ones: low before a
            training, high where none follows.
        steps: of teaching.
    """

    right: float
    steps: int


LESSONS: Mapping[str, Lesson] = {
    # As the searcher of s3 was taught, which Search-R1 is compared with over its training.
    "search_r1": Lesson(0.3, 500),
    "r1": Lesson(0.3, 200),
    "deep_retrieval": Lesson(0.3, 200),
    "ircot": Lesson(0.95, 200),
    "search_o1": Lesson(0.95, 200),
}


@dataclass(frozen=True, slots=True)
class Study:
    """One seed of a comparison.

    Attributes:
        out: where the runs of all seeds lie.
        seed: of training; it chooses the worlds, too.
        steps: policy updates of every training.
        overrides: ``key=value`` over every recipe.
    """

    out: Path
    seed: int
    steps: int
    overrides: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> Path:
        """Where the runs of this seed lie."""
        return self.out / f"seed-{self.seed}"

    def taught(self, name: str, k: int = K) -> Part:
        """A model that was shown a method's format; the lesson is the same for every seed.

        Args:
            name: of the method.
            k: passages a search.
        """
        lesson = LESSONS[name]
        out = self.out / "taught" / (name if k == K else f"{name}-top{k}")
        settings = {"format": name, "out": out, "right": lesson.right, "steps": lesson.steps}
        settings |= {"good": GOOD, "seed": 0, "threads": 1} | ({} if k == K else {"k": k})
        arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        return Part(out, ("scripts.tiny_models.formats", *arguments), RECORD)

    def s3(self, algorithm: str) -> Part:
        """A run of s3, from the shipped searcher."""
        return self.trained(f"s3-{algorithm}", f"tiny-{algorithm}", {})

    def search_r1(
        self, algorithm: str, variant: str = "", changes: Mapping[str, Any] | None = None
    ) -> Part:
        """A run of Search-R1, from the model that was taught its format with as many passages."""
        name = "-".join(part for part in ("search-r1", algorithm, variant) if part)
        values = {**SEARCH_R1, **(changes or {})}
        taught = self.taught("search_r1", values["agent.k"])
        return self.trained(name, f"tiny-search-r1-{algorithm}", values, taught)

    def trained(
        self, name: str, recipe: str, changes: Mapping[str, Any], model: Part | None = None
    ) -> Part:
        """A run of reinforcement learning; begins with ``model``, or with the recipe's searcher."""
        length = {"run.steps": self.steps, "run.save_every": SAVE_EVERY}
        length["run.keep_checkpoints"] = max(1, self.steps // SAVE_EVERY)
        part = self.derived("train", name, recipe, {**length, **changes}, model)
        return Part(part.out, part.command, part.mark, resumes=True, after=part.after)

    def tuned(
        self,
        name: str,
        recipe: str,
        changes: Mapping[str, Any],
        model: Part | None = None,
        examples: Part | None = None,
    ) -> Part:
        """A supervised run, on what was sampled or else on questions and answers."""
        if examples is None:
            return self.derived("sft", name, recipe, changes, model)
        values = {**changes, "supervised.examples": str(examples.out / examples.mark)}
        part = self.derived("sft", name, recipe, values, model)
        return Part(part.out, part.command, part.mark, after=(*part.after, examples))

    def derived(
        self,
        command: str,
        name: str,
        recipe: str,
        changes: Mapping[str, Any],
        model: Part | None,
        *more: str,
        mark: str = "checkpoints/final",
    ) -> Part:
        """A command that makes a directory of this seed, after ``model`` is there."""
        values = {**with_model(model), **changes}
        out, after = self.folder / name, () if model is None else (model,)
        return Part(out, self.command(command, recipe, out, values, *more), mark, after=after)

    def evaluation(
        self,
        name: str,
        recipe: str,
        methods: Mapping[str, Path | None],
        n: int,
        changes: Mapping[str, Any],
    ) -> tuple[str, ...]:
        """The command that compares methods; it skips what it has finished by itself.

        Args:
            name: of its directory.
            recipe: what it evaluates with.
            methods: entries of the table with the searchers that they bring.
            n: held-out questions.
            changes: over the recipe.
        """
        own = [f"--searcher={entry}={path}" for entry, path in methods.items() if path is not None]
        table = ("--methods", ",".join(methods), *own, "--n", str(n))
        return self.command("evaluate", recipe, self.folder / name, changes, *table)

    def command(
        self, command: str, recipe: str, out: Path, values: Mapping[str, Any], *more: str
    ) -> tuple[str, ...]:
        """A command over this seed's worlds: one to train on, another one held out."""
        worlds = {"seed": self.seed}
        worlds |= {"data.train.seed": 2 * self.seed, "data.test.seed": 2 * self.seed + 1}
        changes = [f"{key}={_toml(value)}" for key, value in {**worlds, **values}.items()]
        sets = [text for change in (*changes, *self.overrides) for text in ("--set", change)]
        return ("searchrl", command, recipe, "--out", str(out), *more, *sets, "--threads", "1")


def with_model(model: Part | None) -> dict[str, Any]:
    """The recipe keys of a searcher that begins with a part's model."""
    return {} if model is None else {"searcher.model": str(model.out)}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path("runs/methods"))
    made.add_argument("--n", type=int, default=500, help="held-out questions (500)")
    made.add_argument("--steps", type=int, default=14, help="policy updates of every training (14)")
    made.add_argument("--jobs", type=int, default=1, help="parts at a time, one thread each (1)")
    made.add_argument(
        "--set", action="append", default=[], help="key=value over every recipe; repeatable"
    )
    return made


def open_study(options: argparse.Namespace, seed: int) -> Study:
    """One seed's study; what its directory was begun with is noted there."""
    study = Study(options.out, seed, options.steps, tuple(options.set))
    lessons = {name: [lesson.right, lesson.steps] for name, lesson in LESSONS.items()}
    pin(study.out, {"steps": study.steps, "set": options.set, "lessons": lessons})
    return study


def guarded(work: Callable[[], None]) -> None:
    """Run a script; an input it cannot work with is one line, and exit code 2."""
    try:
        work()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(_pairs(value))}}}"
    return json.dumps(value)


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{key} = {_toml(value)}" for key, value in table.items())
