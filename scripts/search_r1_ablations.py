"""Search-R1's ablations on SynthWiki, each in a table beside the paper's numbers.

    python -m scripts.search_r1_ablations --out runs/methods --seed 0

Retrieved-token masking on and off, PPO and GRPO; one, three or five passages a search; groups of
one, three or five episodes, at the same number of episodes a step, where the paper has the same
number of questions. A searcher that gets one passage or five was taught its format with as many.
Each run is one command; finished ones are not run again. All are evaluated on the same held-out
questions. A group of one has nothing to be compared with: its advantage is the reward itself, as in
the original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.method_curves import cell
from scripts.parts import Part, call, run_all
from scripts.study import Study, guarded, open_study, parser

EPISODES = 120
"""A step of every group size; all of them divide it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of a table.

    Attributes:
        name: what is set, for the reader.
        run: what is evaluated.
        paper: mean exact match over the paper's seven datasets, Qwen2.5-7B base; ``None`` where
            the paper has none.
    """

    name: str
    run: Part
    paper: float | None


def main() -> None:
    """Run what is missing, then print a table for each question."""
    made = parser(__doc__)
    made.add_argument("--seed", type=int, default=0, help="of all trainings (0)")
    options = made.parse_args()
    study = open_study(options, options.seed)
    tables = plan(study)
    settings = [setting for rows in tables.values() for setting in rows]
    run_all([setting.run for setting in settings], options.jobs)
    call(evaluation(study, tables, options.n))
    results = study.folder / "ablations" / "results.json"
    methods = json.loads(results.read_text(encoding="utf-8"))["methods"]
    for title, rows in tables.items():
        print(f"\n**{title}**\n\n{table(rows, methods)}")


def plan(study: Study) -> dict[str, list[Setting]]:
    """The tables, each with its settings; the plain runs are those of the other scripts."""
    ppo, grpo = study.search_r1("ppo"), study.search_r1("grpo")
    return {
        "Retrieved tokens": [
            Setting("PPO, masked", ppo, 0.431),
            Setting("PPO, not masked", _unmasked(study, "ppo"), 0.343),
            Setting("GRPO, masked", grpo, 0.350),
            Setting("GRPO, not masked", _unmasked(study, "grpo"), None),
        ],
        "Passages a search, PPO": [
            Setting("1", _passages(study, 1), 0.375),
            Setting("3", ppo, 0.431),
            Setting("5", _passages(study, 5), 0.400),
        ],
        "Episodes a question, GRPO": [
            Setting("1", _groups(study, 1), 0.410),
            Setting("3", _groups(study, 3), 0.363),
            Setting("5", _groups(study, 5), 0.350),
        ],
    }


def evaluation(study: Study, tables: Mapping[str, list[Setting]], n: int) -> tuple[str, ...]:
    """The command that evaluates every run once; each is asked as it was trained."""
    runs = {setting.run.out: setting for rows in tables.values() for setting in rows}
    methods = {entry(setting): out for out, setting in runs.items()}
    return study.evaluation("ablations", "tiny-grpo", {"rag": None, **methods}, n, {})


def entry(setting: Setting) -> str:
    """What the setting's run is called in the evaluation."""
    return f"search_r1:{setting.run.out.name.removeprefix('search-r1-')}"


def table(rows: list[Setting], methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy in % with its 95 % interval, and beside it the paper's exact match."""
    lines = ["| | here, accuracy % | the paper, EM % |", "|---|---:|---:|"]
    for setting in rows:
        paper = "" if setting.paper is None else f"{100 * setting.paper:.1f}"
        lines.append(f"| {setting.name} | {cell(methods[entry(setting)])} | {paper} |")
    return "\n".join(lines)


def _unmasked(study: Study, algorithm: str) -> Part:
    return study.search_r1(algorithm, "unmasked", {"learning.mask_retrieved": False})


def _passages(study: Study, k: int) -> Part:
    # Room for the passages, so that none is cut.
    room = {"agent.max_observation_tokens": 100 * k, "agent.max_context_tokens": 2_048}
    return study.search_r1("ppo", f"top{k}", {"agent.k": k, **room})


def _groups(study: Study, size: int) -> Part:
    changes: dict[str, Any] = {
        "rollout.group_size": size,
        "rollout.questions_per_step": EPISODES // size,
    }
    if size == 1:
        changes["learning.lone_episodes"] = True
    return study.search_r1("grpo", f"group{size}", changes)


if __name__ == "__main__":
    guarded(main)
