"""Commands over recipes, with models of random weights: a run from its data to its answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from searchrl.data.jsonl import write_jsonl
from searchrl.errors import InfrastructureError
from searchrl.models.local import LocalModel
from tests.command_line import (
    flip_byte,
    good,
    own_files,
    refused,
    searchrl,
    tree,
    write_recipe,
)

pytestmark = pytest.mark.pipeline

ONE_THREAD = ("--threads", "1")


@pytest.fixture(scope="module")
def model(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model as a directory that recipes can name."""
    folder = tmp_path_factory.mktemp("model")
    random_model.model.save_pretrained(folder)
    random_model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.toml and a finished run of it in ``run``; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(folder / "recipe.toml", model)
    good("train", recipe, "--out", folder / "run", *ONE_THREAD)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def own_data(folder: Path) -> str:
    """The section of a recipe over a corpus and questions in ``folder``."""
    corpus, questions = own_files(folder)
    return f'kind = "files"\ncorpus = "{corpus}"\nquestions = "{questions}"\n'


def test_training_writes_a_run(trained: Path) -> None:
    run = trained / "run"
    assert (run / "STATUS").read_text() == "success\n"
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [1, 2]
    assert (run / "checkpoints" / "final" / "model.safetensors").is_file()
    assert (run / "config.json").is_file()
    assert (run / "env.json").is_file()


