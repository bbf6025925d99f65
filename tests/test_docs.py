"""The documentation: every command parses, every recipe loads, every key and link is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

from scripts import recipe_table
from searchrl.cli.main import app
from searchrl.recipe import Recipe
from searchrl.recipe_file import SHIPPED, load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


def blocks(*languages: str) -> list[tuple[str, str]]:
    """``(page, text)`` of each fenced block in one of the languages."""
    return [
        (page.name, text)
        for page in PAGES
        for language, text in _FENCE.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


COMMANDS = [
    (page, line)
    for page, text in blocks("", "console", "bash", "sh")
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("searchrl ")
]
RECIPES = [(page, text) for page, text in blocks("toml") if "[searcher]" in text]


def test_the_pages_show_commands_and_recipes() -> None:
    assert {page.name for page in PAGES} >= {
        "quickstart.md", "concepts.md", "recipes.md", "your-own-data.md",
    }  # fmt: skip
    assert len(COMMANDS) > 20
    assert len(RECIPES) >= 2


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_line_is_one_the_program_takes(page: str, line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    context = command.make_context("searchrl", [], resilient_parsing=True)
    while hasattr(command, "commands"):
        name = arguments.pop(0)
        assert name in command.commands, f"{page}: {line}"
        command = command.commands[name]
    # Parses types and refuses what is unknown or missing, and runs nothing.
    context = command.make_context(command.name, arguments, parent=context)
    recipe, overrides = context.params.get("recipe"), context.params.get("overrides") or ()
    if recipe is not None and (SHIPPED / f"{recipe}.toml").is_file():
        load_recipe(recipe, overrides)


@pytest.mark.parametrize(("page", "text"), RECIPES)
def test_a_whole_recipe_is_one_the_program_takes(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    assert load_recipe(str(tmp_path / "recipe.toml")).name


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        parts = list(recipe_table.models_in(info.annotation))
        if not parts:
            yield prefix + name
        for part in parts:
            yield from keys(part, f"{prefix}{name}.")


def test_every_key_of_a_recipe_is_listed() -> None:
    page = recipe_table.PAGE.read_text(encoding="utf-8")
    every = set(keys(Recipe))
    assert {"data.test.corpus", "learning.clip_low", "judge.model", "seed"} <= every
    assert [key for key in sorted(every) if f"| `{key.replace('data.test', 'data.train')}` |"
            not in page] == []  # fmt: skip


def test_the_tables_are_what_the_schema_says() -> None:
    page = recipe_table.PAGE.read_text(encoding="utf-8")
    written = page.partition(recipe_table.START)[2].partition(recipe_table.END)[0].strip()
    assert written == recipe_table.render().strip(), "run python -m scripts.recipe_table"


def test_every_shipped_recipe_is_described() -> None:
    page = recipe_table.PAGE.read_text(encoding="utf-8")
    names = [file.stem for file in SHIPPED.glob("*.toml")]
    assert names
    assert [name for name in names if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, anchor
