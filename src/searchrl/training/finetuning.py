"""Supervised fine-tuning of a searcher, on sampled episodes or on questions and their answers.

From sampled episodes it learns to say what it said when it succeeded (see ``rejection``). From
questions it learns the first gold answer after the prompt of the ``sft`` method, without any
search: the SFT baseline of Search-R1 and s3. The run directory has the form of every other, so the
result is evaluated like one; it is short, and not resumed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.agents.alone import sft_prompt
from searchrl.agents.prompts import Style
from searchrl.data.questions import Question
from searchrl.errors import InputError
from searchrl.experiment import Experiment
from searchrl.reporting.metrics_log import MetricsLog
from searchrl.seeding import derive_seed
from searchrl.training.checkpoint import save_final
from searchrl.training.model_card import model_card
from searchrl.training.options import SupervisedOptions
from searchrl.training.rejection import read_examples
from searchrl.training.run_directory import RunDirectory
from searchrl.training.supervised import Example, SupervisedSettings, train_supervised

if TYPE_CHECKING:
    from searchrl.models.local import LocalModel


Progress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""Opens a display for one activity: its label and its number of units."""


def finetune(experiment: Experiment, run: RunDirectory, progress: Progress) -> Path:
    """Fine-tune the recipe's searcher in a run directory.

    Args:
        experiment: the opened recipe.
        run: where to write.
        progress: opens a display for the steps.

    Returns:
        The fine-tuned searcher, ``checkpoints/final``.

    Raises:
        InputError: the run directory, the recipe or the examples cannot be used.
    """
    recipe, options = experiment.recipe, experiment.recipe.supervised
    searcher = experiment.trainable()
    if options.examples is not None:
        examples = read_examples(options.examples, searcher.tokenizer)
    else:
        style, questions = recipe.generator.style, experiment.train.questions
        examples = [question_example(question, searcher, style) for question in questions]
    settings = _settings(examples, options)
    with (
        run.open(recipe, resume=False),
        progress("fine-tuning", settings.steps) as advance,
    ):
        log = MetricsLog(run.metrics)

        def note(step: int, metrics: dict[str, float]) -> None:
            log.append(step + 1, metrics)
            advance(step + 1, f"loss {metrics['loss']:.3f}")

        stream = shuffled_epochs(examples, recipe.seed)
        train_supervised(searcher.model, stream, settings, note)
        numbers = {"Steps": str(settings.steps), "Examples": f"{len(examples):,}"}
        card = model_card(recipe, "supervised fine-tuning", numbers)
        return save_final(run.checkpoints, searcher.model, searcher.tokenizer, card)


def question_example(question: Question, model: LocalModel, style: Style) -> Example:
    """A question's prompt, then its first gold answer and the end of the output, to be learned.

    Raises:
        InputError: the two are longer than the model's context.
    """
    prompt = model.render_chat(sft_prompt(question.text, style))
    answer = [*model.encode(question.answers[0]), model.tokenizer.eos_token_id]
    if len(prompt) + len(answer) > model.max_length:
        raise InputError(
            f"question {question.id!r} and its answer are longer than the searcher's context of "
            f"{model.max_length} tokens; leave it out"
        )
    return Example((*prompt, *answer), (0.0,) * len(prompt) + (1.0,) * len(answer))


def shuffled_epochs(examples: Sequence[Example], seed: int) -> Iterator[Example]:
    """The examples in a new order every epoch, without end."""
    epoch = 0
    while True:
        order = list(range(len(examples)))
        random.Random(derive_seed(seed, "supervised", epoch)).shuffle(order)
        yield from (examples[index] for index in order)
        epoch += 1


def _settings(examples: Sequence[Example], options: SupervisedOptions) -> SupervisedSettings:
    """As many steps as the tokens of all epochs fill."""
    tokens = options.epochs * sum(len(example.token_ids) for example in examples)
    return SupervisedSettings(
        steps=max(1, tokens // options.tokens_per_step),
        tokens_per_step=options.tokens_per_step,
        tokens_per_micro_batch=options.tokens_per_micro_batch,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        autocast=options.autocast,
        gradient_checkpointing=options.gradient_checkpointing,
        offload=options.offload,
    )
