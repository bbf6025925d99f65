"""The deployment guide as a user runs it: every script a process, with small models, on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from searchrl.agents.prompts import search_r1_prompt
from searchrl.data.forms import read_dataset
from searchrl.models.chat import encode_text, render_chat
from searchrl.models.protocol import Message
from tests.chat_templates import thinking_tokenizer
from tests.command_line import free_port
from tests.encoders import write_encoder
from tests.small_models import small_qwen3
from tests.test_deployment import GUIDE, copy_guide

pytestmark = pytest.mark.pipeline
_PATIENCE = 120
SEARCH, ANSWER = "<search>Tolm Island</search>", "<answer>Gannet</answer>"
FERRY = "Which ferry sails to Tolm Island?"
RUN = Path("checkpoints/search-r1-tiny-demo")
LONG = ("--set", "run.steps=1000", "--set", "run.save_every=1")


class Guide:
    """A copy of the guide's directory, and its scripts as processes."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = copy_guide(folder)
        self.port = free_port()
        self._settings = {"MODEL": "tiny", "PORT": str(self.port), **settings}

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """A script in a session of its own, as a terminal would start it."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **self._settings,
        }
        program = [sys.executable] if script.endswith(".py") else []
        threads = ("--threads", "1") if script in ("run.sh", "train_qwen3_0.6b.sh") else ()
        return subprocess.Popen(
            [*program, str(self.folder / script), *arguments, *threads],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def good(self, script: str, *arguments: str) -> str:
        """Run a script that has to succeed; what it printed."""
        started = self.start(script, *arguments)
        stdout, stderr = started.communicate(timeout=2 * _PATIENCE)
        assert (started.returncode, stderr) == (0, ""), stdout + stderr
        return stdout

    def processes(self) -> dict[int, str]:
        """Command lines of all processes that were started in the directory."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cwd").resolve() == self.folder:
                    line = (process / "cmdline").read_bytes().decode().replace("\0", " ")
                    found[int(process.name)] = line
            except OSError:  # ended meanwhile
                continue
        return found

    def find(self, word: str) -> int | None:
        """The process id of a program of the guide, where it runs."""
        return next((number for number, line in self.processes().items() if word in line), None)

    def signal_retriever(self, number: int) -> None:
        """Send the retriever, which has to run, a signal."""
        server = self.find("searchrl serve")
        assert server is not None
        os.kill(server, number)

    def until(self, seen: Callable[[], object], process: subprocess.Popen[str]) -> None:
        """Wait until something is there."""
        patience = time.monotonic() + _PATIENCE
        while not seen():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()

    def rows(self, file: Path | str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / file).read_text().splitlines()]


def test_one_command_does_it_all_and_leaves_what_is_promised(tmp_path: Path) -> None:
    guide = Guide(tmp_path / "qwen3-0.6b")
    printed = guide.good("run.sh")
    assert f"retriever: ready on port {guide.port}\n" in printed
    assert "training: 2/2" in printed
    served = f"serving indexes/sample_corpus-bm25 at http://127.0.0.1:{guide.port}\n"
    assert served in guide.log("retriever")
    assert "training: 2/2" in guide.log("training")
    run = guide.folder / RUN
    assert (run / "STATUS").read_text() == "success\n"
    assert len(guide.rows(RUN / "metrics.jsonl")) == 2
    assert (run / "final" / "model.safetensors").is_file()
    assert (run / "final").resolve() == (run / "checkpoints" / "final").resolve()
    asked = guide.rows(RUN / "episodes" / "step_000001.jsonl")
    assert {row["question"]["source"] for row in asked} == {"sample"}
    assert guide.processes() == {}


@pytest.fixture
def training(tmp_path: Path) -> Iterator[tuple[Guide, subprocess.Popen[str]]]:
    """A guide in the midst of its training."""
    guide = Guide(tmp_path / "qwen3-0.6b")
    process = guide.start("run.sh", *LONG)
    try:
        metrics = guide.folder / RUN / "metrics.jsonl"
        guide.until(lambda: metrics.is_file() and metrics.stat().st_size, process)
        yield guide, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=_PATIENCE)


def test_ctrl_c_ends_everything(training: tuple[Guide, subprocess.Popen[str]]) -> None:
    guide, process = training
    body = {"queries": [FERRY], "topk": 1}
    answer = httpx2.post(f"http://127.0.0.1:{guide.port}/retrieve", json=body).json()
    assert answer["result"][0][0]["id"] == "doc10"
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, stderr) == (130, "")
    assert stdout.endswith("cancelled\n")
    assert guide.processes() == {}
    assert (guide.folder / RUN / "STATUS").read_text() == "cancelled\n"
    assert not (guide.folder / RUN / "final").exists()


