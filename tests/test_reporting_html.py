"""The report: hostile text, missing parts, wrong forms, figures as files."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Reward, Segment, Turn
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.errors import InputError
from searchrl.reporting.figure import write_bar_svg, write_curves_svg
from searchrl.reporting.html import EPISODES_SHOWN, write_report
from searchrl.reporting.methods import headline, main_method, read_methods
from searchrl.reporting.text import MAX_CHARACTERS, snippet
from searchrl.retrieval.protocol import Hit

SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "link", "br", "hr", "img", "input", "base"}

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</pre></details><iframe src=javascript:alert(1)>",
    "</svg><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "<a href='javascript:alert(1)'>x</a>",
    "<!-- --><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "{{ 7 * 7 }}{% raw %}",
    "{0.__class__}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example/>",
    "<form action=https://evil.example><button>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<details open ontoggle=alert(1)>",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "<scr\x1b[0mipt>alert(1)</script>",
    "\x1b[2J\x1b]0;title\x07<b>",
    "\u202egnp.exe<i>",
    "\ud800<u>",
]


class Page(HTMLParser):
    """Collects tags, attributes and text, and notes tags that do not balance."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def _hits(*titles: str) -> tuple[Hit, ...]:
    return tuple(
        Hit(Passage(f"id-{t}", t, f"Text of {t}."), 9.5 - at) for at, t in enumerate(titles)
    )


def _episode(number_of: int = 0) -> Episode:
    episode = Episode(
        question=Question(
            f"q{number_of}", "Where was Ada born?", ("London",), gold_ids=("id-Ada",)
        ),
        method="s3",
        context=_hits("Ada"),
        answer="London",
        reward=Reward(1.0, {"gain_beyond_rag": 1.0}),
        seconds=1.5,
    )
    episode.initial = Turn(
        Action(ActionKind.SEARCH, query="Where was Ada born?"), _hits("Bob", "Cy"), ()
    )
    episode.turns = [
        Turn(Action(ActionKind.SEARCH, query="Ada birthplace"), _hits("Ada", "Dan"), (0,)),
        Turn(Action(ActionKind.FINISH)),
    ]
    episode.segments = [
        Segment("prompt", (1, 2, 3), "Question: Where was Ada born?"),
        Segment("model", (4, 5), "<query>Ada birthplace</query>", (-0.1, -0.2)),
        Segment("environment", (6,), "<information>Ada</information>"),
    ]
    return episode


def _method(accuracy: float, **more: Any) -> dict[str, Any]:
    row = {"accuracy": accuracy, "ci95": [max(0.0, accuracy - 0.03), min(1.0, accuracy + 0.03)]}
    return {**row, "n": 500, **more}


def _summary() -> dict[str, Any]:
    versus = {"difference": 0.67, "ci95": [0.62, 0.71], "p_value": 1e-9, "n": 500}
    searches = {"mean": 2.08, "ci95": [2.0, 2.16]}
    return {
        "methods": {
            "direct": _method(0.04),
            "rag": _method(0.17),
            "s3-untrained": _method(0.21),
            "s3": _method(0.84, vs_rag=versus, searches=searches, failed=3),
            "oracle": _method(0.96),
        }
    }


def _metrics(steps: int = 30) -> list[dict[str, Any]]:
    return [
        {"step": step, "reward_mean": step / steps, "kl": 0.01 * step, "grad_norm": None}
        for step in range(1, steps + 1)
    ]


def _write(path: Path, **changes: Any) -> str:
    given_parts: dict[str, Any] = {
        "title": "demo, seed 7",
        "facts": {"Recipe": "tiny.toml"},
        "metrics": _metrics(),
        "summary": _summary(),
        "episodes": [_episode().to_row()],
    }
    write_report(path, **{**given_parts, **changes})
    return path.read_text(encoding="utf-8")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def _replace_strings(value: Any, payload: str) -> Any:
    """Put the payload into every text of a row."""
    if isinstance(value, str):
        return payload
    if isinstance(value, list):
        return [_replace_strings(item, payload) for item in value]
    if isinstance(value, dict):
        return {key: _replace_strings(item, payload) for key, item in value.items()}
    return value


