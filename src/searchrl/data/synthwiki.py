"""SynthWiki: an encyclopedia generated from a seed, with questions whose answers are known.

People, cities, countries, companies, films, books and rivers, one passage an entity. Every fact is
a pure function of (seed, entity, relation), so a world of any size is streamed in constant memory
and no fact carries over from another world: names never repeat across seeds.

A question follows a chain of relations from a named entity. Only the first passage of a chain
mentions anything in the question; the bridge entities between the passages are not in it, so one
retrieval with the question finds the first gold passage and, for two and three hops, misses the
rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from searchrl.data.jsonl import write_jsonl
from searchrl.data.names import FAMILY, MAX_INDEX, name
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.data.storage import write_json, write_text
from searchrl.errors import InputError
from searchrl.seeding import derive_seed

MIN_SIZE = 100
DEFAULT_HOPS: Mapping[int, float] = {1: 0.15, 2: 0.65, 3: 0.2}


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact.

    Attributes:
        subject: the kind whose passages state it.
        name: unique among the subject's relations.
        object: the kind it leads to, or ``None`` when its value is a number.
        openings: sentence templates over ``{s}`` (subject) and ``{o}`` (object) that name both;
            the first sentence of a passage is one of them.
        sequels: templates for later sentences, over ``{o}``.
        phrases: noun phrases that ask for the object, over ``{x}``.
    """

    subject: str
    name: str
    object: str | None
    openings: tuple[str, ...]
    sequels: tuple[str, ...]
    phrases: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "film",
        "director",
        "person",
        ("{s} was directed by {o}.", "{o} directed {s}."),
        ("Its director was {o}.", "{o} directed it."),
        ("the director of {x}", "the person who directed {x}"),
    ),
    Relation(
        "film",
        "studio",
        "company",
        ("{s} was produced by {o}.", "{o} produced {s}."),
        ("Its studio was {o}.", "{o} produced it."),
        ("the studio of {x}", "the company that produced {x}"),
    ),
    Relation(
        "film",
        "release",
        None,
        ("{s} was released in {o}.", "The release of {s} was in {o}."),
        ("It was released in {o}.", "Its release was in {o}."),
        ("the release year of {x}", "the year in which {x} was released"),
    ),
    Relation(
        "book",
        "author",
        "person",
        ("{s} was written by {o}.", "{o} wrote {s}."),
        ("Its author was {o}.", "{o} wrote it."),
        ("the author of {x}", "the person who wrote {x}"),
    ),
    Relation(
        "book",
        "publisher",
        "company",
        ("{s} was published by {o}.", "{o} published {s}."),
        ("Its publisher was {o}.", "{o} published it."),
        ("the publisher of {x}", "the company that published {x}"),
    ),
    Relation(
        "company",
        "founder",
        "person",
        ("{s} was founded by {o}.", "{o} founded {s}."),
        ("Its founder was {o}.", "{o} founded it."),
        ("the founder of {x}", "the person who founded {x}"),
    ),
    Relation(
        "company",
        "headquarters",
        "city",
        ("{s} is based in {o}.", "The headquarters of {s} are in {o}."),
        ("It is based in {o}.", "Its headquarters are in {o}."),
        ("the headquarters of {x}", "the city where {x} is based"),
    ),
    Relation(
        "person",
        "birthplace",
        "city",
        ("{s} was born in {o}.", "The birthplace of {s} was {o}."),
        ("The birthplace was {o}.", "The birth was in {o}."),
        ("the birthplace of {x}", "the city where {x} was born"),
    ),
    Relation(
        "person",
        "birth",
        None,
        ("{s} was born in the year {o}.", "The birth year of {s} was {o}."),
        ("The birth year was {o}.", "The year of birth was {o}."),
        ("the birth year of {x}", "the year in which {x} was born"),
    ),
    Relation(
        "city",
        "country",
        "country",
        ("{s} lies in {o}.", "The country of {s} is {o}."),
        ("It lies in {o}.", "Its country is {o}."),
        ("the country of {x}", "the country around {x}"),
    ),
    Relation(
        "city",
        "river",
        "river",
        ("{s} stands on {o}.", "{o} flows through {s}."),
        ("Its river is {o}.", "{o} flows through it."),
        ("the river of {x}", "the river beside {x}"),
    ),
    Relation(
        "country",
        "capital",
        "city",
        ("The capital of {s} is {o}.", "{s} has its capital at {o}."),
        ("Its capital is {o}.", "{o} is its capital."),
        ("the seat of government of {x}", "the city that governs {x}"),
    ),
    Relation(
        "country",
        "independence",
        None,
        ("{s} became free in {o}.", "The independence of {s} was in {o}."),
        ("It became free in {o}.", "Its independence was in {o}."),
        ("the date of freedom of {x}", "the date on which {x} won freedom"),
    ),
    Relation(
        "river",
        "mouth",
        "city",
        ("{s} meets the sea at {o}.", "The mouth of {s} is at {o}."),
        ("It meets the sea at {o}.", "Its mouth is at {o}."),
        ("the end of {x}", "the city where {x} ends"),
    ),
    Relation(
        "river",
        "length",
        None,
        ("{s} is {o} km long.", "The length of {s} is {o} km."),
        ("It is {o} km long.", "Its length is {o} km."),
        ("the extent of {x}", "the distance that {x} covers"),
    ),
)
FORMS: Mapping[str, str] = {
    "country": "{} Republic",
    "river": "{} River",
    "city": "{} City",
    "company": "{} Group",
    "person": "{}",
    "book": "The Book of {}",
    "film": "The Film of {}",
}
_SHARES: Mapping[str, float] = {
    "country": 0.04,
    "river": 0.06,
    "city": 0.16,
    "company": 0.12,
    "person": 0.28,
    "book": 0.14,
}
_WRAPPERS = ("What is {}?", "Name {}.", "Tell me {}.")
_BY_SUBJECT: dict[str, tuple[Relation, ...]] = {
    kind: tuple(relation for relation in RELATIONS if relation.subject == kind) for kind in FORMS
}


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing in a world: its kind, its place among all entities, its name."""

    kind: str
    index: int
    name: str


class World:
    """One generated encyclopedia of ``size`` passages.

    Args:
        seed: 0 to 9,999; worlds with different seeds share no entity name.
        size: number of passages, 100 or more.
    """

    def __init__(self, seed: int, size: int) -> None:
        if not MIN_SIZE <= size <= MAX_INDEX:
            raise InputError(f"size {size}: a world has {MIN_SIZE} to {MAX_INDEX} passages")
        self.seed = seed
        self.size = size
        self._ranges = _layout(size)
        self.entity(0)

    def entity(self, index: int) -> Entity:
        """The entity with this number, 0 to ``size`` - 1.

        Raises:
            InputError: there is no such number in this world.
        """
        if not 0 <= index < self.size:
            raise InputError(f"index {index}: this world's entities are 0 to {self.size - 1}")
        kind = next(kind for kind, members in self._ranges.items() if index in members)
        return Entity(kind, index, FORMS[kind].format(name(self.seed, index)))

    def passage_id(self, entity: Entity) -> str:
        """The id of the passage about an entity."""
        return f"{self.seed}-{entity.kind}-{entity.index}"

    def passage(self, index: int) -> Passage:
        """The passage about entity ``index``: its facts in an order of its own, named first."""
        subject = self.entity(index)
        relations = _BY_SUBJECT[subject.kind]
        first = self._draw(len(relations), subject, "order")
        ordered = relations[first:] + relations[:first]
        sentences = [
            self._sentence(subject, relation, relation.sequels if place else relation.openings)
            for place, relation in enumerate(ordered)
        ]
        return Passage(self.passage_id(subject), subject.name, " ".join(sentences))

    def passages(self) -> Iterator[Passage]:
        """All passages, streamed."""
        return (self.passage(index) for index in range(self.size))

    def value(self, subject: Entity, relation: Relation) -> Entity | str:
        """The object of a fact: an entity, or a number as text."""
        if relation.object is None:
            if relation.name == "length":
                return str(100 + self._draw(900, subject, relation.name))
            return str(1800 + self._draw(200, subject, relation.name))
        members = self._ranges[relation.object]
        if relation.name == "country":
            return self.entity(members[subject.index % len(members)])
        if relation.name == "capital":
            return self._capital(subject)
        return self.entity(members[self._draw(len(members), subject, relation.name)])

    def gold_entities(self, question: Question) -> list[Entity]:
        """The entities of a question's chain, from the one it names to the last bridge."""
        return [self.entity(int(gold.rsplit("-", 1)[1])) for gold in question.gold_ids]

    def questions(
        self, count: int, stream: int = 0, hops: Mapping[int, float] = DEFAULT_HOPS
    ) -> Iterator[Question]:
        """Distinct questions, streamed.

        Args:
            count: how many.
            stream: another number gives other draws from the same world.
            hops: share of questions by number of gold passages (1, 2 or 3).

        Raises:
            InputError: the world is too small to hold ``count`` distinct questions, or ``hops``
                has a key that is not 1, 2 or 3, a negative share, or no share above 0.
        """
        if (
            not hops.keys() <= CHAINS.keys()
            or min(hops.values(), default=0) < 0
            or not sum(hops.values())
        ):
            raise InputError(f"hops {dict(hops)}: give shares of 0 or more for 1, 2 and 3 hops")
        seen: set[str] = set()
        attempts = misses = 0
        while len(seen) < count:
            attempts += 1
            question = self._question(derive_seed(self.seed, stream, attempts), hops)
            if question is not None and question.text not in seen:
                misses = 0
                seen.add(question.text)
                yield question
                continue
            misses += 1
            if misses > 1000 + 50 * len(seen):
                raise InputError(
                    f"size {self.size}: too small for {count} distinct questions; "
                    f"{len(seen)} were found"
                )

    def _question(self, draw: int, hops: Mapping[int, float]) -> Question | None:
        """The question behind one draw, or ``None`` where the draw breaks the rules."""
        length = _weighted(hops, derive_seed(draw, "hops"))
        chains = CHAINS[length]
        chain = chains[derive_seed(draw, "chain") % len(chains)]
        members = self._ranges[chain[0].subject]
        trail: list[Entity] = [self.entity(members[derive_seed(draw, "entity") % len(members)])]
        phrase, answer = trail[0].name, ""
        for step, relation in enumerate(chain):
            form = derive_seed(draw, "phrase", step) % len(relation.phrases)
            phrase = relation.phrases[form].format(x=phrase)
            value = self.value(trail[-1], relation)
            if isinstance(value, str):
                answer = value
            elif value in trail:
                return None
            else:
                answer = value.name
                trail.append(value)
        gold = trail[: len(chain)]
        if length > 1 and answer in self.passage(gold[0].index).text:
            return None
        wrapper = _WRAPPERS[derive_seed(draw, "wrapper") % len(_WRAPPERS)]
        return Question(
            id=f"{self.seed}-q{draw:016x}",
            text=wrapper.format(phrase),
            answers=(answer,),
            source=f"synthwiki-{length}hop",
            gold_ids=tuple(self.passage_id(entity) for entity in gold),
            hops=length,
        )

    def _sentence(self, subject: Entity, relation: Relation, templates: Sequence[str]) -> str:
        value = self.value(subject, relation)
        template = templates[self._draw(len(templates), subject, f"{relation.name} sentence")]
        return template.format(s=subject.name, o=value if isinstance(value, str) else value.name)

    def _capital(self, country: Entity) -> Entity:
        """A city that names this country as its own."""
        cities, countries = self._ranges["city"], self._ranges["country"]
        # City c lies in country c modulo their number, and there are at least twice as many cities.
        first = cities.start + (country.index - countries.start - cities.start) % len(countries)
        return self.entity(first + len(countries) * self._draw(2, country, "capital"))

    def _draw(self, choices: int, subject: Entity, purpose: str) -> int:
        return derive_seed(self.seed, subject.index, purpose) % choices