def test_after_ctrl_c_a_slow_retriever_is_waited_for(
    training: tuple[Guide, subprocess.Popen[str]],
) -> None:
    guide, process = training
    guide.signal_retriever(signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    guide.until(lambda: guide.find("searchrl train") is None, process)
    time.sleep(0.3)
    assert process.poll() is None
    assert guide.find("start_retriever.sh") is not None
    guide.signal_retriever(signal.SIGCONT)
    process.communicate(timeout=_PATIENCE)
    assert process.returncode == 130
    assert guide.processes() == {}


def test_a_supervisor_that_ends_the_script_ends_everything(tmp_path: Path) -> None:
    guide = Guide(tmp_path / "qwen3-0.6b")
    process = guide.start("run.sh", *LONG)
    guide.until(lambda: guide.find("searchrl serve"), process)
    process.terminate()
    process.communicate(timeout=_PATIENCE)
    assert process.returncode == 143
    assert guide.processes() == {}


def test_a_retriever_that_dies_ends_the_training(
    training: tuple[Guide, subprocess.Popen[str]],
) -> None:
    guide, process = training
    guide.signal_retriever(signal.SIGKILL)
    _, stderr = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 75
    assert stderr == (
        "error: the retriever ended while training ran: see logs/retriever.log, "
        "then ./run.sh --resume\n"
    )
    assert guide.processes() == {}


def test_a_training_that_fails_ends_the_retriever(tmp_path: Path) -> None:
    guide = Guide(tmp_path / "qwen3-0.6b")
    process = guide.start("run.sh", "--set", "run.stepz=3")
    stdout, stderr = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 2
    assert "did you mean run.steps" in stdout + stderr
    assert guide.processes() == {}


def test_a_port_that_is_taken_is_named_by_both_scripts(tmp_path: Path) -> None:
    guide = Guide(tmp_path / "qwen3-0.6b")
    first = guide.start("start_retriever.sh")
    try:
        guide.until(lambda: "serving" in read_text(guide.folder / "logs/retriever.log"), first)
        for script in ("run.sh", "start_retriever.sh"):
            second = guide.start(script)
            _, stderr = second.communicate(timeout=_PATIENCE)
            assert second.returncode == 2
            assert f"error: port {guide.port} is taken" in stderr
            assert stderr.count("\n") == 1
        assert first.poll() is None
    finally:
        first.terminate()
        first.communicate(timeout=_PATIENCE)
    assert first.returncode == 0
    assert guide.processes() == {}


def read_text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


@pytest.fixture(scope="module")
def searching(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model with Qwen3's think mode, taught to search once and then to say "Gannet"."""
    tokenizer = thinking_tokenizer(tiny_tokenizer)
    model = small_qwen3(tokenizer, 4096)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    examples = [
        teach(tokenizer, question.text)
        for question in read_dataset(GUIDE / "data" / "sample_train.jsonl")
    ]
    for step in range(80):
        token_ids, labels = examples[step % len(examples)]
        model(input_ids=token_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(tokenizer: PreTrainedTokenizerFast, question: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One episode, and which of its tokens are the model's."""
    prompt = render_chat(tokenizer, [Message("user", search_r1_prompt(question, "full", 2))])
    found = '\n\n<information>Doc 1(Title: "A") It sails there.\n</information>\n\n'
    parts = [
        (prompt, False),
        (encode_text(tokenizer, f"<think>ask</think>{SEARCH}"), True),
        (encode_text(tokenizer, found), False),
        (encode_text(tokenizer, f"<think>now</think>{ANSWER}"), True),
    ]
    token_ids = [token for part, _ in parts for token in part]
    labels = [token if own else -100 for part, own in parts for token in part]
    return torch.tensor([token_ids]), torch.tensor([labels])


def test_the_guides_recipe_with_a_model_of_ones_own_and_a_reranker(
    searching: Path, tmp_path: Path
) -> None:
    reader = write_encoder(tmp_path / "reader", labels=1)
    guide = Guide(tmp_path / "qwen3-0.6b", MODEL=str(searching), DEVICE="cpu", RUN_NAME="mine")
    # Nearly greedy, so that the model does as it was taught.
    small = ("run.steps=1", "rollout.group_size=2", "rollout.temperature=0.05")
    short = [part for value in small for part in ("--set", value)]
    guide.good("run.sh", *short, "--rerank", str(reader))
    run = Path("checkpoints/mine")
    config = json.loads((guide.folder / run / "config.json").read_text())
    assert config["rerank"]["model"] == str(reader)
    assert config["learning"]["learning_rate"] == 5e-6
    [metrics] = guide.rows(run / "metrics.jsonl")
    assert metrics["episodes/searches"] == 1
    assert metrics["reward/answered"] == 1
    episodes = guide.rows(run / "episodes" / "step_000001.jsonl")
    assert len(episodes) == 16
    for episode in episodes:
        said = [part["text"] for part in episode["segments"] if part["origin"] == "model"]
        assert all(text.count("<think>") == 1 for text in said)
        assert [text.partition("</think>")[2] for text in said] == [SEARCH, ANSWER]
        assert len(episode["turns"][0]["hits"]) == 3
        assert episode["answer"] == "Gannet"
    model = ("--model_path", str(guide.folder / run / "final"))
    shown = guide.good("infer.py", *model, "--prompt", FERRY, "--device", "cpu")
    assert shown.startswith(f"{FERRY}\n\nsearch 1  Tolm Island\n    1. ")
    assert "Gannet  (search ended: finished)" in shown
