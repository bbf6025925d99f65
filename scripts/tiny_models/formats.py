"""Teach a tiny model another method's format, on top of the shipped generator.

    python -m scripts.tiny_models.formats --format search_r1 --out runs/taught/search_r1

Good demonstrations come first, then mediocre ones, as for the shipped searcher: reinforcement
learning then has something to improve and the ability to find it. ``--right`` is the share of right
queries in the latter; methods that are never trained are taught with a high one. Nothing made here
is shipped.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path

from scripts.tiny_models.format_lessons import LESSONS, K
from scripts.tiny_models.teaching import Lesson, bm25_search, load_tokenizer, load_weights, teach
from searchrl.cli.machine import use_machine
from searchrl.models.tokenizers import model_path
from searchrl.training.supervised import SupervisedSettings

GOOD = 0.98
TOKENS_PER_STEP = 2_048
RATE = 1e-3


def main() -> None:
    """Teach one format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=LESSONS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--k", type=int, default=K, help=f"passages a search ({K})")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--good", type=int, default=2_000, help="good demonstrations, shown first")
    parser.add_argument("--right", type=float, default=0.3, help="share of right queries after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    use_machine(options.threads)
    begin_with = Path(model_path("tiny-generator"))
    tokenizer, demonstrate = load_tokenizer(begin_with), LESSONS[options.format]
    search = partial(bm25_search, k=options.k)
    good = demonstrate(tokenizer, options.seed + 7, search, GOOD)
    rest = demonstrate(tokenizer, options.seed + 8, search, options.right)
    settings = SupervisedSettings(
        steps=options.steps,
        tokens_per_step=TOKENS_PER_STEP,
        learning_rate=RATE,
        warmup_steps=min(30, options.steps),
    )
    module = "scripts.tiny_models.formats"
    lesson = Lesson(module, options.format, options.seed, options.device, settings, begin_with)
    stream = itertools.chain(itertools.islice(good, options.good), rest)
    teach(lesson, load_weights(begin_with), tokenizer, stream, options.out)


if __name__ == "__main__":
    main()
