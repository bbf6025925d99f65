"""Several datasets in one evaluation: tables, the macro average, and their written forms."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from searchrl.errors import InputError
from searchrl.evaluation.comparison import check_evaluation
from searchrl.evaluation.datasets import compare_scores
from searchrl.evaluation.statistics import (
    Interval,
    macro_difference,
    macro_interval,
    paired_difference,
    wilson_interval,
)
from searchrl.evaluation.table import EpisodeScore
from searchrl.evaluation.written import to_csv, to_json, to_latex, to_markdown, to_rich_table
from searchrl.experiment import Experiment
from searchrl.models.local import LocalModel
from searchrl.recipe import Recipe
from tests.command_line import good, own_files
from tests.training_fixtures import save_model, small_recipe


def scores(source: str, method: str, right: int, count: int, failed: int = 0) -> list[EpisodeScore]:
    """The first ``right`` of ``count`` questions right, the last ``failed`` without a score."""
    return [
        EpisodeScore(
            question_id=f"q{number}",
            method=method,
            source=source,
            accuracy=float(number < right),
            em=float(number < right),
            f1=0.5,
            gold_recall=None,
            searches=1,
            passages=3,
            context_tokens=100,
            seconds=0.5,
            failed=number >= count - failed,
        )
        for number in range(count)
    ]


def two_datasets() -> list[EpisodeScore]:
    return [
        *scores("small", "rag", 2, 10),
        *scores("large", "rag", 10, 100),
        *scores("small", "s3", 8, 10),
        *scores("large", "s3", 20, 100),
    ]


def test_the_average_counts_every_dataset_the_same() -> None:
    comparison = compare_scores(two_datasets(), several=True)
    assert list(comparison.datasets) == ["small", "large"]
    assert [s.accuracy.n for s in comparison.datasets["small"]] == [10, 10]
    rag, s3 = comparison.average
    assert (rag.method, s3.method) == ("rag", "s3")
    assert rag.accuracy.mean == pytest.approx((0.2 + 0.1) / 2)
    assert s3.accuracy.mean == pytest.approx((0.8 + 0.2) / 2)
    assert s3.accuracy.n == 110
    assert s3.vs_rag is not None
    assert s3.vs_rag.difference == pytest.approx(0.35)
    assert s3.vs_rag.n == 110
    assert s3.vs_rag.p_value < 0.001
    assert rag.vs_rag is None


def test_one_dataset_is_its_own_average() -> None:
    one = [score for score in two_datasets() if score.source == "large"]
    comparison = compare_scores(one, several=True)
    assert comparison.average == comparison.datasets["large"]
    pooled = compare_scores(two_datasets(), several=False)
    assert list(pooled.datasets) == ["all"]
    assert pooled.average[0].accuracy.mean == pytest.approx(12 / 110)
    assert "datasets" not in to_json(comparison)
    assert to_markdown(comparison).startswith("| Method | n | Accuracy % |")


def test_where_a_dataset_has_no_value_there_is_no_average() -> None:
    comparison = compare_scores(
        [*two_datasets(), *scores("small", "dead", 1, 4, failed=4), *scores("large", "dead", 1, 4)],
        several=True,
    )
    dead = comparison.average[2]
    assert (dead.accuracy.n, dead.failed, dead.vs_rag) == (0, 4, None)
    assert math.isnan(dead.accuracy.mean)
    assert to_json(comparison)["methods"]["dead"]["accuracy"] is None
    assert "nan" not in to_markdown(comparison).lower()
    # A method that was not run on every dataset has no average either.
    partial = compare_scores([*two_datasets(), *scores("large", "half", 1, 4)], several=True)
    assert [summary.method for summary in partial.average] == ["rag", "s3"]


def test_the_average_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(7)
    shares, sizes, covered, rounds = (0.05, 0.4, 0.9), (40, 150, 25), 0, 2_000
    for _ in range(rounds):
        parts = [
            wilson_interval(int(draw.binomial(size, share)), size)
            for share, size in zip(shares, sizes, strict=True)
        ]
        interval = macro_interval(parts)
        covered += interval.low <= sum(shares) / 3 <= interval.high
    assert 0.93 <= covered / rounds <= 0.97


def test_the_average_interval_at_the_edge() -> None:
    nothing = macro_interval([wilson_interval(0, 20), wilson_interval(0, 50)])
    assert (nothing.mean, nothing.low) == (0, 0)
    assert 0 < nothing.high < wilson_interval(0, 20).high
    # As wide as a hand computes it: sqrt(0.1**2 + 0.3**2) / 2.
    parts = [Interval(0.5, 0.4, 0.6, 9), Interval(0.5, 0.2, 0.8, 9)]
    assert macro_interval(parts).high == pytest.approx(0.5 + math.sqrt(0.1) / 2)
    with pytest.raises(ValueError, match="nothing to average"):
        macro_interval([])


def test_the_average_difference() -> None:
    ours, theirs = [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]
    one = macro_difference([(ours, theirs)])
    assert one == paired_difference(ours, theirs)
    balanced = macro_difference([(ours, theirs), (theirs * 5, ours * 5)])
    assert balanced.difference == 0
    assert balanced.p_value == 1.0
    # Two wins of two questions outweigh two losses of twenty: signs are flipped with their weights.
    uneven = macro_difference([([1.0] * 2, [0.0] * 2), ([0.0] * 2 + [1.0] * 18, [1.0] * 20)])
    assert uneven.difference == pytest.approx((1 - 0.1) / 2)
    # Of 16 sign patterns, the 8 with both wins alike reach a sum of 0.5 - 0.05 in either direction.
    assert uneven.p_value == 8 / 16


def test_written_forms_hold_every_dataset() -> None:
    comparison = compare_scores(two_datasets(), several=True)
    written = to_json(comparison)
    json.dumps(written, allow_nan=False)
    assert written["average"] == "macro"
    assert written["methods"]["s3"]["accuracy"] == pytest.approx(0.5)
    assert written["datasets"]["small"]["methods"]["s3"]["accuracy"] == 0.8
    assert written["datasets"]["large"]["methods"]["s3"]["vs_rag"]["n"] == 100

    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [(row["dataset"], row["method"]) for row in rows] == [
        (name, method) for name in ("small", "large", "macro average") for method in ("rag", "s3")
    ]
    assert (rows[1]["n"], rows[1]["accuracy"], rows[0]["vs_rag"]) == ("10", "0.8", "")
    assert float(rows[5]["vs_rag_low"]) < 0.35 < float(rows[5]["vs_rag_high"])

    text = to_markdown(comparison)
    assert text.startswith("| Accuracy % | small, n 10 | large, n 100 | Macro average |")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["small", "large", "Macro average"]
    assert "each counting the same" in text
    with (console := Console(width=200)).capture() as capture:
        console.print(to_rich_table(comparison))
    assert "large, n 100" in capture.get()


def test_latex_is_escaped_and_its_rows_are_even() -> None:
    hostile = [
        scored
        for name in ("a_b", "50%\\~")
        for scored in scores(name, "s3{x}&", 1, 4) + scores(name, "rag", 1, 4)
    ]
    text = to_latex(compare_scores(hostile, several=True))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert r"a\_b, n 4" in rows[0]
    assert r"50\%\textbackslash{}\textasciitilde{}" in rows[0]
    assert rows[1].startswith(r"s3\{x\}\&")
    assert r"\begin{tabular}{lrrrrr}" in text
    single = to_latex(compare_scores(scores("one", "rag", 1, 4), several=False))
    assert r"Accuracy \%" in single


def test_a_question_file_of_several_datasets_is_cut_in_each(
    random_model: LocalModel, tmp_path: Path
) -> None:
    corpus, questions = own_files(tmp_path)
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["source"] = "first" if number < 5 else "second"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"kind": "files", "corpus": str(corpus), "questions": str(questions)}
    values = small_recipe(Path("/absent")).model_dump(mode="json")
    values["data"]["test"] = files
    values["evaluation"] |= {"questions": 4, "methods": ["direct"], "by_source": True}
    recipe = Recipe.model_validate(values)
    check_evaluation(recipe)
    (split,) = Experiment(recipe, tmp_path / "run").held_out
    assert sources(split.questions) == ["first"] * 4 + ["second"] * 3


def sources(questions: Sequence[object]) -> list[str]:
    return [question.source for question in questions]  # type: ignore[attr-defined]


def test_datasets_with_corpora_of_their_own_are_evaluated_side_by_side(
    random_model: LocalModel, tmp_path: Path
) -> None:
    corpus, questions = own_files(tmp_path)
    model = save_model(random_model, tmp_path / "model")
    values = small_recipe(model).model_dump(mode="json")
    files = {"kind": "files", "corpus": str(corpus), "questions": str(questions)}
    world = {"kind": "synthwiki", "seed": 5, "size": 100, "questions": 9}
    values["data"]["datasets"] = {"world": world, "own": files, "same": files}
    values["evaluation"] = {"methods": ["rag", "direct"], "questions": 3}
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(values))
    out = tmp_path / "out"
    shown = good("evaluate", recipe, "--out", out, "--threads", "1")
    assert shown.stdout == (out / "results.md").read_text()
    results = json.loads((out / "results.json").read_text())
    assert list(results["datasets"]) == ["world", "own", "same"]
    assert [t["methods"]["rag"]["n"] for t in results["datasets"].values()] == [3, 3, 3]
    assert results["methods"]["rag"]["n"] == 9
    assert (out / "results.csv").is_file()
    assert (out / "results.tex").is_file()
    # The two datasets over one corpus share its index.
    assert not (out / "data" / "datasets" / "same").exists()
    episodes = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    found = {
        (row["question"]["source"], row["context"][0]["id"][0])
        for row in episodes
        if row["method"] == "rag"
    }
    assert {source for source, _ in found} == {"world", "own", "same"}


@pytest.mark.parametrize(
    ("datasets", "said"),
    [
        ({"a/b": {"kind": "synthwiki", "seed": 7}}, "a name is made of letters"),
        ({"a": {"kind": "synthwiki", "seed": 0}}, "train and a are the same world"),
        ({"a": {"kind": "synthwiki", "seed": 7, "sise": 3}}, "data.datasets.a.sise"),
    ],
)
def test_datasets_that_cannot_be_are_refused(
    datasets: dict[str, object], said: str, tmp_path: Path
) -> None:
    override = f"data.datasets={_toml(datasets)}"
    with pytest.raises(InputError, match=re.escape(said)):
        small_recipe(tmp_path, override)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)
