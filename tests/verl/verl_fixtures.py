"""Runs of verl on processors, and what they leave behind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from tests.verl_cpu.recipes import ENVIRONMENT, OWN_RAY, SETTINGS

REPOSITORY = Path(__file__).resolve().parents[2]


def recipe(
    base: str, *overrides: str, settings: Mapping[str, JsonValue] = SETTINGS | OWN_RAY
) -> Recipe:
    """Eight steps of 16 episodes about the same four questions, with Gain Beyond RAG."""
    values = load_recipe(
        base,
        [
            "seed=1",
            "data.train.questions=6",
            "rollout.questions_per_step=4",
            "rollout.group_size=4",
            "run.steps=8",
            "run.save_every=8",
            "verl.gpus_per_node=1",
            "verl.agent_workers=1",
            "verl.stall_seconds=300",
            "verl.restarts=2",
            *overrides,
        ],
    ).model_dump(mode="json")
    values["verl"]["settings"] = dict(settings)
    return Recipe.model_validate(values)


def environment() -> dict[str, str]:
    """Variables of every process of such a run."""
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path)}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
