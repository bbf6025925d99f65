"""``searchrl score``: score a file of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from searchrl.cli.arguments import AsJson, split_names


def command(
    predictions: Annotated[Path, typer.Option(help='Lines {"id","prediction"}.')],
    gold: Annotated[Path, typer.Option(help="Question lines with golden_answers.")],
    metrics: Annotated[
        str,
        typer.Option(help="Comma-separated: em, f1, sub_em, span, or an official script's name."),
    ] = "em,f1,sub_em,span",
    rows: Annotated[bool, typer.Option("--rows", help="One JSON line a question.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score predictions against gold answers and print the means.

    Example: searchrl score --predictions answers.jsonl --gold questions.jsonl --json
    """
    from searchrl.data.questions import read_questions
    from searchrl.rewards.scoring import read_predictions, score_predictions

    names = split_names(metrics, "--metrics")
    table = score_predictions(read_predictions(predictions), read_questions(gold), names)
    if rows:
        for row in table.rows:
            typer.echo(json.dumps(row.to_row()))
    elif as_json:
        typer.echo(json.dumps({**table.means, "n": len(table.rows)}))
    else:
        for name, value in table.means.items():
            typer.echo(f"{name:<12} {value:.4f}")
        typer.echo(f"{'n':<12} {len(table.rows)}")
