"""The ``searchrl`` program as a user meets it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from searchrl.cli.main import run
from searchrl.data.jsonl import write_jsonl

RECIPE = """\
name = "small"
seed = 3

[data.train]
{train}
[data.test]
{test}
[searcher]
model = "{model}"

[generator]
model = "{model}"
style = "brief"
max_answer_tokens = 4
max_context_tokens = 300

[agent]
style = "brief"
initial_k = 2
k = 2
max_turns = 1
max_selected = 2
max_prompt_tokens = 300
max_response_tokens = 8
max_observation_tokens = 150

[rollout]
questions_per_step = 2
group_size = 2

[learning]
algorithm = "grpo"
learning_rate = 1e-4

[run]
steps = 2
save_every = 1

[evaluation]
methods = ["rag", "s3"]
questions = 4
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output, which is one JSON value and nothing else."""
        return json.loads(self.stdout)


def searchrl(*arguments: str | Path) -> Outcome:
    """Run one command line in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    command = ["searchrl", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            run()
        except SystemExit as ended:
            code = ended.code
    assert code is None or isinstance(code, int)
    return Outcome(code or 0, stdout.getvalue(), stderr.getvalue())


def good(*arguments: str | Path) -> Outcome:
    """Run a command that has to succeed."""
    outcome = searchrl(*arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome


def refused(*arguments: str | Path) -> str:
    """Run a command that has to end with 2 and one line, and return the line."""
    outcome = searchrl(*arguments)
    assert outcome.code == 2, outcome
    assert outcome.stdout == ""
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stderr.startswith("error: ")
    return outcome.stderr


def write_recipe(
    path: Path, model: Path, train: str | None = None, test: str | None = None
) -> Path:
    """A recipe of two tiny steps, over generated worlds unless other data are given."""
    world = 'kind = "synthwiki"\nseed = {}\nsize = 100\nquestions = 12\n'
    text = RECIPE.format(model=model, train=train or world.format(0), test=test or world.format(1))
    path.write_text(text)
    return path


def own_files(folder: Path) -> tuple[Path, Path]:
    """A corpus and questions such as a user brings, in two of the line forms."""
    places = ("Arbon", "Bremgarten", "Chur", "Davos", "Engelberg", "Flims", "Glarus", "Horgen")
    passages: list[Mapping[str, Any]] = [
        {"id": f"p{n}", "title": place, "text": f"{place} was founded in {1800 + n}."}
        for n, place in enumerate(places)
    ]
    passages.append({"id": 99, "contents": '"Other"\nNothing of interest.'})
    questions = [
        {"id": n, "question": f"When was {place} founded?", "golden_answers": [str(1800 + n)]}
        for n, place in enumerate(places)
    ]
    write_jsonl(folder / "corpus.jsonl", passages)
    write_jsonl(folder / "questions.jsonl", questions)
    return folder / "corpus.jsonl", folder / "questions.jsonl"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def flip_byte(path: Path) -> None:
    """Damage a file in its middle, length unchanged."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def tree(folder: Path) -> Sequence[str]:
    """Everything under a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
