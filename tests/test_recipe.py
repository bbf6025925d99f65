"""Recipes: what is accepted, and the one line each mistake earns."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.errors import InputError
from searchrl.recipe import HttpGenerator, Recipe
from searchrl.recipe_file import SHIPPED, _keys, load_recipe, recipe_path
from searchrl.retrieval.choice import HttpRetrieverOptions
from searchrl.retrieval.options import Bm25Options, HybridOptions, RerankOptions

SHIPPED_NAMES = sorted(file.stem for file in SHIPPED.glob("*.toml"))
MINIMAL = """
name = "small"
[data.train]
kind = "synthwiki"
seed = 0
[data.test]
kind = "files"
corpus = "corpus.jsonl"
questions = "questions.jsonl"
[searcher]
model = "tiny-searcher"
[generator]
model = "tiny-generator"
"""


def write(directory: Path, text: str = MINIMAL, name: str = "recipe.toml") -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


def complaint(source: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(source, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_every_shipped_recipe_parses_under_its_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_there_are_shipped_recipes() -> None:
    assert {"tiny-grpo", "tiny-ppo"} <= set(SHIPPED_NAMES)


@pytest.mark.parametrize(
    ("version", "rates", "warmup", "steps", "reward"),
    [
        ("v0.1", (1e-6, 1e-6), (289, 15), 304, "exact_match"),
        ("v0.2", (1e-6, 1e-6), (286, 15), 1004, "exact_match"),
        ("v0.3", (1e-6, 5e-7), (286, 15), 1004, "search_r1_format"),
    ],
)
def test_search_r1_recipes_have_the_originals_numbers(
    version: str, rates: tuple[float, float], warmup: tuple[int, int], steps: int, reward: str
) -> None:
    for algorithm, rate, group, updates, placement in (
        ("ppo", rates[0], 1, 2, ("reward", "k1")),
        ("grpo", rates[1], 5, 10, ("loss", "k3")),
    ):
        recipe = load_recipe(f"search-r1-{version}-{algorithm}")
        learning, agent = recipe.learning, recipe.agent
        assert (learning.algorithm, learning.learning_rate) == (algorithm, rate)
        assert learning.warmup_steps == warmup[0]
        assert (learning.kl_coefficient, learning.entropy_coefficient) == (0.001, 0.001)
        assert (learning.kl_placement, learning.kl_estimator) == placement
        if algorithm == "ppo":
            assert (learning.critic_learning_rate, learning.critic_warmup_steps) == (
                1e-5,
                warmup[1],
            )
        assert (recipe.rollout.questions_per_step, recipe.rollout.group_size) == (512, group)
        # Each optimizer step learns from 256 episodes.
        assert learning.mini_batches == updates == 512 * group // 256
        assert (recipe.run.steps, recipe.reward.kind) == (steps, reward)
        assert agent.kind == "search_r1"
        assert (agent.k, agent.max_turns, agent.announce_budget) == (3, 4, False)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_deployment_guides_recipes_have_its_numbers(algorithm: str) -> None:
    recipe = load_recipe(f"qwen3-0.6b-{algorithm}")
    rollout, learning, agent = recipe.rollout, recipe.learning, recipe.agent
    assert recipe.searcher.model == "Qwen/Qwen3-0.6B"
    assert rollout.questions_per_step * rollout.group_size == 32
    assert 32 // learning.mini_batches == 16
    assert (learning.algorithm, learning.learning_rate) == (algorithm, 5e-6)
    assert (agent.kind, agent.max_prompt_tokens, agent.max_response_tokens) == (
        "search_r1",
        2048,
        256,
    )
    assert (recipe.run.steps, recipe.reward.kind) == (100, "per_question")
    # A reference model would be one more copy in the memory of a small GPU.
    assert learning.kl_coefficient == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["agent.kind=s4"], "agent.kind: 's4' is none of 's3', 'search_r1', 'deep_retrieval'"),
        (["agent.kind=search_r1", "agent.initial_k=3"], "agent.initial_k does not go with"),
        (["agent.search=false"], "agent.search does not go with"),
        (["agent.kind=search_r1", "agent.k=0"], "agent.k: .*greater than 0"),
        (["reward.kind=search_r1_format"], 'set agent.kind = "search_r1"'),
        (["reward.kind=deep_retrieval"], 'set agent.kind = "deep_retrieval"'),
        (["reward.kind=function"], 'reward: .*function = "module:function"'),
        (["reward.function=a:b"], "reward: .*go together"),
        (["evaluation.methods=['serch_r1']"], "not 'serch_r1'; did you mean search_r1"),
        (["reward.kind=exact"], "did you mean exact_match"),
        (["agent.kind=search_r1", "searcher.thinking=false"], "leave out searcher.thinking"),
        (
            ["searcher.decoding=graph"],
            'searcher.*: decoding = "graph" records CUDA graphs, and dev',
        ),
    ],
)
def test_agents_and_rewards_go_together(overrides: list[str], said: str, tmp_path: Path) -> None:
    assert re.search(said, complaint(write(tmp_path), *overrides))


def test_the_kind_of_an_agent_is_s3_unless_it_is_said(tmp_path: Path) -> None:
    source = write(tmp_path)
    assert load_recipe(source).agent.kind == "s3"
    assert load_recipe(source, ["agent.k=5"]).agent.k == 5
    chosen = load_recipe(source, ["agent.kind=search_r1", "agent.max_turns=2"]).agent
    assert (chosen.kind, chosen.max_turns) == ("search_r1", 2)


CHANGED = ("data.train.hops={2=0.5,3=0.5}", "judge.model=x", "reward.cache=a/b.jsonl")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [*((name, ()) for name in SHIPPED_NAMES), ("tiny-grpo", CHANGED), ("tiny-ppo", CHANGED)],
)
def test_the_saved_form_is_an_equal_recipe(
    name: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    recipe = load_recipe(name, overrides)
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(recipe.model_dump(mode="json")))
    again = load_recipe(str(saved))
    assert again == recipe
    assert again.model_dump(mode="json") == recipe.model_dump(mode="json")


def test_a_saved_form_takes_overrides_in_sections_it_leaves_empty(tmp_path: Path) -> None:
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(load_recipe("tiny-ppo").model_dump(mode="json")))
    judge = load_recipe(str(saved), ["judge.model=some-judge"]).judge
    assert judge is not None
    assert judge.model == "some-judge"


def test_a_served_generator_is_saved_and_read_back(tmp_path: Path) -> None:
    served = 'generator={kind="http", url="http://h/v1", model="m", extra_body={a={b=[1]}}}'
    recipe = load_recipe("tiny-grpo", [served, "generator.extra_body.top_k=1"])
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(recipe.model_dump(mode="json")))
    again = load_recipe(str(saved))
    assert again == recipe
    assert isinstance(again.generator, HttpGenerator)
    assert again.generator.extra_body == {"a": {"b": [1]}, "top_k": 1}


def test_defaults_file_and_overrides_come_in_this_order(tmp_path: Path) -> None:
    source = write(tmp_path, MINIMAL + "[run]\nsteps = 5\n")
    assert load_recipe(source).run.steps == 5
    assert load_recipe(source).run.save_every == 10
    assert load_recipe(source, ["run.steps=7", "run.steps=9"]).run.steps == 9


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("run.steps=3", lambda r: r.run.steps == 3),
        (" run.steps = 3", lambda r: r.run.steps == 3),
        ("learning.learning_rate=2e-4", lambda r: r.learning.learning_rate == 2e-4),
        ("reward.drop_solved=false", lambda r: r.reward.drop_solved is False),
        ("searcher.model=some/model", lambda r: r.searcher.model == "some/model"),
        ('searcher.model="a=b"', lambda r: r.searcher.model == "a=b"),
        ("searcher.model=a=b", lambda r: r.searcher.model == "a=b"),
        ('evaluation.methods=["rag"]', lambda r: r.evaluation.methods == ("rag",)),
        ("data.train.hops={1=1.0}", lambda r: r.data.train.hops == {1: 1.0}),
        ("data.test.limit=4", lambda r: r.data.test.limit == 4),
        ("judge.model=m", lambda r: r.judge.model == "m"),
        ('generator={kind="http", url="u", model="m"}', lambda r: r.generator.url == "u"),
        ("generator.kind=local", lambda r: r.generator.device == "cpu"),
    ],
)
def test_override_forms(override: str, found: Any, tmp_path: Path) -> None:
    assert found(load_recipe(write(tmp_path), [override]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("name.x=3", "name is a value, not a section"),
        ("run.steps.x=3", "run.steps"),
        ("run.steps=0", "run.steps: .*greater than 0"),
        ("run.steps=many", "run.steps: .*integer"),
        ("learning.algorithm=trpo", "learning.algorithm: .*'ppo', 'grpo', 'rloo'"),
        ("rollout.max_failed=1", "rollout.max_failed: .*less than 1"),
        ("evaluation.methods=['s4']", "evaluation.methods.0: .*'direct'"),
        ("data.train.kind=wiki", "data.train.kind: 'wiki' is none of 'synthwiki', 'files'"),
        ("data.train.seed=10000", "data.train.seed: .*9999"),
        ("data.train.corpus=x", "data.train.corpus does not go with"),
        ("data.test.size=9", "data.test.size does not go with"),
        ("data.train.hops={x=1}", "data.train.hops"),
        ("rollout.temperature=0", "rollout.temperature: .*greater than 0"),
        (
            "retriever.kind=lucene",
            "retriever.kind: 'lucene' is none of 'bm25', 'dense', 'hybrid', 'http'",
        ),
        ("retriever={kind='http'}", "retriever.url is missing"),
        ("retriever={kind='http', url='localhost:8000'}", "retriever.url: .*pattern"),
        ("retriever={kind='http', url='http://h/r', k1=1}", "retriever.k1 does not go with"),
        ("retriever.url=http://h/r", "retriever.url does not go with"),
        ("generator.url=http://x", "generator.url does not go with this section's kind"),
        ("generator.kind=http", "generator.url is missing"),
        ("generator.kind=htpp", "generator.kind: 'htpp' is none of 'local', 'http'"),
        ("generator.kind=3", "generator.kind"),
        ("searcher={kind='http', url='u', model='m'}", "searcher: set tokenizer"),
        ("judge={kind='http', url='u', model='m', device='cpu'}", "judge.device does not go"),
        ("judge={kind='http', url='u', model='m', outage=-1}", "judge.outage: .*or equal to 0"),
        ("learning.group_size=4", "unknown key learning.group_size.*rollout.group_size"),
        ("learning.temperature=1", "unknown key learning.temperature.*rollout.temperature"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(override: str, said: str, tmp_path: Path) -> None:
    assert re.search(said, complaint(write(tmp_path), override))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learning.algorithm=grpo"], ("learning.algorithm", "rollout.group_size")),
        (
            ["learning.algorithm=grpo", "rollout.group_size=4", "learning.kl_coefficient=0.1"],
            ("algorithm", "kl_placement"),
        ),
        (
            ["learning.mini_batches=5", "rollout.questions_per_step=4"],
            ("learning.mini_batches", "rollout.questions_per_step"),
        ),
        (["learning.algorithm=rloo"], ("learning.algorithm", "rollout.group_size")),
        (["rollout.refill_rounds=2"], ("rollout.refill_rounds", "learning.algorithm")),
        (["rollout.drop_equal_groups=true"], ("rollout.drop_equal_groups", "learning.algorithm")),
        (['run.parallel="fsdp"', "lora.rank=4"], ("run.parallel", "lora")),
        (['run.parallel="fsdp"', "learning.offload=true"], ("run.parallel", "learning.offload")),
        (["learning.loss_average=constant"], ("loss_average", "loss_constant")),
        (["learning.loss_constant=100"], ("loss_average", "loss_constant")),
        (["learning.scale_by_deviation=false"], ("scale_by_deviation", "algorithm")),
        (["learning.kl_target=0.1"], ("kl_target", "kl_coefficient")),
        (["learning.lone_episodes=true"], ("lone_episodes", "ppo")),
        (
            ["learning.lone_episodes=true", "learning.algorithm=grpo", "rollout.group_size=2"],
            ("learning.lone_episodes", "rollout.group_size"),
        ),
        (
            [
                "learning.algorithm=reinforce_plus_plus_baseline",
                "rollout.group_size=4",
                "learning.kl_coefficient=0.1",
            ],
            ("algorithm", "kl_placement"),
        ),
        (["retriever={kind='http', url='http://h/r'}"], ("retriever.kind", "data.train")),
    ],
)
def test_impossible_combinations_name_both_keys(
    overrides: list[str], said: tuple[str, ...], tmp_path: Path
) -> None:
    text = complaint(write(tmp_path), *overrides)
    assert all(key in text for key in said)


SERVED = ("retriever.kind=http", "retriever.url=http://127.0.0.1:8000/retrieve")
FILES = "data.train={kind='files', corpus='corpus.jsonl', questions='train.jsonl'}"


def test_a_recipe_can_name_a_search_service(tmp_path: Path) -> None:
    retriever = load_recipe(write(tmp_path), [FILES, *SERVED]).retriever
    assert isinstance(retriever, HttpRetrieverOptions)
    assert (retriever.url, retriever.seconds) == ("http://127.0.0.1:8000/retrieve", 60)


@pytest.mark.parametrize(
    "other",
    ["data.train.corpus=other.jsonl", "data.train.index=i", "data.test.index=i",
     "data.train={kind='synthwiki', seed=0}"],
)  # fmt: skip
def test_a_search_service_is_for_one_corpus(other: str, tmp_path: Path) -> None:
    assert "searches one corpus" in complaint(write(tmp_path), FILES, *SERVED, other)


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ('name = "small"', "name is missing"),
        ('model = "tiny-searcher"', "searcher.model is missing"),
        ('kind = "files"', "data.test.kind is missing"),
        ('corpus = "corpus.jsonl"', "data.test.corpus is missing"),
        ("seed = 0", "data.train.seed is missing"),
    ],
)
def test_a_missing_key_is_named(dropped: str, said: str, tmp_path: Path) -> None:
    assert MINIMAL.count(dropped) == 1
    assert complaint(write(tmp_path, MINIMAL.replace(dropped, ""))).endswith(said)


def test_a_typo_in_a_required_key_is_a_typo_and_not_a_missing_key(tmp_path: Path) -> None:
    text = complaint(write(tmp_path, MINIMAL.replace("name =", "nmae =")))
    assert text.endswith("unknown key nmae; did you mean name?")


@pytest.mark.parametrize("text", ["name = ", "[data\n", "name = 1\nname = 2\n", "\x00"])
def test_malformed_toml_names_the_file(text: str, tmp_path: Path) -> None:
    assert complaint(write(tmp_path, text)).startswith(str(tmp_path / "recipe.toml"))


@pytest.mark.parametrize("text", ["{", "[]", "3", '"x"'])
def test_malformed_json_names_the_file(text: str, tmp_path: Path) -> None:
    assert complaint(write(tmp_path, text, "config.json")).startswith(str(tmp_path / "config.json"))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    assert "not a readable recipe" in complaint(str(tmp_path / "recipe.toml"))


def test_an_unknown_recipe_suggests_a_shipped_one() -> None:
    assert "did you mean tiny-grpo?" in complaint("tiny-grop")
    assert "shipped ones: " in complaint("zzz")


def test_a_file_comes_before_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-grpo").write_text(MINIMAL)
    assert recipe_path("tiny-grpo") == Path("tiny-grpo")
    assert recipe_path("tiny-ppo") == SHIPPED / "tiny-ppo.toml"


def leaves() -> list[str]:
    keys = list(dict.fromkeys(_keys(Recipe)))
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


def typos(name: str, draw: random.Random) -> set[str]:
    """Every name with a letter left out or two swapped, and as many with one replaced."""
    made = {name[:i] + name[i + 1 :] for i in range(len(name))}
    made |= {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)}
    letters = "abcdefghijklmnopqrstuvwxyz_"
    made |= {name[:i] + draw.choice(letters) + name[i + 1 :] for i in range(len(name))}
    return made - {"", name}


def suggestion(source: str, key: str) -> str | None:
    match = re.search(
        r"unknown key (\S+?)(?:; did you mean (\S+)\?)?$", complaint(source, f"{key}=1")
    )
    assert match is not None, key
    assert match[1] == key
    return match[2]


def test_a_typo_in_a_leaf_key_gets_the_right_suggestion(tmp_path: Path) -> None:
    source, draw, known = write(tmp_path), random.Random(0), set(_keys(Recipe))
    right, wrong = 0, []
    for leaf in leaves()[::4]:
        section, _, name = leaf.rpartition(".")
        for typo in typos(name, draw):
            key = f"{section}.{typo}" if section else typo
            if key in known:
                continue
            if (found := suggestion(source, key)) == leaf:
                right += 1
            else:
                wrong.append((key, found))
    assert right > 250
    assert len(wrong) <= 0.05 * (right + len(wrong)), wrong


@given(st.text(alphabet="abcdefgh._=", max_size=12), st.text(max_size=12))
def test_no_override_ends_in_anything_but_a_recipe_or_one_line(key: str, value: str) -> None:
    with contextlib.suppress(InputError):
        load_recipe("tiny-grpo", [f"{key}={value}"])


class TestRetriever:
    def test_a_retriever_that_names_no_kind_is_bm25(self, tmp_path: Path) -> None:
        source = write(tmp_path)
        assert load_recipe(source).retriever == Bm25Options()
        assert load_recipe(source, ["retriever.k1=1.5"]).retriever == Bm25Options(k1=1.5)

    def test_kinds_take_their_own_keys(self, tmp_path: Path) -> None:
        more = '[retriever]\nkind = "hybrid"\nencoder = "intfloat/e5-base-v2"\nb = 0.5\n'
        source = write(tmp_path, MINIMAL + more + '[rerank]\nmodel = "reader"\ndepth = 10\n')
        recipe = load_recipe(source)
        assert recipe.retriever == HybridOptions(encoder="intfloat/e5-base-v2", b=0.5)
        assert recipe.rerank == RerankOptions(model="reader", depth=10)

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["retriever.kind=dense"], "retriever.encoder is missing"),
            (["retriever.kind=faiss"], "retriever.kind: 'faiss' is none of 'bm25', 'dense'"),
            (["retriever.encoder=e5"], "retriever.encoder does not go with this section's kind"),
            (["retriever.encodr=e5"], "unknown key retriever.encodr; did you mean"),
            (
                ["retriever.kind=dense", "retriever.encoder=e5", "retriever.pooling=max"],
                "retriever.pooling: Input should be 'mean', 'cls' or 'last'",
            ),
            (["rerank.depth=5"], "rerank.model is missing"),
        ],
    )
    def test_what_does_not_fit_is_one_line(
        self, tmp_path: Path, overrides: list[str], said: str
    ) -> None:
        assert said in complaint(write(tmp_path), *overrides)
