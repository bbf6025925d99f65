"""The deployment guide's files: its data, its scripts' refusals, the promises its page lists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from searchrl.agents.episode import Action, ActionKind, Episode, Turn
from searchrl.data.forms import read_dataset
from searchrl.data.passages import read_corpus
from searchrl.errors import InputError
from searchrl.evaluation.comparison import check_evaluation
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.web.options import WebOptions
from searchrl.rewards.custom import load_function
from tests.command_line import free_port

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "deployments" / "qwen3-0.6b"
PAGE = ROOT / "docs" / "deployment.md"
SCRIPTS = ("install.sh", "run.sh", "start_retriever.sh", "train_qwen3_0.6b.sh")
TINY = {"MODEL": "tiny"}


def copy_guide(to: Path) -> Path:
    """The guide's own files, without what was made there by using it."""
    made = (GUIDE / ".gitignore").read_text().replace("/", "").split()
    shutil.copytree(GUIDE, to, ignore=shutil.ignore_patterns(*made, "__pycache__"))
    return to


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    """A copy, so that what a script might write does not lie in the repository."""
    return copy_guide(tmp_path / "deployments" / "qwen3-0.6b")


def refused(folder: Path, command: str, settings: Mapping[str, str] | None = None) -> str:
    """Run a script that has to end with 2 and one line, and return the line."""
    program, *arguments = command.split()
    python = [sys.executable] if program.endswith(".py") else []
    ended = subprocess.run(
        [*python, str(folder / program), *arguments],
        env={"PATH": os.environ["PATH"], **(settings or {})},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    return ended.stderr


def test_the_sample_data_are_ten_passages_and_ten_questions_that_they_answer() -> None:
    passages = list(read_corpus(GUIDE / "data" / "sample_corpus.jsonl"))
    by_id = {passage.id: passage for passage in passages}
    train, test = (
        read_dataset(GUIDE / "data" / f"sample_{name}.jsonl") for name in ("train", "test")
    )
    assert (len(passages), len(train), len(test)) == (10, 10, 5)
    assert not {question.text for question in train} & {question.text for question in test}
    retriever = Bm25Retriever(passages)
    for question in [*train, *test]:
        gold = [by_id[name].text + by_id[name].title for name in question.gold_ids]
        assert any(answer in text for answer in question.answers for text in gold), question
        found = {hit.passage.id for hit in retriever.top(question.text, 3)}
        assert question.gold_ids[0] in found, question
    assert {question.reward for question in train} == {"exact_match", "f1"}


@pytest.mark.parametrize("name", [*SCRIPTS, "settings.sh"])
def test_a_script_is_one_that_bash_reads(name: str) -> None:
    ended = subprocess.run(["bash", "-n", GUIDE / name], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert os.access(GUIDE / name, os.X_OK) == (name in SCRIPTS)
    assert "set -euo pipefail" in (GUIDE / name).read_text() or name == "settings.sh"


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        ("run.sh", {"MODEL": "models/absent"}, "MODEL=models/absent: no such directory"),
        ("train_qwen3_0.6b.sh", {"BASE_MODEL": "./absent"}, "MODEL=./absent: no such directory"),
        ("run.sh", TINY | {"CORPUS": "absent.jsonl"}, "CORPUS=absent.jsonl: no such file"),
        ("start_retriever.sh", {"CORPUS": "absent.jsonl"}, "CORPUS=absent.jsonl: no such file"),
        ("train_qwen3_0.6b.sh", TINY | {"TRAIN_DATA": "no"}, "TRAIN_DATA=no: no such file"),
        ("train_qwen3_0.6b.sh", TINY | {"TEST_DATA": "no"}, "TEST_DATA=no: no such file"),
        ("run.sh", TINY | {"CORPUS": "it's.jsonl"}, "apostrophe cannot be handed on"),
        (
            "run.sh --retriever elastic",
            TINY,
            "expected bm25, dense, hybrid, web:SERVICE or the URL",
        ),
        ("run.sh --retriever dense", TINY, "--retriever dense: name its --encoder"),
        ("run.sh --retriever", TINY, "--retriever wants a value; see run.sh --help"),
        ("run.sh --algorithm dpo", TINY, "--algorithm dpo: expected grpo or ppo"),
        ("run.sh", TINY | {"PORT": "http"}, "PORT=http: expected a number"),
        ("start_retriever.sh --retriever web:brave", {}, "needs no server here: give it to run.sh"),
        ("install.sh --fast", {}, "--fast: no such flag; see install.sh --help"),
        ("install.sh --active", {}, "--active: no environment is active"),
        ("install.sh", {}, "not the SearchRL repository"),
        ("infer.py --model_path absent --prompt Who?", {}, "absent: no such directory"),
        ("infer.py --prompt Who?", {}, "required: --model_path; see infer.py --help"),
    ],
)
def test_bad_input_is_one_line(
    command: str, settings: Mapping[str, str], said: str, guide: Path
) -> None:
    fake = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert said in refused(guide, command, fake | dict(settings))
    assert not (guide / "logs").exists()
    assert not (guide / "checkpoints").exists()


