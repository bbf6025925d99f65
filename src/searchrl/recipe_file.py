"""Reads recipes: one TOML file, checked before anything runs.

Values come from the schema's defaults, then the file, then ``--set key=value``. An unknown key is
refused with the nearest known one; the resolved recipe is saved as JSON and is itself a valid
recipe.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from searchrl.errors import InputError
from searchrl.recipe import Recipe
from searchrl.retrieval.options import KINDS, AnyIndexOptions, IndexOptions
from searchrl.retrieval.web.options import WebOptions

SHIPPED = Path(__file__).parent / "recipes"
_VARIANTS = frozenset(
    {"synthwiki", "files", *KINDS, "local", "http", "web", "s3", "search_r1", "deep_retrieval"}
)
"""Names of a section's kinds, which pydantic counts among the keys."""


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path, or a shipped one by name, and apply ``key=value`` overrides.

    Raises:
        InputError: no such file, malformed TOML, an unknown key, or a value that does not fit.
    """
    path = recipe_path(source)
    values = _read(path)
    for override in overrides:
        _apply(values, override)
    _refuse_unknown(path, values)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error.errors())}") from error


def index_options(values: Mapping[str, Any], overrides: Sequence[str]) -> IndexOptions:
    """The options of one index, as a command gives them; overrides as in ``load_recipe``.

    Raises:
        InputError: a key does not go with the kind or is missing, or a value does not fit.
    """
    try:
        options: IndexOptions = TypeAdapter(AnyIndexOptions).validate_python(
            _overridden(values, overrides)
        )
    except ValidationError as error:
        raise InputError(f"index options: {_explain(error.errors())}") from error
    return options


def web_options(provider: str, overrides: Sequence[str]) -> WebOptions:
    """The options of search on the web, as a command gives them; see ``index_options``.

    Raises:
        InputError: there is no such provider or key, or a value does not fit.
    """
    values = {"kind": "web", "provider": provider}
    try:
        return WebOptions.model_validate(_overridden(values, overrides))
    except ValidationError as error:
        raise InputError(f"web options: {_explain(error.errors())}") from error


def recipe_path(source: str) -> Path:
    """The file a recipe name or path stands for."""
    path, shipped = Path(source), SHIPPED / f"{source}.toml"
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    names = sorted(file.stem for file in SHIPPED.glob("*.toml"))
    close = difflib.get_close_matches(source, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"shipped ones: {', '.join(names)}"
    raise InputError(f"{source}: no such recipe file; {hint}")


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable recipe: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a table of sections")
    return values


def _overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    chosen = dict(values)
    for override in overrides:
        _apply(chosen, override)
    return chosen


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key; the value is TOML, or a plain string where it is not."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {override}: expected key=value, as in --set run.steps=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: {parent} is a value, not a section")
    values[last] = value


def _explain(errors: Sequence[ErrorDetails]) -> str:
    """One line a user can act on, from pydantic's complaints."""
    # A key that is there and wrong explains more than one that is missing.
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in error["loc"] if part not in _VARIANTS)
    match error["type"]:
        case "extra_forbidden":
            return f"{key} does not go with this section's kind"
        case "missing":
            return f"{key} is missing"
        case "union_tag_not_found":
            return f"{key}.kind is missing"
        case "union_tag_invalid":
            tag, expected = error["ctx"]["tag"], error["ctx"]["expected_tags"]
            return f"{key}.kind: {tag!r} is none of {expected}"
        case "literal_error" if close := _nearest_choice(error):
            return f"{key}: {error['msg']}, not {error['input']!r}; did you mean {close}?"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _nearest_choice(error: ErrorDetails) -> str | None:
    """The choice that a value is a misspelling of, as pydantic writes it."""
    choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
    return next(iter(difflib.get_close_matches(str(error["input"]), choices, n=1)), None)


def _refuse_unknown(path: Path, values: dict[str, Any], prefix: str = "") -> None:
    """Find keys that no recipe has, ahead of anything that is missing for want of them."""
    known = _known_keys()
    for name, value in values.items():
        key = prefix + name
        if key not in known:
            nearest = _nearest(key, known)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise InputError(f"{path}: unknown key {key}{hint}")
        if isinstance(value, dict) and any(other.startswith(f"{key}.") for other in known):
            _refuse_unknown(path, value, f"{key}.")


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The key that was meant: a like name in the section, that name in another, or a like key."""
    section, _, name = key.rpartition(".")
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"{section}.{close[0]}" if section else close[0]
    if namesakes := [other for other in known if other.rpartition(".")[2] == name]:
        return namesakes[0]
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.5)), None)


@cache
def _known_keys() -> tuple[str, ...]:
    """All dotted keys of a recipe, each once."""
    return tuple(dict.fromkeys(_keys(Recipe)))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a schema, those of every variant included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for part in _models_in(info.annotation):
            yield from _keys(part, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas of a section; what has names free to choose is left to pydantic."""
    if get_origin(annotation) is dict:
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
