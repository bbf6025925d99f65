"""Train the shipped tiny models from scratch: tokenizer, generator, searcher.

    python -m scripts.tiny_models.train --out src/searchrl/models/tiny

One thread of a CPU takes about an hour for everything; ``--device cuda`` takes minutes. Each stage
leaves a Hugging Face directory and a ``training.json`` with the command, seed, steps and the
accuracy on answer tokens it ended with. ``--only`` runs one stage on what the earlier ones left, so
the generator and the searcher can be trained side by side.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from scripts.tiny_models import lessons
from scripts.tiny_models.teaching import (
    Lesson,
    bm25_search,
    load_tokenizer,
    load_weights,
    teach,
)
from scripts.tiny_models.tokenizer import MAX_LENGTH, train_tokenizer
from searchrl.cli.machine import use_machine
from searchrl.data.synthwiki import World
from searchrl.training.supervised import Example, SupervisedSettings

STAGES = ("tokenizer", "generator", "searcher")
COPYING_EXAMPLES = 20_000
READING_EXAMPLES = 3_500
GOOD_DEMONSTRATIONS = 2_000
SETTINGS = {
    "generator": SupervisedSettings(
        steps=3_000, tokens_per_step=2_048, learning_rate=2e-3, warmup_steps=100
    ),
    "further": SupervisedSettings(
        steps=600, tokens_per_step=2_048, learning_rate=1e-3, warmup_steps=20
    ),
    "searcher": SupervisedSettings(
        steps=500, tokens_per_step=2_048, learning_rate=1e-3, warmup_steps=30
    ),
}


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/tiny_models"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=STAGES)
    parser.add_argument(
        "--begin-with", type=Path, help="a generator to teach further, instead of random weights"
    )
    options = parser.parse_args()
    use_machine(options.threads)
    for stage in STAGES if options.only is None else (options.only,):
        _STAGE[stage](options)


def make_tokenizer(options: argparse.Namespace) -> None:
    """Train the tokenizer on pages of forty worlds."""
    train_tokenizer(_pages()).save_pretrained(options.work / "tokenizer")


def make_generator(options: argparse.Namespace) -> None:
    """The frozen reader: copies answers, thinks bridges aloud, says "unknown" without evidence."""
    earlier, seed = options.begin_with, options.seed
    tokenizer = load_tokenizer(earlier or options.work / "tokenizer")
    answers = lessons.alternate(
        lessons.answering(tokenizer, seed + 2),
        lessons.answering(tokenizer, seed + 3),
        lessons.reading(tokenizer, seed + 4, weight=0.1),
    )
    if earlier is not None:
        _teach(
            "further", load_weights(earlier), tokenizer, answers, options, options.out / "generator"
        )
        return
    stream = itertools.chain(
        itertools.islice(lessons.copying(tokenizer, seed), COPYING_EXAMPLES),
        itertools.islice(lessons.reading(tokenizer, seed + 1, weight=0.1), READING_EXAMPLES),
        answers,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(_configuration(tokenizer))
    _teach("generator", model, tokenizer, stream, options, options.out / "generator")


def make_searcher(options: argparse.Namespace) -> None:
    """The searcher that training starts from: reads like the generator, searches badly."""
    generator = options.out / "generator"
    tokenizer = load_tokenizer(generator)
    good = lessons.searching(tokenizer, options.seed + 5, bm25_search, right=0.98)
    mediocre = lessons.searching(tokenizer, options.seed + 6, bm25_search, right=0.3)
    stream = itertools.chain(itertools.islice(good, GOOD_DEMONSTRATIONS), mediocre)
    _teach(
        "searcher", load_weights(generator), tokenizer, stream, options, options.out / "searcher"
    )


_STAGE: dict[str, Callable[[argparse.Namespace], None]] = {
    "tokenizer": make_tokenizer,
    "generator": make_generator,
    "searcher": make_searcher,
}


def _teach(
    stage: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: Iterator[Example],
    options: argparse.Namespace,
    out: Path,
) -> None:
    begin_with = options.out / "generator" if stage == "searcher" else options.begin_with
    module = "scripts.tiny_models.train"
    lesson = Lesson(module, stage, options.seed, options.device, SETTINGS[stage], begin_with)
    teach(lesson, model, tokenizer, stream, out)


def _pages() -> Iterator[str]:
    for seed in lessons.SEEDS[:40]:
        world = World(seed, 1_000)
        for passage in world.passages():
            yield f'Doc 1 (Title: "{passage.title}") {passage.text}\n{passage.title}'
        for question in world.questions(300):
            yield f"<question>{question.text}</question>\n<information>Doc 2</information>\n\n"
            yield (
                "<important_info>[1, 2]</important_info>\n<search_complete>False</search_complete>"
                f'\n<query>{{"query": "{question.answers[0]}"}}</query>'
                "<search_complete>True</search_complete><think>unknown</think><answer></answer>"
                "<search></search>system\nuser\nassistant\n"
            )


def _configuration(tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        # Few wide heads: with normalised queries and keys, 32 dimensions attend too softly to copy.
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        # About 1 / sqrt(hidden_size); the library's 0.02 suits wide models and learns slower here.
        initializer_range=0.07,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


if __name__ == "__main__":
    main()
