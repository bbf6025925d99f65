"""``searchrl doctor``: what a recipe needs of this machine's memory, and whether it is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from searchrl.cli.arguments import AsJson, Overrides

if TYPE_CHECKING:
    from searchrl.memory_plan import Part


def command(
    recipe: Annotated[str, typer.Option(help="A TOML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    gpu: Annotated[
        float | None,
        typer.Option(min=0, help="Judge by GPUs of so many GiB each, not by this machine's."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0, help="Judge by so many GiB of main memory, not by what is free here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the memory that training with a recipe needs; exit 1 where it does not fit.

    Example: searchrl doctor --recipe s3-8-3-3 --gpu 80 --set learning.tokens_per_micro_batch=8192
    """
    from searchrl.memory_plan import memory_plan
    from searchrl.recipe_file import load_recipe

    parts = memory_plan(load_recipe(recipe, overrides or ()))
    names = dict.fromkeys(part.device for part in parts)
    devices = [_device(name, parts, memory if name == "cpu" else gpu) for name in names]
    fits = all(device["fits"] for device in devices)
    if as_json:
        rows = [
            {
                "part": part.name,
                "device": part.device,
                "bytes": part.bytes,
                "phase": part.phase,
                "note": part.note,
            }
            for part in parts
        ]
        typer.echo(json.dumps({"fits": fits, "devices": devices, "parts": rows}, indent=2))
    else:
        for part in parts:
            place = f"{part.name:<28}{part.device:<8}{part.phase:<10}"
            typer.echo(f"{place}{_size(part.bytes):>10}  {part.note}".rstrip())
        for device in devices:
            typer.echo(_verdict(device))
    if not fits:
        raise typer.Exit(1)


def _device(name: str, parts: list[Part], assumed: float | None) -> dict[str, Any]:
    from searchrl.cli.machine import free_memory
    from searchrl.memory_plan import needed_bytes

    needed = needed_bytes(parts, name)
    free = free_memory(name) if assumed is None else round(assumed * 2**30)
    return {
        "device": name,
        "needed_bytes": needed,
        "free_bytes": free,
        "fits": free is not None and needed <= free,
    }


def _verdict(device: dict[str, Any]) -> str:
    name, needed = device["device"], _size(device["needed_bytes"])
    if device["free_bytes"] is None:
        return f"{name}: needs {needed}; this machine has no such device"
    word = "fits" if device["fits"] else "does not fit"
    return f"{name}: needs {needed}, {_size(device['free_bytes'])} are free; {word}"


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
