"""Commands over worlds, indexes and predictions: what they print, write and refuse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from searchrl.data.jsonl import write_jsonl
from tests.command_line import flip_byte, good, own_files, refused, tree

VECTORS = (
    Path(__file__).resolve().parents[1].parent
    / "shared"
    / "data"
    / "scores"
    / "answer_vectors_dev.jsonl.gz"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated world with its index in ``index``."""
    folder = tmp_path_factory.mktemp("world")
    good("synthwiki", "--out", folder, "--size", "200", "--questions", "20", "--seed", "5")
    good("index", "build", "--corpus", folder / "corpus.jsonl", "--out", folder / "index")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spoil(path: Path, number: int, text: str) -> None:
    rows = path.read_text().splitlines()
    rows[number - 1] = text
    path.write_text("\n".join(rows) + "\n")


def test_from_a_world_to_its_retrieval_scores(world: Path) -> None:
    index = world / "index"
    assert f"{index}: good" in good("index", "check", index).stdout
    question = lines(world / "questions.jsonl")[0]
    hits = good("search", "--index", index, "--k", "4", "--json", question["question"]).json
    assert len(hits) == 4
    assert all(set(hit) == {"id", "title", "text", "score"} for hit in hits)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert question["supporting_ids"][0] in [hit["id"] for hit in hits]
    means = good(
        "evaluate-retrieval", "--index", index, "--questions", world / "questions.jsonl",
        "--qrels", world / "qrels.tsv", "--json",
    ).json  # fmt: skip
    assert means["n"] == 20
    assert 0 < means["recall@5"] <= means["recall@10"] <= means["recall@100"] <= 1


def test_a_world_is_a_function_of_its_seed(world: Path, tmp_path: Path) -> None:
    good("synthwiki", "--out", tmp_path, "--size", "200", "--questions", "20", "--seed", "5")
    for name in ("corpus.jsonl", "questions.jsonl", "qrels.tsv"):
        assert (tmp_path / name).read_bytes() == (world / name).read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--seed", "10000", "seed 10000"), ("--seed", "-1", "seed -1"), ("--size", "99", "size 99")],
)
def test_an_impossible_world_is_refused(tmp_path: Path, option: str, value: str, said: str) -> None:
    assert said in refused("synthwiki", "--out", tmp_path / "world", option, value)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "p16", "contents": ', "corpus.jsonl:17: not valid JSON"),
        ('{"id": "p16"}', 'corpus.jsonl:17: neither "contents" nor "text" is there'),
        ('{"text": "no id"}', 'corpus.jsonl:17: field "id" is missing'),
    ],
)
def test_a_malformed_passage_is_named_by_its_line(
    world: Path, tmp_path: Path, text: str, said: str
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes((world / "corpus.jsonl").read_bytes())
    spoil(corpus, 17, text)
    assert said in refused("index", "build", "--corpus", corpus, "--out", tmp_path / "index")
    assert tree(tmp_path) == ["corpus.jsonl"]


def test_corpora_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "index"
    assert "no such file" in refused("index", "build", "--corpus", corpus, "--out", out)
    corpus.write_text("\n\n")
    assert "the corpus is empty" in refused("index", "build", "--corpus", corpus, "--out", out)
    assert tree(tmp_path) == ["corpus.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "dense"), "encoder is missing"),
        (("--kind", "faiss"), "kind: 'faiss' is none of 'bm25', 'dense', 'hybrid'"),
        (("--encoder", "model"), "encoder does not go with this section's kind"),
        (("--set", "k1=no"), "k1"),
        (("--b", "1.5"), "b"),
        (("--k1", "-1"), "k1"),
    ],
)
def test_impossible_index_settings_are_refused(
    world: Path, tmp_path: Path, arguments: tuple[str, str], said: str
) -> None:
    corpus, out = world / "corpus.jsonl", tmp_path / "index"
    assert said in refused("index", "build", "--corpus", corpus, "--out", out, *arguments)
    assert tree(tmp_path) == []


