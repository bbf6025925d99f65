"""Every method on SynthWiki with one frozen generator, in one table: all that it takes, in order.

    python -m scripts.method_table --out runs/methods --seed 0

Teaches tiny models the formats of the other methods, trains what is trained (SFT, R1, rejection
sampling, DeepRetrieval, Search-R1 and s3 with PPO and GRPO), and evaluates all of it on a held-out
world, n = 500. Each part is one command, printed before it runs; finished parts are not run again,
a killed training or evaluation goes on. Every method searches the same index, three times at most,
three passages a time. Writes OUT/seed-SEED/table/results.md, .json, .csv and .tex.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.parts import Part, call, run_all
from scripts.study import SEARCH_R1, Study, guarded, open_study, parser
from scripts.tiny_models.format_lessons import PASSAGES, SEARCHES, K

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


def main() -> None:
    """Run what is missing, then the evaluation, which prints the table."""
    made = parser(__doc__)
    made.add_argument("--seed", type=int, default=0, help="of all trainings (0)")
    made.add_argument(
        "--sampled", type=int, default=400, help="questions of rejection sampling (400)"
    )
    options = made.parse_args()
    study = open_study(options, options.seed)
    rows = plan(study, options.sampled)
    run_all([part for part in rows.values() if part is not None], options.jobs)
    call(evaluation(study, rows, options.n))


def plan(study: Study, sampled: int) -> dict[str, Part | None]:
    """The rows of the table, in order, with what makes the searcher of each that has its own."""
    ppo, taught = "tiny-search-r1-ppo", study.taught
    search_r1 = taught("search_r1")
    without = {**SEARCH_R1, "agent.search": False}
    return {
        "direct": None,
        "cot": None,
        "rag": None,
        "deep_retrieval": study.trained(
            "deep-retrieval", ppo, DEEP_RETRIEVAL, taught("deep_retrieval")
        ),
        "ircot": taught("ircot"),
        "search_o1": taught("search_o1"),
        "sft": study.tuned("sft", "tiny-grpo", SUPERVISED),
        "r1": study.trained("r1", ppo, without, taught("r1")),
        "search_r1:rejection": study.tuned(
            "rejection",
            "tiny-search-r1-grpo",
            {**SEARCH_R1, **SUPERVISED},
            search_r1,
            _sampled(study, search_r1, sampled),
        ),
        "search_r1:ppo": study.search_r1("ppo"),
        "search_r1:grpo": study.search_r1("grpo"),
        "s3:ppo": study.s3("ppo"),
        "s3:grpo": study.s3("grpo"),
        "oracle": None,
    }


def evaluation(study: Study, rows: Mapping[str, Part | None], n: int) -> tuple[str, ...]:
    """The command that makes the table."""
    searchers: dict[str, Path | None] = {
        entry: None if part is None else part.out for entry, part in rows.items()
    }
    return study.evaluation("table", "tiny-grpo", searchers, n, PROMPTED)


def _sampled(study: Study, model: Part, questions: int) -> Part:
    more = ("--n", str(questions))
    recipe = "tiny-search-r1-grpo"
    return study.derived("sample", "sampled", recipe, SEARCH_R1, model, *more, mark="examples")


if __name__ == "__main__":
    guarded(main)
