"""Write the tables of recipe keys in docs/recipes.md from the schema itself.

    python -m scripts.recipe_table

A test compares the page with what this writes, so the page cannot fall behind the schema.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from searchrl.recipe import Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
START, END = "<!-- keys: start -->", "<!-- keys: end -->"
SPLITS = ("train", "test")
"""Sections of ``data`` that take the same keys; the page lists the first."""

_MEANINGS: Mapping[str, str] = {
    "name": "Title of the report.",
    "seed": "Every random draw of training follows from it.",
    "data.train.kind": "Where the data come from.",
    "retriever.kind": "How passages are found.",
    "reward.kind": "What an episode is worth; see [Rewards](#rewards).",
    "device": "Where the model runs, as in `cpu` or `cuda:0`.",
    "kind": "Where the model runs.",
    "dtype": "Number form of its weights.",
    "style": "`full` explains the task in words, `brief` gives only the data.",
    "model": "A path or a hub name.",
}
"""By key, or by name for one that several sections share; for those the schema says nothing of."""
_NUMBERS = {"int": "integer", "float": "number", "bool": "true or false", "str": "text"}


def main() -> None:
    """Replace what stands between the page's marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{render()}{END}{after}", encoding="utf-8")


def render() -> str:
    """All tables: one for the top level, one a section, one a variant of a section."""
    parts = [_table("Top level", "", Recipe)]
    for name, info in Recipe.model_fields.items():
        parts += [_table(*section) for section in _sections(name, info)]
    return "\n".join(parts)


def _sections(name: str, info: FieldInfo) -> Iterator[tuple[str, str, type[BaseModel]]]:
    models = list(models_in(info.annotation))
    for model in models:
        inner = {
            key: parts
            for key, field in model.model_fields.items()
            if (parts := list(models_in(field.annotation)))
        }
        if inner:
            yield f"`[{name}]`", f"{name}.", model
            for key in [key for key in inner if key not in SPLITS[1:]]:
                keys = SPLITS if key in SPLITS else (key,)
                title = " and ".join(f"`[{name}.{one}]`" for one in keys)
                for part in inner[key]:
                    note = f', kind = "{_kind(part)}"' if len(inner[key]) > 1 else ""
                    yield f"{title}{note}", f"{name}.{key}.", part
        else:
            kind = get_args(model.model_fields["kind"].annotation)[0] if len(models) > 1 else None
            title = f"`[{name}]`" + (f', kind = "{kind}"' if kind else "")
            optional = type(None) in get_args(info.annotation)
            note = f', kind = "{_kind(model)}"' if len(models) > 1 else ""
            note += " (may be left out)" if optional else ""
            yield f"`[{name}]`{note}", f"{name}.", model


def _kind(variant: type[BaseModel]) -> str:
    """What a variant of a section calls itself."""
    kind: str = get_args(variant.model_fields["kind"].annotation)[0]
    return kind


def _table(title: str, prefix: str, model: type[BaseModel]) -> str:
    rows = [
        _row(prefix, name, info)
        for name, info in model.model_fields.items()
        if not list(models_in(info.annotation))
    ]
    about = " ".join((model.__doc__ or "").split("\n\n")[0].split()) if prefix else ""
    head = f"### {title}\n\n" + (f"{about.replace('``', '`')}\n\n" if about else "")
    return f"{head}| key | default | values | meaning |\n|---|---|---|---|\n{''.join(rows)}"


def _row(prefix: str, name: str, info: FieldInfo) -> str:
    cells = (f"`{prefix}{name}`", _default(info), _values(info), _meaning(prefix, name, info))
    return f"| {' | '.join(cells)} |\n"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas in an annotation, in order; not those of sections with names free to choose."""
    if get_origin(annotation) is dict:
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`"


def _values(info: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(limit, name)}"
        for limit in info.metadata
        for name, word in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_type(info.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "table"
    if origin is Annotated:
        return _type(arguments[0])
    name: str = annotation.__name__
    return _NUMBERS.get(name, name.lower())


def _meaning(prefix: str, name: str, info: FieldInfo) -> str:
    text = info.description or _MEANINGS.get(prefix + name) or _MEANINGS[name]
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    main()
