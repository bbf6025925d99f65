"""The scores of the official scripts, number for number, their quirks included.

Each function takes a prediction and its gold answers and returns a score in [0, 1], the best over
the gold answers. Scripts that compute the same share one function under several names. Here a gold
answer that normalises to nothing keeps its official meaning (it matches an empty prediction, or,
for containment, every prediction); the project's own metrics in ``text.py`` do not let it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence

from searchrl.rewards.multiple_choice import mirage_accuracy
from searchrl.rewards.text import contains_run, dpr_tokens, normalise, token_f1

OfficialMetric = Callable[[str, Sequence[str]], float]

_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})
_PUNCTUATION_TO_SPACE: Mapping[int, str] = dict.fromkeys(
    map(ord, string.punctuation + "\u2018\u2019\u00b4`"), " "
)


def squad_em(prediction: str, golds: Sequence[str]) -> float:
    """Exact match of SQuAD v1.1, and of HotpotQA, MuSiQue and Search-R1."""
    return float(normalise(prediction) in map(normalise, golds))


def squad_f1(prediction: str, golds: Sequence[str]) -> float:
    """Token F1 of SQuAD v1.1: 0 where either side normalises to nothing."""
    words = normalise(prediction).split()
    return max((token_f1(words, normalise(gold).split()) for gold in golds), default=0.0)


def squad2_em(prediction: str, golds: Sequence[str]) -> float:
    """Exact match of SQuAD v2: golds that normalise to nothing go; if all do, "" is the gold."""
    return squad_em(prediction, _squad2_golds(golds))


def squad2_f1(prediction: str, golds: Sequence[str]) -> float:
    """Token F1 of SQuAD v2: an empty side scores 1 if the other is empty too, else 0."""
    return musique_f1(prediction, _squad2_golds(golds))


def musique_f1(prediction: str, golds: Sequence[str]) -> float:
    """Token F1 of MuSiQue: SQuAD v2's rule for empty sides, with every gold answer kept."""
    words = normalise(prediction).split()
    gold_words = [normalise(gold).split() for gold in golds]
    return max(
        (token_f1(words, gold) if words and gold else float(words == gold) for gold in gold_words),
        default=0.0,
    )


def hotpot_f1(prediction: str, golds: Sequence[str]) -> float:
    """Token F1 of HotpotQA and 2Wiki: yes, no and noanswer agree only with themselves."""
    normalised = normalise(prediction)
    return max((_hotpot_pair(normalised, normalise(gold)) for gold in golds), default=0.0)


def triviaqa_em(prediction: str, golds: Sequence[str]) -> float:
    """Exact match of TriviaQA, whose normalisation turns punctuation into spaces."""
    return float(_triviaqa_normalise(prediction) in map(_triviaqa_normalise, golds))


def triviaqa_f1(prediction: str, golds: Sequence[str]) -> float:
    """Token F1 of TriviaQA, whose normalisation turns punctuation into spaces."""
    words = _triviaqa_normalise(prediction).split()
    return max((token_f1(words, _triviaqa_normalise(gold).split()) for gold in golds), default=0.0)


def searchr1_subem(prediction: str, golds: Sequence[str]) -> float:
    """Search-R1's substring match: a gold that normalises to nothing is inside everything."""
    normalised = normalise(prediction)
    return float(any(normalise(gold) in normalised for gold in golds))


def s3_answer_span(prediction: str, golds: Sequence[str]) -> float:
    """s3's span check: a gold that normalises to nothing is inside everything."""
    tokens = dpr_tokens(normalise(prediction))
    return float(any(contains_run(tokens, dpr_tokens(normalise(gold))) for gold in golds))


hotpot_em = squad_em
musique_em = squad_em
searchr1_em = squad_em
wiki2_f1 = hotpot_f1

OFFICIAL: Mapping[str, OfficialMetric] = {
    "squad_em": squad_em,
    "squad_f1": squad_f1,
    "squad2_em": squad2_em,
    "squad2_f1": squad2_f1,
    "hotpot_em": hotpot_em,
    "hotpot_f1": hotpot_f1,
    "wiki2_f1": wiki2_f1,
    "musique_em": musique_em,
    "musique_f1": musique_f1,
    "triviaqa_em": triviaqa_em,
    "triviaqa_f1": triviaqa_f1,
    "searchr1_em": searchr1_em,
    "searchr1_subem": searchr1_subem,
    "s3_answer_span": s3_answer_span,
    "mirage_accuracy": mirage_accuracy,
}
"""Every official metric by the name a user asks for it."""


def _squad2_golds(golds: Sequence[str]) -> list[str]:
    return [gold for gold in golds if normalise(gold)] or [""]


def _hotpot_pair(prediction: str, gold: str) -> float:
    if prediction != gold and not _CLOSED_ANSWERS.isdisjoint((prediction, gold)):
        return 0.0
    return token_f1(prediction.split(), gold.split())


def _triviaqa_normalise(text: str) -> str:
    return normalise(text, _PUNCTUATION_TO_SPACE)
