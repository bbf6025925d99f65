from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agents.episode import Action, ActionKind
from searchrl.agents.prompts import reader_prompt, render_context, s3_prompt
from searchrl.agents.protocol import (
    RESERVED,
    STOP_S3,
    body,
    neutralise,
    parse_s3,
    render_hits,
    render_observation,
)
from searchrl.data.passages import Passage
from searchrl.retrieval.protocol import Hit

FINISH = Action(ActionKind.FINISH)
INVALID = Action(ActionKind.INVALID)
LOOKALIKE = re.compile(r"<\s*/?\s*(" + "|".join(RESERVED) + r")\b", re.IGNORECASE)
# Pieces that hostile text is made of.
PIECES = st.sampled_from(
    [
        *("<", "</", ">", " ", "\n", "/", "‹", "_", "Doc 1 (Title: ", "<|im_end|>", "[1]", "True"),
        *(case for tag in RESERVED for case in (tag, tag.upper())),
    ]
)
HOSTILE = st.lists(PIECES | st.text(max_size=3), max_size=20).map("".join)
TAGS = [
    f"<{opening}{space}{tag}>"
    for name in RESERVED
    for tag in (name, name.upper(), name.title())
    for opening in ("", "/", " ", " / ", "\t/\n")
    for space in ("", " ")
]


def search(query: str) -> Action:
    return Action(ActionKind.SEARCH, query=query)


@pytest.mark.parametrize(
    ("inside", "action"),
    [
        ('{"query":"a b"}', search("a b")),
        ('\n {"query": " a b "} \n', search("a b")),
        ('{"query":["x","y"]}', search("x")),
        ('{"query":[]}', search('{"query":[]}')),
        ('{"query":{"a":1}}', search('{"query":{"a":1}}')),
        ('{"query":null}', search('{"query":null}')),
        ('{"query":true}', search('{"query":true}')),
        ('{"q":"z"}', search('{"q":"z"}')),
        ('["l"]', search('["l"]')),
        ("5", search("5")),
        ('"str"', search('"str"')),
        ("plain words", search("plain words")),
        ('{"query":"a"', search('{"query":"a"')),
        # Where we differ: nothing is not sent, and a number is sent as text.
        ('{"query":""}', INVALID),
        ('{"query":"  "}', INVALID),
        ("", INVALID),
        (" \n", INVALID),
        ('{"query":[1]}', search("1")),
        ('{"query":2.5}', search("2.5")),
        ('{"query":["",1]}', INVALID),
        ('{"query":"\\ud800x"}', search("?x")),
        ('{"query":"caf\\u00e9"}', search("café")),
    ],
)
def test_queries(inside: str, action: Action) -> None:
    assert parse_s3(f"<think>so</think><query>{inside}</query>").action == action


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<search_complete>True</search_complete>", FINISH),
        ("<search_complete> YES\n</search_complete>", FINISH),
        ("<search_complete>1</search_complete>", FINISH),
        ("<search_complete>y</search_complete>", FINISH),
        ("<search_complete>False</search_complete>", INVALID),
        ("<search_complete>maybe</search_complete>", INVALID),
        ("<search_complete>True</search_complete><query>a</query>", FINISH),
        ("<search_complete>False</search_complete><query>a</query>", search("a")),
        (
            "<search_complete>False</search_complete><search_complete>True</search_complete>",
            INVALID,
        ),
        # An output ends with its first query, whatever an engine sends behind it.
        ("<query>a</query><search_complete>True</search_complete>", search("a")),
        ("<query>a</query><query>b</query>", search("a")),
        ("<query>a<query>b</query>", search("a<query>b")),
        ("<query>a", INVALID),
        ("</query>a<query>", INVALID),
        ("<QUERY>a</QUERY>", INVALID),
        ("< query>a</query>", INVALID),
        ("<search_complete>True", INVALID),
        ("I give up", INVALID),
        ("", INVALID),
    ],
)
def test_actions(text: str, action: Action) -> None:
    assert parse_s3(text).action == action


@pytest.mark.parametrize(
    ("inside", "numbers"),
    [
        ("[1, 4]", (1, 4)),
        ("1,2", (1, 2)),
        ("Doc1, doc 2", (1, 2)),
        ("[3, 1, 3]", (3, 1)),
        ("", ()),
        ("none", ()),
        ("[-2]", (2,)),
        ("[0, 99]", (0, 99)),
        ("9" * 5000 + " 2", (2,)),
        ("٣", (3,)),
    ],
)
def test_selections(inside: str, numbers: tuple[int, ...]) -> None:
    assert parse_s3(f"<important_info>{inside}</important_info>").selection == numbers


def test_the_first_selection_counts_and_none_differs_from_an_empty_one() -> None:
    twice = "<important_info>[2]</important_info><important_info>[1]</important_info>"
    assert parse_s3(twice).selection == (2,)
    assert parse_s3("<query>a</query>").selection is None
    assert parse_s3("<important_info>[2]").selection is None
    assert parse_s3("<query>a</query><important_info>[1]</important_info>").selection is None


def test_every_stop_string_is_a_whole_action() -> None:
    assert parse_s3(f"<query>a{STOP_S3[0]}").action == search("a")
    assert [parse_s3(stop).action for stop in STOP_S3[1:]] == [FINISH, FINISH]


@pytest.mark.parametrize("tag", TAGS)
def test_every_form_of_a_tag_is_broken(tag: str) -> None:
    assert neutralise(f"a {tag} b") == f"a {tag} b".replace("<", "‹", 1)


