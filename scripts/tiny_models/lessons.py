"""What the tiny models are taught, as endless streams of weighted sequences.

Four lessons, all over worlds whose seeds (5,000 to 9,999) nothing else uses:

- ``copying``: a few names, then the same names again. Learned first: attention that finds an
  earlier occurrence forms in short sequences within minutes, and in long ones hardly at all.
- ``reading``: several questions over a few passages, every answer a copy.
- ``answering``: the generator's task. One, two and three hops; the bridges are thought aloud
  between ``<think>`` tags; where a needed passage is missing the answer is "unknown".
- ``searching``: demonstrations of the s3 protocol, first by a good searcher and then by a mediocre
  one that mostly searches for what the question already names. Reinforcement learning then has
  something to improve, and an ability to find: what a searcher cannot do at all is never rewarded.
  A query is thought first, in the place where the generator thinks its bridges: the skill is there
  already, and only has to be used.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from searchrl.agents.prompts import reader_prompt, render_context, s3_prompt
from searchrl.agents.protocol import render_hits, render_observation
from searchrl.data.names import FAMILY
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.data.synthwiki import CHAINS, Entity, World
from searchrl.models.chat import encode_text, render_chat
from searchrl.models.protocol import Message
from searchrl.retrieval.protocol import Hit
from searchrl.training.supervised import Example

SEEDS = range(5_000, 10_000)
UNKNOWN = "unknown"
_SIZES = (300, 600, 1_000, 2_000, 4_000)
_SEARCHED_WORLDS = 100
"""Every one of these is indexed, which takes a moment."""
_READ_WEIGHT = 0.05
_SLIPS = 0.2
"""Share of selections and of ends that go wrong where no query is right."""

Search = Callable[[World, str, int], list[Hit]]


def copying(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Example]:
    """A list of names, then the same names again, in the same order or another."""
    draw = random.Random(seed)
    while True:
        world = World(draw.choice(SEEDS), draw.choice(_SIZES))
        count = draw.choice((2, 2, 3, 4))
        names = [entity.name for entity in _neighbourhood(world, draw, count)]
        builder = Builder(tokenizer)
        builder.read("\n".join(names) + "\n", 0.0)
        if draw.random() < 0.5:
            draw.shuffle(names)
        builder.said("\n".join(names))
        yield builder.example()


def reading(tokenizer: PreTrainedTokenizerBase, seed: int, weight: float) -> Iterator[Example]:
    """One to three passages, then up to nine one-hop questions about them.

    Args:
        tokenizer: the tiny tokenizer.
        seed: fixes the stream.
        weight: of every token that is not an answer; answers weigh 1.
    """
    draw = random.Random(seed)
    while True:
        world = World(draw.choice(SEEDS), draw.choice(_SIZES))
        entities = _neighbourhood(world, draw, count=draw.choice((1, 2, 2, 3)))
        facts = [
            (entity, chain)
            for entity in entities
            for chain in CHAINS[1]
            if chain[0].subject == entity.kind
        ]
        draw.shuffle(facts)
        builder = Builder(tokenizer)
        opening = [Message("system", render_context(_hits(world, entities)))]
        for entity, chain in facts[:9]:
            value = world.value(entity, chain[0])
            phrase = draw.choice(chain[0].phrases).format(x=entity.name)
            builder.chat([*opening, Message("user", _wrap(draw, phrase))], weight)
            builder.spoken(value if isinstance(value, str) else value.name)
            opening = []
        yield builder.example()


def answering(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Example]:
    """Passages and three questions whose evidence may be there or not."""
    draw = random.Random(seed)
    while True:
        world = World(draw.choice(SEEDS), draw.choice(_SIZES))
        hops = {1: 0.35, 2: 0.4, 3: 0.25}
        questions = list(world.questions(3, stream=draw.randrange(10**9), hops=hops))
        shown: list[Entity] = []
        for question in questions[: draw.choice((2, 3, 3, 3))]:
            gold = world.gold_entities(question)
            if draw.random() < 0.2:
                gold.pop(draw.randrange(len(gold)))
            shown += gold
            shown += _relatives(world, draw, gold[:1], count=draw.randrange(3))
        shown += _strangers(world, draw, count=draw.randrange(3))
        shown = list(dict.fromkeys(shown))
        draw.shuffle(shown)
        shown = shown[:9]
        builder = Builder(tokenizer)
        context = _hits(world, shown)
        for number, question in enumerate(questions):
            messages = reader_prompt(question.text, context, "brief")
            builder.chat(messages if number == 0 else messages[1:], _READ_WEIGHT)
            builder.spoken(spoken_answer(question, world.gold_entities(question), shown))
        yield builder.example()


def alternate(*streams: Iterator[Example]) -> Iterator[Example]:
    """One sequence of each stream in turn."""
    while True:
        for stream in streams:
            yield next(stream)


def spoken_answer(question: Question, gold: Sequence[Entity], shown: Sequence[Entity]) -> str:
    """What the ideal generator says: the bridges it can find, then the answer or "unknown"."""
    bridges: list[str] = []
    for entity, following in zip(gold, [*gold[1:], None], strict=True):
        if entity not in shown:
            return thought(bridges) + UNKNOWN
        if following is not None:
            bridges.append(following.name)
    return thought(bridges) + question.answers[0]


def searching(
    tokenizer: PreTrainedTokenizerBase, seed: int, search: Search, right: float
) -> Iterator[Example]:
    """One demonstration of the s3 protocol a sequence.

    Args:
        tokenizer: the tiny tokenizer.
        seed: fixes the stream.
        search: the demonstrator's search engine.
        right: share of queries that are right; most others repeat the question's own entity. The
            lower it is, the more selections are random and the more searches end too early.
    """
    for draw, world, question in asked(seed, {1: 0.1, 2: 0.5, 3: 0.4}):
        yield _demonstration(tokenizer, draw, world, question, search, right)


def asked(seed: int, hops: Mapping[int, float]) -> Iterator[tuple[random.Random, World, Question]]:
    """Questions over the worlds that demonstrators search, each with the stream's own draws."""
    draw = random.Random(seed)
    while True:
        seed_of_world = draw.choice(SEEDS[:_SEARCHED_WORLDS])
        world = World(seed_of_world, _SIZES[seed_of_world % len(_SIZES)])
        for question in world.questions(20, stream=draw.randrange(10**9), hops=dict(hops)):
            yield draw, world, question


