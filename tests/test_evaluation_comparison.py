"""Comparisons: what they write, and that a killed one goes on as if it had not been killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from searchrl.agents.agent import Draw
from searchrl.agents.context import DirectAgent, RagAgent
from searchrl.agents.episode import Episode
from searchrl.data.locks import hold
from searchrl.data.questions import Question
from searchrl.errors import InputError, IntegrityError
from searchrl.evaluation import runner
from searchrl.evaluation.comparison import Entrant, compare
from searchrl.evaluation.table import MethodSummary
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe
from searchrl.retrieval.protocol import Hit
from tests.fakes import FailingRetriever, passages

QUESTIONS = tuple(Question(f"q{n}", f"Question {n}?", (f"answer {n}",)) for n in range(5))
Row = dict[str, Any]


class EchoGenerator:
    """Says "answer N" for question N."""

    fingerprint = "echo"

    async def answer(self, question: str, context: tuple[Hit, ...]) -> str:
        await asyncio.sleep(0)
        return f"answer {question[9]}"

    def context_tokens(self, context: tuple[Hit, ...]) -> int:
        return 10 * len(context)


class KilledError(BaseException):
    """Ends the program where it stands, as a signal does."""


class Recorder(DirectAgent):
    """Answers "wrong" to odd questions, counts what it is asked, and is killed at one of them."""

    def __init__(self, killed_at: str | None = None) -> None:
        self.asked: list[str] = []
        self._killed_at = killed_at

    async def run(self, question: Question, draw: Draw) -> Episode:
        if question.id == self._killed_at:
            raise KilledError
        self.asked.append(question.id)
        await asyncio.sleep(0)
        answer = "wrong" if int(question.id[1]) % 2 else None
        return Episode(question, self.name, answer=answer)


def experiment(questions: Sequence[Question] = QUESTIONS, count: int = 5) -> Experiment:
    """What a comparison reads of an experiment."""
    recipe = Recipe.model_validate(
        {
            "name": "fake",
            "data": {
                name: {"kind": "synthwiki", "seed": seed}
                for seed, name in enumerate(("train", "test"))
            },
            "searcher": {"model": "a-searcher"},
            "generator": {"model": "a-generator"},
            "evaluation": {"questions": count},
        }
    )
    held_out = (SimpleNamespace(questions=tuple(questions)[:count]),)
    fake = SimpleNamespace(recipe=recipe, held_out=held_out, generator=EchoGenerator(), judge=None)
    return cast(Experiment, fake)


@contextlib.contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    yield lambda done, note: None


def entrant(agent: Any, name: str = "mine", **settings: Any) -> Entrant:
    return Entrant(name, lambda split: agent, settings)


def run(
    out: Path, *entrants: Entrant, over: Experiment | None = None, restart: bool = False
) -> Sequence[MethodSummary]:
    return compare(over or experiment(), entrants, out, silent, restart=restart).average


def rows(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def timeless(value: Any) -> Any:
    """Without what the clock decides."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def results(out: Path) -> Any:
    return timeless(json.loads((out / "results.json").read_text()))