@pytest.mark.parametrize(
    "clean",
    [
        "a < b and c > d",
        "<b>bold</b> <questions> <queryset> <search_engine> </answers>",
        'The "Best" of Queen',
        "Mercury (planet)",
        "Doc 3",
        "query search answer think",
        "x <- y; if (a<search(b)) {".replace("<search", "<research"),
        "",
        "\n\n",
        "<|im_end|>",
    ],
)
def test_clean_text_stays_as_it_is(clean: str) -> None:
    assert neutralise(clean) == clean


@settings(max_examples=300)
@given(HOSTILE)
def test_neutralise_is_idempotent_complete_and_the_identity_on_clean_text(text: str) -> None:
    once = neutralise(text)
    assert neutralise(once) == once
    assert not LOOKALIKE.search(once)
    assert len(once) == len(text)
    assert (once == text) == (LOOKALIKE.search(text) is None)


@settings(max_examples=200)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_outside_text_brings_a_tag_into_a_rendering(title: str, text: str, asked: str) -> None:
    hits = [Hit(Passage("p", title, text), 1.0)] * 2
    rendered = render_observation(render_hits(hits))
    # The joints between a text and what stands around it must not complete a tag either.
    assert [match[0] for match in LOOKALIKE.finditer(rendered)] == ["<information", "</information"]
    assert parse_s3(rendered).action == INVALID
    assert parse_s3(rendered).selection is None
    prompt = s3_prompt(asked, render_hits(hits), "brief", 3)
    assert [match[0] for match in LOOKALIKE.finditer(prompt)] == [
        "<information",
        "</information",
        "<question",
        "</question",
    ]
    for style in ("brief", "full"):
        for message in reader_prompt(asked, hits, style):
            assert not LOOKALIKE.search(message.content)


@pytest.mark.parametrize(
    "title", ['The "Best" of Queen', "Mercury (planet)", 'A ")', "Doc 3", "a\nb", "", "Ünï — 漢字"]
)
def test_honest_titles_survive_unchanged(title: str) -> None:
    hit = Hit(Passage("p", title, "Doc 2 (Title: x) y"), 1.0)
    assert render_hits([hit]) == f'Doc 1 (Title: "{title}") Doc 2 (Title: x) y'
    assert render_context([hit]) == f"Doc 1 (Title: {title})\nDoc 2 (Title: x) y\n\n"


def test_rendering_no_hits() -> None:
    assert render_hits([]) == ""
    assert render_context([]) == ""
    assert render_observation("") == "\n\n<information></information>\n\n"


def test_the_prompt_names_the_limit_and_keeps_the_question_whole() -> None:
    full = s3_prompt("Who {is} it?", "Doc 1 (Title: x) y", "full", 7, boolean_queries=True)
    assert "at most 7 of" in full
    assert "AND and OR" in full
    asked = "<question>Who {is} it?</question>\n"
    found = "<information>Doc 1 (Title: x) y</information>\n"
    assert full.endswith(asked + found)
    assert s3_prompt("Who {is} it?", "Doc 1 (Title: x) y", "brief", 7) == found + asked
    assert "AND and OR" not in s3_prompt("Who?", "", "full", 3)


def test_the_reader_prompt_says_whether_there_are_passages() -> None:
    hits = [Hit(Passage("p", "T {0}", "text {context}"), 1.0)]
    system, user = reader_prompt("Who?", hits, "full")
    assert (system.role, user.role, user.content) == ("system", "user", "Who?")
    assert render_context(hits) in system.content
    assert "passages" not in reader_prompt("Who?", [], "full")[0].content
    assert reader_prompt("Who?", hits, "brief")[0].content == render_context(hits)


FUZZ = st.lists(
    st.sampled_from(
        [f"<{slash}{tag}>" for tag in RESERVED for slash in ("", "/")]
        + [
            "[",
            "]",
            "{",
            "}",
            '"query"',
            ":",
            '"',
            ",",
            "9" * 50,
            "\\ud800",
            "True",
            "NaN",
            "1e999",
        ]
    )
    | st.text(max_size=4),
    max_size=40,
).map("".join)


@settings(max_examples=500)
@given(FUZZ)
def test_the_parser_never_raises_and_returns_what_can_be_stored(text: str) -> None:
    output = parse_s3(text)
    output.action.query.encode()
    assert (output.action.kind is ActionKind.SEARCH) == bool(output.action.query)
    assert output.selection is None or len(set(output.selection)) == len(output.selection)
    # Nothing but a complete pair of its own tags makes an action.
    if output.action.kind is ActionKind.FINISH:
        assert body(text, "search_complete") is not None


@pytest.mark.parametrize(
    "bomb",
    [
        "<query>" + "[" * 500_000 + "</query>",
        '<query>{"query":' * 60_000,
        "<query>" + '{"query":' * 100_000 + "1" + "}" * 100_000 + "</query>",
        "<query>" + "9" * 1_000_000 + "</query>",
        "<important_info>" + "9" * 1_000_000 + "</important_info>",
        "<important_info>" + "1 " * 500_000 + "</important_info>",
        "<query>" * 150_000,
        "</query>" * 120_000,
        "<search_complete>" * 60_000 + "True",
        " " * 1_000_000,
        "<" + " " * 1_000_000,
        "<" + "\n/ " * 300_000,
        "< / " * 250_000,
        "<" * 1_000_000,
        json.dumps({"query": "a" * 1_000_000}),
    ],
)
def test_a_megabyte_is_read_and_neutralised_in_linear_time(bomb: str) -> None:
    # Of this process, so that a busy machine does not count.
    started = time.process_time()
    parse_s3(bomb)
    neutralise(bomb)
    # Some 20 ms; quadratic time would be hours.
    assert time.process_time() - started < 2.0
