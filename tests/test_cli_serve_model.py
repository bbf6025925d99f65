"""``searchrl serve-model``: what it refuses, and an experiment whose models are all behind it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from searchrl.models.local import LocalModel
from searchrl.serving.run import listen
from tests.command_line import good, refused, searchrl, write_recipe
from tests.training_fixtures import save_model


def test_an_open_address_without_a_key_is_refused() -> None:
    assert "--key-variable" in refused("serve-model", "tiny-generator", "--host", "0.0.0.0")


def test_a_key_that_is_not_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    assert "NO_KEY" in refused("serve-model", "tiny-generator", "--key-variable", "NO_KEY")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_taken_port_is_named(host: str) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        said = refused("serve-model", "tiny-generator", "--host", host, "--port", str(port))
    assert f"{host}:{port}: cannot be bound" in said


def test_a_model_that_is_not_there_frees_the_port() -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    assert "tiny-writer" in refused("serve-model", "tiny-writer", "--port", str(port))
    listen("127.0.0.1", port).close()


@contextmanager
def serving(model: Path, ending: int = signal.SIGTERM) -> Iterator[tuple[str, Any]]:
    """The command in a process of its own; yields the API's address and the process."""
    command = [sys.executable, "-m", "searchrl", "serve-model", str(model)]
    options = ["--port", "0", "--name", "m", "--threads", "1"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"serving m at (http://127\.0\.0\.1:\d+/v1)\n", line)
            assert found is not None, line
            yield found[1], process
        finally:
            process.send_signal(ending)
            process.wait(timeout=60)


@pytest.mark.pipeline
def test_an_experiment_over_http_is_the_experiment_in_process(
    random_model: LocalModel, tmp_path: Path
) -> None:
    weights = save_model(random_model, tmp_path / "model")
    recipe = write_recipe(tmp_path / "recipe.toml", weights)
    good("evaluate", recipe, "--out", tmp_path / "here", "--threads", "1")
    with serving(weights) as (url, process):
        served = f'kind="http", url="{url}", model="m", tokenizer="{weights}", max_length=1024'
        brief = 'style="brief", max_answer_tokens=4, max_context_tokens=300'
        changes = (f"searcher={{{served}}}", f"generator={{{served}, {brief}, prompt_price=1.0}}")
        over = [argument for change in changes for argument in ("--set", change)]
        there = good("evaluate", recipe, "--out", tmp_path / "there", *over, "--threads", "1")
        anew = ("--restart", "--threads", "1")
        again = good("evaluate", recipe, "--out", tmp_path / "there", *over, *anew)
    assert process.returncode == 0
    results = [
        json.loads((tmp_path / out / "results.json").read_text()) for out in ("here", "there")
    ]
    assert results[0]["methods"].keys() == results[1]["methods"].keys()
    for name, row in results[0]["methods"].items():
        assert results[1]["methods"][name]["accuracy"] == row["accuracy"]
        assert results[1]["methods"][name]["f1"] == row["f1"]
    episodes = [
        [json.loads(line) for line in (tmp_path / out / "episodes.jsonl").read_text().splitlines()]
        for out in ("here", "there")
    ]
    for here, far in zip(*episodes, strict=True):
        assert far["answer"] == here["answer"]
        assert [s["text"] for s in far["segments"]] == [s["text"] for s in here["segments"]]
    asked, reused = re.findall(r"m: (\d+) requests \((\d+) reused\)", there.stderr)[0]
    assert re.findall(r"m: (\d+) requests \((\d+) reused\)", again.stderr) == [
        (asked, str(int(reused) + int(asked) + int(reused)))
    ]
    assert "cost 0.0" in there.stderr


@pytest.mark.pipeline
def test_a_killed_server_is_a_failure_of_every_episode(
    random_model: LocalModel, tmp_path: Path
) -> None:
    weights = save_model(random_model, tmp_path / "model")
    recipe = write_recipe(tmp_path / "recipe.toml", weights)
    with serving(weights, signal.SIGKILL) as (url, process):
        process.kill()
        process.wait()
        served = f'{{kind="http", url="{url}", model="m", outage=0}}'
        done = searchrl(
            "evaluate", recipe, "--out", tmp_path / "out", "--set", f"generator={served}"
        )
    assert done.code == 0, done.stderr
    methods = json.loads((tmp_path / "out" / "results.json").read_text())["methods"]
    assert all(row["n"] == 0 and row["failed"] == 4 for row in methods.values())
