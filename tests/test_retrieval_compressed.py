"""Codes and graphs over faiss: they propose, exact scores decide, and lists are never short."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from searchrl.data.corpus import MemoryCorpus
from searchrl.data.passages import Passage
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.compressed import FILES, Compressed, open_compressed, write_compressed
from searchrl.retrieval.dense import DenseRetriever, chosen_compression
from searchrl.retrieval.encoder import load_encoder
from searchrl.retrieval.options import DenseOptions
from searchrl.retrieval.protocol import Ranking
from searchrl.retrieval.vectors import Vectors, write_vectors
from tests.encoders import write_encoder

pytest.importorskip("faiss")

COUNT, DIMENSION = 3_000, 32
Floats = npt.NDArray[np.float32]


def clustered(seed: int, count: int) -> Floats:
    """Unit vectors in 40 clusters."""
    centres = np.random.default_rng(0).normal(size=(40, DIMENSION))
    draw = np.random.default_rng(seed)
    points = centres[draw.integers(40, size=count)] + 0.4 * draw.normal(size=(count, DIMENSION))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, array = tmp_path_factory.mktemp("vectors"), clustered(1, COUNT)
    write_vectors(lambda start, stop: array[start:stop], COUNT, path, "float32")
    for kind in FILES:
        write_compressed(Vectors(path), kind, path)
    return path


@pytest.fixture(scope="module")
def retrievers(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, DenseRetriever]:
    model = write_encoder(tmp_path_factory.mktemp("models") / "model")
    encoder = load_encoder(DenseOptions(encoder=str(model)), "query")
    fitting = encoder.for_side(dataclasses.replace(encoder.settings, dimension=DIMENSION))
    corpus = MemoryCorpus(Passage(f"{row:05}", "", "") for row in range(COUNT))
    return {
        kind: DenseRetriever(corpus, fitting, directory, kind) for kind in ("none", "pq", "hnsw")
    }


def overlap(found: list[Ranking], expected: list[Ranking]) -> float:
    shares = [
        len(np.intersect1d(one.rows, other.rows)) / len(other.rows)
        for one, other in zip(found, expected, strict=True)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("kind", ["pq", "hnsw"])
def test_recall_of_the_exact_ten_is_at_least_99_percent(
    retrievers: dict[str, DenseRetriever], kind: str
) -> None:
    queries = clustered(2, 100)
    expected = retrievers["none"].rank_vectors(queries, 10)
    found = retrievers[kind].rank_vectors(queries, 10)
    assert overlap(found, expected) >= 0.99
    for one, other in zip(found, expected, strict=True):
        both = np.isin(other.rows, one.rows)
        shared = np.isin(one.rows, other.rows)
        assert one.scores[shared].tolist() == other.scores[both].tolist()


@pytest.mark.parametrize("kind", ["pq", "hnsw"])
@pytest.mark.parametrize("k", [1, COUNT, COUNT + 7])
def test_lists_are_full_and_distinct(
    retrievers: dict[str, DenseRetriever], kind: str, k: int
) -> None:
    (ranking,) = retrievers[kind].rank_vectors(clustered(3, 1), k)
    assert len(np.unique(ranking.rows)) == len(ranking.rows) == min(k, COUNT)
    assert ranking.rows.min() >= 0


def test_a_list_that_comes_back_short_is_completed(
    retrievers: dict[str, DenseRetriever], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = clustered(4, 3)
    short = [np.array([5], np.intp)] * 3
    monkeypatch.setattr(Compressed, "propose", lambda *_: short)
    found = retrievers["hnsw"].rank_vectors(queries, 4)
    expected = retrievers["none"].rank_vectors(queries, 4)
    assert [one.rows.tolist() for one in found] == [one.rows.tolist() for one in expected]


def test_a_query_alone_and_in_a_batch_has_one_answer(
    retrievers: dict[str, DenseRetriever],
) -> None:
    queries = clustered(5, 64)
    for retriever in retrievers.values():
        together = retriever.rank_vectors(queries, 10)
        alone = [retriever.rank_vectors(query[None], 10)[0] for query in queries]
        assert [one.rows.tolist() for one in together] == [one.rows.tolist() for one in alone]


def test_a_file_of_another_kind_is_not_given_to_faiss(directory: Path, tmp_path: Path) -> None:
    vectors = Vectors(directory)
    (tmp_path / FILES["pq"]).write_bytes((directory / FILES["hnsw"]).read_bytes())
    with pytest.raises(IntegrityError, match="no IndexPQFastScan of faiss"):
        open_compressed(vectors, "pq", tmp_path)
    (tmp_path / FILES["pq"]).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        open_compressed(vectors, "pq", tmp_path)


@pytest.mark.parametrize("kind", ["pq", "hnsw"])
def test_a_file_that_is_cut_or_of_other_vectors_is_refused(
    directory: Path, tmp_path: Path, kind: str
) -> None:
    whole = (directory / FILES[kind]).read_bytes()
    (tmp_path / FILES[kind]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match="faiss cannot read it"):
        open_compressed(Vectors(directory), kind, tmp_path)
    (tmp_path / FILES[kind]).write_bytes(whole)
    other = clustered(6, COUNT - 1)
    write_vectors(lambda start, stop: other[start:stop], COUNT - 1, tmp_path, "float32")
    with pytest.raises(IntegrityError, match="does not belong to these vectors"):
        open_compressed(Vectors(tmp_path), kind, tmp_path)


def test_too_few_vectors_and_odd_dimensions_get_no_codes(tmp_path: Path) -> None:
    for name, shape, complaint in (
        ("few", (10, 4), "10 vectors are too few"),
        ("odd", (1_000, 3), "even dimension, not 3"),
    ):
        array = np.ones(shape, np.float32)
        write_vectors(
            lambda start, stop, a=array: a[start:stop], len(array), tmp_path / name, "float32"
        )
        with pytest.raises(InputError, match=complaint):
            write_compressed(Vectors(tmp_path / name), "pq", tmp_path)


def test_auto_compresses_what_does_not_fit() -> None:
    options = DenseOptions(encoder="e5", memory_gb=16)
    assert chosen_compression(options, 10_000_000, 768) == "none"
    assert chosen_compression(options, 21_015_324, 768) == "pq"
    exact = DenseOptions(encoder="e5", compression="none")
    assert chosen_compression(exact, 21_015_324, 768) == "none"
