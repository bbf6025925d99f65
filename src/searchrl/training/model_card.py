"""The model card of a trained searcher: what it is, how it came about, how it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl import __version__

if TYPE_CHECKING:
    from searchrl.recipe import Recipe

CARD = "README.md"


def model_card(recipe: Recipe, how: str, numbers: dict[str, str]) -> str:
    """Markdown with the metadata that model hubs read.

    Args:
        recipe: what the searcher was trained by.
        how: the kind of training, as in ``GRPO``.
        numbers: more rows for its table, by name.
    """
    base = recipe.searcher.model
    # A path says nothing to others, and too much of this machine.
    on_a_hub = base.count("/") == 1 and not Path(base).exists()
    metadata = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [searchrl, {recipe.agent.kind}]",
        *([f"base_model: {json.dumps(base)}"] if on_a_hub else []),
    ]
    rows = {
        "Trained from": f"`{base if on_a_hub else Path(base).name}`",
        "Training": how,
        "Agent": f"`{recipe.agent.kind}`",
        "Reward": f"`{recipe.reward.kind}`",
        "Seed": str(recipe.seed),
        **numbers,
        "SearchRL": __version__,
    }
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["---", *metadata, "---", _text(recipe, table), ""])


def _text(recipe: Recipe, table: list[str]) -> str:
    lines = [
        f"# {' '.join(recipe.name.split())}",
        "",
        "A searcher: a language model that was trained to search. It writes queries, reads what a "
        "retriever returns, and decides when it has seen enough.",
        "",
        "| | |",
        "|---|---|",
        *table,
        "",
        "It expects the prompt and the tags of its agent, so it is used through SearchRL:",
        "",
        "```console",
        "searchrl evaluate RECIPE --searcher THIS_DIRECTORY --out results",
        "```",
        "",
        "`AutoModelForCausalLM.from_pretrained` loads the weights. The licence is that of the "
        "model it was trained from. It was trained for the corpus and the questions of its recipe; "
        "evaluate it on yours before you rely on it.",
    ]
    return "\n".join(lines)
