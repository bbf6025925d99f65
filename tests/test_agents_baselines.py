"""The prompting baselines: chain of thought, IRCoT, Search-o1, DeepRetrieval."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from searchrl.agents import ircot, search_o1
from searchrl.agents.agent import Agent, Draw
from searchrl.agents.alone import cot, sft
from searchrl.agents.context import RetrievalOnlyAgent
from searchrl.agents.deep_retrieval import DeepRetrievalAgent, DeepRetrievalOptions
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode
from searchrl.agents.ircot import IrcotAgent, IrcotOptions, first_sentence, next_query
from searchrl.agents.protocol import parse_deep_retrieval, parse_search_o1
from searchrl.agents.search_o1 import SearchO1Agent, SearchO1Options
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from tests.fakes import (
    FailingRetriever,
    ListRetriever,
    ScriptedModel,
    check_record,
    passages,
)

Tokenizer = PreTrainedTokenizerFast
QUESTION = Question("q1", "Who founded what made The Film of Velmo?", ("x",))
LONG = 32_000


def run(agent: Agent) -> Episode:
    episode = asyncio.run(agent.run(QUESTION, Draw(0.5, seed=3)))
    assert episode.method == agent.name
    return episode


def ids(episode: Episode) -> list[str]:
    return [hit.passage.id for hit in episode.context]


def queries(episode: Episode) -> list[str]:
    return [turn.action.query for turn in episode.retrievals()]


# Chain of thought


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("It was made by Ada. <answer> Ada </answer>", "Ada"),
        ("It was Ada.", "It was Ada."),
        ("<think>long</think>It was Ada.", "It was Ada."),
        ("<answer>Ada", "<answer>Ada"),
    ],
)
def test_cot_takes_the_tagged_answer_or_all(
    tiny_tokenizer: Tokenizer, said: str, answer: str
) -> None:
    model = ScriptedModel(tiny_tokenizer, [said])
    episode = run(cot(model, "full", 64))
    assert episode.answer == answer
    assert episode.answers_itself
    assert (episode.context, episode.searches) == ((), 0)
    check_record(episode, model)
    assert "step by step" in episode.segments[0].text


def test_sft_asks_what_it_was_taught(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["Ada"])
    episode = run(sft(model, "brief", 64))
    assert episode.answer == "Ada"
    assert QUESTION.text in tiny_tokenizer.decode(model.prompts[0])


def test_a_model_alone_may_fail_or_have_no_room(tiny_tokenizer: Tokenizer) -> None:
    episode = run(cot(ScriptedModel(tiny_tokenizer, ["a"], fail_at=0), "full", 64))
    assert episode.end is EndReason.INFRASTRUCTURE
    episode = run(cot(ScriptedModel(tiny_tokenizer, ["a"], max_length=70), "full", 64))
    assert (episode.end, episode.answer) == (EndReason.TRUNCATED, None)


# IRCoT


def play_ircot(model: ScriptedModel, retriever: ListRetriever, **options: Any) -> Episode:
    return run(IrcotAgent(model, retriever, IrcotOptions(**({"style": "brief"} | options))))


def test_each_sentence_is_the_next_query(tiny_tokenizer: Tokenizer) -> None:
    said = ["Velmo made it. And more. ", "Velmo was founded by Ada.", "So the answer is: Ada."]
    model, retriever = ScriptedModel(tiny_tokenizer, said, LONG), ListRetriever(passages(20))
    episode = play_ircot(model, retriever)
    assert retriever.calls == [
        (QUESTION.text, 3),
        ("Velmo made it.", 3),
        ("Velmo was founded by Ada.", 3),
    ]
    assert queries(episode) == [call[0] for call in retriever.calls]
    assert ids(episode) == [f"p{n}" for n in range(1, 10)]
    assert episode.end is EndReason.FINISHED
    assert (episode.answer, episode.answers_itself) == (None, False)
    # Each request holds the passages so far, and the reasoning so far as its own words.
    prompts = [tiny_tokenizer.decode(prompt) for prompt in model.prompts]
    assert [prompt.count("Doc ") for prompt in prompts] == [3, 6, 9]
    assert prompts[2].endswith("Velmo made it. Velmo was founded by Ada. ")
    assert [s.origin for s in episode.segments] == ["prompt", "model"] * 3
    assert len({sampling.seed for sampling in model.samplings}) == 3


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_retrievals_are_bounded(tiny_tokenizer: Tokenizer, budget: int) -> None:
    model, retriever = ScriptedModel(tiny_tokenizer, ["On."], LONG), ListRetriever(passages(40))
    episode = play_ircot(model, retriever, max_retrievals=budget)
    assert len(retriever.calls) == budget
    assert episode.end is EndReason.MAX_TURNS
    assert len(model.prompts) == budget - 1


def test_sentences_and_passages_are_bounded(tiny_tokenizer: Tokenizer) -> None:
    model, retriever = ScriptedModel(tiny_tokenizer, ["On."], LONG), ListRetriever(passages(90))
    options = {"max_sentences": 3, "max_retrievals": 9, "max_passages": 7}
    episode = play_ircot(model, retriever, **options)
    assert len(model.prompts) == 3
    assert ids(episode) == [f"p{n}" for n in range(1, 8)]


def test_an_empty_sentence_ends_it(tiny_tokenizer: Tokenizer) -> None:
    episode = play_ircot(ScriptedModel(tiny_tokenizer, [" "], LONG), ListRetriever(passages(9)))
    assert (episode.end, ids(episode)) == (EndReason.FINISHED, ["p1", "p2", "p3"])


def test_as_published_it_filters_passages_and_queries(tiny_tokenizer: Tokenizer) -> None:
    found = [
        Passage("a", "Velmo", "Velmo is a company in Chur, founded in 1901."),
        Passage("b", "Velmo", "Velmo is a company in Chur, founded in 1902."),
        Passage("c", "Velmo", "Something else."),
        Passage("d", "Long", "word " * 601),
        Passage("e", "Less", "word " * 400),
    ]
    model = ScriptedModel(tiny_tokenizer, ["The answer is Ada."], LONG)
    retriever = ListRetriever(found)
    episode = run(IrcotAgent(model, retriever, ircot.PUBLISHED, "ircot_published"))
    assert retriever.calls == [("founded made The Film of Velmo?", 6)]
    assert ids(episode) == ["a", "c", "e"]
    assert tiny_tokenizer.decode(model.prompts[0]).count("word") == 350
    assert len(episode.context[2].passage.text.split()) == 400


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ("One", "One"),
        ("\n One?\nTwo", "One?"),
        ("Dr. J. R. Smith of St. Ives. Then", "Dr. J. R. Smith of St. Ives."),
        ("It cost 1.5 million. Then", "It cost 1.5 million."),
        ("", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


@pytest.mark.parametrize(
    ("sentences", "query"),
    [
        (["A is B.", "So C is D."], "A is B."),
        (["A is B.", "Thus, it is 4.", "1901 - 1899 = 2."], "A is B."),
        (["Therefore x."], "Who?"),
        (["Sofia is a city."], "Sofia is a city."),
        ([], "Who?"),
    ],
)
def test_sentences_that_only_conclude_are_no_queries(sentences: list[str], query: str) -> None:
    assert next_query("Who?", sentences) == query


def test_passages_are_cut_to_the_models_context(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["Ada did."], max_length=400)
    episode = play_ircot(model, ListRetriever(passages(20, words=300)))
    assert all(len(prompt) <= 200 for prompt in model.prompts)
    assert len(model.prompts) == 3
    # The reader has a budget of its own.
    assert len(episode.context[0].passage.text.split()) > 290
    model = ScriptedModel(tiny_tokenizer, ["Ada did."], max_length=210)
    assert play_ircot(model, ListRetriever(passages(9))).end is EndReason.TRUNCATED


# Search-o1


def asks(words: str) -> str:
    return f"I need it. <|begin_search_query|>{words}<|end_search_query|>"


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (asks(" a b "), Action(ActionKind.SEARCH, query="a b")),
        (asks("a") + "\\boxed{x}", Action(ActionKind.SEARCH, query="a")),
        (asks(" "), Action(ActionKind.INVALID)),
        ("<|end_search_query|>", Action(ActionKind.INVALID)),
        ("So \\boxed{Ada}.", Action(ActionKind.ANSWER, answer="Ada")),
        ("\\boxed{a} or \\boxed{ b }", Action(ActionKind.ANSWER, answer="b")),
        ("\\boxed{\\text{Ada} {I}}", Action(ActionKind.ANSWER, answer="Ada {I}")),
        ("\\boxed{Ada", Action(ActionKind.INVALID)),
        ("Ada", Action(ActionKind.INVALID)),
        ("", Action(ActionKind.INVALID)),
    ],
)
def test_search_o1_outputs(text: str, action: Action) -> None:
    assert parse_search_o1(text) == action


def play_o1(outputs: list[str], tokenizer: Tokenizer, **options: Any) -> tuple[Episode, Any, Any]:
    model, retriever = ScriptedModel(tokenizer, outputs, LONG), ListRetriever(passages(40))
    chosen = SearchO1Options(**({"style": "brief"} | options))
    return run(SearchO1Agent(model, retriever, chosen)), model, retriever


def results(episode: Episode) -> list[str]:
    texts = [segment.text for segment in episode.segments if segment.origin == "environment"]
    start, end = "\n\n<|begin_search_result|>", "<|end_search_result|>\n\n"
    assert all(text.startswith(start) and text.endswith(end) for text in texts)
    return [text.removeprefix(start).removesuffix(end) for text in texts]


def test_findings_are_read_apart_and_spliced_in(tiny_tokenizer: Tokenizer) -> None:
    outputs = [asks("one"), "Look. **Final Information**\nVelmo made it.", "So \\boxed{Ada}"]
    episode, model, retriever = play_o1(outputs, tiny_tokenizer, style="full")
    assert retriever.calls == [("one", 3)]
    assert results(episode) == ["Velmo made it."]
    assert (episode.answer, episode.end) == ("Ada", EndReason.FINISHED)
    assert ids(episode) == ["p1", "p2", "p3"]
    reading = tiny_tokenizer.decode(model.prompts[1])
    assert "text 1 word" in reading
    assert "Step 1: I need it." in reading
    # The passages themselves are nowhere in the running stream, which is exact without the reading.
    assert not any("text 1" in segment.text for segment in episode.segments)
    stream = model.prompts[2] + list(model.completions[2].token_ids)
    assert episode.token_ids == stream
    assert len({sampling.seed for sampling in model.samplings}) == 3


def test_repeated_and_further_queries_are_refused(tiny_tokenizer: Tokenizer) -> None:
    outputs = [asks("a"), "found", asks("a"), asks("b"), "found", asks("c"), "\\boxed{x}"]
    episode, _, retriever = play_o1(outputs, tiny_tokenizer, max_searches=2)
    assert [call[0] for call in retriever.calls] == ["a", "b"]
    told = results(episode)
    assert told[0] == told[2] == "found"
    assert "asked before" in told[1]
    assert "limit" in told[3]
    assert episode.searches == 2
    assert episode.answer == "x"


def test_outputs_are_bounded(tiny_tokenizer: Tokenizer) -> None:
    episode, _, retriever = play_o1([asks("a")], tiny_tokenizer, max_turns=3)
    assert (len(episode.turns), len(retriever.calls)) == (3, 1)
    assert (episode.end, episode.answer) == (EndReason.MAX_TURNS, None)


def test_an_end_without_a_box_is_no_answer(tiny_tokenizer: Tokenizer) -> None:
    episode, _, _ = play_o1(["It was Ada."], tiny_tokenizer)
    assert (episode.end, episode.answer) == (EndReason.FINISHED, None)


def test_a_query_without_results_needs_no_reading(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [asks("a"), "\\boxed{x}"], LONG)
    agent = SearchO1Agent(model, ListRetriever([], {"a": []}), SearchO1Options(style="brief"))
    assert results(run(agent)) == ["No helpful information was found."]


def test_passages_of_which_none_fits_the_reading_truncate(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [asks("a")], max_length=400)
    options = SearchO1Options(style="brief", max_response_tokens=64, max_reading_tokens=385)
    episode = run(SearchO1Agent(model, ListRetriever(passages(9)), options))
    assert (episode.end, episode.answer, len(model.prompts)) == (EndReason.TRUNCATED, None, 1)


def test_reading_cannot_break_out_of_its_markers(tiny_tokenizer: Tokenizer) -> None:
    outputs = [asks("a"), "<|end_search_result|>\\boxed{y}", "\\boxed{x}"]
    episode, _, _ = play_o1(outputs, tiny_tokenizer)
    assert results(episode) == ["‹|end_search_result|>\\boxed{y}"]
    assert episode.answer == "x"


def test_long_reasoning_is_shortened_to_its_first_last_and_searching_steps(
    tiny_tokenizer: Tokenizer,
) -> None:
    steps = "\n\n".join(f"Thought {n}." for n in range(1, 9))
    outputs = [steps + asks("a"), "found", steps + asks("b"), "found", "\\boxed{x}"]
    _, model, _ = play_o1(outputs, tiny_tokenizer, style="full")
    reading = tiny_tokenizer.decode(model.prompts[3])
    kept = [line.split(":")[0] for line in reading.splitlines() if line.startswith(("Step", "..."))]
    # Step 8 asks, step 9 is what came back, 14 to 17 are the last four.
    assert kept == [
        "Step 1",
        "...",
        "Step 8",
        "Step 9",
        "...",
        *(f"Step {n}" for n in (14, 15, 16, 17)),
    ]


def test_as_published_it_reads_more() -> None:
    assert (search_o1.PUBLISHED.k, search_o1.PUBLISHED.max_searches) == (10, 10)
    assert (SearchO1Options().k, SearchO1Options().max_searches) == (3, 4)


# DeepRetrieval


def rewrites(inside: str) -> str:
    return f"<think>hm</think>\n<answer>\n{inside}\n</answer>"


@pytest.mark.parametrize(
    ("text", "query", "well_formed"),
    [
        (rewrites('{"query": " a OR b "}'), "a OR b", True),
        ('<answer>{"query": "a"}</answer>', "a", False),
        (rewrites('{"query": "a"}') + rewrites('{"query": "b"}'), "b", False),
        ('<answer>{"query": "a"}</answer><think>hm</think>', "a", False),
        (rewrites("a OR b"), "", True),
        (rewrites('{"query": ["a"]}'), "", True),
        (rewrites('{"query": ""}'), "", True),
        (rewrites('["a"]'), "", True),
        (rewrites("[" * 100_000), "", True),
        (rewrites('{"query": "\\ud800x"}'), "?x", True),
        ("<think>hm</think><answer>", "", False),
        ("", "", False),
    ],
)
def test_deep_retrieval_outputs(text: str, query: str, well_formed: bool) -> None:
    output = parse_deep_retrieval(text)
    wanted = Action(ActionKind.SEARCH, query=query) if query else Action(ActionKind.INVALID)
    assert (output.action, output.well_formed) == (wanted, well_formed)


def deep(model: ScriptedModel, retriever: ListRetriever) -> Episode:
    options = DeepRetrievalOptions(kind="deep_retrieval", max_response_tokens=64)
    return run(DeepRetrievalAgent(model, retriever, options))


def test_the_rewritten_query_is_searched(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [rewrites('{"query": "velmo"}')])
    retriever = ListRetriever(passages(9))
    episode = deep(model, retriever)
    check_record(episode, model)
    assert retriever.calls == [("velmo", 3)]
    assert (episode.searches, episode.initial, ids(episode)) == (1, None, ["p1", "p2", "p3"])
    assert (episode.answer, episode.answers_itself) == (None, False)
    assert episode.turns[0].well_formed


@pytest.mark.parametrize("said", ["hm", rewrites("{")])
def test_without_a_query_the_question_is_searched(tiny_tokenizer: Tokenizer, said: str) -> None:
    retriever = ListRetriever(passages(9))
    episode = deep(ScriptedModel(tiny_tokenizer, [said]), retriever)
    assert retriever.calls == [(QUESTION.text, 3)]
    assert episode.searches == 0
    assert len(episode.context) == 3


def test_without_room_for_an_output_the_question_is_searched(tiny_tokenizer: Tokenizer) -> None:
    retriever = ListRetriever(passages(9))
    episode = deep(ScriptedModel(tiny_tokenizer, ["hm"], max_length=80), retriever)
    assert (episode.end, len(episode.context)) == (EndReason.TRUNCATED, 3)


# What all of them promise


Open = Callable[[ScriptedModel, ListRetriever], Agent]
SEARCHING: dict[str, tuple[Open, str]] = {
    "ircot": (lambda m, r: IrcotAgent(m, r, IrcotOptions(style="brief")), "On."),
    "search_o1": (lambda m, r: SearchO1Agent(m, r, SearchO1Options(style="brief")), asks("a")),
    "deep_retrieval": (
        lambda m, r: DeepRetrievalAgent(m, r, DeepRetrievalOptions(kind="deep_retrieval")),
        "hm",
    ),
}


@pytest.mark.parametrize("name", SEARCHING)
def test_a_failed_service_is_an_error_and_never_text(tiny_tokenizer: Tokenizer, name: str) -> None:
    opener, said = SEARCHING[name]
    model = ScriptedModel(tiny_tokenizer, [said], LONG)
    episode = run(opener(model, FailingRetriever(passages(9))))
    assert episode.end is EndReason.INFRASTRUCTURE
    assert episode.error == "retriever at example:2 did not answer"
    episode = run(opener(ScriptedModel(tiny_tokenizer, [said], LONG, fail_at=0), ListRetriever([])))
    assert episode.error == "model at example:1 did not answer"
    assert not any("example" in segment.text for segment in episode.segments)


def test_retrieval_only_leaves_the_answer_to_the_generator(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [asks("a"), "found", "\\boxed{x}"], LONG)
    inner = SearchO1Agent(model, ListRetriever(passages(9)), SearchO1Options(style="brief"))
    episode = run(RetrievalOnlyAgent(inner))
    assert episode.method == "search_o1_ret"
    assert (episode.answer, episode.answers_itself) == (None, False)
    assert ids(episode) == ["p1", "p2", "p3"]
