"""Parts of an experiment: made once, reused when right, refused when made otherwise."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from searchrl.data.synthwiki import write_synthwiki
from searchrl.errors import InputError, IntegrityError
from searchrl.experiment import Experiment
from searchrl.methods import Trained, open_method
from searchrl.models.replies import ReplyStore, Usage
from searchrl.recipe import Recipe
from searchrl.retrieval.index import build_index
from searchrl.retrieval.options import Bm25Options
from searchrl.retrieval.rerank import RerankedRetriever
from searchrl.serving.client import HttpRetriever
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.encoders import write_encoder
from tests.training_fixtures import small_recipe

MODEL = Path("/absent")


def files_recipe(corpus: Path, questions: Path, **more: object) -> Recipe:
    values = small_recipe(MODEL).model_dump(mode="json")
    values["data"]["train"] = {
        "kind": "files",
        "corpus": str(corpus),
        "questions": str(questions),
        **more,
    }
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("world")
    write_synthwiki(home, 120, 3, 20)
    return home


def first_hit(experiment: Experiment) -> str:
    [[hit]] = asyncio.run(
        experiment.train.retriever.search([experiment.train.questions[0].text], 1)
    )
    return hit.passage.id


def test_a_world_is_made_once_and_reused(tmp_path: Path) -> None:
    first = Experiment(small_recipe(MODEL), tmp_path)
    hit = first_hit(first)
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    second = Experiment(small_recipe(MODEL), tmp_path)
    assert second.train.questions == first.train.questions
    assert first_hit(second) == hit
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == files


@pytest.mark.parametrize("left", [["corpus.jsonl"], ["corpus.jsonl", "questions.jsonl"], []])
def test_a_world_left_half_written_is_made_again(left: list[str], tmp_path: Path) -> None:
    expected = Experiment(small_recipe(MODEL), tmp_path / "other").train.questions
    home = tmp_path / "run" / "data" / "train"
    home.mkdir(parents=True)
    for name in left:
        (home / name).write_text('{"id": "half", "contents": "of a line')
    experiment = Experiment(small_recipe(MODEL), tmp_path / "run")
    assert experiment.train.questions == expected
    assert "half" not in experiment.train.passages()
    assert (home / "about.json").is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train.seed=5", "seed is 0 there and 5 in the recipe"),
        ("data.train.size=130", "size is 120 there and 130 in the recipe"),
        ("data.train.questions=9", "questions is 24 there and 9 in the recipe"),
        ("data.train.hops={1=1.0}", "hops is .* there and .* in the recipe"),
        ("retriever.k1=1.5", "k1 is 0.9 there and 1.5 in the recipe"),
        ("retriever.b=0.1", "b is 0.4 there and 0.1 in the recipe"),
    ],
)
def test_data_made_with_other_settings_is_refused(override: str, said: str, tmp_path: Path) -> None:
    assert Experiment(small_recipe(MODEL), tmp_path).train.questions
    with pytest.raises(InputError) as caught:
        _ = Experiment(small_recipe(MODEL, override), tmp_path).train
    assert re.search(said, str(caught.value))
    assert "choose another --out" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_world_that_lost_questions_is_refused(tmp_path: Path) -> None:
    assert Experiment(small_recipe(MODEL), tmp_path).train.questions
    file = tmp_path / "data" / "train" / "questions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(IntegrityError, match="5 questions are left of 24"):
        _ = Experiment(small_recipe(MODEL), tmp_path).train


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"3"])
def test_a_damaged_record_is_an_error_in_one_line(content: bytes, tmp_path: Path) -> None:
    assert Experiment(small_recipe(MODEL), tmp_path).train.questions
    (tmp_path / "data" / "train" / "about.json").write_bytes(content)
    with pytest.raises(InputError, match=r"about\.json"):
        _ = Experiment(small_recipe(MODEL), tmp_path).train


def test_a_damaged_index_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    assert Experiment(small_recipe(MODEL), tmp_path).train.questions
    index = tmp_path / "data" / "train" / "index"
    largest = max((f for f in index.rglob("*.bin")), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=re.escape(largest.name)):
        _ = Experiment(small_recipe(MODEL), tmp_path).train


def test_an_index_left_without_its_record_is_built_again(tmp_path: Path) -> None:
    expected = first_hit(Experiment(small_recipe(MODEL), tmp_path))
    (tmp_path / "data" / "train" / "index.json").unlink()
    assert first_hit(Experiment(small_recipe(MODEL), tmp_path)) == expected
    assert (tmp_path / "data" / "train" / "index.json").is_file()


def test_an_index_of_another_corpus_is_refused(world: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(world / "corpus.jsonl", corpus)
    recipe = files_recipe(corpus, world / "questions.jsonl")
    assert len(Experiment(recipe, tmp_path / "out").train.questions) == 20
    assert Experiment(recipe, tmp_path / "out").train.corpus == corpus
    corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="corpus_sha256"):
        _ = Experiment(recipe, tmp_path / "out").train


def test_a_given_index_is_opened_and_never_built(world: Path, tmp_path: Path) -> None:
    corpus, questions = world / "corpus.jsonl", world / "questions.jsonl"
    absent = files_recipe(corpus, questions, index=str(tmp_path / "absent"))
    with pytest.raises(InputError, match="no index directory there"):
        _ = Experiment(absent, tmp_path / "out").train
    assert not (tmp_path / "absent").exists()
    build_index(corpus, tmp_path / "given")
    given = files_recipe(corpus, questions, index=str(tmp_path / "given"), limit=7)
    assert len(Experiment(given, tmp_path / "out").train.questions) == 7
    build_index(corpus, tmp_path / "given", Bm25Options(k1=2.0))
    with pytest.raises(InputError, match=r"k1 = 2.0, and retriever.k1 is 0.9"):
        _ = Experiment(given, tmp_path / "out").train


def test_vectors_and_a_reranker_are_opened_as_the_recipe_says(world: Path, tmp_path: Path) -> None:
    encoder, reader = write_encoder(tmp_path / "e5"), write_encoder(tmp_path / "reader", labels=1)
    values = files_recipe(world / "corpus.jsonl", world / "questions.jsonl").model_dump()
    values["retriever"] = {"kind": "dense", "encoder": str(encoder), "batch_size": 32}
    hit = first_hit(Experiment(Recipe.model_validate(values), tmp_path / "out"))
    values["retriever"]["batch_size"] = 16
    assert first_hit(Experiment(Recipe.model_validate(values), tmp_path / "out")) == hit
    values["rerank"] = {"model": str(reader), "depth": 4}
    reranked = Experiment(Recipe.model_validate(values), tmp_path / "out").train.retriever
    assert isinstance(reranked, RerankedRetriever)
    values["retriever"]["max_length"] = 10
    with pytest.raises(InputError, match="max_length is None there and 10 in the recipe"):
        _ = Experiment(Recipe.model_validate(values), tmp_path / "out").train


def test_a_search_service_is_one_for_both_splits(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = files_recipe(world / "corpus.jsonl", world / "questions.jsonl").model_dump(mode="json")
    values["data"]["test"] = values["data"]["train"]
    values["retriever"] = {
        "kind": "http", "url": "http://127.0.0.1:9/retrieve", "key_variable": "SEARCH_KEY",
    }  # fmt: skip
    recipe = Recipe.model_validate(values)
    monkeypatch.delenv("SEARCH_KEY", raising=False)
    with pytest.raises(InputError, match=r"retriever\.key_variable: .*SEARCH_KEY"):
        _ = Experiment(recipe, tmp_path).train
    monkeypatch.setenv("SEARCH_KEY", "canary-4711")
    experiment = Experiment(recipe, tmp_path)
    assert isinstance(experiment.train.retriever, HttpRetriever)
    assert experiment.train.retriever is experiment.test.retriever
    assert "canary" not in recipe.model_dump_json()
    assert not (tmp_path / "data").exists()


def test_a_missing_corpus_names_the_file(world: Path, tmp_path: Path) -> None:
    recipe = files_recipe(tmp_path / "absent.jsonl", world / "questions.jsonl")
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file"):
        _ = Experiment(recipe, tmp_path / "out").train


SERVED = '{kind="http", url="http://h.test/v1", model="big", tokenizer="tiny-searcher"}'


def test_served_models_need_no_weights_and_name_where_they_are(tmp_path: Path) -> None:
    overrides = (f"generator={SERVED}", f"judge={SERVED}", f"searcher={SERVED}")
    experiment = Experiment(small_recipe(MODEL, *overrides), tmp_path)
    assert "big at http://h.test/v1" in experiment.generator.fingerprint
    assert experiment.judge is not None
    assert experiment.judge.name.startswith("big at http://h.test/v1")
    assert experiment.prompted().max_length == 8192
    assert experiment.reader.max_length == 8192
    assert open_method("s3", experiment, experiment.test).name == "s3"
    assert experiment.usage() == []


def test_a_served_searcher_is_not_trained_or_exchanged(tmp_path: Path) -> None:
    experiment = Experiment(small_recipe(MODEL, f"searcher={SERVED}"), tmp_path)
    for attempt in (
        experiment.searcher,
        lambda: open_method("s3", experiment, experiment.test, Trained("x")),
    ):
        with pytest.raises(InputError, match='kind = "local"'):
            attempt()
    with pytest.raises(InputError, match='kind = "local"'):
        train(experiment, RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_usage_is_read_from_every_store_once(tmp_path: Path) -> None:
    shared = SERVED.replace("}", f', cache="{tmp_path / "shared.sqlite"}"}}')
    overrides = (f"generator={SERVED}", f"judge={SERVED}", f"searcher={shared}")
    experiment = Experiment(small_recipe(MODEL, *overrides), tmp_path)
    ReplyStore(tmp_path / "replies.sqlite").put("a", {}, Usage("big", 1))
    ReplyStore(tmp_path / "shared.sqlite").put("a", {}, Usage("big", 2))
    assert experiment.usage() == [Usage("big", 2), Usage("big", 1)]
