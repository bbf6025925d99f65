"""Demonstrations of the other methods' formats, as endless streams of weighted sequences.

The shipped searcher was shown s3's format alone. Each stream here teaches one more format to a
model that already reads like the generator. The demonstrator searches for what it has read and
answers with what it has found, "unknown" where it has found nothing; ``right`` says how often its
query is the right one. Prompts and results are rendered by the agents' own code, brief style, so a
model is asked in a comparison exactly as it was taught.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from scripts.tiny_models.lessons import UNKNOWN, Builder, asked, thought, wrong_query
from searchrl.agents.prompts import (
    deep_retrieval_prompt,
    ircot_prompt,
    reason_in_documents_prompt,
    search_o1_prompt,
    search_r1_prompt,
)
from searchrl.agents.protocol import render_hits, render_observation
from searchrl.agents.search_o1 import NOTHING, render_result
from searchrl.data.questions import Question
from searchrl.data.synthwiki import Entity, World
from searchrl.models.protocol import Message
from searchrl.retrieval.protocol import Hit
from searchrl.training.supervised import Example

HOPS = {1: 0.2, 2: 0.45, 3: 0.35}
K = 3
"""Passages a search, where a comparison does not vary them."""
SEARCHES = 3
"""Searches at most: as many retrievals as s3 makes with the tiny recipes, its first included."""
PASSAGES = 15
"""Passages that IRCoT collects at most."""

Search = Callable[[World, str], list[Hit]]
Stream = Iterator[Example]
Lesson = Callable[[PreTrainedTokenizerBase, int, Search, float], Stream]


class _Trail:
    """What a demonstrator has read on the way from the question to its answer."""

    def __init__(self, world: World, question: Question, search: Search) -> None:
        self._world = world
        self._question = question
        self._search = search
        self._seen: dict[str, Hit] = {}
        self.gold: Sequence[Entity] = world.gold_entities(question)

    @property
    def context(self) -> list[Hit]:
        """Every passage that was found, each once."""
        return list(self._seen.values())

    @property
    def known(self) -> int:
        """How many of the gold passages were read, each of which names the next."""
        ids = [self._world.passage_id(entity) for entity in self.gold]
        return next((n for n, known in enumerate(ids) if known not in self._seen), len(ids))

    @property
    def bridges(self) -> list[str]:
        """The entities that were found out."""
        return [entity.name for entity in self.gold[1 : self.known + 1]]

    @property
    def answer(self) -> str:
        """The answer, where all of its evidence was read."""
        return self._question.answers[0] if self.known == len(self.gold) else UNKNOWN

    def query(self, draw: random.Random, right: float) -> str:
        """What to search for next; the wrong one is mostly what the question already names."""
        if self.known == 0 or draw.random() < right:
            return self.gold[self.known].name
        return wrong_query(draw, self.gold[0].name, self.context)

    def look_up(self, query: str) -> list[Hit]:
        """Search, and read what is found."""
        hits = self._search(self._world, query)
        for hit in hits:
            if len(self._seen) < PASSAGES:
                self._seen.setdefault(hit.passage.id, hit)
        return hits


def search_r1(
    tokenizer: PreTrainedTokenizerBase, seed: int, search: Search, right: float
) -> Stream:
    """Search-R1: thinks a query, searches, and at the end thinks its bridges and answers."""
    for draw, world, question in asked(seed, HOPS):
        trail = _Trail(world, question, search)
        builder = _opened(tokenizer, search_r1_prompt(question.text, "brief", None))
        for _ in range(SEARCHES):
            if trail.known == len(trail.gold):
                break
            query = trail.query(draw, right)
            builder.said(f"<think>{query}</think>\n<search>{query}</search>")
            hits = trail.look_up(query)
            builder.read(render_observation(render_hits(hits, gap="")), 0.0)
        thinking = thought(trail.bridges) or f"<think>{trail.gold[0].name}</think>"
        builder.said(f"{thinking}\n<answer>{trail.answer}</answer>")
        yield builder.example()


def r1(tokenizer: PreTrainedTokenizerBase, seed: int, search: Search, right: float) -> Stream:
    """R1, without a search: thinks of what the question names, and says an answer of its kind."""
    for _, world, question in asked(seed, HOPS):
        builder = _opened(tokenizer, search_r1_prompt(question.text, "brief", 0))
        subject = world.gold_entities(question)[0].name
        builder.said(f"<think>{subject}</think>\n<answer>{question.answers[0]}</answer>")
        yield builder.example()


def deep_retrieval(
    tokenizer: PreTrainedTokenizerBase, seed: int, search: Search, right: float
) -> Stream:
    """DeepRetrieval: one query, which is the name in the question or some words of it."""
    for draw, world, question in asked(seed, HOPS):
        query = world.gold_entities(question)[0].name
        if draw.random() >= right:
            words = question.text.rstrip("?.").split()
            query = " ".join(draw.sample(words, min(3, len(words))))
        builder = Builder(tokenizer)
        builder.chat(deep_retrieval_prompt(question.text, "brief", False), 0.0)
        builder.spoken(f'<think>{query}</think>\n<answer>\n{{"query": "{query}"}}\n</answer>')
        yield builder.example()


def ircot(tokenizer: PreTrainedTokenizerBase, seed: int, search: Search, right: float) -> Stream:
    """IRCoT: a sentence a request, which names the page to read next or gives the answer."""
    for draw, world, question in asked(seed, HOPS):
        trail, sentences = _Trail(world, question, search), list[str]()
        trail.look_up(question.text)
        for _ in range(SEARCHES - 1):
            done = trail.known == len(trail.gold)
            query = "" if done else trail.query(draw, right)
            said = f"So the answer is: {trail.answer}." if done else f"The next page is {query}."
            builder = _opened(tokenizer, ircot_prompt(question.text, trail.context, "brief"))
            builder.read("".join(f"{sentence} " for sentence in sentences), 0.0)
            builder.spoken(said)
            yield builder.example()
            if done:
                break
            sentences.append(said)
            trail.look_up(said)


def search_o1(
    tokenizer: PreTrainedTokenizerBase, seed: int, search: Search, right: float
) -> Stream:
    """Search-o1: the running stream, and before it each second reading that is spliced into it."""
    for draw, world, question in asked(seed, HOPS):
        trail = _Trail(world, question, search)
        builder = _opened(tokenizer, search_o1_prompt(question.text, "brief", SEARCHES))
        queries: list[str] = []
        while trail.known < len(trail.gold) and len(queries) < SEARCHES:
            query = trail.query(draw, right)
            if query in queries:
                # The method refuses a repeated query.
                break
            queries.append(query)
            builder.said(f"<|begin_search_query|>{query}<|end_search_query|>")
            hits = trail.look_up(query)
            finding = _finding(query, hits)
            yield _reading(tokenizer, query, hits, finding)
            builder.read(render_result(finding), 0.0)
        builder.spoken(f"\\boxed{{{trail.answer}}}")
        yield builder.example()


def _opened(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Builder:
    """A chat of one message, up to where the model speaks; nothing of it is learned."""
    builder = Builder(tokenizer)
    builder.chat([Message("user", prompt)], 0.0)
    return builder


def _reading(
    tokenizer: PreTrainedTokenizerBase, query: str, hits: Sequence[Hit], finding: str
) -> Example:
    builder = _opened(tokenizer, reason_in_documents_prompt("", query, hits, "brief"))
    builder.spoken(f"**Final Information**\n{finding}")
    return builder.example()


def _finding(query: str, hits: Sequence[Hit]) -> str:
    """The passage about what was searched for, word for word."""
    texts = (hit.passage.text for hit in hits if hit.passage.title == query)
    return next(texts, NOTHING)


LESSONS: Mapping[str, Lesson] = {
    "search_r1": search_r1,
    "r1": r1,
    "deep_retrieval": deep_retrieval,
    "ircot": ircot,
    "search_o1": search_o1,
}
"""Every format that is taught, by the method's name."""