def test_a_damaged_index_answers_nothing(world: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    good("index", "build", "--corpus", world / "corpus.jsonl", "--out", index)
    damaged = index / "corpus" / "passages.bin"
    flip_byte(damaged)
    for arguments in (("search", "--index", index, "query"), ("index", "check", index)):
        assert f"{damaged}: does not match its checksum" in refused(*arguments)


def test_searches_that_cannot_be_are_refused(world: Path) -> None:
    assert "at least 1" in refused("search", "--index", world / "index", "--k", "0", "query")
    assert "no index directory there" in refused("search", "--index", world / "none", "query")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Two questions, and predictions of which one is right and one half right."""
    golds = [["Paris"], ["Tim Burton"]]
    questions = [
        {"id": f"q{n}", "question": "Which?", "golden_answers": gold}
        for n, gold in enumerate(golds)
    ]
    write_jsonl(tmp_path / "gold.jsonl", questions)
    predictions = [{"id": "q1", "prediction": "Burton"}, {"id": "q0", "prediction": "The Paris."}]
    write_jsonl(tmp_path / "predictions.jsonl", predictions)
    return tmp_path


def score_arguments(folder: Path) -> tuple[str | Path, ...]:
    return (
        "score", "--predictions", folder / "predictions.jsonl", "--gold", folder / "gold.jsonl",
    )  # fmt: skip


def test_score_prints_the_means(answers: Path) -> None:
    # "burton" against "tim burton": precision 1, recall 1/2.
    half = 2 * 1 * 0.5 / 1.5
    expected = {"em": 0.5, "f1": (1 + half) / 2, "sub_em": 0.5, "span": 0.5, "n": 2}
    assert good(*score_arguments(answers), "--json").json == pytest.approx(expected)
    shown = good(*score_arguments(answers)).stdout.splitlines()
    assert [line.split() for line in shown] == [
        ["em", "0.5000"], ["f1", "0.8333"], ["sub_em", "0.5000"], ["span", "0.5000"], ["n", "2"],
    ]  # fmt: skip


def test_score_prints_a_line_a_question(answers: Path) -> None:
    rows = good(*score_arguments(answers), "--rows", "--metrics", "em, f1").stdout.splitlines()
    assert [json.loads(row) for row in rows] == [
        {"id": "q0", "em": 1.0, "f1": 1.0},
        {"id": "q1", "em": 0.0, "f1": pytest.approx(2 / 3)},
    ]


def test_score_knows_the_official_scripts(answers: Path) -> None:
    arguments = (*score_arguments(answers), "--metrics", "searchr1_em,squad_f1", "--json")
    expected = {"searchr1_em": 0.5, "squad_f1": pytest.approx(5 / 6), "n": 2}
    assert good(*arguments).json == expected


def test_score_equals_every_recorded_official_score(tmp_path: Path) -> None:
    if not VECTORS.is_file():
        pytest.skip("shared data is absent")
    with gzip.open(VECTORS, "rt", encoding="utf-8") as text:
        recorded = [json.loads(line) for line in text]
    # A line without a usable gold answer is refused where questions are read.
    recorded = [row for row in recorded if any(gold.strip() for gold in row["golds"])]
    names = [name for name in recorded[0] if name not in ("id", "source", "pred", "golds")]
    names.remove("gpt4o_judge")
    questions = (
        {"id": row["id"], "question": "?", "golden_answers": row["golds"]} for row in recorded
    )
    predictions = ({"id": str(row["id"]), "prediction": row["pred"]} for row in recorded)
    write_jsonl(tmp_path / "gold.jsonl", questions)
    write_jsonl(tmp_path / "predictions.jsonl", predictions)
    arguments = (*score_arguments(tmp_path), "--rows", "--metrics", ",".join(names))
    rows = [json.loads(line) for line in good(*arguments).stdout.splitlines()]
    assert len(rows) == len(recorded) > 3000
    assert {"searchr1_em", "s3_answer_span", "squad_em", "hotpot_f1"} <= set(names)
    for row, official in zip(rows, recorded, strict=True):
        assert row["id"] == str(official["id"])
        assert {name: round(row[name], 6) for name in names} == {
            name: official[name] for name in names
        }


@pytest.mark.parametrize(
    ("name", "number", "text", "said"),
    [
        ("predictions", 2, '{"id": "q0"}', 'predictions.jsonl:2: field "prediction" is missing'),
        ("predictions", 2, '{"id": "q0", ', "predictions.jsonl:2: not valid JSON"),
        ("predictions", 1, "", "1 of 2 questions have no prediction: 'q1'"),
        ("gold", 2, '{"id": "q1", "question": "?"}', 'gold.jsonl:2: field "golden_answers" has'),
        ("gold", 1, '{"id": "q0", "golden_answers": ["x"]}', 'gold.jsonl:1: field "question"'),
        ("gold", 2, "", "1 predictions have an id that no question has: 'q1'"),
        ("gold", 1, "[]", "gold.jsonl:1: expected a JSON object"),
    ],
)
def test_score_refuses_what_it_cannot_pair(
    answers: Path, name: str, number: int, text: str, said: str
) -> None:
    spoil(answers / f"{name}.jsonl", number, text)
    assert said in refused(*score_arguments(answers))


def test_score_refuses_metrics_it_does_not_know(answers: Path) -> None:
    assert "'bleu' is not known; choose from em" in refused(
        *score_arguments(answers), "--metrics", "em,bleu"
    )
    assert "--metrics" in refused(*score_arguments(answers), "--metrics", " ,")
    assert "each name once" in refused(*score_arguments(answers), "--metrics", "em,em")


def test_score_names_a_missing_file(tmp_path: Path) -> None:
    _, questions = own_files(tmp_path)
    absent = tmp_path / "absent.jsonl"
    assert f"{absent}: no such file" in refused(
        "score", "--predictions", absent, "--gold", questions
    )
