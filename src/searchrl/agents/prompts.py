"""The instructions of each method, as chat messages.

Every prompt exists in two styles. ``full`` explains the task to a pretrained model in words;
``brief`` holds only the data, for models that learned the protocol itself (the tiny ones) and would
spend their context on instructions they cannot use. Passages are always neutralised and kept in
a block of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from searchrl.agents.protocol import neutralise
from searchrl.models.protocol import Message
from searchrl.retrieval.protocol import Hit

Style = Literal["full", "brief"]

_S3_INSTRUCTIONS = """\
You search on behalf of another model, which will answer the question from the passages you \
choose. You are given the question and the results of a first search. First judge whether these \
results are enough to answer the question.

If they are enough, write:
<search_complete>True</search_complete>

If they are not, go through these steps until they are:
1. Write a search query as JSON between query tags: <query>{"query": "your search terms"}</query>
2. The results come back between information tags: <information>...</information>
3. Name the passages that help, at most SELECT_LIMIT of the latest results, by their numbers: \
<important_info>[1, 4]</important_info>
4. Say whether the search is complete: <search_complete>False</search_complete> goes on with a \
better query, <search_complete>True</search_complete> ends it.

You may also name passages of the first results before your first query. You may reason between \
<think> and </think> at any point. Only the passages you name reach the answering model.
"""
_BOOLEAN_NOTE = """\
The search engine matches words: combine terms with AND and OR, and group them with parentheses.
"""
_SEARCH_R1_INSTRUCTIONS = """\
Answer the question below. Whenever you have read something new, first reason about it between \
<think> and </think>. If you find that you lack some knowledge, ask a search engine by writing a \
query between <search> and </search>; its top results come back to you between <information> and \
</information>. You may search SEARCH_LIMIT. Once you need nothing more, write the answer itself \
between <answer> and </answer>, without an explanation. Example: <answer> Beijing </answer>
"""
_R1_INSTRUCTIONS = """\
Answer the question below. First reason about it between <think> and </think>, then write the \
answer itself between <answer> and </answer>, without an explanation. \
Example: <answer> Beijing </answer>
"""
_SEARCH_O1_INSTRUCTIONS = """\
Reason step by step until you can answer the question below. Whenever you are not sure of a fact, \
search for it: write <|begin_search_query|>your query<|end_search_query|>. Somebody reads the \
pages found for you, and what they say comes back as \
<|begin_search_result|>...<|end_search_result|>. Then reason on. You may search SEARCH_LIMIT. When \
you know the answer, write it as \\boxed{the answer} and stop.

Example, of a question about two people: who of them was born earlier?
I need both dates of birth. <|begin_search_query|>date of birth of the first<|end_search_query|>
<|begin_search_result|>The first was born in 1901.<|end_search_result|>
Now the other. <|begin_search_query|>date of birth of the second<|end_search_query|>
<|begin_search_result|>The second was born in 1899.<|end_search_result|>
1899 is earlier than 1901, so the answer is \\boxed{the second}
"""
_REASON_IN_DOCUMENTS = """\
You read documents on behalf of somebody who reasons about a question and has just searched. Find \
in the documents what helps with the query and with the next step of the reasoning.

Write, as the last thing, the line **Final Information** and after it the facts themselves, or \
that the documents hold no helpful information.

Reasoning so far:
{reasoning}

Query: {query}

Documents:
{documents}"""
_IRCOT_INSTRUCTIONS = """\
Answer the question with the help of the passages, step by step. Each step is one sentence that \
states one fact. When the facts suffice, write as the last sentence: So the answer is: the answer.
"""
_DEEP_RETRIEVAL_SYSTEM = "First think about the task, then give your answer."
_DEEP_RETRIEVAL_INSTRUCTIONS = """\
You are an expert in writing search queries. Rewrite the query below so that a keyword search \
(BM25) over a collection of encyclopedia passages finds those that answer it.

Think between <think> and </think>. Then write your query as JSON between answer tags:
<answer>
{"query": "..."}
</answer>
"""
_COT = """\
Think about the question step by step, then write the answer itself, without an explanation, \
between <answer> and </answer>."""
_READER = """\
Use the passages below where they help to answer the question; some may be irrelevant.