def _hostile_parts(payload: str) -> dict[str, Any]:
    row = _replace_strings(_episode().to_row(), payload)
    row["reward"]["parts"] = {payload: 1.0}
    row["error"] = payload
    methods = {"methods": {payload: _method(0.5), "rag": _method(0.1)}}
    summary = {**methods, "datasets": {payload: methods}}
    return {
        "title": payload,
        "facts": {payload: payload},
        "metrics": [{"step": 1, payload: 0.5}, {"step": 2, payload: 0.7}],
        "summary": summary,
        "episodes": [row],
    }


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_in_every_field_changes_no_tag(target: Path, payload: str) -> None:
    plain = Page(_write(target, **_hostile_parts("harmless")))
    source = _write(target, **_hostile_parts(payload))
    page = Page(source)
    assert page.faults == []
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in page.tags] == [set(a) for _, a in plain.tags]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", source)
    visible = snippet(payload, 10**6)
    assert page.words.count(" ".join(visible.split())) >= 15


def test_page_balances_and_refers_to_nothing_outside(target: Path) -> None:
    source = _write(target)
    page = Page(source)
    assert page.faults == []
    assert "://" not in source
    assert not re.search(r"url\(|@import|<script|javascript:", source)
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "data", "style"}
    assert not [name for name in names if name.startswith("on")]
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_result_stands_first(target: Path) -> None:
    source = _write(target)
    sentence = "s3 after training answers 84 % of 500 held-out questions; naive RAG 17 %."
    assert source.index(sentence.replace(" %", f"{SPACE}%")) < source.index("<svg")
    assert source.index("<svg") < source.index("tiny.toml") < source.index("<main>")
    assert "+67.0 points over naive RAG" in source
    assert f"p{SPACE}&lt;{SPACE}0.001" in source


def test_every_dataset_has_a_table_of_its_own(target: Path) -> None:
    datasets = {"nq": {"methods": {"rag": _method(0.3)}}, "hotpotqa": {"methods": {}}}
    page = Page(_write(target, summary={**_summary(), "datasets": datasets}))
    assert page.faults == []
    tables = [
        attributes["aria-labelledby"] for _, attributes in page.tags if "tabindex" in attributes
    ]
    assert tables == ["methods", "dataset-1", "dataset-2"]
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "h3" and "id" in attributes]
    assert ids == ["dataset-1", "dataset-2"]
    assert "nq Method Questions Accuracy, % Failed naive RAG 500 30.0" in page.words
    assert "means of the datasets' means" in page.words
    assert "datasets" not in Page(_write(target)).words


def test_headings_descend_by_one_level_and_tables_name_their_headers(target: Path) -> None:
    page = Page(_write(target))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    headers = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert set(headers) == {"col", "row"}
    assert headers.count("row") == 5
    for landmark in ("header", "main", "footer"):
        assert page.count(landmark) == 1
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_episode_is_readable_turn_by_turn(target: Path) -> None:
    source = _write(target)
    words = Page(source).words
    order = [
        "Where was Ada born?",
        "London",
        "Retrieval before the first turn",
        "1. Bob",
        "2. Cy",
        "Search 1",
        "Ada birthplace",
        "1. Ada ✓ selected ★ gold Text of Ada.",
        "2. Dan Text of Dan.",
        "Finished",
        "Context handed to the generator",
        "1. Ada ★ gold",
        "Gain beyond RAG 1",
        "prompt, 3 tokens",
        "model, 2 tokens <query>Ada birthplace</query>",
        "environment, 1 tokens",
    ]
    place = words.index("Episodes")
    for part in order:
        place = words.index(part, place)
    for origin in ("prompt", "model", "environment"):
        assert f'<div class="segment {origin}">' in source


def test_failed_episode_says_why(target: Path) -> None:
    episode = _episode()
    episode.end, episode.reward = EndReason.INFRASTRUCTURE, Reward(None)
    episode.error, episode.answer, episode.initial = "retriever did not answer", None, None
    words = Page(_write(target, episodes=[episode.to_row()])).words
    assert "reward none · infrastructure failed" in words
    assert "retriever did not answer" in words
    assert "Answer given none" in words


def test_report_without_any_part_still_says_something(target: Path) -> None:
    page = Page(_write(target, facts={}, metrics=[], summary=None, episodes=[]))
    assert page.faults == []
    assert "No evaluation yet; 0 training steps recorded." in page.words
    assert (page.count("svg"), page.count("table"), page.count("details")) == (0, 0, 0)
    empty_summary = Page(_write(target, summary={"methods": {}}))
    assert "No evaluation yet; 30 training steps recorded." in empty_summary.words


def test_method_without_a_score_is_in_the_table_and_not_in_the_chart(target: Path) -> None:
    summary = _summary()
    summary["methods"]["ircot"] = {"accuracy": None, "ci95": [None, None], "n": 0, "failed": 500}
    source = _write(target, summary=summary)
    assert '<th scope="row">ircot</th>' in source
    assert "ircot" not in source[: source.index("<main>")]