def test_a_comparison_writes_table_settings_and_episodes(tmp_path: Path) -> None:
    opened: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        opened.append((label, total))
        yield lambda done, note: None

    failing = RagAgent(FailingRetriever(passages(30), fail_from=2), k=2)
    entrants = [entrant(failing, "rag"), entrant(DirectAgent(), "direct")]
    comparison = compare(experiment(count=3), entrants, tmp_path, progress)
    assert [summary.method for summary in comparison.average] == ["rag", "direct"]
    assert opened == [("evaluating rag", 3), ("evaluating direct", 3)]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["methods"]["rag"]["n"] == 2
    assert found["methods"]["rag"]["failed"] == 1
    assert found["methods"]["direct"]["vs_rag"]["n"] == 2
    settings = found["settings"]
    assert settings.pop("recipe")["evaluation"]["questions"] == 3
    assert settings == {
        "decoding": "greedy",
        "searcher": "a-searcher",
        "generator": "echo",
        "judge": None,
    }
    assert "| direct |" in (tmp_path / "results.md").read_text()
    episodes = rows(tmp_path)
    assert len(episodes) == 6
    assert episodes[0]["score"]["accuracy"] == 1
    assert episodes[2]["score"] is None
    assert episodes[2]["error"] == "retriever at example:2 did not answer"


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("torn", [None, 1, 40])
def test_a_killed_comparison_goes_on_where_it_stopped(
    place: int, torn: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_CHUNK", 1)
    run(tmp_path / "whole", entrant(Recorder()), entrant(DirectAgent(), "direct"))
    out = tmp_path / "killed"
    first, second = Recorder(killed_at=f"q{place}"), Recorder()
    with pytest.raises(KilledError):
        run(out, entrant(first), entrant(DirectAgent(), "direct"))
    if torn is not None and place:
        # The kill came while the last line was being written.
        file = out / "episodes.jsonl"
        file.write_bytes(file.read_bytes()[:-torn])
        first.asked.pop()
    run(out, entrant(second), entrant(DirectAgent(), "direct"))
    assert first.asked + second.asked == [question.id for question in QUESTIONS]
    assert timeless(rows(out)) == timeless(rows(tmp_path / "whole"))
    assert results(out) == results(tmp_path / "whole")


def test_what_is_finished_is_not_opened_again_and_more_can_be_asked_for(tmp_path: Path) -> None:
    run(tmp_path, entrant(Recorder()), over=experiment(count=3))

    def unwanted(split: Any) -> Any:
        raise AssertionError("opened")

    more = Recorder()
    run(tmp_path, Entrant("mine", unwanted, {}), entrant(more, "other"), over=experiment(count=3))
    assert more.asked == ["q0", "q1", "q2"]
    again = Recorder()
    run(tmp_path, entrant(again))
    assert again.asked == ["q3", "q4"]
    # Fewer questions, another method left out: their episodes stay, last.
    run(tmp_path, Entrant("mine", unwanted, {}), over=experiment(count=2))
    kept = [(row["method"], row["id"]) for row in rows(tmp_path)]
    assert kept[:2] == [("mine", "q0"), ("mine", "q1")]
    assert sorted(kept[2:]) == [("mine", f"q{n}") for n in (2, 3, 4)] + [
        ("other", f"q{n}") for n in range(3)
    ]


def test_a_failed_episode_and_a_changed_question_are_owed(tmp_path: Path) -> None:
    failing = RagAgent(FailingRetriever(passages(30), fail_from=3), k=2)
    assert run(tmp_path, entrant(failing))[0].failed == 2
    again = Recorder()
    changed = (replace(QUESTIONS[0], answers=("other",)), *QUESTIONS[1:])
    assert run(tmp_path, entrant(again), over=experiment(changed))[0].failed == 0
    assert again.asked == ["q0", "q3", "q4"]
    assert [row["id"] for row in rows(tmp_path)] == [q.id for q in QUESTIONS]


def test_another_setting_is_refused_by_name_unless_it_begins_anew(tmp_path: Path) -> None:
    run(tmp_path, entrant(Recorder(), depth={"k": 3}), entrant(Recorder(), "other"))
    before = (tmp_path / "episodes.jsonl").read_bytes()
    with pytest.raises(InputError) as caught:
        run(tmp_path, entrant(Recorder(), depth={"k": 5}))
    assert str(caught.value) == (
        f"{tmp_path / 'evaluation.json'}: mine was evaluated with another depth.k "
        "(3 there, 5 now); add --restart to begin anew or choose another --out"
    )
    assert (tmp_path / "episodes.jsonl").read_bytes() == before
    anew = Recorder()
    run(tmp_path, entrant(anew, depth={"k": 5}), restart=True)
    assert len(anew.asked) == 5
    assert [row["method"] for row in rows(tmp_path)] == ["mine"] * 5 + ["other"] * 5
    with pytest.raises(InputError, match=r"mine was evaluated with another depth.k \(5 there"):
        run(tmp_path, entrant(Recorder(), depth={"k": 3}))


def test_a_restart_that_is_killed_does_not_bring_the_old_episodes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_CHUNK", 1)
    run(tmp_path, entrant(Recorder()))
    with pytest.raises(KilledError):
        run(tmp_path, entrant(Recorder(killed_at="q0")), restart=True)
    again = Recorder()
    run(tmp_path, entrant(again))
    assert len(again.asked) == 5


@pytest.mark.parametrize("line", [b"{}", b"[]", b"not json", b'{"id": "q0", "method": "mine"}'])
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    run(tmp_path, entrant(Recorder()))
    file = tmp_path / "episodes.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], line, *lines[2:], b""]))
    with pytest.raises(IntegrityError, match=r"episodes.jsonl:3: damaged; remove the line"):
        run(tmp_path, entrant(Recorder()))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run(tmp_path, entrant(Recorder()))
    (tmp_path / "evaluation.json").write_text('{"methods": 3}')
    with pytest.raises(IntegrityError, match=r"evaluation.json: damaged"):
        run(tmp_path, entrant(Recorder()))


def test_two_comparisons_do_not_write_one_directory(tmp_path: Path) -> None:
    with (
        hold(tmp_path, ".evaluation.lock", "evaluating there"),
        pytest.raises(InputError, match=r"process \d+ on .* is evaluating there"),
    ):
        run(tmp_path, entrant(Recorder()))
