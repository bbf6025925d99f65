"""Engines that search by words, ours and others', over one generated corpus.

Each is built from the same corpus file into a directory of its own, with Lucene's
parameters where it lets them be set (tantivy does not: 1.2 and 0.75), and answers one query at a
time on one thread. An engine whose package is missing says so by ``ImportError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from searchrl.data.corpus_store import CorpusStore, build_corpus_store
from searchrl.data.passages import Passage, stream_corpus
from searchrl.retrieval.bm25 import Bm25Retriever, write_bm25

K1, B = 0.9, 0.4
_TANTIVY_HEAP = 256 << 20
Ranked = tuple[Sequence[str], Sequence[float]]
"""Ids of passages, best first, and their scores."""
Ask = Callable[[str, int], Ranked]
"""Finds the passages for a query."""


def build_ours(corpus: Path, folder: Path) -> None:
    """A corpus store and a BM25 index over it."""
    store = build_corpus_store(corpus, folder / "store")
    (folder / "words").mkdir()
    write_bm25(store, folder / "words", K1, B)


def open_ours(folder: Path) -> Ask:
    """Our index, mapped."""
    retriever = Bm25Retriever.open(CorpusStore(folder / "store"), folder / "words")

    def ask(query: str, k: int) -> Ranked:
        hits = retriever.top(query, k)
        return [hit.passage.id for hit in hits], [hit.score for hit in hits]

    return ask


def build_bm25s(corpus: Path, folder: Path) -> None:
    """bm25s, which takes all texts at once."""
    import bm25s

    model = bm25s.BM25(method="lucene", k1=K1, b=B)
    texts = [passage.contents for passage in stream_corpus(corpus)]
    model.index(_bm25s_tokens()(texts), show_progress=False)
    model.save(str(folder / "index"))


def open_bm25s(folder: Path) -> Ask:
    """bm25s on numpy, mapped."""
    import bm25s

    model = bm25s.BM25.load(str(folder / "index"), mmap=True)
    tokens = _bm25s_tokens()

    def ask(query: str, k: int) -> Ranked:
        found, scores = model.retrieve(
            tokens([query]), k=k, show_progress=False, backend_selection="numpy"
        )
        return [str(row) for row in found[0].tolist()], scores[0].tolist()

    return ask


def _bm25s_tokens() -> Callable[[list[str]], Any]:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stemmer=stemmer, stopwords="en", show_progress=False)

    return tokens


def build_tantivy(corpus: Path, folder: Path) -> None:
    """Tantivy with an English stemmer, one indexing thread."""
    index = _tantivy(folder)
    writer = index.writer(_TANTIVY_HEAP, 1)
    for document in _tantivy_documents(corpus):
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()


def open_tantivy(folder: Path) -> Ask:
    """tantivy, mapped."""
    index = _tantivy(folder)
    searcher = index.searcher()

    def ask(query: str, k: int) -> Ranked:
        parsed, _ = index.parse_query_lenient(query, ["contents"])
        hits = searcher.search(parsed, k, count=False).hits
        return (
            [str(searcher.doc(address)["id"][0]) for _, address in hits],
            [score for score, _ in hits],
        )

    return ask


def _tantivy(folder: Path) -> Any:
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    schema.add_text_field("contents", tokenizer_name="en_stem")
    place = folder / "index"
    place.mkdir(exist_ok=True)
    return tantivy.Index(schema.build(), path=str(place))


def _tantivy_documents(corpus: Path) -> Iterator[Any]:
    import tantivy

    def document(passage: Passage) -> Any:
        return tantivy.Document(id=passage.id, contents=passage.contents)

    return map(document, stream_corpus(corpus))


def build_pyserini(corpus: Path, folder: Path) -> None:
    """Lucene through Pyserini's command, raw texts stored, one thread."""
    import runpy
    import sys

    (folder / "corpus").mkdir()
    (folder / "corpus" / "corpus.jsonl").hardlink_to(corpus)
    sys.argv = [
        "pyserini.index.lucene", "--collection", "JsonCollection",
        "--input", str(folder / "corpus"), "--index", str(folder / "index"),
        "--generator", "DefaultLuceneDocumentGenerator", "--threads", "1", "--storeRaw",
    ]  # fmt: skip
    runpy.run_module("pyserini.index.lucene", run_name="__main__")


def open_pyserini(folder: Path) -> Ask:
    """Lucene through Pyserini."""
    from pyserini.search.lucene import LuceneSearcher

    searcher = LuceneSearcher(str(folder / "index"))
    searcher.set_bm25(K1, B)

    def ask(query: str, k: int) -> Ranked:
        hits = searcher.search(query, k)
        return [hit.docid for hit in hits], [hit.score for hit in hits]

    return ask


ENGINES: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path], Ask]]] = {
    "ours": (build_ours, open_ours),
    "bm25s": (build_bm25s, open_bm25s),
    "tantivy": (build_tantivy, open_tantivy),
    "pyserini": (build_pyserini, open_pyserini),
}
"""How each is built and opened."""