def test_a_run_that_is_there_is_not_begun_again(guide: Path) -> None:
    run = guide / "checkpoints" / "search-r1-tiny-demo"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    fake = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for script in ("run.sh", "train_qwen3_0.6b.sh"):
        assert "holds a run already: add --resume" in refused(guide, script, TINY | fake)


def test_without_a_gpu_the_ways_out_are_named(guide: Path) -> None:
    (guide / "bin").mkdir()
    (guide / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (guide / "bin" / "nvidia-smi").chmod(0o755)
    path = f"{guide / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = refused(guide, "run.sh", {"PATH": path})
    assert "no NVIDIA GPU here" in said
    assert "MODEL=tiny" in said


def test_an_old_python_is_refused(guide: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, guide.parents[1])
    old = guide / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)
    said = refused(guide, "install.sh", {"PYTHON": str(old)})
    assert said == "error: Python 3.9.2 is too old: set PYTHON to Python 3.11 or newer\n"
    assert "PYTHON=absent: no such program" in refused(guide, "install.sh", {"PYTHON": "absent"})


def test_where_nothing_is_installed_the_scripts_say_so(guide: Path) -> None:
    bare = {"PATH": "/usr/bin:/bin"}
    assert "run ./install.sh" in refused(guide, "start_retriever.sh", bare)
    assert "run ./install.sh" in refused(guide, "run.sh", TINY | bare)


RECORDER = """\
#!/bin/sh
[ "$1" != train ] || mkdir -p "$4"
for argument; do printf '%s\\n' "$argument"; done >> "$RECORD"
echo ---- >> "$RECORD"
"""


