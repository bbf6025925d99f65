from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.data.names import FAMILY, MAX_INDEX, MAX_SEED, name
from searchrl.data.passages import read_corpus
from searchrl.data.questions import Question, read_questions
from searchrl.data.synthwiki import CHAINS, RELATIONS, World, write_synthwiki
from searchrl.errors import InputError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.metrics import read_qrels
from searchrl.seeding import derive_seed

WORLD = World(11, 1000)
QUESTIONS = list(WORLD.questions(300))
PASSAGES = {passage.id: passage for passage in WORLD.passages()}
SEEDS = st.integers(0, MAX_SEED)
INDICES = st.integers(0, MAX_INDEX - 1) | st.integers(0, 12_000)


@given(SEEDS, INDICES, SEEDS, INDICES)
def test_two_numbers_never_share_a_name(
    seed: int, index: int, other_seed: int, other_index: int
) -> None:
    same = (seed, index) == (other_seed, other_index)
    assert (name(seed, index) == name(other_seed, other_index)) == same


def test_names_of_neighbouring_worlds_are_disjoint() -> None:
    every = [name(seed, index) for seed in (0, 1, 5000, MAX_SEED) for index in range(9_500, 10_500)]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("index", [3, 20_000])
def test_no_two_of_all_worlds_share_a_name(index: int) -> None:
    assert len({name(seed, index) for seed in range(MAX_SEED + 1)}) == MAX_SEED + 1


@pytest.mark.parametrize("index", [3, 777, 20_000])
def test_no_word_of_a_name_tells_the_place_in_the_world(index: int) -> None:
    names = [name(seed, index).split() for seed in range(500)]
    for place in (0, -1):
        assert len({words[place] for words in names}) > 400


@given(SEEDS, INDICES)
def test_a_family_shares_first_word_and_first_syllable_of_the_last(seed: int, index: int) -> None:
    start = index // FAMILY * FAMILY
    family = [name(seed, member).split() for member in range(start, start + FAMILY)]
    assert len({words[0] for words in family}) == 1
    assert len({words[-1][:3] for words in family}) == 1
    assert len({words[-1] for words in family}) == FAMILY
    assert {len(words) for words in family} == {2 if start < 10_000 else 3}


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (MAX_SEED + 1, 0), (0, -1), (0, MAX_INDEX)])
def test_names_outside_of_the_range_are_refused(seed: int, index: int) -> None:
    with pytest.raises(InputError, match=r"^(seed|index) -?\d+: [^\n]+$"):
        name(seed, index)


@pytest.mark.parametrize("size", [100, 101, 137, 1000])
def test_a_world_has_as_many_passages_as_asked_with_their_own_ids_and_titles(size: int) -> None:
    passages = list(World(5, size).passages())
    assert len(passages) == size
    assert len({passage.id for passage in passages}) == size
    assert len({passage.title for passage in passages}) == size


def test_streaming_equals_indexing_and_the_seed_fixes_every_byte() -> None:
    again = World(11, 1000)
    assert [again.passage(index) for index in reversed(range(1000))] == list(WORLD.passages())[::-1]
    assert list(again.questions(300)) == QUESTIONS


def test_worlds_share_no_title_and_streams_share_few_questions() -> None:
    other = {passage.title for passage in World(12, 1000).passages()}
    assert other.isdisjoint(passage.title for passage in PASSAGES.values())
    second = {question.text for question in WORLD.questions(300, stream=1)}
    assert len(second & {question.text for question in QUESTIONS}) < 60


def test_a_passage_states_every_fact_of_its_entity() -> None:
    for index in range(0, WORLD.size, 7):
        subject, text = WORLD.entity(index), WORLD.passage(index).text
        for relation in (r for r in RELATIONS if r.subject == subject.kind):
            value = WORLD.value(subject, relation)
            assert (value if isinstance(value, str) else value.name) in text


@pytest.mark.parametrize("size", [100, 137, 1000])
def test_a_capital_lies_in_its_country(size: int) -> None:
    world = World(8, size)
    capital = next(relation for relation in RELATIONS if relation.name == "capital")
    country = next(relation for relation in RELATIONS if relation.name == "country")
    for entity in map(world.entity, range(size)):
        if entity.kind == "country":
            city = world.value(entity, capital)
            assert not isinstance(city, str)
            assert world.value(city, country) == entity


def test_questions_are_distinct_and_their_gold_chain_holds() -> None:
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        gold = [PASSAGES[gold_id] for gold_id in question.gold_ids]
        assert len(gold) == question.hops == len(set(question.gold_ids))
        assert gold[0].title in question.text
        for here, there in itertools.pairwise(gold):
            assert there.title in here.text
            assert there.title not in question.text
        [answer] = question.answers
        assert answer in gold[-1].text
        assert answer not in question.text
        if question.hops > 1:
            assert answer not in gold[0].text
        assert [entity.name for entity in WORLD.gold_entities(question)] == [p.title for p in gold]