def test_progress_goes_to_stderr_in_plain_lines(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", model)
    arguments = ("train", recipe, "--out", tmp_path / "run", "--set", "run.steps=1", "--json")
    outcome = good(*arguments, *ONE_THREAD)
    final = tmp_path / "run" / "checkpoints" / "final"
    assert outcome.json == {"run": str(tmp_path / "run"), "searcher": str(final)}
    assert outcome.stderr.startswith("training: 1/1 in ")
    assert "reward " in outcome.stderr
    assert "\x1b" not in outcome.stderr + outcome.stdout


def test_a_run_is_not_overwritten(trained: Path) -> None:
    before = (trained / "run" / "config.json").read_bytes()
    line = refused("train", trained / "recipe.toml", "--out", trained / "run")
    assert "holds a run already; add --resume" in line
    line = refused("demo", "--recipe", trained / "recipe.toml", "--out", trained / "run")
    assert "holds a run already" in line
    assert (trained / "run" / "config.json").read_bytes() == before


def test_a_run_goes_on_from_its_last_checkpoint(run: Path) -> None:
    arguments = ("train", run / "config.json", "--out", run, "--resume", "--set", "run.steps=3")
    outcome = good(*arguments, *ONE_THREAD)
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [1, 2, 3]
    assert "training: 3/3" in outcome.stderr


def test_evaluating_into_the_run_brings_its_results_into_the_report(
    run: Path, trained: Path
) -> None:
    arguments = ("evaluate", trained / "recipe.toml", "--methods", "rag, s3", "--n", "3")
    outcome = good(*arguments, "--searcher", run, "--out", run, "--json", *ONE_THREAD)
    methods = outcome.json["methods"]
    assert {name: row["n"] for name, row in methods.items()} == {"rag": 3, "s3": 3}
    results = json.loads((run / "results.json").read_text())
    assert results["methods"] == methods
    assert results["settings"]["decoding"] == "greedy"
    assert results["settings"]["searcher"] == str(run / "checkpoints" / "final")
    assert (run / "results.md").read_text().startswith("| Method | n | Accuracy %")
    episodes = rows(run / "episodes.jsonl")
    assert [row["method"] for row in episodes] == ["rag"] * 3 + ["s3"] * 3
    assert all(row["score"]["accuracy"] in (0, 1) for row in episodes)

    assert good("report", run).stdout == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert "naive RAG" in page
    assert "small" in page


def test_a_comparison_off_the_terminal_is_plain_markdown(run: Path, trained: Path) -> None:
    arguments = ("evaluate", trained / "recipe.toml", "--methods", "direct", "--n", "2")
    outcome = good(*arguments, "--out", run, *ONE_THREAD)
    assert outcome.stdout == (run / "results.md").read_text()
    assert outcome.stderr.startswith("evaluating direct: 2/2")


def test_the_report_of_an_unevaluated_run_shows_training_episodes(run: Path) -> None:
    good("report", run)
    assert rows(run / "episodes" / "step_000002.jsonl")[0]["question"]["question"] in (
        run / "report.html"
    ).read_text().replace("&#39;", "'")


def test_ask_prints_one_json_object(run: Path) -> None:
    question = rows(run / "data" / "train" / "questions.jsonl")[0]["question"]
    arguments = ("ask", question, "--run", run, "--split", "train", "--json")
    episode = good(*arguments, *ONE_THREAD).json
    assert episode["question"]["question"] == question
    assert episode["initial"]["query"] == question
    assert len(episode["initial"]["hits"]) == 2
    assert isinstance(episode["answer"], str)


def test_ask_shows_foreign_text_literally(run: Path, tmp_path: Path) -> None:
    passages = [
        {"id": "1", "title": "[red]Chur[/red] :smile:", "text": "Founded \x1b[31m in [/] 1802\\"},
        {"id": "2", "title": "Davos", "text": "Founded in 1803."},
    ]
    write_jsonl(tmp_path / "corpus.jsonl", passages)
    index = tmp_path / "index"
    good("index", "build", "--corpus", tmp_path / "corpus.jsonl", "--out", index)
    question = "When was [bold]Chur[/bold] \x1b[2J:smile: founded?"
    shown = good("ask", question, "--run", run, "--index", index, *ONE_THREAD).stdout
    assert shown.startswith("When was [bold]Chur[/bold] :smile: founded?\n\nfirst search  When")
    assert "1. [red]Chur[/red] :smile:\n" in shown
    assert "Founded in [/] 1802\\\n" in shown
    assert "handed to the generator  2 passages" in shown
    assert "(search ended: " in shown
    assert "\x1b" not in shown


def test_one_s_own_files_work_from_index_to_answer(model: Path, tmp_path: Path) -> None:
    data = own_data(tmp_path)
    recipe = write_recipe(tmp_path / "recipe.toml", model, train=data, test=data)
    run = tmp_path / "run"
    original = tmp_path / "rag_cache.json"
    first = good("precompute", recipe, "--out", run, "--original", original, "--json", *ONE_THREAD)
    assert first.json == {"questions": 8, "computed": 8, "solved": first.json["solved"]}
    assert first.stderr.startswith("naive RAG: 8/8")
    cache = (run / "rag_cache.jsonl").read_bytes()
    again = good("precompute", recipe, "--out", run, *ONE_THREAD)
    assert again.stdout.endswith(" of 8 questions (0 new)\n")
    assert (run / "rag_cache.jsonl").read_bytes() == cache
    (entries,) = json.loads(original.read_text()).values()
    assert set(entries["When was Chur founded?"]) == {"answer", "score", "em_score"}
    assert len(entries) == 8

    good("train", recipe, "--out", run, *ONE_THREAD)
    assert (run / "rag_cache.jsonl").read_bytes() == cache
    good("evaluate", recipe, "--searcher", run, "--out", run, *ONE_THREAD)
    episode = good("ask", "When was Chur founded?", "--run", run, "--json", *ONE_THREAD).json
    assert episode["initial"]["hits"][0]["title"] == "Chur"
    good("report", run)


def test_an_index_built_before_is_used(model: Path, tmp_path: Path) -> None:
    corpus, _ = own_files(tmp_path)
    good("index", "build", "--corpus", corpus, "--out", tmp_path / "index")
    data = own_data(tmp_path) + f'index = "{tmp_path / "index"}"\n'
    recipe = write_recipe(tmp_path / "recipe.toml", model, train=data, test=data)
    good("precompute", recipe, "--out", tmp_path / "run", *ONE_THREAD)
    assert tree(tmp_path / "run") == ["rag_cache.jsonl"]


Break = Callable[[Path], object]


def without_gold(folder: Path) -> None:
    questions = rows(folder / "questions.jsonl")
    questions[4]["golden_answers"] = []
    write_jsonl(folder / "questions.jsonl", questions)


def garbled_question(folder: Path) -> None:
    text = (folder / "questions.jsonl").read_text().splitlines()
    (folder / "questions.jsonl").write_text("\n".join([*text[:6], '{"id": 6', *text[7:]]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_gold, 'questions.jsonl:5: field "golden_answers" has no gold answer'),
        (garbled_question, "questions.jsonl:7: not valid JSON"),
        (lambda folder: (folder / "questions.jsonl").unlink(), "questions.jsonl: no such file"),
        (lambda folder: (folder / "corpus.jsonl").unlink(), "corpus.jsonl: no such file"),
        (lambda folder: (folder / "questions.jsonl").write_text(""), "no question in it"),
    ],
)
@pytest.mark.parametrize("command", ["precompute", "train", "evaluate"])
def test_unusable_data_is_refused_before_anything_is_written(
    model: Path, tmp_path: Path, command: str, spoil: Break, said: str
) -> None:
    data = own_data(tmp_path)
    recipe = write_recipe(tmp_path / "recipe.toml", model, train=data, test=data)
    spoil(tmp_path)
    assert said in refused(command, recipe, "--out", tmp_path / "out", *ONE_THREAD)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["precompute", "train", "evaluate", "demo"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nonsense", "--set nonsense: expected key=value"),
        ("run.stepz=3", "unknown key run.stepz; did you mean run.steps?"),
        ("learnin.algorithm=ppo", "unknown key learnin; did you mean learning?"),
        ("run.steps=none", "run.steps: Input should be a valid integer"),
        ("run.steps=0", "run.steps: Input should be greater than 0"),
        ("seed.x=1", "--set seed.x=1: seed is a value, not a section"),
        ("rollout.group_size=1", "set rollout.group_size to 2 or more"),
    ],
)
def test_a_wrong_override_is_refused(
    tmp_path: Path, command: str, override: str, said: str
) -> None:
    recipe = ("--recipe", "tiny-grpo") if command == "demo" else ("tiny-grpo",)
    arguments = (command, *recipe, "--out", tmp_path / "out", "--set", override)
    assert said in refused(*arguments)
    assert tree(tmp_path) == []


