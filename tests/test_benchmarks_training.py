"""The work that engines are compared on, and what it takes for a comparison to stand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.training import peers
from benchmarks.training.engines.order import Order
from benchmarks.training.process_tree import cpu_seconds, peak_bytes
from benchmarks.training.stopwatch import Stopwatch
from benchmarks.training.work import (
    WORKS,
    Counts,
    Work,
    counts_of,
    digest_of,
    reward_of,
    script_of,
    step_of,
)
from searchrl.errors import InputError, SearchRLError

RAG = replace(WORKS["rag"], questions=4)


def test_the_work_is_a_function_of_its_numbers_and_the_seed() -> None:
    assert step_of(RAG, 3, 1) == step_of(RAG, 3, 1)
    digests = {digest_of(step_of(RAG, seed, step)) for seed in (0, 1) for step in (0, 1)}
    assert len(digests) == 4
    scripts = step_of(RAG, 0, 1)
    assert scripts[9] == script_of(RAG, 0, RAG.questions + 1, 1)


def test_episodes_are_of_the_lengths_that_were_asked_for() -> None:
    scripts = step_of(RAG, 0, 0)
    assert len(scripts) == RAG.questions * RAG.group
    assert {len(script.outputs) - 1 for script in scripts} == {2, 3}
    whole = [len(s.prompt) + sum(o.length + len(o.told) for o in s.outputs) for s in scripts]
    assert max(whole) <= RAG.longest
    told = [len(output.told) for script in scripts for output in script.outputs[:-1]]
    assert sum(told) / len(told) == pytest.approx(3 * 110, rel=0.03)
    # All prompts open alike, a group's are one, and nothing that is told is shared.
    prompts = {script.prompt for script in scripts}
    assert len(prompts) == RAG.questions
    assert len({prompt[: RAG.instructions] for prompt in prompts}) == 1
    assert len({output.told for s in scripts for output in s.outputs if output.told}) == len(told)


def test_counts_are_sums_over_the_scripts() -> None:
    work = Work("grpo", questions=1, group=2, fewest_searches=0, most_searches=0, answer=5)
    scripts = step_of(work, 0, 0)
    assert counts_of(scripts) == Counts(2, 2 * len(scripts[0].prompt), 0, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 0}, "group has to be 1 or more"),
        ({"fewest_searches": 3, "most_searches": 2}, "from the fewest"),
    ],
)
def test_work_that_cannot_be_done_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(RAG, **changes)


def test_rewards_are_shares_of_even_tokens() -> None:
    assert reward_of([1, 2, 4, 7]) == 0.5


def test_an_order_is_read_as_it_was_written(tmp_path: Path) -> None:
    order = Order(RAG, "model", 2, 5, 1e-4, settings={"micro_batch": 8})
    order.write(tmp_path / "order.json")
    assert Order.read(tmp_path / "order.json") == order
    assert order.setting("micro_batch", 32) == 8
    assert order.setting("rollout", "own") == "own"


@pytest.mark.parametrize("part", ["samples", "prompt", "told", "said"])
def test_a_comparison_of_unequal_work_is_refused(part: str) -> None:
    asked = Counts(100, 1000, 500, 200)
    near, far = (
        replace(asked, **{part: round(getattr(asked, part) * factor)}) for factor in (1.02, 1.05)
    )
    peers.check("trl", near, asked)
    with pytest.raises(SearchRLError, match=f"trl did other work.*{part}"):
        peers.check("trl", far, asked)


def test_peers_that_are_missing_or_cannot_are_rows_that_say_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "python")
    common = ["--model", "nano", "--trl-python", nowhere, "--verl-python", nowhere]
    peers.main(["--work", "ppo", "--peers", "trl,verl", *common])
    printed = capsys.readouterr().out
    assert "| trl | has no PPO |" in printed
    assert "| verl | not installed |" in printed


def test_an_unknown_peer_ends_with_one_line() -> None:
    with pytest.raises(SystemExit, match="error: --peers: 'slime' is none of ours"):
        peers.main(["--peers", "ours,slime"])


def test_time_is_charged_to_what_was_opened_last() -> None:
    watch = Stopwatch("rest")
    with watch.on("outer"):
        _spin(0.03)
        with watch.on("inner"):
            _spin(0.06)
    found = watch.stop()
    assert found["inner"] >= 0.06
    assert found["outer"] >= 0.03
    assert found["outer"] < found["inner"]


def test_a_process_is_charged_with_what_it_started() -> None:
    program = (
        "import subprocess, sys, time\n"
        "spin = 'import time\\nwhile time.process_time() < 0.3: pass'\n"
        "subprocess.run([sys.executable, '-S', '-c', spin])\n"
        "print(flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # Linux rounds each of the four clocks (user and system, own and children's) down to a tick.
        assert cpu_seconds(process.pid) >= 0.3 - 4 / os.sysconf("SC_CLK_TCK")
        assert peak_bytes(process.pid) > 1 << 20
        process.communicate(b"\n")
    assert cpu_seconds(os.getpid()) >= time.process_time() - 0.05


def _spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.mark.pipeline
def test_engines_do_the_work_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", "nano", "--questions", "2", "--group", "2", "--repeats", "1"]
    peers.main(["--peers", "ours,plain", *small, "--steps", "1", "--throughput"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "| " in line]
    speeds = {row[0].strip("| "): row[3] for row in rows if len(row) == 11}
    assert float(speeds["ours"]) > 0
    assert float(speeds["plain"]) > 0
    # The same seeds and the same distribution: the same tokens, so the same reward.
    rewards = [row[-1] for row in rows if row[0] in ("| ours", "| plain") and len(row) == 11]
    assert rewards[0] == rewards[1]
