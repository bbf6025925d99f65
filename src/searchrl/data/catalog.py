"""Published datasets by name: where each is, and which file is which split.

A split that a dataset does not have is absent here; nothing ever stands in for it, least of all the
training split. ``evaluation`` names the split that papers report on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["questions", "corpus", "index"]
FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
MIRAGE_URL = (
    "https://raw.githubusercontent.com/Teddy-XiongGZ/MIRAGE/"
    "224ebe9a721e1bc525a07b10eceb01ed52df7b29/benchmark.json"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One dataset.

    Attributes:
        name: what it is asked for by.
        kind: what its files hold.
        splits: the parts to fetch, each the files that joined in order make it up.
        repository: the dataset repository on the hub; empty where ``url`` says it all.
        config: the configuration's name there.
        url: a file outside the hub, which holds every split.
        evaluation: the split to report on; empty for what is not questions.
        size: for people, as in questions or gigabytes.
    """

    name: str
    kind: Kind
    splits: Mapping[str, tuple[str, ...]]
    repository: str = ""
    config: str = ""
    url: str = ""
    evaluation: str = ""
    size: str = ""


def _flashrag(name: str, evaluation: str, sizes: Mapping[str, int]) -> Entry:
    return Entry(
        name,
        "questions",
        {split: (f"{name}/{split}.jsonl",) for split in sizes},
        repository=FLASHRAG,
        config=name,
        evaluation=evaluation,
        size=", ".join(f"{split} {size:,}" for split, size in sizes.items()),
    )


def _mirage(name: str, split: str, size: int) -> Entry:
    return Entry(
        name,
        "questions",
        {split: ("benchmark.json",)},
        config=name,
        url=MIRAGE_URL,
        evaluation=split,
        size=f"{split} {size:,}",
    )


CATALOG: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        _flashrag("nq", "test", {"train": 79_168, "dev": 8_757, "test": 3_610}),
        _flashrag("triviaqa", "test", {"train": 78_785, "dev": 8_837, "test": 11_313}),
        _flashrag("popqa", "test", {"test": 14_267}),
        _flashrag("hotpotqa", "dev", {"train": 90_447, "dev": 7_405}),
        _flashrag("2wikimultihopqa", "dev", {"train": 15_000, "dev": 12_576}),
        _flashrag("musique", "dev", {"train": 19_938, "dev": 2_417}),
        _flashrag("bamboogle", "test", {"test": 125}),
        _mirage("mmlu", "test", 1_089),
        _mirage("medqa", "test", 1_273),
        _mirage("medmcqa", "dev", 4_183),
        _mirage("pubmedqa", "test", 500),
        _mirage("bioasq", "test", 618),
        Entry(
            "wiki-18",
            "corpus",
            {"wiki-18.jsonl.gz": ("wiki-18.jsonl.gz",)},
            repository="PeterJinGo/wiki-18-corpus",
            size="21 million passages",
        ),
        Entry(
            "wiki-18-e5",
            "index",
            {"e5_Flat.index": ("part_aa", "part_ab")},
            repository="PeterJinGo/wiki-18-e5-index",
            size="62 GB",
        ),
    )
}
"""Every dataset that can be fetched, by name."""