def write_synthwiki(
    out: Path, size: int, seed: int, questions: int, hops: Mapping[int, float] = DEFAULT_HOPS
) -> None:
    """Write ``corpus.jsonl``, ``questions.jsonl``, ``qrels.tsv`` and ``about.json`` to ``out``."""
    world = World(seed, size)
    asked = list(world.questions(questions, hops=hops))
    write_jsonl(
        out / "corpus.jsonl", ({"id": p.id, "contents": p.contents} for p in world.passages())
    )
    write_jsonl(out / "questions.jsonl", (question.to_row() for question in asked))
    rows = [f"{q.id}\t{gold}\t1" for q in asked for gold in q.gold_ids]
    write_text(out / "qrels.tsv", "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    about = {"seed": seed, "size": size, "questions": questions}
    write_json(out / "about.json", about | {"hops": {str(k): v for k, v in hops.items()}})


def _layout(size: int) -> dict[str, range]:
    """Index ranges by kind; each starts on a family boundary, so near-duplicates share a kind."""
    ranges: dict[str, range] = {}
    start = 0
    for kind, share in _SHARES.items():
        count = max(FAMILY, int(size * share) // FAMILY * FAMILY)
        ranges[kind] = range(start, start + count)
        start += count
    ranges["film"] = range(start, size)
    return ranges


def _chains(length: int) -> tuple[tuple[Relation, ...], ...]:
    """All relation paths of this length that visit no kind twice on the way."""
    paths: list[tuple[Relation, ...]] = [(relation,) for relation in RELATIONS]
    for _ in range(length - 1):
        paths = [
            (*path, relation)
            for path in paths
            if (kind := path[-1].object) is not None
            for relation in _BY_SUBJECT[kind]
            if kind not in {step.subject for step in path}
        ]
    return tuple(paths)


def _weighted(weights: Mapping[int, float], draw: int) -> int:
    """Pick a key with probability proportional to its weight."""
    point = draw % 10**9 / 10**9 * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return max(weights)


CHAINS: Mapping[int, tuple[tuple[Relation, ...], ...]] = {n: _chains(n) for n in (1, 2, 3)}
