"""Dense and hybrid indexes: built, resumed, imported, opened; nothing wrong is opened quietly."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from searchrl.data.passages import Passage
from searchrl.data.storage import read_manifest
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval import vectors as vectors_module
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.encoder import Encoder, load_encoder
from searchrl.retrieval.hybrid import fused
from searchrl.retrieval.index import build_index, check_index, check_options, open_index
from searchrl.retrieval.options import DenseOptions, HybridOptions
from searchrl.retrieval.protocol import Hit, IndexRetriever, Ranking
from searchrl.retrieval.sources import open_vectors
from tests.command_line import flip_byte, good, refused
from tests.encoders import CORPUS, DIMENSION, write_encoder

QUERIES = ["When was Chur founded?", "Ilanz", "1814"]
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("models") / "e5-small")


@pytest.fixture(scope="module")
def opened(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Floats]:
    """An index, and the vectors of its passages as they should be."""
    index = tmp_path_factory.mktemp("dense") / "index"
    build_index(CORPUS, index, DenseOptions(encoder=str(model)))
    encoder = load_encoder(DenseOptions(encoder=str(model)), "passage")
    return index, encoder.encode_passages(CORPUS)


@pytest.fixture
def index(opened: tuple[Path, Floats], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(opened[0], tmp_path / "index"))


def answers(retriever: IndexRetriever, k: int = 4) -> list[list[Hit]]:
    return asyncio.run(retriever.search(QUERIES, k))


def ids(hits: Iterable[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


class TestDense:
    def test_the_answer_is_that_of_all_inner_products(
        self, opened: tuple[Path, Floats], model: Path
    ) -> None:
        path, passages = opened
        queries = load_encoder(DenseOptions(encoder=str(model)), "query").encode(QUERIES)
        for query, hits in zip(queries, answers(open_index(path)), strict=True):
            scores = passages @ query
            best = np.argsort(-scores, kind="stable")[:4]
            assert ids(hits) == [CORPUS[row].id for row in best]
            assert [hit.score for hit in hits] == pytest.approx(scores[best], abs=1e-6)

    def test_there_are_never_more_hits_than_passages(self, opened: tuple[Path, Floats]) -> None:
        for hits in answers(open_index(opened[0]), k=50):
            assert sorted(ids(hits)) == sorted(passage.id for passage in CORPUS)
        assert asyncio.run(open_index(opened[0]).search([], 3)) == []

    def test_the_manifest_tells_how_vectors_were_made(
        self, opened: tuple[Path, Floats], model: Path
    ) -> None:
        report = check_index(opened[0])
        assert (report["kind"], report["passages"], report["compression"]) == ("dense", 11, "none")
        query, passage = report["query_encoder"], report["passage_encoder"]
        assert (query["prefix"], passage["prefix"]) == ("query: ", "passage: ")
        assert query | {"prefix": ""} == passage | {"prefix": ""}
        assert query["model"] == str(model)

    def test_another_encoder_is_refused(self, index: Path, tmp_path: Path, model: Path) -> None:
        other = write_encoder(tmp_path / "e5-other", seed=1)
        with pytest.raises(InputError, match=r"index: was built with another encoder than .*other"):
            open_index(index, encoder=str(other))
        moved = Path(shutil.copytree(model, tmp_path / "moved"))
        assert answers(open_index(index, encoder=str(moved))) == answers(open_index(index))

    def test_a_flipped_byte_in_any_file_is_refused(self, index: Path) -> None:
        files = [file for file in index.rglob("*") if file.is_file()]
        assert len(files) >= 6
        for file in files:
            whole = file.read_bytes()
            flip_byte(file)
            with pytest.raises(IntegrityError, match=file.name):
                open_index(index)
            file.write_bytes(whole)
        assert answers(open_index(index))

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"max_length": 32}, "max_length = 64, and retriever.max_length is 32"),
            ({"pooling": "cls"}, "pooling = mean"),
            ({"passage_prefix": ""}, "passage_prefix = passage: "),
            ({"compression": "hnsw"}, "compression = none"),
            ({"vector_dtype": "float16"}, "vector_dtype = float32"),
        ],
    )
    def test_other_settings_than_asked_for_are_refused(
        self, opened: tuple[Path, Floats], options: dict[str, Any], complaint: str
    ) -> None:
        check_options(opened[0], DenseOptions(encoder="moved", device="cpu", batch_size=3))
        check_options(opened[0], DenseOptions(encoder="moved", max_length=64, normalise=True))
        check_options(opened[0], DenseOptions(encoder="moved", passage_encoder="moved"))
        with pytest.raises(InputError, match=complaint):
            check_options(opened[0], DenseOptions(encoder="moved", **options))
        with pytest.raises(InputError, match="kind = dense"):
            check_options(opened[0], HybridOptions(encoder="moved"))


class TestResume:
    @pytest.fixture(autouse=True)
    def small_shards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vectors_module, "SHARD_ROWS", 4)

    @pytest.fixture
    def encoded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Ids of the passages that were encoded; the fifth call is the last the machine does."""
        told: list[str] = []
        encode = Encoder.encode_passages

        def counting(self: Encoder, passages: Iterable[Passage]) -> Floats:
            these = list(passages)
            told.extend(passage.id for passage in these)
            if told.count("p4") == 1 and "p4" in [passage.id for passage in these]:
                raise KeyboardInterrupt
            return encode(self, these)

        monkeypatch.setattr(Encoder, "encode_passages", counting)
        return told

    def test_a_build_that_was_killed_goes_on(
        self, model: Path, opened: tuple[Path, Floats], encoded: list[str], tmp_path: Path
    ) -> None:
        options = DenseOptions(encoder=str(model))
        with pytest.raises(KeyboardInterrupt):
            build_index(CORPUS, tmp_path / "index", options)
        assert sorted(os.listdir(tmp_path)) == [".index.building"]
        retriever = build_index(CORPUS, tmp_path / "index", options)
        assert [encoded.count(f"p{number}") for number in (0, 3, 4, 10)] == [1, 1, 2, 1]
        assert os.listdir(tmp_path) == ["index"]
        assert list(map(ids, answers(retriever))) == list(map(ids, answers(open_index(opened[0]))))

    def test_a_build_of_something_else_does_not_go_on(
        self, model: Path, encoded: list[str], tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            build_index(CORPUS, tmp_path / "index", DenseOptions(encoder=str(model)))
        for corpus, options, what in (
            (CORPUS[1:], {}, "corpus"),
            (CORPUS, {"max_length": 32}, "encoder"),
            (CORPUS, {"vector_dtype": "float16"}, "vector_dtype"),
        ):
            with pytest.raises(InputError, match=f"unfinished build from another {what}"):
                build_index(corpus, tmp_path / "index", DenseOptions(encoder=str(model), **options))
        assert encoded[-1] != "p10"


class TestImport:
    def convert(self, file: Path, model: Path, out: Path, corpus: Any = CORPUS) -> IndexRetriever:
        return build_index(corpus, out, DenseOptions(encoder=str(model)), vectors=file)

    @pytest.mark.parametrize("form", ["npy", "float16", "faiss"])
    def test_vectors_made_elsewhere_answer_as_our_own(
        self, opened: tuple[Path, Floats], model: Path, tmp_path: Path, form: str
    ) -> None:
        path, passages = opened
        file = tmp_path / ("e5_Flat.index" if form == "faiss" else "vectors.npy")
        if form == "faiss":
            write_flat(file, passages)
        else:
            np.save(file, passages.astype("float16" if form == "float16" else "float32"))
        found = answers(self.convert(file, model, tmp_path / "index"))
        expected = answers(open_index(path))
        if form == "float16":
            assert [ids(hits)[:1] for hits in found] == [ids(hits)[:1] for hits in expected]
        else:
            assert found == expected

    def test_the_file_that_faiss_writes_is_the_one_we_read(
        self, opened: tuple[Path, Floats], tmp_path: Path
    ) -> None:
        faiss = pytest.importorskip("faiss")
        flat = faiss.IndexFlatIP(DIMENSION)
        flat.add(opened[1])
        faiss.write_index(flat, str(tmp_path / "theirs.index"))
        write_flat(tmp_path / "ours.index", opened[1])
        theirs, ours = (tmp_path / f"{name}.index" for name in ("theirs", "ours"))
        assert theirs.read_bytes() == ours.read_bytes()
        assert open_vectors(theirs).tolist() == opened[1].tolist()

    def test_vectors_of_another_corpus_or_encoder_are_refused(
        self, opened: tuple[Path, Floats], model: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "vectors.npy"
        np.save(file, opened[1][::-1])
        with pytest.raises(InputError, match=r"is not what .* makes of this corpus"):
            self.convert(file, model, tmp_path / "index")
        np.save(file, opened[1][1:])
        with pytest.raises(InputError, match=r"holds 10 vectors of 16 dimensions; .* for 11 of 16"):
            self.convert(file, model, tmp_path / "index")
        assert os.listdir(tmp_path) == ["vectors.npy"]

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"IHNf" + bytes(60), "neither .npy nor a faiss IndexFlat"),
            (b"", "neither .npy"),
            (struct.pack("<4siqqq?iQ", b"IxF2", 4, 2, 0, 0, True, 1, 8) + bytes(32), "by distance"),
            (struct.pack("<4siqqq?iQ", b"IxFI", 4, 2, 0, 0, True, 0, 8) + bytes(31), "cut short"),
            (struct.pack("<4siqqq?iQ", b"IxFI", -4, -2, 0, 0, True, 0, 8) + bytes(32), "damaged"),
            (b"\x93NUMPY\x01\x00", "cannot be read as vectors"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes, complaint: str) -> None:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(InputError, match=complaint):
            open_vectors(tmp_path / "file")

    def test_arrays_of_another_form_are_refused(self, tmp_path: Path) -> None:
        for array in (np.zeros(3), np.zeros((2, 2), np.int64), np.array([[{}]], object)):
            np.save(tmp_path / "file.npy", array)
            with pytest.raises(InputError, match=r"file\.npy: (needs two axes|cannot be read)"):
                open_vectors(tmp_path / "file.npy")


def write_flat(file: Path, array: Floats) -> None:
    """An IndexFlatIP as faiss writes it."""
    count, dimension = array.shape
    header = (b"IxFI", dimension, count, 1 << 20, 1 << 20, True, 0, array.size)
    file.write_bytes(struct.pack("<4siqqq?iQ", *header) + array.tobytes())


class TestHybrid:
    def test_reciprocal_ranks_are_added(self) -> None:
        first, second = (
            Ranking(np.array(rows), np.zeros(len(rows))) for rows in ([3, 1, 2], [2, 0, 3])
        )
        ranks = np.arange(4, dtype=np.int32)
        ranking = fused([first, second], 60, ranks, 3)
        assert ranking.rows.tolist() == [2, 3, 0]
        assert ranking.scores == pytest.approx([1 / 63 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62])

    def test_an_index_of_both_fuses_both(self, model: Path, tmp_path: Path) -> None:
        options = HybridOptions(encoder=str(model), fusion_depth=5, fusion_constant=10, k1=1.2)
        build_index(CORPUS, tmp_path / "index", options)
        found = answers(open_index(tmp_path / "index"), k=4)
        dense = build_index(CORPUS, tmp_path / "dense", DenseOptions(encoder=str(model)))
        words = Bm25Retriever(CORPUS, k1=1.2)
        for query, hits in zip(QUERIES, found, strict=True):
            scores: dict[str, float] = {}
            for part in (dense, words):
                for rank, hit in enumerate(part.top(query, 5), start=1):
                    scores[hit.passage.id] = scores.get(hit.passage.id, 0) + 1 / (10 + rank)
            expected = sorted(scores, key=lambda name: (-scores[name], name))[:4]
            assert ids(hits) == expected
            assert [hit.score for hit in hits] == pytest.approx([scores[n] for n in expected])
        about = read_manifest(tmp_path / "index")["about"]
        assert (about["k1"], about["fusion_depth"], about["fusion_constant"]) == (1.2, 5, 10)
        assert len(answers(open_index(tmp_path / "index"), k=100)[0]) == len(CORPUS)


class TestCommands:
    def test_an_index_is_built_checked_searched_and_made_of_vectors(
        self, model: Path, tmp_path: Path, opened: tuple[Path, Floats]
    ) -> None:
        from searchrl.data.jsonl import write_jsonl

        corpus, out = tmp_path / "corpus.jsonl", tmp_path / "index"
        write_jsonl(corpus, ({"id": p.id, "contents": p.contents} for p in CORPUS))
        arguments = ("--corpus", corpus, "--out", out, "--encoder", model)
        built = good("index", "build", "--kind", "dense", *arguments, "--set", "max_length=48")
        assert built.stdout == f"{out}: dense index of 11 passages\n"
        assert "max_length" in good("index", "check", out).stdout
        assert good("index", "check", out, "--json").json["query_encoder"]["max_length"] == 48
        np.save(tmp_path / "vectors.npy", opened[1])
        good("index", "convert", *arguments, "--vectors", tmp_path / "vectors.npy")
        rows = good("search", "--index", out, "--k", "4", "--json", QUERIES[0]).json
        assert [row["id"] for row in rows] == ids(answers(open_index(opened[0]))[0])

    def test_words_are_not_made_of_vectors(self, tmp_path: Path) -> None:
        said = refused("index", "convert", "--kind", "bm25", "--corpus", tmp_path / "c.jsonl",
            "--vectors", tmp_path / "v.npy", "--out", tmp_path / "out")  # fmt: skip
        assert "a bm25 index has no vectors" in said

    def test_files_of_vectors_name_the_command_that_makes_an_index(self, tmp_path: Path) -> None:
        (tmp_path / "e5_Flat.index").write_bytes(b"IxFI")
        said = refused("search", "--index", tmp_path / "e5_Flat.index", "query")
        assert "searchrl index convert --corpus CORPUS.jsonl --vectors" in said
