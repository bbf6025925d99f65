"""The program as a whole: help, imports, usage errors, and what ends in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from searchrl import __version__
from searchrl.errors import InfrastructureError
from tests.command_line import good, refused, searchrl

COMMANDS = (
    "demo", "synthwiki", "index build", "index check", "search", "evaluate-retrieval",
    "serve", "mcp", "precompute", "train", "ask", "evaluate", "score", "report",
)  # fmt: skip
HEAVY = {
    "torch", "transformers", "bm25s", "jinja2", "numpy", "pydantic", "rich",
    "granian", "msgspec", "prometheus_client", "httpx2", "mcp", "starlette",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_what_it_does_and_names_an_example(command: str) -> None:
    text = " ".join(good(*command.split(), "--help").stdout.split())
    assert f"Usage: searchrl {command} " in text
    assert f"Example: searchrl {command} " in text
    assert "\x1b" not in text


def test_every_command_is_in_the_help() -> None:
    text = good("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command.split()[0]} " in text


def test_version() -> None:
    assert good("--version").stdout == f"{__version__}\n"


def test_importing_the_program_loads_nothing_heavy() -> None:
    code = f"import sys, searchrl.cli.main; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_module_runs_like_the_script() -> None:
    command = [sys.executable, "-m", "searchrl", "score", "--gold"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: Option '--gold' requires an argument")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("group", [(), ("index",)])
def test_without_a_command_comes_the_help(group: tuple[str, ...]) -> None:
    outcome = searchrl(*group)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("Usage: searchrl")
    assert "Commands:" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "said", "where"),
    [
        (("serch",), "No such command 'serch'", "searchrl --help"),
        (("index", "mend"), "No such command 'mend'", "searchrl index --help"),
        (("train",), "Missing argument", "searchrl train --help"),
        (("train", "tiny-grpo"), "Missing option '--out'", "searchrl train --help"),
        (("search", "--indx", "i", "q"), "--indx", "searchrl search --help"),
        (("search", "--index", "i", "--k", "many", "q"), "--k", "searchrl search --help"),
        (("synthwiki", "--out", "w", "--questions", "0"), "--questions", "searchrl synthwiki"),
        (("demo", "--seed", "-1"), "--seed", "searchrl demo --help"),
        (("evaluate", "tiny-grpo", "--out", "e", "--n", "0"), "--n", "searchrl evaluate --help"),
    ],
)
def test_a_wrong_command_line_gets_one_line(
    arguments: tuple[str, ...], said: str, where: str
) -> None:
    line = refused(*arguments)
    assert said in line
    assert where in line


def run_with(error: BaseException) -> tuple[int, str]:
    """How the program ends when the report command raises."""
    with mock.patch("searchrl.reporting.run_report.write_run_report", side_effect=error):
        outcome = searchrl("report", "anywhere")
    assert outcome.stdout == ""
    return outcome.code, outcome.stderr


def test_a_failed_service_ends_with_a_code_of_its_own() -> None:
    error = InfrastructureError("retriever at host:1\ndid not \x1b[31manswer")
    assert run_with(error) == (75, "error: retriever at host:1 did not answer\n")


def test_a_file_that_cannot_be_written_is_the_users_matter() -> None:
    denied = PermissionError(13, "Permission denied", "/readonly/report.html")
    assert run_with(denied) == (2, "error: /readonly/report.html: Permission denied\n")


def test_a_cancelled_command_says_so() -> None:
    assert run_with(KeyboardInterrupt()) == (130, "cancelled\n")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("no file in it")])
def test_what_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run_with(error)


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    line = refused("synthwiki", "--out", tmp_path / "taken", "--size", "100", "--questions", "5")
    assert str(tmp_path / "taken") in line