def test_only_ten_episodes_are_shown_and_the_rest_counted(target: Path) -> None:
    rows = [_episode(at).to_row() for at in range(1234)]
    page = Page(_write(target, episodes=rows))
    assert sum(a.get("class") == "episode" for _, a in page.tags) == EPISODES_SHOWN == 10
    assert "10 of 1,234 episodes." in page.words


def test_long_texts_are_cut_with_a_note_and_the_page_stays_small(target: Path) -> None:
    rows = [_episode(at).to_row() for at in range(10)]
    for row in rows:
        for segment in row["segments"]:
            segment["text"] = "x" * 100_000
    metrics = [{"step": s, **{f"metric_{m}": s * m for m in range(20)}} for s in range(5000)]
    source = _write(target, episodes=rows, metrics=metrics)
    assert len(source.encode()) < 1_900_000
    assert source.count("80,000 more characters not shown]") == 30
    assert max(len(run) for run in re.findall("x+", source)) == MAX_CHARACTERS
    assert "11 more metrics" in source


def test_metrics_that_are_not_numbers_are_skipped(target: Path) -> None:
    metrics = [{"step": 1, "note": "text", "flag": True, "loss": math.nan, "kl": None, "f1": 0.25}]
    page = Page(_write(target, metrics=metrics))
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"][2:]
    assert labels == ["F1: 0.25 at step 1, 0.25 at step 1, lowest 0.25, highest 0.25"]


def test_important_curves_come_first_and_can_be_hovered(target: Path) -> None:
    metrics = [{"step": s, "zeta": s, "kl": s, "entropy": s, "reward/mean": s} for s in (1, 2, 3)]
    page = Page(_write(target, metrics=metrics))
    labels = [str(a["aria-label"]).split(":")[0] for tag, a in page.tags if tag == "svg"][2:]
    assert labels == ["Reward mean", "KL", "Entropy", "Zeta"]
    assert "step 2: 2" in page.words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"summary": {}}, 'field "methods" is missing'),
        ({"summary": {"methods": {"s3": {"accuracy": 0.5}}}}, "method 's3' needs"),
        ({"summary": {"methods": {"s3": 0.5}}}, "method 's3' needs"),
        ({"summary": {**_summary(), "datasets": ["nq"]}}, '"datasets" is no table'),
        ({"summary": {**_summary(), "datasets": {"nq": 1}}}, "dataset 'nq' is no table"),
        ({"summary": {**_summary(), "datasets": {"nq": {}}}}, 'field "methods" is missing'),
        ({"summary": {"methods": {"s3": _method(0.5, em=0.5)}}}, "method 's3' needs"),
        ({"summary": {"methods": {"s3": _method(0.5, vs_rag={})}}}, "method 's3' needs"),
        ({"episodes": [{"question": "?"}]}, "episode 1: not a row of Episode.to_row"),
        ({"episodes": [{}]}, r"episode 1: .*'question'"),
    ],
)
def test_wrong_forms_are_refused_in_one_line_and_write_nothing(target, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        _write(target, **changes)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (["rag", "s3", "oracle"], "s3"),
        (["rag", "s3-untrained", "s3", "search_o1"], "s3"),
        (["rag", "oracle"], "rag"),
        (["oracle"], "oracle"),
    ],
)
def test_main_method_is_the_trained_one_then_the_best_proposal(names, main):
    accuracies = {"rag": 0.2, "oracle": 0.99, "s3": 0.5, "s3-untrained": 0.6, "search_o1": 0.7}
    methods = read_methods({"methods": {name: _method(accuracies[name]) for name in names}})
    chosen = main_method(methods)
    assert chosen is not None
    assert chosen.name == main


def test_headline_claims_neither_training_nor_rag_that_were_not_there():
    methods = read_methods({"methods": {"search_o1": _method(0.305)}})
    assert headline(methods) == f"search_o1 answers 30{SPACE}% of 500 questions."
    assert headline([]) is None


def test_figures_are_whole_files_with_both_colour_schemes(tmp_path: Path):
    write_bar_svg(tmp_path / "bars.svg", _summary())
    curves = {"seed <1>": [(0, 0.1), (10, 0.9)], "seed 2": [(0, 0.2), (10, 0.7)]}
    write_curves_svg(tmp_path / "curves.svg", curves, "step", "Reward & more")
    for name in ("bars.svg", "curves.svg"):
        source = (tmp_path / name).read_text(encoding="utf-8")
        assert ElementTree.fromstring(source).tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme:dark" in source
        assert source.replace("http://www.w3.org/2000/svg", "").count("://") == 0
        assert source.endswith("</svg>\n")
    assert "seed &lt;1&gt;" in source
    assert "Reward &amp; more" in source
    assert source.count("<polyline") == 2
