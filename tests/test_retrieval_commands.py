"""The commands over an index: names, flags, and output that other programs rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from searchrl.cli import evaluate_retrieval, index, search
from searchrl.data.jsonl import write_jsonl
from searchrl.errors import InputError

program = typer.Typer()
program.add_typer(index.app, name="index")
program.command("search")(search.command)
program.command("evaluate-retrieval")(evaluate_retrieval.command)


def run(*arguments: str | Path) -> str:
    """What the command prints on stdout; its own errors are raised."""
    result = CliRunner().invoke(program, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"id": "a", "contents": '"Ed Wood"\nA film by \x1b[31mTim Burton.\nSecond line.'},
        {"id": "b", "contents": '"Tim Burton"\nA director from Burbank.'},
    ]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "Who directed Ed Wood?"}])
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t1\n")
    run("index", "build", "--kind", "bm25", "--corpus", tmp_path / "corpus.jsonl",
        "--out", tmp_path / "index")  # fmt: skip
    return tmp_path


def test_build_tells_what_it_wrote(folder: Path) -> None:
    arguments = ("index", "build", "--corpus", folder / "corpus.jsonl", "--out", folder / "index")
    assert run(*arguments) == f"{folder / 'index'}: bm25 index of 2 passages\n"
    assert json.loads(run(*arguments, "--json"))["passages"] == 2


def test_check_describes_the_index(folder: Path) -> None:
    assert f"{folder / 'index'}: good" in run("index", "check", folder / "index")
    report = json.loads(run("index", "check", folder / "index", "--json"))
    assert (report["kind"], report["passages"], report["canaries"]) == ("bm25", 2, 2)


def test_search_prints_a_json_list(folder: Path) -> None:
    rows = json.loads(run("search", "--index", folder / "index", "--k", "1", "--json", "ed wood"))
    (row,) = rows
    assert list(row) == ["id", "title", "text", "score"]
    assert (row["id"], row["title"]) == ("a", "Ed Wood")
    assert row["text"] == "A film by \x1b[31mTim Burton.\nSecond line."
    assert row["score"] > 0


def test_search_cannot_steer_the_terminal(folder: Path) -> None:
    text = run("search", "--index", folder / "index", "tim burton")
    assert "\x1b" not in text
    assert len(text.splitlines()) == 4
    assert "Tim Burton [b]" in text.splitlines()[0]


def test_evaluate_prints_a_json_object(folder: Path) -> None:
    arguments: Sequence[str | Path] = (
        "evaluate-retrieval", "--index", folder / "index",
        "--questions", folder / "queries.jsonl", "--qrels", folder / "qrels.tsv",
    )  # fmt: skip
    means = json.loads(run(*arguments, "--json"))
    assert means["n"] == 1
    assert means["ndcg@10"] == means["all_gold@5"] == means["mrr"] == 1
    lines = run(*arguments).splitlines()
    assert lines[0].split() == ["ndcg@10", "1.0000"]
    assert lines[-1].split() == ["n", "1"]


def test_errors_come_out_for_the_main_program(folder: Path) -> None:
    with pytest.raises(InputError, match="no index directory there"):
        run("search", "--index", folder / "absent", "query")
    with pytest.raises(InputError, match="at least 1"):
        run("search", "--index", folder / "index", "--k", "0", "query")
    with pytest.raises(InputError, match="holds files and no index"):
        run("index", "build", "--corpus", folder / "corpus.jsonl", "--out", folder)


@pytest.mark.parametrize(
    "name", [("index", "build"), ("index", "check"), ("search",), ("evaluate-retrieval",)]
)
def test_help_has_an_example(name: tuple[str, ...]) -> None:
    assert "Example: searchrl " + " ".join(name) in run(*name, "--help")


def test_the_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, searchrl.cli.index, searchrl.cli.search, searchrl.cli.evaluate_retrieval;"
        "sys.exit(' '.join({'torch', 'regex', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
