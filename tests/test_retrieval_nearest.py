"""Exact search: the answer of brute force in double precision, by every scan, in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval import nearest as module
from searchrl.retrieval import vectors as vectors_module
from searchrl.retrieval.nearest import Bfloat16Scan, Float32Scan, Scan, nearest
from searchrl.retrieval.protocol import Ranking
from searchrl.retrieval.ranking import best_rows
from searchrl.retrieval.vectors import Vectors, write_vectors

Floats = npt.NDArray[np.float32]


def stored(array: Floats, directory: Path, dtype: str = "float32") -> Vectors:
    write_vectors(lambda start, stop: array[start:stop], len(array), directory, dtype)
    return Vectors(directory)


def scans(vectors: Vectors) -> list[Scan]:
    return [Bfloat16Scan(vectors, "cpu"), Float32Scan(vectors)]


def brute_force(array: Floats, query: Floats, ranks: npt.NDArray[np.int32], k: int) -> list[int]:
    """Straight from the definition, in double precision; equal to 1e-7 counts as equal."""
    scores = (array.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    rows = sorted(range(len(array)), key=lambda row: (-scores[row], ranks[row]))
    return rows[:k]


def cloud(seed: int, count: int, dimension: int, spread: float) -> Floats:
    """Unit vectors around a few centres, as encoders' are; close ones where ``spread`` is small."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(3, dimension))
    points = centres[draw.integers(3, size=count)] + spread * draw.normal(size=(count, dimension))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "SHARD_ROWS", 128)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 400),
    dimension=st.integers(1, 24),
    k=st.integers(1, 20),
    spread=st.sampled_from([1.0, 0.1, 0.003, 0.0]),
)
def test_the_nearest_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int, count: int, dimension: int, k: int, spread: float,
) -> None:  # fmt: skip
    array = cloud(seed, count, dimension, spread)
    vectors = stored(array, tmp_path_factory.mktemp("vectors"))
    queries = cloud(seed + 1, 3, dimension, 1.0)
    ranks = np.random.default_rng(seed).permutation(count).astype(np.int32)
    for scan in scans(vectors):
        found = nearest(queries, vectors, scan, ranks, k)
        for query, ranking in zip(queries, found, strict=True):
            exact = array[ranking.rows].astype(np.float64) @ query.astype(np.float64)
            assert ranking.scores == pytest.approx(exact, abs=1e-6)
            expected = brute_force(array, query, ranks, k)
            gaps = array[expected].astype(np.float64) @ query - exact
            assert len(ranking.rows) == len(set(ranking.rows.tolist())) == min(k, count)
            assert np.abs(gaps).max() < 1e-6


def test_a_batch_changes_nothing(tmp_path: Path) -> None:
    vectors = stored(cloud(5, 900, 32, 0.05), tmp_path)
    queries = cloud(6, 64, 32, 0.3)
    ranks = np.arange(900, dtype=np.int32)
    answers = []
    for scan in scans(vectors):
        together = nearest(queries, vectors, scan, ranks, 10)
        alone = [nearest(query[None], vectors, scan, ranks, 10)[0] for query in queries]
        answers += [flat(together), flat(alone)]
    assert all(answer == answers[0] for answer in answers)


def flat(rankings: list[Ranking]) -> list[tuple[list[int], list[float]]]:
    return [(each.rows.tolist(), each.scores.tolist()) for each in rankings]


def test_equal_vectors_come_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    array = np.repeat(cloud(1, 2, 8, 1.0)[:1], 500, axis=0)
    vectors, ranks = stored(array, tmp_path), np.arange(500, dtype=np.int32)[::-1].copy()
    for scan in scans(vectors):
        (ranking,) = nearest(array[:1], vectors, scan, ranks, 5)
        assert ranking.rows.tolist() == [499, 498, 497, 496, 495]


