"""Every method on SynthWiki with one frozen generator, in one table: all that it takes, in order.

    python -m scripts.method_table --out runs/methods --seed 0

Teaches tiny models the formats of the other methods, trains what is trained (SFT, R1, rejection
sampling, DeepRetrieval, Search-R1 and s3 with PPO and GRPO), and evaluates all of it on a held-out
world, n = 500. Each part is one command, printed before it runs; finished parts are not run again,
a killed training or evaluation goes on. Every method searches the same index, three times at most,
three passages a time. Writes OUT/table/results.md, .json, .csv and .tex.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.tiny_models.format_lessons import PASSAGES, SEARCHES, K
from scripts.tiny_models.teaching import RECORD

MEDIOCRE, SKILLED = 0.3, 0.95
"""Share of right queries that a model is taught: before it is trained, and where it never is."""
TAUGHT = {
    "search_r1": MEDIOCRE,
    "r1": MEDIOCRE,
    "deep_retrieval": MEDIOCRE,
    "ircot": SKILLED,
    "search_o1": SKILLED,
}
SEARCH_R1: Mapping[str, Any] = {
    "agent.k": K,
    "agent.max_turns": SEARCHES,
    # The demonstrations hold no notice of it.
    "agent.announce_budget": False,
}
DEEP_RETRIEVAL: Mapping[str, Any] = {
    "agent": {"kind": "deep_retrieval", "style": "brief", "k": K, "max_response_tokens": 64},
    "reward": {"kind": "deep_retrieval", "rag_k": K, "deep_retrieval_depth": 1_000},
}
SUPERVISED: Mapping[str, Any] = {
    "supervised.tokens_per_step": 2_048,
    "supervised.learning_rate": 3e-4,
    "supervised.epochs": 4,
}
PROMPTED: Mapping[str, Any] = {
    "ircot.k": K,
    "ircot.max_retrievals": SEARCHES,
    "ircot.max_passages": PASSAGES,
    "search_o1.k": K,
    "search_o1.max_searches": SEARCHES,
    "search_o1.max_reading_tokens": 96,
}
ROWS = (
    "direct",
    "cot",
    "rag",
    "deep_retrieval",
    "ircot",
    "search_o1",
    "sft",
    "r1",
    "search_r1:rejection",
    "search_r1:ppo",
    "search_r1:grpo",
    "s3:ppo",
    "s3:grpo",
    "oracle",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One command of the whole.

    Attributes:
        out: the directory it writes.
        command: its arguments after ``python -m``.
        mark: what is in ``out`` once the part is finished.
        resumes: ``--resume`` makes it go on; or else it begins anew.
        after: what has to be finished before it.
    """

    out: Path
    command: tuple[str, ...]
    mark: str
    resumes: bool = False
    after: tuple[Part, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it need not be run."""
        return (self.out / self.mark).exists()

    @property
    def wave(self) -> int:
        """Parts of a wave need only those of waves before."""
        return 1 + max((part.wave for part in self.after), default=-1)


def main() -> None:
    """Run what is missing, then the evaluation, which prints the table."""
    parser = _parser()
    options = parser.parse_args()
    pin(options, parser)
    parts, searchers = plan(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        for wave in range(1 + max(part.wave for part in parts)):
            list(pool.map(run, [part for part in parts if part.wave == wave]))
    _call(evaluation(options, searchers))


def pin(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Note what this table is of; finished parts of another one are never taken for its own."""
    facts = {k: v for k, v in vars(options).items() if k not in ("out", "jobs", "n")}
    file: Path = options.out / "plan.json"
    if not file.is_file():
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != facts:
        parser.error(f"{file}: was begun with other options; choose another --out")


def plan(options: argparse.Namespace) -> tuple[list[Part], dict[str, Path]]:
    """Everything that is taught and trained, and the searcher of each row that has its own."""
    taught = {name: _taught(options, name, right) for name, right in TAUGHT.items()}
    rows = {
        "sft": _tuned(options, "sft", "tiny-grpo", SUPERVISED),
        "r1": _trained(
            options,
            "r1",
            "tiny-search-r1-ppo",
            {**SEARCH_R1, "agent.search": False},
            taught["r1"],
        ),
        "deep_retrieval": _trained(
            options,
            "deep-retrieval",
            "tiny-search-r1-ppo",
            DEEP_RETRIEVAL,
            taught["deep_retrieval"],
        ),
    }
    for algorithm in ("ppo", "grpo"):
        name, recipe = f"search-r1-{algorithm}", f"tiny-search-r1-{algorithm}"
        own = _trained(options, name, recipe, SEARCH_R1, taught["search_r1"])
        rows[f"search_r1:{algorithm}"] = own
        rows[f"s3:{algorithm}"] = _trained(options, f"s3-{algorithm}", f"tiny-{algorithm}", {})
    sampled = _sampled(options, taught["search_r1"])
    examples = {"supervised.examples": str(sampled.out / sampled.mark)}
    rows["search_r1:rejection"] = _tuned(
        options,
        "rejection",
        "tiny-search-r1-grpo",
        {**SEARCH_R1, **SUPERVISED, **examples},
        taught["search_r1"],
        after=(sampled,),
    )
    searchers = {name: part.out for name, part in rows.items()}
    searchers |= {name: taught[name].out for name in ("ircot", "search_o1")}
    return [*taught.values(), sampled, *rows.values()], searchers


def evaluation(options: argparse.Namespace, searchers: Mapping[str, Path]) -> tuple[str, ...]:
    """The command that makes the table; it skips what it has finished by itself."""
    own = [f"--searcher={name}={searchers[name]}" for name in ROWS if name in searchers]
    table = ("--methods", ",".join(ROWS), *own, "--n", str(options.n))
    return _searchrl(options, "evaluate", "tiny-grpo", options.out / "table", PROMPTED, *table)


def run(part: Part) -> None:
    """Run a part unless it is finished."""
    if part.finished:
        return
    command = part.command
    if part.resumes and (part.out / "config.json").is_file():
        command = (*command, "--resume")
    elif part.out.exists():
        # Begun by this plan, killed, and of no use half done.
        shutil.rmtree(part.out)
    _call(command)


def _call(command: Sequence[str]) -> None:
    print(f"python -m {shlex.join(command)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def _taught(options: argparse.Namespace, name: str, right: float) -> Part:
    out = options.out / "taught" / name
    settings = {"format": name, "out": out, "right": right, "seed": options.seed}
    settings |= {"steps": options.teach_steps, "good": options.good, "threads": 1}
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return Part(out, ("scripts.tiny_models.formats", *arguments), RECORD)


def _trained(
    options: argparse.Namespace,
    name: str,
    recipe: str,
    changes: Mapping[str, Any],
    model: Part | None = None,
) -> Part:
    out = options.out / name
    values = {**_of(model), "run.steps": options.steps, **changes}
    command = _searchrl(options, "train", recipe, out, values)
    after = () if model is None else (model,)
    return Part(out, command, "checkpoints/final", resumes=True, after=after)


def _tuned(
    options: argparse.Namespace,
    name: str,
    recipe: str,
    changes: Mapping[str, Any],
    model: Part | None = None,
    after: tuple[Part, ...] = (),
) -> Part:
    out = options.out / name
    command = _searchrl(options, "sft", recipe, out, {**_of(model), **changes})
    return Part(out, command, "checkpoints/final", after=after)


def _sampled(options: argparse.Namespace, model: Part) -> Part:
    out, recipe = options.out / "sampled", "tiny-search-r1-grpo"
    count = ("--n", str(options.sampled))
    command = _searchrl(options, "sample", recipe, out, {**_of(model), **SEARCH_R1}, *count)
    return Part(out, command, "examples", after=(model,))


def _of(model: Part | None) -> dict[str, Any]:
    return {} if model is None else {"searcher.model": str(model.out)}


def _searchrl(
    options: argparse.Namespace,
    command: str,
    recipe: str,
    out: Path,
    values: Mapping[str, Any],
    *more: str,
) -> tuple[str, ...]:
    """A command over the plan's worlds: one to train on, another one held out."""
    worlds = {"seed": options.seed}
    worlds |= {"data.train.seed": 2 * options.seed, "data.test.seed": 2 * options.seed + 1}
    changes = [f"{key}={_toml(value)}" for key, value in {**worlds, **values}.items()]
    sets = [text for change in (*changes, *options.set) for text in ("--set", change)]
    return ("searchrl", command, recipe, "--out", str(out), *more, *sets, "--threads", "1")


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(_pairs(value))}}}"
    return json.dumps(value)


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{key} = {_toml(value)}" for key, value in table.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=500, help="held-out questions")
    parser.add_argument("--steps", type=int, default=14, help="policy updates of every training")
    parser.add_argument("--teach-steps", type=int, default=500, help="of every taught format")
    parser.add_argument("--good", type=int, default=2_000, help="good demonstrations, shown first")
    parser.add_argument("--sampled", type=int, default=400, help="questions of rejection sampling")
    parser.add_argument("--jobs", type=int, default=1, help="parts at a time, one thread each")
    parser.add_argument(
        "--set", action="append", default=[], help="key=value over every recipe; repeatable"
    )
    return parser


if __name__ == "__main__":
    main()
