"""verl on a processor, its rollouts decoded by this project's engine, since verl has none there.

    python -m benchmarks.training.engines.verl ORDER.json

The agent loop, the sampler and the settings are those of ``searchrl train --backend verl``, the
adapters for a processor those of the tests. ``{"tuned": true}`` takes the log-probabilities noted
at sampling for the old ones, so that one pass is saved, looks for finished episodes more often, and
has no entropy computed; ``tokens_per_micro_batch`` sets the passes of the update.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.training.engines.order import Order, StepDone, claim_stdout, tell
from searchrl.data.jsonl import write_jsonl
from searchrl.distributed.launch import plan
from searchrl.distributed.process import last_error, running
from searchrl.distributed.verl_metrics import VerlLog
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from tests.verl_cpu.recipes import ENVIRONMENT, OWN_RAY, SETTINGS

POLL = "SEARCHRL_BENCHMARK_POLL"
"""Seconds between looks of verl's trainer at the episodes; the plugin's own where it is unset."""
_SERVICES = "benchmarks.training.engines.verl_services"
"""By its name, since importing it here would import verl."""
_POLL_SECONDS = 0.02
_TUNED = {
    "algorithm.rollout_correction.bypass_mode": True,
    "actor_rollout_ref.actor.calculate_entropy": False,
}


def main() -> None:
    """Do the order."""
    out = claim_stdout()
    path = Path(sys.argv[1])
    order = Order.read(path)
    run = path.parent / "run"
    run.mkdir()
    order.write(run / "order.json")
    launch = plan(recipe_of(order), run)
    write_jsonl(run / "verl" / "questions.jsonl", _schedule(order))
    log = path.parent / "verl.log"
    steps = VerlLog(run / "logs" / "verl-1.jsonl")
    done = 0
    with running(launch.command, {**launch.environment, **_environment(order)}, log) as process:
        while process.poll() is None and done < order.steps:
            time.sleep(_POLL_SECONDS)
            for _, metrics in steps.read():
                tell(_step(order, metrics), out)
                done += 1
    if done < order.steps:
        sys.exit(f"RuntimeError: verl stopped after {done} steps: {last_error(log)}")


def recipe_of(order: Order) -> Recipe:
    """The recipe that does the order, with verl's settings."""
    work = order.work
    values = load_recipe(
        f"tiny-{work.algorithm}",
        [
            f"searcher.model={json.dumps(order.model)}",
            f"seed={order.seed}",
            f"rollout.questions_per_step={work.questions}",
            f"rollout.group_size={work.group}",
            f"learning.learning_rate={order.learning_rate}",
            f"learning.critic_learning_rate={order.learning_rate}",
            "learning.kl_coefficient=0.0",
            'learning.kl_placement="reward"',
            'learning.kl_estimator="k1"',
            f"learning.tokens_per_micro_batch={order.setting('tokens_per_micro_batch', 8192)}",
            f"run.steps={order.steps}",
            "verl.gpus_per_node=1",
            "verl.agent_workers=1",
            "verl.stall_seconds=600",
        ],
    ).model_dump(mode="json")
    values["verl"]["settings"] = _settings(order)
    return Recipe.model_validate(values)


def _settings(order: Order) -> dict[str, Any]:
    prompt = order.work.longest_prompt
    return {
        **SETTINGS,
        **OWN_RAY,
        "data.max_prompt_length": prompt,
        "data.max_response_length": order.work.longest - prompt,
        "actor_rollout_ref.rollout.max_model_len": order.work.longest,
        "trainer.save_freq": -1,
        **(_TUNED if order.setting("tuned", False) else {}),
    }


def _environment(order: Order) -> dict[str, str]:
    modules = f"{ENVIRONMENT['VERL_USE_EXTERNAL_MODULES']},{_SERVICES}"
    poll = {POLL: "0.05"} if order.setting("tuned", False) else {}
    # Ray's workers stand back behind other programs unless they are told not to.
    told = {"VERL_USE_EXTERNAL_MODULES": modules, "RAY_worker_niceness": "0"}
    return {**ENVIRONMENT, **told, **poll}


def _schedule(order: Order) -> list[dict[str, Any]]:
    questions = order.work.questions
    return [
        {"id": str(number), "question": f"w{number}", "golden_answers": ["w0"], "step": step}
        for step in range(order.steps)
        for number in range(step * questions, (step + 1) * questions)
    ]


def _step(order: Order, metrics: dict[str, float]) -> StepDone:
    samples = order.work.questions * order.work.group - round(metrics["episodes/failed"])
    return StepDone(
        samples=samples,
        prompt=round(samples * metrics["reward/prompt"]),
        told=round(samples * metrics["reward/environment"]),
        said=round(samples * metrics["reward/model"]),
        reward=metrics["reward/mean"],
        rollout=metrics.get("seconds/rollout", 0.0),
        update=metrics.get("seconds/update", 0.0),
    )


if __name__ == "__main__":
    main()