def test_the_scan_settles_well_spread_vectors_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = cloud(3, 2_000, 48, 1.0)
    vectors = stored(array, tmp_path)
    monkeypatch.setattr(module, "_exhaustive", lambda *_: pytest.fail("read everything"))
    ranks = np.arange(2_000, dtype=np.int32)
    for scan in scans(vectors):
        found = nearest(array[:20], vectors, scan, ranks, 5)
        assert [int(ranking.rows[0]) for ranking in found] == list(range(20))


@settings(max_examples=60)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0]), min_size=1, max_size=30),
    k=st.integers(1, 35),
    seed=st.integers(0, 99),
)
def test_the_best_rows_are_those_of_a_full_sort(scores: list[float], k: int, seed: int) -> None:
    array = np.array(scores, np.float32)
    ranks = np.random.default_rng(seed).permutation(len(scores)).astype(np.int32)
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], ranks[row]))[:k]
    assert best_rows(array, ranks, k).tolist() == expected


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    total=st.integers(1, 400),
    count=st.integers(1, 12),
    values=st.sampled_from([3, 10_000]),
)
def test_the_best_of_groups_are_the_best_of_all(
    seed: int, total: int, count: int, values: int
) -> None:
    drawn = np.random.default_rng(seed).integers(values, size=(total, 3)).astype(np.float32)
    best, places = module._best_of(torch.from_numpy(drawn), count)
    rows = places.numpy()
    for query in range(3):
        expected = sorted(drawn[:, query].tolist(), reverse=True)[:count]
        assert best[query].tolist() == drawn[rows[query], query].tolist() == expected
        assert len(set(rows[query].tolist())) == len(expected)


class TestShards:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
    def test_vectors_come_back(self, tmp_path: Path, dtype: str, count: int) -> None:
        array = cloud(0, count, 4, 1.0)
        vectors = stored(array, tmp_path, dtype)
        assert (len(vectors), vectors.dimension) == (count, 4)
        rows = np.random.default_rng(0).integers(count, size=50)
        assert vectors.take(rows) == pytest.approx(array[rows].astype(dtype).astype(np.float32))
        blocks = [block for _, block in vectors.blocks()]
        assert np.concatenate(blocks) == pytest.approx(array.astype(dtype).astype(np.float32))

    def test_a_broken_build_goes_on_where_it_was(self, tmp_path: Path) -> None:
        array, asked = cloud(0, 300, 4, 1.0), []

        def breaking(start: int, stop: int) -> Floats:
            asked.append(start)
            if len(asked) == 2:
                raise KeyboardInterrupt
            return array[start:stop]

        with pytest.raises(KeyboardInterrupt):
            write_vectors(breaking, 300, tmp_path, "float32")
        write_vectors(breaking, 300, tmp_path, "float32")
        assert asked == [0, 128, 128, 256]
        assert Vectors(tmp_path).take(np.arange(300)) == pytest.approx(array)

    def test_what_is_not_finite_is_refused(self, tmp_path: Path) -> None:
        array = cloud(0, 200, 4, 1.0)
        array[150, 2] = 1e6
        with pytest.raises(InputError, match="passage 150 is not finite in float16"):
            stored(array, tmp_path, "float16")

    def test_damage_is_found(self, tmp_path: Path) -> None:
        stored(cloud(0, 300, 4, 1.0), tmp_path)
        for file in sorted(tmp_path.iterdir()):
            whole = file.read_bytes()
            for content in (whole[:-1], whole[:9], b""):
                file.write_bytes(content)
                with pytest.raises(IntegrityError, match=file.name):
                    Vectors(tmp_path)
            file.write_bytes(whole)
        np.save(tmp_path / "vectors-000001.npy", cloud(0, 128, 5, 1.0))
        with pytest.raises(IntegrityError, match="differs from the first"):
            Vectors(tmp_path)
        with pytest.raises(IntegrityError, match="no vectors there"):
            Vectors(tmp_path / "absent")