def test_an_unknown_recipe_is_refused_with_the_nearest(tmp_path: Path) -> None:
    line = refused("train", "tiny-grop", "--out", tmp_path / "out")
    assert "tiny-grop: no such recipe file; did you mean tiny-grpo?" in line
    assert "shipped ones: qwen3-0.6b-grpo, " in refused("train", "zzz", "--out", tmp_path / "out")
    (tmp_path / "broken.toml").write_text("name = \n")
    assert "broken.toml: not a readable recipe" in refused(
        "train", tmp_path / "broken.toml", "--out", tmp_path / "out"
    )
    assert tree(tmp_path) == ["broken.toml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "rag,bogus"), "Input should be 'direct', 'cot', 'sft', 'rag'"),
        (("--methods", "rag,serch_r1"), "not 'serch_r1'; did you mean search_r1?"),
        (("--methods", "rag,rag"), "each name once"),
        (("--methods", ","), "--methods: name at least one"),
        (("--set", "evaluation.methods=[]"), "evaluation.methods: name at least one"),
        (("--n", "13"), "evaluation.questions is 13 and data.test has 12"),
        (("--searcher", "nowhere"), "nowhere: no trained searcher there"),
    ],
)
def test_evaluations_that_cannot_be_are_refused(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", model)
    line = refused("evaluate", recipe, "--out", tmp_path / "out", *arguments, *ONE_THREAD)
    assert said in line
    assert tree(tmp_path) == ["recipe.toml"]


def test_own_questions_are_counted_and_looked_through(model: Path, tmp_path: Path) -> None:
    data = own_data(tmp_path)
    recipe = write_recipe(tmp_path / "recipe.toml", model, train=data, test=data)
    arguments = ("evaluate", recipe, "--out", tmp_path / "out")
    assert "is 9 and data.test has 8" in refused(*arguments, "--n", "9")
    assert "question '0' has no supporting_ids" in refused(*arguments, "--methods", "oracle")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_used(run: Path, trained: Path, tmp_path: Path) -> None:
    weights = run / "checkpoints" / "final" / "model.safetensors"
    flip_byte(weights)
    said = f"{weights}: does not match its checksum"
    arguments = ("evaluate", trained / "recipe.toml", "--out", tmp_path / "out", *ONE_THREAD)
    assert said in refused(*arguments, "--searcher", run)
    assert said in refused("ask", "Who?", "--run", run, *ONE_THREAD)
    assert not (tmp_path / "out").exists()


def test_what_is_not_a_run_is_refused(run: Path, tmp_path: Path) -> None:
    for command in (("report", tmp_path), ("ask", "Who?", "--run", tmp_path)):
        assert f"{tmp_path}: not a run directory (no config.json)" in refused(*command)
    checkpoint = run / "checkpoints" / "final"
    for command in (("report", checkpoint), ("ask", "Who?", "--run", checkpoint)):
        assert f"{checkpoint / 'config.json'}: unknown key" in refused(*command)


def test_ask_refuses_questions_it_cannot_ask(run: Path) -> None:
    assert "the question is empty" in refused("ask", " ", "--run", run)
    assert "expected train or test" in refused("ask", "Who?", "--run", run, "--split", "dev")
    missing = run / "no-index"
    arguments = ("ask", "Who?", "--run", run, "--index", missing, *ONE_THREAD)
    assert f"{missing}: no index directory there" in refused(*arguments)


def test_a_failed_service_is_no_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InfrastructureError("model at example:1 did not answer")

    for place in ("agents.generator.Generator.answer", "models.local.LocalModel.complete"):
        with monkeypatch.context() as patch:
            patch.setattr(f"searchrl.{place}", fail)
            outcome = searchrl("ask", "Who?", "--run", run, *ONE_THREAD)
        assert outcome.code == 75
        assert outcome.stderr == "error: model at example:1 did not answer\n"


def test_a_report_over_damaged_results_is_refused(run: Path) -> None:
    for text, said in (("{", "not valid JSON"), ("[]", "not the results"), ("{}", '"methods"')):
        (run / "results.json").write_text(text)
        assert said in refused("report", run)


def test_the_demo_runs_every_stage(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", model)
    out = tmp_path / "demo"
    small = ("--set", "run.steps=1", "--set", "evaluation.questions=2")
    outcome = good("demo", "--recipe", recipe, "--out", out, "--seed", "7", *small, *ONE_THREAD)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == ["direct", "rag", "s3-untrained", "s3", "oracle"]
    assert all(row["n"] == 2 for row in summary["methods"].values())
    assert all(len(row["ci95"]) == 2 for row in summary["methods"].values())
    assert summary["training_episodes"] == 4
    assert set(summary["seconds"]) == {"index", "precompute", "train", "evaluate", "total"}
    assert "| s3-untrained | 2 |" in outcome.stdout
    assert outcome.stdout.endswith(f"report: {out / 'report.html'}\n")
    assert "\x1b" not in outcome.stdout + outcome.stderr
    config = json.loads((out / "config.json").read_text())
    assert (config["seed"], config["data"]["train"]["seed"]) == (7, 14)
    assert config["data"]["test"]["seed"] == 15


def test_the_demo_refuses_what_it_could_not_evaluate(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", model)
    arguments = ("demo", "--recipe", recipe, "--out", tmp_path / "demo")
    line = refused(*arguments, "--set", "evaluation.questions=13")
    assert "evaluation.questions is 13 and data.test has 12" in line
    assert not (tmp_path / "demo").exists()


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", tmp_path / "nowhere")
    line = refused("precompute", recipe, "--out", tmp_path / "out", *ONE_THREAD)
    assert f"'{tmp_path / 'nowhere'}': no such directory" in line


def test_a_question_file_longer_than_needed_is_cut_by_the_limit(
    model: Path, tmp_path: Path
) -> None:
    data = own_data(tmp_path) + "limit = 3\n"
    recipe = write_recipe(tmp_path / "recipe.toml", model, train=data, test=data)
    outcome = searchrl("precompute", recipe, "--out", tmp_path / "run", "--json", *ONE_THREAD)
    assert outcome.json["questions"] == 3