{context}
Reply with the answer itself, no explanation and nothing else."""
_READER_ALONE = "Reply to the question with the answer itself, no explanation and nothing else."


def s3_prompt(
    question: str,
    information: str,
    style: Style,
    max_selected: int,
    boolean_queries: bool = False,
) -> str:
    """The s3 searcher's one user message: instructions, the question, and the first results.

    Args:
        question: as asked.
        information: rendered hits of the initial retrieval; may be empty.
        style: ``full`` or ``brief``.
        max_selected: how many passages may be named at a time.
        boolean_queries: add the note for engines with Boolean operators.
    """
    asked = f"<question>{neutralise(question)}</question>\n"
    found = f"<information>{information}</information>\n"
    if style == "brief":
        # A small model reads a question best right before it speaks.
        return found + asked
    instructions = _S3_INSTRUCTIONS.replace("SELECT_LIMIT", str(max_selected))
    note = _BOOLEAN_NOTE if boolean_queries else ""
    return f"{instructions}{note}\n{asked}{found}"


def search_r1_prompt(question: str, style: Style, max_searches: int | None) -> str:
    """The one user message of a Search-R1 model (arXiv 2503.09516, section 3.3).

    Args:
        question: as asked.
        style: ``full`` or ``brief``.
        max_searches: how many searches the instructions allow; ``None`` for as many as it wants,
            0 for the variant without a search engine (R1).
    """
    if style == "brief":
        return f"<question>{neutralise(question)}</question>\n"
    if max_searches == 0:
        instructions = _R1_INSTRUCTIONS
    else:
        limit = "as often as you want" if max_searches is None else _at_most(max_searches)
        instructions = _SEARCH_R1_INSTRUCTIONS.replace("SEARCH_LIMIT", limit)
    return f"{instructions}Question: {neutralise(question)}\n"


def _at_most(searches: int) -> str:
    return "once" if searches == 1 else f"at most {searches} times"


def search_o1_prompt(question: str, style: Style, max_searches: int) -> str:
    """The one user message of a Search-o1 model (arXiv 2501.05366, section 3.2)."""
    instructions = _SEARCH_O1_INSTRUCTIONS.replace("SEARCH_LIMIT", _at_most(max_searches))
    return f"{'' if style == 'brief' else instructions}Question: {neutralise(question)}\n"


def reason_in_documents_prompt(
    reasoning: str, query: str, hits: Sequence[Hit], style: Style
) -> str:
    """The request that condenses documents to what helps (Search-o1, section 3.3)."""
    documents = render_context(hits)
    if style == "brief":
        return f"{documents}{neutralise(query)}\n"
    return _REASON_IN_DOCUMENTS.format(
        reasoning=neutralise(reasoning), query=neutralise(query), documents=documents
    )


def ircot_prompt(question: str, context: Sequence[Hit], style: Style) -> str:
    """IRCoT's request for the next sentence: the passages so far and the question."""
    instructions = "" if style == "brief" else f"{_IRCOT_INSTRUCTIONS}\n"
    return f"{instructions}{render_context(context)}Question: {neutralise(question)}\n"


def deep_retrieval_prompt(question: str, style: Style, boolean_queries: bool) -> list[Message]:
    """DeepRetrieval's request for one rewritten query."""
    if style == "brief":
        return [Message("user", f"<question>{neutralise(question)}</question>\n")]
    note = _BOOLEAN_NOTE if boolean_queries else ""
    text = f"{_DEEP_RETRIEVAL_INSTRUCTIONS}{note}\nQuery: {neutralise(question)}\n"
    return [Message("system", _DEEP_RETRIEVAL_SYSTEM), Message("user", text)]


def cot_prompt(question: str, style: Style) -> list[Message]:
    """The request for reasoning and an answer without passages."""
    system = [] if style == "brief" else [Message("system", _COT)]
    return [*system, Message("user", neutralise(question))]


def reader_prompt(question: str, context: Sequence[Hit], style: Style) -> list[Message]:
    """The frozen generator's prompt (s3, section 3.1): passages as system, question as user."""
    rendered = render_context(context)
    if style == "brief":
        return [Message("system", rendered), Message("user", neutralise(question))]
    system = _READER.format(context=rendered) if context else _READER_ALONE
    return [Message("system", system), Message("user", neutralise(question))]


def render_context(context: Sequence[Hit]) -> str:
    """The passages as a generator reads them, renumbered from 1."""
    return "".join(
        f"Doc {number} (Title: {neutralise(hit.passage.title)})\n{neutralise(hit.passage.text)}\n\n"
        for number, hit in enumerate(context, start=1)
    )
