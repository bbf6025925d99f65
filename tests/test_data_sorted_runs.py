"""What is sorted or written piece by piece is what it would be in one."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchrl.data import id_order
from searchrl.data.array_file import ArrayWriter
from searchrl.data.byte_strings import ByteStrings, ByteStringsWriter
from searchrl.data.id_order import Ids, RepeatedIdError, write_order
from searchrl.data.sorted_runs import cuts, parts

keys = st.binary(max_size=3)


@given(runs=st.lists(st.lists(keys).map(sorted)), every=st.integers(1, 5))
def test_parts_hold_all_keys_in_their_order(runs: list[list[bytes]], every: int) -> None:
    every_key = [key for run in runs for key in run]
    ends = list(accumulate(map(len, runs)))
    found = []
    at = cuts(every_key, every)
    for part in parts(every_key.__getitem__, ends, at):
        assert len(part) == len(runs)
        found.append(sorted(key for places in part for key in every_key[places]))
    assert [key for part in found for key in part] == sorted(every_key)
    # Only what is equal cannot be cut.
    assert all(len(part) <= every + part.count(part[0]) - 1 for part in found if part)


@pytest.mark.parametrize("pieces", [[], [0], [3], [1, 0, 2], [70_000, 1]])
def test_an_array_in_pieces_is_a_plain_file(tmp_path: Path, pieces: list[int]) -> None:
    whole = np.arange(sum(pieces), dtype=np.int32)
    with ArrayWriter(tmp_path / "pieces.npy", np.int32) as writer:
        for start, end in zip([0, *accumulate(pieces)], accumulate(pieces), strict=False):
            writer.append(np.arange(start, end))
    np.save(tmp_path / "whole.npy", whole)
    assert (tmp_path / "pieces.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text("aé\0", max_size=20), min_size=1, unique=True), run=st.integers(1, 7))
def test_ids_are_sorted_in_runs(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    run: int,
) -> None:
    directory = tmp_path_factory.mktemp("ids")
    with monkeypatch.context() as patch:
        patch.setattr(id_order, "_RUN", run)
        patch.setattr(id_order, "_SAMPLE", 1)
        order, ranks = written(names, directory)
    assert order.tolist() == sorted(range(len(names)), key=names.__getitem__)
    assert ranks[order].tolist() == list(range(len(names)))


@pytest.mark.parametrize("run", [2, 100])
def test_the_first_two_rows_with_one_id_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    monkeypatch.setattr(id_order, "_RUN", run)
    monkeypatch.setattr(id_order, "_SAMPLE", 1)
    with pytest.raises(RepeatedIdError) as caught:
        written(["x", "b", "a", "c", "b", "b"], tmp_path)
    assert (caught.value.first, caught.value.second) == (1, 4)


def written(names: list[str], directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Order and ranks of ids that lie among other strings."""
    with ByteStringsWriter(directory, "strings") as writer:
        for name in names:
            writer.append(name.encode())
            writer.append(b"text")
    files = directory / "order.npy", directory / "ranks.npy"
    write_order(Ids(ByteStrings(directory, "strings"), 2), *files)
    order, ranks = map(np.load, files)
    return order, ranks
