"""Search-R1: how outputs are read, what an episode is, and that its record is exact."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from searchrl.agents.agent import Draw
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode
from searchrl.agents.prompts import search_r1_prompt
from searchrl.agents.protocol import STOP_SEARCH_R1, body, parse_search_r1, render_hits
from searchrl.agents.search_r1 import (
    _LAST_NOTE,
    _NO_SEARCH_LEFT,
    _NOTE,
    SearchR1Agent,
    SearchR1Options,
)
from searchrl.data.questions import Question
from searchrl.models.local import LocalModel
from tests.chat_templates import QWEN3, thinking_tokenizer
from tests.fakes import (
    FailingRetriever,
    ListRetriever,
    ScriptedModel,
    check_record,
    passages,
)

QUESTION = Question("q1", "What is the founder of The Film of Velmo?", ("Beijing",))
INVALID = Action(ActionKind.INVALID)
SMALL: dict[str, Any] = {
    "style": "brief",
    "max_response_tokens": 64,
    "max_observation_tokens": 400,
}
Tokenizer = PreTrainedTokenizerFast


def search(words: str) -> str:
    return f"<think>hm</think><search>{words}</search>"


def answer(words: str) -> str:
    return f"<think>so</think><answer>{words}</answer>"


def play(model: Any, retriever: ListRetriever, draw: Draw | None = None, **options: Any) -> Episode:
    chosen = SearchR1Options(kind="search_r1", **(SMALL | options))
    agent = SearchR1Agent(model, retriever, chosen)
    episode = asyncio.run(agent.run(QUESTION, draw or Draw()))
    check_record(episode, model)
    return episode


def kinds(episode: Episode) -> list[ActionKind]:
    return [turn.action.kind for turn in episode.turns]


@pytest.mark.parametrize(
    ("text", "action", "well_formed"),
    [
        (search("a b"), Action(ActionKind.SEARCH, query="a b"), True),
        (answer(" Paris \n"), Action(ActionKind.ANSWER, answer="Paris"), True),
        (" \n<think>so</think>\n<answer>a</answer>\n", Action(ActionKind.ANSWER, answer="a"), True),
        ("<answer></answer>", Action(ActionKind.ANSWER), False),
        ("<think></think><answer></answer>", Action(ActionKind.ANSWER), True),
        ("<answer>a</answer>", Action(ActionKind.ANSWER, answer="a"), False),
        ("<search>a</search>", Action(ActionKind.SEARCH, query="a"), False),
        ("so <answer>a</answer>", Action(ActionKind.ANSWER, answer="a"), False),
        ("<think>a</think>so<answer>a</answer>", Action(ActionKind.ANSWER, answer="a"), False),
        ("<think>so<answer>a</answer>", Action(ActionKind.ANSWER, answer="a"), False),
        ("<think>a</think><think>b</think><search>a</search>", None, False),
        ("<think>a<information>b</information></think><search>a</search>", None, False),
        ("<think>I may use <search>.</think><search>a</search>", None, False),
        # What follows the first closing tag is not read.
        (search("a") + "<answer>b</answer>", Action(ActionKind.SEARCH, query="a"), True),
        (answer("b") + search("a"), Action(ActionKind.ANSWER, answer="b"), True),
        (answer("b") + " trailing", Action(ActionKind.ANSWER, answer="b"), True),
        # The nearest opening tag counts; one of another name does not close.
        ("<search>a<search>b</search>", Action(ActionKind.SEARCH, query="b"), False),
        ("<search>a<answer>b</answer>", Action(ActionKind.ANSWER, answer="b"), False),
        ("a</search><search>b</search>", INVALID, False),
        ("<think>so</think><search> </search>", INVALID, True),
        ("<search>a", INVALID, False),
        ("</answer>", INVALID, False),
        ("<ANSWER>a</ANSWER>", INVALID, False),
        ("< answer>a</answer>", INVALID, False),
        ("<query>a</query>", INVALID, False),
        ("I give up", INVALID, False),
        ("", INVALID, False),
    ],
)
def test_outputs(text: str, action: Action | None, well_formed: bool) -> None:
    output = parse_search_r1(text)
    assert output.action == (action or Action(ActionKind.SEARCH, query="a"))
    assert output.well_formed is well_formed


def test_without_a_search_engine_a_query_is_no_action() -> None:
    assert parse_search_r1(search("a"), search=False).action == INVALID
    output = parse_search_r1(search("a") + answer("b"), search=False)
    assert output.action == Action(ActionKind.ANSWER, answer="b")
    assert not output.well_formed


TAGS = ("think", "search", "information", "answer")
FUZZ = st.lists(
    st.sampled_from([f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")] + ["a", " "]),
    max_size=12,
).map("".join)


@settings(max_examples=400)
@given(FUZZ)
def test_a_well_formed_output_is_the_language_and_nothing_else(text: str) -> None:
    import re

    output = parse_search_r1(text)
    cut = min((text.find(end) + len(end) for end in STOP_SEARCH_R1 if end in text), default=0)
    plain = r"[a ]*"
    form = rf" *<think>{plain}</think> *(<search>{plain}</search>|<answer>{plain}</answer>)"
    assert output.well_formed == bool(re.fullmatch(form, text[:cut]))
    assert (output.action.kind is ActionKind.INVALID) <= (output.action.answer == "")


@pytest.mark.parametrize(
    "bomb",
    [
        "<search>" * 100_000,
        "<search>" * 100_000 + "</search>",
        "</answer>" * 100_000,
        "<think></think>" * 60_000 + "<answer>a</answer>",
        "<answer>" + " " * 1_000_000 + "</answer>",
    ],
)
@pytest.mark.timeout(10)
def test_a_megabyte_is_read_in_linear_time(bomb: str) -> None:
    parse_search_r1(bomb)


@pytest.mark.parametrize("note", [_NOTE, _LAST_NOTE, _NO_SEARCH_LEFT])
def test_no_note_of_the_environment_can_be_read_as_an_action(note: str) -> None:
    assert parse_search_r1(note).action == INVALID
    assert "<" not in note


def test_search_and_answer(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [search("one"), search("two"), answer("Lyon")])
    retriever = ListRetriever(passages(20))
    episode = play(model, retriever)
    assert retriever.calls == [("one", 3), ("two", 3)]
    assert (episode.answer, episode.end) == ("Lyon", EndReason.FINISHED)
    assert kinds(episode) == [ActionKind.SEARCH, ActionKind.SEARCH, ActionKind.ANSWER]
    assert all(turn.well_formed for turn in episode.turns)
    assert episode.answers_itself
    assert episode.initial is None
    assert [hit.passage.id for hit in episode.context] == [f"p{n}" for n in range(1, 7)]
    origins = ["prompt", "model", "environment", "model", "environment", "model"]
    assert [segment.origin for segment in episode.segments] == origins
    shown = render_hits(episode.turns[0].hits, gap="")
    assert shown.startswith('Doc 1(Title: "Title 1") text 1')
    assert episode.segments[2].text == f"\n\n<information>{shown}</information>\n\n"
    assert model.samplings[0].stop == ("</search>", "</answer>")
    # Output stops on a closing tag and keeps it, so stopping is learned.
    assert episode.segments[1].text.endswith("</search>")
    assert episode.segments[5].text.endswith("</answer>")


def test_an_answer_stands_only_in_the_models_own_output(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["no idea"])
    for style in ("brief", "full"):
        model = ScriptedModel(tiny_tokenizer, ["no idea"])
        episode = play(model, ListRetriever(passages(20)), style=style)
        # The instructions hold an example answer, which is nobody's answer.
        assert ("Beijing" in episode.segments[0].text) == (style == "full")
        assert episode.answer is None
        assert episode.end is EndReason.MAX_TURNS
        assert kinds(episode) == [ActionKind.INVALID] * 5


@pytest.mark.parametrize("max_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("announce", [True, False])
def test_max_turns_bounds_the_searches(
    tiny_tokenizer: Tokenizer, max_turns: int, announce: bool
) -> None:
    model, retriever = ScriptedModel(tiny_tokenizer, [search("more")]), ListRetriever(passages(30))
    episode = play(model, retriever, max_turns=max_turns, announce_budget=announce, style="full")
    assert len(retriever.calls) == episode.searches == max_turns
    assert len(episode.turns) == max_turns + 1
    assert episode.turns[-1].action == Action(ActionKind.INVALID, query="more")
    assert (episode.end, episode.answer) == (EndReason.MAX_TURNS, None)
    told = [segment.text.endswith(_NO_SEARCH_LEFT) for segment in episode.segments[2::2]]
    assert told == [announce and n == max_turns for n in range(1, max_turns + 1)]
    assert ("as often as you want" in episode.segments[0].text) == (not announce)


def test_an_invalid_output_gets_a_note_and_takes_the_place_of_a_search(
    tiny_tokenizer: Tokenizer,
) -> None:
    outputs = ["hm", "<search> </search>", "hm", answer("Lyon")]
    model, retriever = ScriptedModel(tiny_tokenizer, outputs), ListRetriever(passages(20))
    episode = play(model, retriever, max_turns=3)
    assert retriever.calls == []
    notes = [s.text for s in episode.segments if s.origin == "environment"]
    assert notes == [_NOTE, _NOTE, _LAST_NOTE]
    assert episode.answer == "Lyon"


def test_an_answer_in_the_last_output_counts(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [search("a"), answer("Lyon")])
    assert play(model, ListRetriever(passages(20)), max_turns=1).end is EndReason.FINISHED


def test_without_search_there_is_one_output(tiny_tokenizer: Tokenizer) -> None:
    model, retriever = ScriptedModel(tiny_tokenizer, [answer("Lyon")]), ListRetriever(passages(9))
    episode = play(model, retriever, search=False, style="full")
    assert (episode.answer, episode.searches, retriever.calls) == ("Lyon", 0, [])
    assert "search" not in episode.segments[0].text
    assert model.samplings[0].stop == ("</answer>",)
    model = ScriptedModel(tiny_tokenizer, [search("a")])
    episode = play(model, retriever, search=False)
    assert (episode.answer, episode.end) == (None, EndReason.MAX_TURNS)
    assert (kinds(episode), retriever.calls) == ([ActionKind.INVALID], [])


def test_a_passage_found_twice_is_in_the_context_once(tiny_tokenizer: Tokenizer) -> None:
    found = passages(4)
    model = ScriptedModel(tiny_tokenizer, [search("a"), search("b"), answer("x")])
    retriever = ListRetriever(found, {"a": found[1:3], "b": [found[0], found[2], found[3]]})
    episode = play(model, retriever)
    assert [hit.passage.id for hit in episode.context] == ["p2", "p3", "p1", "p4"]


def test_long_passages_are_cut_and_the_block_stays_closed(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [search("a"), answer("x")])
    episode = play(
        model, ListRetriever(passages(3, words=900)), max_observation_tokens=120, max_turns=1
    )
    block = episode.segments[2]
    notice = len(model.encode(_NO_SEARCH_LEFT))
    assert 90 < len(block.token_ids) <= 120 + notice
    assert all(f'Doc {n}(Title: "Title {n}") text {n}' in block.text for n in (1, 2, 3))
    assert block.text.endswith("word</information>\n\n" + _NO_SEARCH_LEFT)


def test_a_question_over_the_prompt_budget_ends_its_episode(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [answer("x")])
    episode = play(model, ListRetriever([]), max_prompt_tokens=5)
    assert (episode.end, episode.answer) == (EndReason.TRUNCATED, None)
    assert QUESTION.text in episode.segments[0].text
    assert model.prompts == []


@pytest.mark.parametrize("limit", range(120, 600, 40))
@pytest.mark.parametrize("output", [search("more"), "hm, let me see"])
@pytest.mark.parametrize("of_the_model", [True, False])
def test_a_full_context_ends_the_episode_on_the_models_own_words(
    tiny_tokenizer: Tokenizer, limit: int, output: str, of_the_model: bool
) -> None:
    model = ScriptedModel(tiny_tokenizer, [output], max_length=limit if of_the_model else 4096)
    options = {} if of_the_model else {"max_context_tokens": limit}
    episode = play(model, ListRetriever(passages(99, words=12)), max_turns=50, **options)
    assert episode.end is EndReason.TRUNCATED
    assert len(episode.token_ids) <= limit
    assert episode.turns[-1].hits == ()
    assert QUESTION.text in episode.segments[0].text


def test_results_of_which_none_fits_truncate(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [search("more")])
    episode = play(model, ListRetriever(passages(9)), max_observation_tokens=12)
    assert (episode.end, len(episode.segments)) == (EndReason.TRUNCATED, 2)


def test_a_search_without_results(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [search("a"), answer("x")])
    episode = play(model, ListRetriever([], {"a": []}))
    assert episode.segments[2].text == "\n\n<information></information>\n\n"
    assert episode.context == ()


@pytest.mark.parametrize("fail_from", [0, 1])
def test_a_dead_retriever_is_an_error_and_never_text(
    tiny_tokenizer: Tokenizer, fail_from: int
) -> None:
    model = ScriptedModel(tiny_tokenizer, [search("a")])
    episode = play(model, FailingRetriever(passages(20), fail_from))
    assert episode.end is EndReason.INFRASTRUCTURE
    assert episode.error == "retriever at example:2 did not answer"
    assert episode.answer is None
    assert not any("example" in segment.text for segment in episode.segments)


def test_a_dead_model_is_an_error(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, [search("a")], fail_at=1)
    episode = play(model, ListRetriever(passages(20)))
    assert episode.error == "model at example:1 did not answer"
    assert len(episode.turns) == 1


def test_every_output_has_a_seed_of_its_own(tiny_tokenizer: Tokenizer) -> None:
    seeds: list[int] = []
    for seed in (0, 1):
        model = ScriptedModel(tiny_tokenizer, [search("more")])
        play(model, ListRetriever(passages(20)), Draw(temperature=0.7, seed=seed))
        assert {sampling.temperature for sampling in model.samplings} == {0.7}
        seeds += [sampling.seed for sampling in model.samplings]
    assert len(set(seeds)) == len(seeds) == 10


SNIPPETS = st.sampled_from(
    [search("a"), search("b"), search(""), "hm", answer("x"), "<search>", "</answer>"]
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    outputs=st.lists(SNIPPETS, min_size=1, max_size=6),
    max_turns=st.integers(0, 4),
    max_length=st.integers(100, 900),
    words=st.integers(2, 200),
    engine=st.booleans(),
)
def test_every_record_is_exact(
    tiny_tokenizer: Tokenizer,
    outputs: list[str],
    max_turns: int,
    max_length: int,
    words: int,
    engine: bool,
) -> None:
    model = ScriptedModel(tiny_tokenizer, outputs, max_length=max_length)
    retriever = ListRetriever(passages(40, words=words))
    episode = play(model, retriever, max_turns=max_turns, search=engine)
    assert episode.searches <= (max_turns if engine else 0)
    answered = bool(episode.turns) and episode.turns[-1].action.kind is ActionKind.ANSWER
    assert (episode.answer is not None) == answered == (episode.end is EndReason.FINISHED)
    if answered:
        own = "".join(s.text for s in episode.segments if s.origin == "model")
        assert episode.answer == body(own[own.rindex("<answer>") :], "answer")


def test_a_real_model_gets_through_an_episode(random_model: LocalModel) -> None:
    options = SearchR1Options(kind="search_r1", **SMALL)
    agent = SearchR1Agent(random_model, ListRetriever(passages(30)), options, name="mine")

    async def twice() -> list[Episode]:
        draws = [Draw(1.0, seed=5), Draw(1.0, seed=5), Draw(1.0, seed=6)]
        return list(await asyncio.gather(*(agent.run(QUESTION, draw) for draw in draws)))

    first, same, other = asyncio.run(twice())
    assert first.method == "mine"
    assert first.token_ids == same.token_ids
    assert first.segments[1].token_ids != other.segments[1].token_ids
    assert sum(first.trainable_mask) == len(first.logprobs) > 0


def test_the_prompt_says_how_often() -> None:
    assert "at most 4 times" in search_r1_prompt("Who?", "full", 4)
    assert "You may search once" in search_r1_prompt("Who?", "full", 1)
    assert search_r1_prompt("Who {is} it?", "full", None).endswith("Question: Who {is} it?\n")
    assert search_r1_prompt("Who?", "brief", 4) == "<question>Who?</question>\n"


def test_a_template_with_a_think_mode_neither_doubles_nor_strips_thoughts(
    tiny_tokenizer: Tokenizer,
) -> None:
    tokenizer = thinking_tokenizer(tiny_tokenizer, QWEN3)
    said = [search("one"), search("two"), answer("Lyon")]
    episode = play(ScriptedModel(tokenizer, said), ListRetriever(passages(20)))
    assert all(turn.well_formed for turn in episode.turns)
    prompt, *rest = episode.segments
    assert tokenizer.decode(prompt.token_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert [part.text for part in rest if part.origin == "model"] == said
    read = tokenizer.decode(episode.token_ids)
    assert (read.count("<think>"), read.count("</think>")) == (3, 3)
    # Rendered as messages, the same turns would lose them.
    rows = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": said[0]},
        {"role": "user", "content": "Go on."},
    ]
    again = str(tokenizer.apply_chat_template(rows, tokenize=False))
    assert "assistant\n<search>one</search><|im_end|>" in again
