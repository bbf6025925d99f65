r"""Samples learned from in a CPU second: this project's engine, its peers, and a plain loop.

    python -m benchmarks.training.peers --work short --peers ours,trl,plain --repeats 3

Every engine does the same work (``work``) from the same checkpoint of random weights, in a process
of its own, under an interpreter of its own, on one thread; engines take turns, one run each a
repeat, and each repeat has a seed of its own. Cost is CPU seconds of all the engine's processes;
start-up and the steps of warm-up are told apart. A comparison whose token counts differ by more
than 3 % is refused. TRL and verl live in environments of their own, ``make .venv-trl/ready`` and
``make .venv-verl/ready``; one that is not there is a row that says so. On a GPU:

    python -m benchmarks.training.peers --work rag --passage 1000 --passages 1 --throughput \
        --device cuda --dtype bfloat16 --model qwen3-0.6b-config --peers ours,trl,trl-ours
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.training.engines.order import Order
from benchmarks.training.measured import Program, Run, versions
from benchmarks.training.random_model import SIZES, write_model
from benchmarks.training.throughput import throughput_table
from benchmarks.training.work import WORKS, Counts, Work, counts_of, digest_of, step_of
from searchrl.errors import InputError, SearchRLError

TOLERANCE = 0.03
"""How far token counts may be from the work's own."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One row: an engine, what it needs, and its settings."""

    module: str
    packages: tuple[str, ...] = ("torch", "transformers")
    settings: Mapping[str, Any] = field(default_factory=dict)
    algorithms: tuple[str, ...] = ("grpo", "ppo")