def handed_on(
    guide: Path, script: str, settings: Mapping[str, str], *flags: str
) -> list[list[str]]:
    """The command lines of the program that a script starts, from one that only notes them."""
    (guide / "bin").mkdir(exist_ok=True)
    program = guide / "bin" / "searchrl"
    program.write_text(RECORDER)
    program.chmod(0o755)
    record = guide / "record"
    record.unlink(missing_ok=True)
    path = f"{guide / 'bin'}:{os.environ['PATH']}"
    subprocess.run(
        [guide / script, *flags],
        env={"PATH": path, "RECORD": str(record), **settings},
        capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    return [line.splitlines() for line in record.read_text().split("----\n")[:-1]]


def trained(guide: Path, settings: Mapping[str, str], *flags: str) -> tuple[list[str], Recipe]:
    """What ``searchrl train`` is handed, and the recipe that this makes."""
    [line] = handed_on(guide, "train_qwen3_0.6b.sh", {"DEVICE": "cpu", **settings}, *flags)
    sets = [value for name, value in pairwise(line) if name == "--set"]
    return line, load_recipe(line[1], sets)


def test_training_is_handed_what_the_settings_say(guide: Path) -> None:
    line, recipe = trained(guide, {"PORT": "8123"})
    assert line[:4] == [
        "train", "qwen3-0.6b-grpo", "--out", "checkpoints/search-r1-qwen3-0.6b-demo",
    ]  # fmt: skip
    plain = load_recipe("qwen3-0.6b-grpo", ["searcher.device=cpu", "generator.device=cpu"])
    service = plain.retriever.model_copy(update={"url": "http://127.0.0.1:8123/retrieve"})
    assert recipe == plain.model_copy(update={"retriever": service})


def test_training_is_handed_every_flag(guide: Path) -> None:
    settings = {"BASE_MODEL": "Org/Model", "TRAIN_DATA": "data/sample_test.jsonl", "RUN_NAME": "r"}
    flags = ("--algorithm", "ppo", "--rerank", "reader", "--set", "run.steps=7", "--threads", "3")
    line, recipe = trained(
        guide, settings, *flags, "--resume", "--retriever", "http://h:1/retrieve"
    )
    assert line[1:4] == ["qwen3-0.6b-ppo", "--out", "checkpoints/r"]
    assert line[-5:] == ["--set", "run.steps=7", "--threads", "3", "--resume"]
    assert (recipe.searcher.model, recipe.generator.model) == ("Org/Model", "Org/Model")
    assert str(recipe.data.train.questions) == "data/sample_test.jsonl"
    assert recipe.rerank is not None
    assert recipe.rerank.model == "reader"
    assert recipe.retriever.url == "http://h:1/retrieve"
    assert (recipe.learning.algorithm, recipe.run.steps) == ("ppo", 7)


def test_web_search_is_handed_on(guide: Path) -> None:
    _, recipe = trained(
        guide, {}, "--retriever", "web:searxng", "--set", "retriever.url=http://h:1"
    )
    assert isinstance(recipe.retriever, WebOptions)
    assert (recipe.retriever.provider, recipe.retriever.url) == ("searxng", "http://h:1")
    with pytest.raises(InputError, match=r"retriever\.provider: Input should be 'serpapi'"):
        trained(guide, {}, "--retriever", "web:elsewhere")


def test_the_tiny_recipe_reads_the_guides_data(guide: Path) -> None:
    [line] = handed_on(guide, "train_qwen3_0.6b.sh", TINY, "--algorithm", "ppo")
    assert line[1] == "tiny-search-r1-ppo"
    recipe = load_recipe(line[1], [value for name, value in pairwise(line) if name == "--set"])
    assert str(recipe.data.test.questions) == "data/sample_test.jsonl"
    assert (recipe.searcher.model, recipe.reward.kind) == ("tiny-searcher", "per_question")


def test_the_retriever_is_built_once_for_each_kind_and_encoder(guide: Path) -> None:
    port = {"PORT": str(free_port())}
    (guide / "indexes").mkdir()
    dense = ("--retriever", "dense", "--encoder", "org/e5")
    corpus = ("--corpus", "data/sample_corpus.jsonl", "--out")
    build, serve = handed_on(guide, "start_retriever.sh", port, *dense, "--topk", "5")
    index = "indexes/sample_corpus-dense-org_e5"
    assert build == ["index", "build", "--kind", "dense", *corpus, index, "--encoder", "org/e5"]
    assert serve == ["serve", "--index", index, "--port", port["PORT"], "--topk", "5"]
    assert os.readlink(guide / "indexes" / "served") == "sample_corpus-dense-org_e5"
    (guide / "indexes" / "sample_corpus-bm25").mkdir()
    [serve] = handed_on(guide, "start_retriever.sh", port)
    assert serve[:3] == ["serve", "--index", "indexes/sample_corpus-bm25"]
    os.utime(guide / "data" / "sample_corpus.jsonl", (4e9, 4e9))
    build, _ = handed_on(guide, "start_retriever.sh", port)
    assert build == ["index", "build", "--kind", "bm25", *corpus, "indexes/sample_corpus-bm25"]


def test_several_gpus_are_handed_on_with_a_note(guide: Path) -> None:
    settings = {"DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "2,3"}
    handed_on(guide, "train_qwen3_0.6b.sh", settings)
    log = (guide / "logs" / "training.log").read_text()
    assert (
        log == "note: without --backend verl, training uses the first of CUDA_VISIBLE_DEVICES=2,3\n"
    )
    [line] = handed_on(guide, "train_qwen3_0.6b.sh", settings, "--backend", "verl")
    assert line[-2:] == ["--backend", "verl"]
    assert (guide / "logs" / "training.log").read_text() == log


def test_the_scripts_help_is_their_head() -> None:
    for name in SCRIPTS:
        shown = subprocess.run(
            [GUIDE / name, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert f"./{name}" in shown
        assert "set -euo" not in shown


def test_the_reward_that_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GUIDE)
    monkeypatch.syspath_prepend(str(GUIDE))
    reward = load_function("rewards:short_search")
    [question, *_] = read_dataset(GUIDE / "data" / "sample_train.jsonl")
    search = Turn(Action(ActionKind.SEARCH, query="q"))
    worth = [
        reward(Episode(question, "search_r1", turns=[search] * searches, answer=answer))
        for searches, answer in ((1, "1887"), (2, "1887"), (1, "1888"), (0, None))
    ]
    assert worth == pytest.approx([1.0, 0.95, 0.0, 0.0])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_recipes_read_the_sample_data(
    algorithm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(GUIDE)
    recipe = load_recipe(f"qwen3-0.6b-{algorithm}")
    check_evaluation(recipe)
    experiment = Experiment(recipe, tmp_path)
    assert (len(experiment.train.questions), len(experiment.test.questions)) == (10, 5)
    assert len(experiment.test.passages()) == 10


def test_every_promise_of_the_guide_is_listed_once() -> None:
    rows = re.findall(r"^\| (\d+) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 41))


def test_every_script_that_the_page_starts_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8") + (GUIDE / "README.md").read_text(encoding="utf-8")
    started = set(re.findall(r"(?:\./|python3 )([\w.]+\.(?:sh|py))\b", text))
    assert started == {*SCRIPTS, "infer.py"}