def test_hop_shares_follow_the_weights() -> None:
    counts = Counter(question.hops for question in World(4, 3000).questions(1500))
    for hops, share in ((1, 0.15), (2, 0.65), (3, 0.2)):
        assert counts[hops] / 1500 == pytest.approx(share, abs=0.05)
    assert {q.hops for q in WORLD.questions(50, hops={3: 1.0})} == {3}
    assert {q.hops for q in WORLD.questions(50, hops={1: 0.0, 2: 2.0})} == {2}


@pytest.mark.parametrize("hops", [{}, {2: 0.0}, {4: 1.0}, {1: -0.5, 2: 1.0}])
def test_shares_that_mean_nothing_are_refused(hops: dict[int, float]) -> None:
    with pytest.raises(InputError, match=r"^hops \{.*\}: [^\n]+$"):
        next(WORLD.questions(1, hops=hops))


def test_chains_visit_no_kind_twice() -> None:
    for length, chains in CHAINS.items():
        for chain in chains:
            assert len(chain) == length == len({step.subject for step in chain})
            assert all(a.object == b.subject for a, b in itertools.pairwise(chain))


def test_one_retrieval_finds_the_first_gold_passage_and_not_the_rest() -> None:
    retriever = Bm25Retriever(PASSAGES.values())
    found = asyncio.run(retriever.search([question.text for question in QUESTIONS], 3))
    missed, multi, complete = 0, 0, 0
    for question, hits in zip(QUESTIONS, found, strict=True):
        ids = {hit.passage.id for hit in hits}
        missed += question.gold_ids[0] not in ids
        if question.hops > 1:
            multi += 1
            complete += ids.issuperset(question.gold_ids)
    # Every page names its subject twice, so it outranks the pages that mention it. A page further
    # on in the chain is found now and then, where its name shares a word with the question.
    assert missed == 0
    assert multi > 200
    assert complete / multi < 0.06


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    write_synthwiki(tmp_path / "new" / "wiki", size=200, seed=3, questions=40)
    out = tmp_path / "new" / "wiki"
    world = World(3, 200)
    assert list(read_corpus(out / "corpus.jsonl")) == list(world.passages())
    questions = read_questions(out / "questions.jsonl")
    assert questions == list(world.questions(40))
    qrels = read_qrels(out / "qrels.tsv")
    assert qrels == {q.id: dict.fromkeys(q.gold_ids, 1) for q in questions}
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    write_synthwiki(tmp_path / "again", size=200, seed=3, questions=40)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}


@pytest.mark.parametrize(
    ("seed", "size"), [(0, 99), (0, 0), (0, -5), (-1, 100), (MAX_SEED + 1, 100)]
)
def test_impossible_worlds_are_refused(seed: int, size: int) -> None:
    with pytest.raises(InputError, match=r"^(seed|size) -?\d+: [^\n]+$"):
        World(seed, size)


@pytest.mark.parametrize("index", [-1, 1000])
def test_an_entity_outside_of_the_world_is_refused(index: int) -> None:
    with pytest.raises(InputError, match="entities are 0 to 999"):
        WORLD.passage(index)


def test_a_world_too_small_for_the_questions_says_so() -> None:
    with pytest.raises(InputError, match="size 100: too small for 5000 distinct questions"):
        _exhaust(World(0, 100), 5_000)


def _exhaust(world: World, count: int) -> list[Question]:
    # One hop only: 100 passages hold a few hundred such questions.
    return list(itertools.islice(world.questions(count, hops={1: 1.0}), count))


def test_a_large_world_costs_nothing_until_it_is_read() -> None:
    world = World(3, 2_000_000)
    assert world.passage(1_999_999).id == "3-film-1999999"
    assert re.fullmatch(r"\w+ \w+ Republic", world.passage(5).title)
    for index in range(0, 80_000, 80):  # countries, whose capitals must not be searched for
        world.passage(index)


def test_a_seed_depends_on_every_part_its_type_and_its_place() -> None:
    parts: list[tuple[int | str, ...]] = [
        (1, "23"),
        ("12", 3),
        (12, 3),
        ("1", "23"),
        ("23", 1),
        ("a", "b"),
        ("a\x1fstr:b",),
        ("a\x1f", "b"),
        ("a", "\x1fb"),
        ("\ud800",),
    ]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "q", 2) == derive_seed(1, "q", 2)