_TRL = Peer("trl", ("trl", "torch", "transformers"), algorithms=("grpo",))
_VERL = Peer("verl", ("verl", "ray", "torch", "transformers"))
PEERS = {
    "ours": Peer("ours"),
    "ours-eager": Peer("ours", settings={"decoding": "eager"}),
    "ours-compiled": Peer("ours", settings={"decoding": "compiled"}),
    "plain": Peer("ours", settings={"plain": True}),
    "trl": _TRL,
    "trl-ours": replace(_TRL, settings={"rollout": "ours"}),
    "trl-batching": replace(_TRL, settings={"continuous_batching": True}),
    "verl": _VERL,
    "verl-tuned": replace(_VERL, settings={"tuned": True}),
}
"""``ours-eager`` and ``ours-compiled`` decode as they say; ``ours`` is eager on a CPU and replays
CUDA graphs on a GPU. ``trl-ours`` and verl sample with this project's engine and learn with their
own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, check that they did the same, and print the table."""
    options = _parser().parse_args(arguments)
    # So that what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    try:
        work = replace(WORKS[options.work], **_sizes(options))
        peers = _chosen(options.peers)
        with tempfile.TemporaryDirectory() as folder:
            print(compare(options, work, peers, Path(folder)))
    except SearchRLError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", choices=WORKS, default="short")
    parser.add_argument("--peers", default="ours,trl,plain", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--model", choices=SIZES, default="1m", help="random weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat")
    parser.add_argument("--steps", type=int, default=3, help="measured ones of a run")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--throughput", action="store_true", help="tokens a second as well")
    parser.add_argument("--core", type=int, help="the processor that every engine stays on")
    parser.add_argument("--trl-python", type=Path, default=Path(".venv-trl/bin/python"))
    parser.add_argument("--verl-python", type=Path, default=Path(".venv-verl/bin/python"))
    parser.add_argument("--set", action="append", default=[], metavar="PEER.SETTING=JSON")
    parser.add_argument("--json", type=Path, help="where all runs are written")
    for name in ("questions", "group", "passages", "passage", "instructions"):
        parser.add_argument(f"--{name}", type=int, help="of the work, in place of its own")
    return parser


def _sizes(options: argparse.Namespace) -> dict[str, int]:
    names = ("questions", "group", "passages", "passage", "instructions")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _chosen(names: str) -> dict[str, Peer]:
    chosen = names.split(",")
    for name in chosen:
        if name not in PEERS:
            raise InputError(f"--peers: {name!r} is none of {', '.join(PEERS)}")
    return {name: PEERS[name] for name in chosen}


def compare(
    options: argparse.Namespace, work: Work, peers: Mapping[str, Peer], folder: Path
) -> str:
    """Run the peers in turn; returns the tables.

    Raises:
        SearchRLError: an engine failed, or did other work than it was asked.
    """
    weights = write_model(options.model, 0, options.dtype, folder / "model")
    programs: dict[str, Program] = {}
    missing: dict[str, str] = {}
    for name, peer in peers.items():
        found = _program(peer, options, work)
        if isinstance(found, str):
            missing[name] = found
        else:
            programs[name] = found
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for seed in range(options.seed, options.seed + options.repeats):
        for name, program in programs.items():
            run = program.run(
                _order(options, work, name, seed, folder / "model"),
                options.warm_up,
                folder / f"{name}-{seed}",
                options.core,
            )
            check(name, run.counts, _expected(options, work, seed))
            runs[name].append(run)
            print(f"{name}, seed {seed}: {run.samples_per_cpu:.2f} / CPU s", file=sys.stderr)
    if options.json is not None:
        rows = {name: [asdict(run) for run in found] for name, found in runs.items()}
        options.json.write_text(json.dumps(rows))
    lines = [_heading(options, work, weights), "", *_table(runs, missing)]
    if options.throughput:
        one_process = {name: runs[name] for name in runs if PEERS[name].module != "verl"}
        lines += ["", throughput_table(one_process, weights, options.device, options.dtype)]
    return "\n".join(lines)


def _program(peer: Peer, options: argparse.Namespace, work: Work) -> Program | str:
    """The peer's program, or why it is left out."""
    if work.algorithm not in peer.algorithms:
        return f"has no {work.algorithm.upper()}"
    pythons = {"trl": options.trl_python, "verl": options.verl_python}
    # Made absolute without following links: a link is what tells an environment from its base.
    python = Path(pythons.get(peer.module, sys.executable)).absolute()
    found = versions(python, peer.packages)
    if found is None:
        return "not installed"
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    print(f"{peer.module}: {told}", file=sys.stderr)
    return Program(peer.module, python)


def _order(options: argparse.Namespace, work: Work, name: str, seed: int, model: Path) -> Order:
    settings = dict(PEERS[name].settings)
    for given in options.set:
        place, _, value = given.partition("=")
        peer, _, setting = place.partition(".")
        if peer == name:
            settings[setting] = json.loads(value)
    return Order(
        work=work,
        model=str(model),
        steps=options.warm_up + options.steps,
        seed=seed,
        learning_rate=options.learning_rate,
        device=options.device,
        dtype=options.dtype,
        settings=settings,
    )


def _expected(options: argparse.Namespace, work: Work, seed: int) -> Counts:
    steps = range(options.warm_up, options.warm_up + options.steps)
    return counts_of([script for step in steps for script in step_of(work, seed, step)])


def check(name: str, found: Counts, asked: Counts) -> None:
    """See that an engine did what it was asked to.

    Raises:
        SearchRLError: more or less, by more than may be.
    """
    for part in ("samples", "prompt", "told", "said"):
        did, wanted = getattr(found, part), getattr(asked, part)
        if abs(did - wanted) > TOLERANCE * wanted:
            raise SearchRLError(
                f"{name} did other work: {did:,} {part} in place of {wanted:,}; "
                f"within {TOLERANCE:.0%} the engines can be compared"
            )


def _heading(options: argparse.Namespace, work: Work, weights: int) -> str:
    counts = counts_of(step_of(work, 0, 0))
    return (
        f"{options.work}: {work.algorithm.upper()}, {work.questions} questions x {work.group}, "
        f"{weights / 1e6:.2f} M weights, a step of {counts.prompt:,} prompt, {counts.told:,} told "
        f"and {counts.said:,} sampled tokens (work {digest_of(step_of(work, 0, 0))}); "
        f"{options.repeats} runs of {options.steps} steps after {options.warm_up}"
    )


def _table(runs: Mapping[str, Sequence[Run]], missing: Mapping[str, str]) -> list[str]:
    lines = [
        "| engine | rollout, CPU s | update, CPU s | samples / CPU s | range | ours is "
        "| samples / s | start-up, s | its CPU s | peak MiB | last reward |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    ours = [run.samples_per_cpu for run in runs.get("ours", ())]
    for name, found in runs.items():
        speeds = [run.samples_per_cpu for run in found]
        ratio = f"{_median(ours) / _median(speeds):.2f} x" if ours else "-"
        wall = _median([run.counts.samples / run.measured.wall for run in found])
        cells = [
            name,
            _seconds([run.share("rollout") for run in found]),
            _seconds([run.share("update") for run in found]),
            f"{_median(speeds):.1f}",
            f"{min(speeds):.1f}-{max(speeds):.1f}",
            ratio,
            f"{wall:.1f}",
            f"{_median([run.start_up.wall for run in found]):.1f}",
            f"{_median([run.start_up.cpu for run in found]):.1f}",
            f"{_median([run.peak for run in found]) / 2**20:,.0f}",
            f"{statistics.mean(run.done[-1].reward for run in found):.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | {reason} |" + " |" * 9 for name, reason in missing.items()]
    return lines


def _seconds(values: Sequence[float]) -> str:
    return f"{_median(values):.2f}" if any(values) else "-"


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