def _demonstration(
    tokenizer: PreTrainedTokenizerBase,
    draw: random.Random,
    world: World,
    question: Question,
    search: Search,
    right: float,
    max_turns: int = 2,
    k: int = 3,
) -> Example:
    gold = world.gold_entities(question)
    slips = _SLIPS * (1 - right)
    found = 1
    hits = search(world, question.text, k)
    builder = Builder(tokenizer)
    prompt = s3_prompt(question.text, render_hits(hits), "brief", max_selected=3)
    builder.chat([Message("user", prompt)], 0.0)
    for turn in range(max_turns + 1):
        numbers = _selection(draw, hits, {world.passage_id(entity) for entity in gold}, slips)
        chosen = f"<important_info>{numbers}</important_info>\n"
        if turn == max_turns or found == len(gold) or draw.random() < slips:
            builder.said(f"{chosen}<search_complete>True</search_complete>")
            break
        bridge = gold[found].name
        query = bridge if draw.random() < right else wrong_query(draw, gold[0].name, hits)
        builder.said(
            f"<think>{query}</think>\n{chosen}<search_complete>False</search_complete>\n"
            f'<query>{{"query": "{query}"}}</query>'
        )
        hits = search(world, query, k)
        found += query == bridge
        builder.read(render_observation(render_hits(hits)), 0.0)
    return builder.example()


def wrong_query(draw: random.Random, subject: str, hits: Sequence[Hit]) -> str:
    """Mostly what the question already names, sometimes another title."""
    return subject if draw.random() < 0.85 else draw.choice(hits).passage.title


def _selection(draw: random.Random, hits: Sequence[Hit], gold: set[str], slips: float) -> list[int]:
    """Mostly the gold passages among the hits, sometimes one at random."""
    numbers = [rank for rank, hit in enumerate(hits, start=1) if hit.passage.id in gold]
    if not numbers or draw.random() < slips:
        numbers = [draw.randint(1, len(hits))]
    return numbers


class Builder:
    """Puts one sequence together, token by token, as an agent would see it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._weights: list[float] = []

    def chat(self, messages: Sequence[Message], weight: float) -> None:
        """Messages in the template, up to where the assistant speaks."""
        self._extend(render_chat(self._tokenizer, messages), weight)

    def spoken(self, text: str) -> None:
        """A whole assistant message with its end token, then the template's newline."""
        end = self._tokenizer.eos_token_id
        assert isinstance(end, int)
        self._extend([*encode_text(self._tokenizer, text), end], 1.0)
        self.read("\n", 0.0)

    def said(self, text: str) -> None:
        """Assistant text that ends without an end token."""
        self._extend(encode_text(self._tokenizer, text), 1.0)

    def read(self, text: str, weight: float) -> None:
        """Text from the environment."""
        self._extend(encode_text(self._tokenizer, text), weight)

    def example(self) -> Example:
        """The sequence."""
        return Example(tuple(self._token_ids), tuple(self._weights))

    def _extend(self, token_ids: Sequence[int], weight: float) -> None:
        self._token_ids += token_ids
        self._weights += [weight] * len(token_ids)


def thought(bridges: Sequence[str]) -> str:
    """Bridges as they are thought aloud; nothing where there are none."""
    return f"<think>{', '.join(bridges)}</think>" if bridges else ""


def _wrap(draw: random.Random, phrase: str) -> str:
    return draw.choice(("What is {}?", "Name {}.", "Tell me {}.")).format(phrase)


def _neighbourhood(world: World, draw: random.Random, count: int) -> list[Entity]:
    """An entity with near-duplicates, or strangers, in any order."""
    first = world.entity(draw.randrange(world.size))
    chosen = [first, *_relatives(world, draw, [first], draw.randrange(count))]
    chosen += _strangers(world, draw, count - len(chosen))
    draw.shuffle(chosen)
    return list(dict.fromkeys(chosen))


def _relatives(
    world: World, draw: random.Random, entities: Sequence[Entity], count: int
) -> list[Entity]:
    """Up to ``count`` near-duplicates of each entity."""
    relatives: list[Entity] = []
    for entity in entities:
        start = entity.index // FAMILY * FAMILY
        family = [i for i in range(start, min(start + FAMILY, world.size)) if i != entity.index]
        relatives += [world.entity(i) for i in draw.sample(family, min(count, len(family)))]
    return relatives


def _strangers(world: World, draw: random.Random, count: int) -> list[Entity]:
    return [world.entity(draw.randrange(world.size)) for _ in range(count)]


def _hits(world: World, entities: Sequence[Entity]) -> list[Hit]:
    passages: list[Passage] = [world.passage(entity.index) for entity in entities]
    return [Hit(passage, 0.0) for passage in passages]
