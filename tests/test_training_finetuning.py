"""Rejection sampling, its examples, and supervised fine-tuning on them or on answers."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from searchrl.agents.episode import Episode
from searchrl.agents.search_r1 import SearchR1Agent, SearchR1Options
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError, IntegrityError
from searchrl.models.local import LocalModel
from searchrl.rewards.outcome import OutcomeReward
from searchrl.training.finetuning import question_example, shuffled_epochs
from searchrl.training.options import RolloutOptions
from searchrl.training.rejection import (
    EXAMPLES,
    read_examples,
    sample_episodes,
    tokenizer_digest,
    write_examples,
)
from searchrl.training.supervised import Example
from tests.command_line import good, refused
from tests.fakes import FailingRetriever, ListRetriever, ScriptedModel, passages
from tests.training_fixtures import save_model, search_r1_recipe

QUESTIONS = [Question(f"q{n}", f"Who is {n}?", ("Ada",)) for n in range(3)]
Tokenizer = PreTrainedTokenizerFast


def agent(model: ScriptedModel, retriever: ListRetriever) -> SearchR1Agent:
    options = SearchR1Options(kind="search_r1", style="brief", max_turns=1, max_response_tokens=64)
    return SearchR1Agent(model, retriever, options)


def sample(tokenizer: Tokenizer, outputs: list[str], attempts: int = 2) -> list[Episode]:
    model = ScriptedModel(tokenizer, outputs)
    options = RolloutOptions(group_size=attempts, temperature=0.7)
    reward = OutcomeReward("exact_match")
    told: list[int] = []
    kept = asyncio.run(
        sample_episodes(
            agent(model, ListRetriever(passages(99))),
            reward,
            QUESTIONS,
            options,
            seed=3,
            least_reward=1.0,
            on_progress=told.append,
        )
    )
    assert told == [3]
    assert len({sampling.seed for sampling in model.samplings}) == len(model.samplings)
    return kept


RIGHT, WRONG = "<answer>Ada</answer>", "<answer>Bob</answer>"


def test_only_right_episodes_are_kept(tiny_tokenizer: Tokenizer) -> None:
    kept = sample(tiny_tokenizer, [RIGHT, WRONG, WRONG, "hm", RIGHT, RIGHT, WRONG])
    assert [episode.question.id for episode in kept] == ["q0", "q2", "q2"]
    assert all(episode.answer == "Ada" for episode in kept)
    assert sample(tiny_tokenizer, [WRONG]) == []


def test_too_many_failures_stop_sampling(tiny_tokenizer: Tokenizer) -> None:
    failing = agent(ScriptedModel(tiny_tokenizer, ["<search>a</search>"]), FailingRetriever([]))
    with pytest.raises(InfrastructureError, match="3 of 3 episodes"):
        asyncio.run(
            sample_episodes(
                failing, OutcomeReward("f1"), QUESTIONS, RolloutOptions(), seed=0, least_reward=1
            )
        )


def test_examples_are_the_tokens_of_the_episodes_with_the_models_own_marked(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    kept = sample(tiny_tokenizer, ["<search>a</search>", *[RIGHT] * 9], attempts=1)
    assert len(kept) == 3
    write_examples(tmp_path / "made", kept, "a-model", tiny_tokenizer)
    examples = read_examples(tmp_path / "made", tiny_tokenizer)
    for example, episode in zip(examples, kept, strict=True):
        assert list(example.token_ids) == episode.token_ids
        assert list(example.weights) == [float(own) for own in episode.trainable_mask]
    # One of them read passages, which nothing is learned from.
    assert any("environment" in {s.origin for s in episode.segments} for episode in kept)


def test_examples_of_another_tokenizer_are_refused(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_examples(tmp_path / "made", [], "a-model", tiny_tokenizer)
    with pytest.raises(InputError, match="holds no example"):
        read_examples(tmp_path / "made", tiny_tokenizer)
    template = tiny_tokenizer.chat_template
    before = tokenizer_digest(tiny_tokenizer)
    try:
        tiny_tokenizer.chat_template = "other"
        assert tokenizer_digest(tiny_tokenizer) != before
        with pytest.raises(InputError, match="its tokens are those of a-model"):
            read_examples(tmp_path / "made", tiny_tokenizer)
    finally:
        tiny_tokenizer.chat_template = template


def test_damaged_examples_are_refused(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory of examples"):
        read_examples(tmp_path / "absent", tiny_tokenizer)
    write_examples(tmp_path / "made", sample(tiny_tokenizer, [RIGHT]), "m", tiny_tokenizer)
    file = tmp_path / "made" / "examples.jsonl"
    file.write_text(file.read_text().replace("Ada", "Bob", 1))
    with pytest.raises(IntegrityError, match="checksum"):
        read_examples(tmp_path / "made", tiny_tokenizer)


def test_an_answer_and_the_end_of_the_output_are_learned(random_model: LocalModel) -> None:
    question = Question("q", "Who?", ("Ada Lovelace", "Ada"))
    example = question_example(question, random_model, "full")
    learned = [t for t, w in zip(example.token_ids, example.weights, strict=True) if w]
    assert random_model.tokenizer.decode(learned[:-1]) == "Ada Lovelace"
    assert learned[-1] == random_model.tokenizer.eos_token_id
    prompt = example.token_ids[: -len(learned)]
    assert "Who?" in random_model.tokenizer.decode(prompt)
    with pytest.raises(InputError, match="'q' and its answer are longer"):
        question_example(Question("q", "Who? " * 2000, ("Ada",)), random_model, "full")


def test_every_epoch_shows_every_example_in_another_order() -> None:
    examples = [Example((n,), (1.0,)) for n in range(9)]
    drawn = [e.token_ids[0] for e in itertools.islice(shuffled_epochs(examples, 5), 27)]
    epochs = [drawn[start : start + 9] for start in (0, 9, 18)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = [e.token_ids[0] for e in itertools.islice(shuffled_epochs(examples, 5), 27)]
    assert again == drawn


ONE_THREAD = ("--threads", "1")


@pytest.fixture(scope="module")
def recipe(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file of Search-R1 with a random model, whose every episode is good enough."""
    folder = tmp_path_factory.mktemp("sft")
    model = save_model(random_model, folder / "model")
    made = search_r1_recipe(
        model,
        "supervised.attempts=2",
        "supervised.least_reward=0",
        "supervised.tokens_per_step=400",
        "supervised.learning_rate=1e-3",
        "evaluation.methods=['sft', 'search_r1']",
    )
    (folder / "recipe.json").write_text(json.dumps(made.model_dump(mode="json")))
    return folder / "recipe.json"


@pytest.mark.pipeline
def test_from_sampling_to_a_fine_tuned_searcher(recipe: Path, tmp_path: Path) -> None:
    out, tuned = tmp_path / "sampled", tmp_path / "tuned"
    done = good("sample", recipe, "--out", out, "--n", "3", "--json", *ONE_THREAD)
    assert done.json == {"examples": str(out / EXAMPLES), "episodes": 6, "kept": 6}
    assert done.stderr.startswith("sampling: 3/3")
    examples = ("--set", f"supervised.examples={out / EXAMPLES}")
    outcome = good("sft", recipe, "--out", tuned, *examples, *ONE_THREAD)
    final = tuned / "checkpoints" / "final"
    assert outcome.stdout == f"fine-tuned searcher: {final}\n"
    assert "loss " in outcome.stderr
    rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert (tuned / "STATUS").read_text() == "success\n"
    before = AutoModelForCausalLM.from_pretrained(recipe.parent / "model").state_dict()
    after = AutoModelForCausalLM.from_pretrained(final).state_dict()
    assert any(not before[name].equal(after[name]) for name in before)
    said = refused("sft", recipe, "--out", tuned, *ONE_THREAD)
    assert "holds a run already" in said


@pytest.mark.pipeline
def test_fine_tuning_on_answers_is_evaluated_without_search(recipe: Path, tmp_path: Path) -> None:
    good("sft", recipe, "--out", tmp_path, "--set", "supervised.epochs=2", "--json", *ONE_THREAD)
    arguments = ("--searcher", tmp_path, "--out", tmp_path, "--n", "2", "--json")
    methods = good("evaluate", recipe, *arguments, *ONE_THREAD).json["methods"]
    assert list(methods) == ["sft", "search_r1"]
    assert methods["sft"]["searches"]["mean"] == 0
    good("report", tmp_path)


def test_examples_that_are_not_there_leave_no_run(recipe: Path, tmp_path: Path) -> None:
    missing = ("--set", f"supervised.examples={tmp_path / 'absent'}")
    line = refused("sft", recipe, "--out", tmp_path / "run", *missing, *ONE_THREAD)
    assert "absent: no directory of examples there" in line
    assert not (tmp_path / "run" / "config.json").exists()
