"""A recipe in the words of verl's configuration: every key translated or refused by name.

Losses, advantages and schedules are set so that verl computes what the learner here computes: a
token's loss is divided by the tokens of its optimizer step, the ratio is clipped on both sides and
not a third time, a warm-up begins with its first fraction. What verl cannot be set to is refused
with the key that asks for it. What stays different:

- the critic's head has a bias, where ours has none;
- k3 is clamped to [-10, 10];
- rollouts are made by vLLM in bfloat16, the update computes in ``learning.autocast``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from searchrl.agents.lengths import Lengths, episode_lengths
from searchrl.errors import InputError
from searchrl.models.tokenizers import model_path
from searchrl.recipe import HttpSearcher, LocalSearcher, Recipe
from searchrl.retrieval.choice import HttpRetrieverOptions

Settings = dict[str, JsonValue]
LOOP = "searchrl"
"""The name that the plugin registers its agent loop under."""
MANAGER = "searchrl.distributed.manager.SearchLoopManager"
_NO_CAP = 2.0
"""verl's default, which nothing reads while there is no correction."""
_CLIPPED_ALREADY = 1e9
"""verl's third clip, above any ratio it computes (it keeps them below e^20)."""

TRANSLATED = frozenset(
    {
        "name",
        "seed",
        "searcher",
        "learning",
        "rollout",
        "run",
        "verl",
        "agent",
        "tracking",
    }
)
"""Sections that become settings of verl; ``agent`` for its lengths, and it is read again."""
READ_IN_PLACE = frozenset(
    {"agent", "data", "retriever", "rerank", "generator", "judge", "reward", "run"}
)
"""Sections that the agent loop reads from the run's ``config.json`` itself."""
WATCHED = frozenset({"guards"})
"""Sections that the launcher heeds while it follows the run."""
REFUSED = frozenset({"lora"})
"""Sections that ask for what only the in-process trainer does."""
FOR_OTHER_COMMANDS = frozenset({"supervised", "evaluation", "ircot", "search_o1"})
"""Sections that training does not read, here or in process."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run lies; one path on all machines.

    Attributes:
        run: the run directory.
        metrics: where verl's own log goes.
    """

    run: Path
    metrics: Path

    @property
    def questions(self) -> Path:
        """The questions in the order of the steps."""
        return self.run / "verl" / "questions.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where verl keeps its checkpoints."""
        return self.run / "verl" / "checkpoints"


def translate(recipe: Recipe, place: Place) -> Settings:
    """The settings of verl that a recipe stands for, by their dotted names.

    Raises:
        InputError: verl cannot do what a key asks for; the line names the key and the fix.
    """
    searcher = _trainable(recipe)
    lengths = episode_lengths(recipe.agent).within(_context(searcher))
    _check_learning(recipe)
    _check_places(recipe)
    _check_numbers(recipe, lengths)
    settings = {
        **_data(recipe, place, lengths),
        **_actor(recipe, searcher),
        **_rollout(recipe, lengths),
        **_algorithm(recipe),
        **_trainer(recipe, searcher, place),
    }
    if recipe.learning.algorithm == "ppo":
        settings |= _critic(recipe, searcher)
    return settings | (recipe.verl.settings or {})


def command_line(settings: Mapping[str, JsonValue]) -> list[str]:
    """The arguments of ``verl.trainer.main_ppo``."""
    return [f"{_prefix(name)}{name}={_hydra(value)}" for name, value in settings.items()]


_ADDED = (
    "data.searchrl.",
    "trainer.v1.sampler.sampler_kwargs.",
    "ray_kwargs.ray_init.runtime_env.env_vars.",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision.",
    "critic.fsdp.mixed_precision.",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class",
)
"""Settings that verl reads and its own files do not list; Hydra wants them marked."""


def _prefix(name: str) -> str:
    return "++" if name.startswith(_ADDED) else ""


def _hydra(value: JsonValue) -> str:
    """A value as Hydra's command line reads it; the keys of a mapping stand there unquoted."""
    match value:
        case dict():
            return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(_hydra(item) for item in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _context(searcher: LocalSearcher) -> int | None:
    """The length of a model whose configuration is at hand."""
    config = Path(model_path(searcher.model)) / "config.json"
    if not config.is_file():
        return None
    length = json.loads(config.read_bytes()).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _data(recipe: Recipe, place: Place, lengths: Lengths) -> Settings:
    questions = str(place.questions)
    return {
        "data.train_files": questions,
        "data.val_files": questions,
        "data.val_max_samples": 1,
        "data.custom_cls.path": "pkg://searchrl.distributed.dataset",
        "data.custom_cls.name": "QuestionSchedule",
        "data.searchrl.run": str(place.run),
        # The file is the schedule: shuffled ahead, as in process.
        "data.shuffle": False,
        "data.seed": recipe.seed,
        "data.dataloader_num_workers": 0,
        "data.train_batch_size": recipe.rollout.questions_per_step,
        "data.max_prompt_length": lengths.prompt,
        "data.max_response_length": lengths.response,
    }


def _actor(recipe: Recipe, searcher: LocalSearcher) -> Settings:
    learning, cluster = recipe.learning, recipe.verl
    actor = "actor_rollout_ref.actor"
    in_loss = learning.kl_coefficient > 0 and learning.kl_placement == "loss"
    return {
        "actor_rollout_ref.model.path": model_path(searcher.model),
        "actor_rollout_ref.model.enable_gradient_checkpointing": (
            recipe.learning.gradient_checkpointing
        ),
        f"{actor}.strategy": "fsdp2",
        f"{actor}.ppo_mini_batch_size": recipe.rollout.questions_per_step // learning.mini_batches,
        f"{actor}.ppo_epochs": learning.epochs,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": learning.tokens_per_micro_batch,
        f"{actor}.ulysses_sequence_parallel_size": cluster.sequence_parallel,
        f"{actor}.loss_agg_mode": "token-mean",
        f"{actor}.clip_ratio_low": learning.clip_low,
        f"{actor}.clip_ratio_high": learning.clip_high,
        f"{actor}.clip_ratio_c": _CLIPPED_ALREADY,
        f"{actor}.entropy_coeff": learning.entropy_coefficient,
        f"{actor}.use_kl_loss": in_loss,
        f"{actor}.kl_loss_coef": learning.kl_coefficient,
        f"{actor}.kl_loss_type": learning.kl_estimator,
        f"{actor}.data_loader_seed": recipe.seed,
        **_optimizer(f"{actor}.optim", recipe, learning.learning_rate, learning.warmup_steps),
        **_engine(f"{actor}.fsdp_config", recipe),
        **_engine("actor_rollout_ref.ref.fsdp_config", recipe),
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
    }


def _critic(recipe: Recipe, searcher: LocalSearcher) -> Settings:
    learning = recipe.learning
    rate, warmup = learning.critic_learning_rate, learning.critic_warmup_steps
    return {
        "critic.model.path": model_path(searcher.model),
        # The head is all that the searcher's weights leave to be initialised. It starts at 0 within
        # rounding, as ours does; transformers takes a range of 0 itself for none.
        "++critic.model.override_config.initializer_range": 1e-8,
        "critic.model.enable_gradient_checkpointing": recipe.learning.gradient_checkpointing,
        "critic.strategy": "fsdp2",
        "critic.cliprange_value": learning.value_clip,
        "critic.ppo_max_token_len_per_gpu": learning.tokens_per_micro_batch,
        "critic.ulysses_sequence_parallel_size": recipe.verl.sequence_parallel,
        "critic.data_loader_seed": recipe.seed,
        **_optimizer("critic.optim", recipe, rate, warmup),
        **_engine("critic.fsdp", recipe),
    }


def _optimizer(name: str, recipe: Recipe, rate: float, warmup: int) -> Settings:
    return {
        f"{name}.lr": rate,
        f"{name}.weight_decay": recipe.learning.weight_decay,
        f"{name}.clip_grad": recipe.learning.max_grad_norm,
        f"{name}.lr_warmup_steps": warmup,
        # A cosine that falls to its whole height: constant after a warm-up that is counted from 1.
        f"{name}.lr_scheduler_type": "cosine",
        f"{name}.min_lr_ratio": 1.0,
        f"{name}.zero_indexed_step": False,
    }


def _engine(name: str, recipe: Recipe) -> Settings:
    offload = recipe.verl.offload or recipe.learning.offload
    return {
        f"{name}.model_dtype": "fp32",
        f"{name}.mixed_precision.param_dtype": "bf16" if recipe.learning.autocast else "fp32",
        f"{name}.param_offload": offload,
        f"{name}.optimizer_offload": offload,
        f"{name}.seed": recipe.seed,
    }


def _rollout(recipe: Recipe, lengths: Lengths) -> Settings:
    cluster, rollout = recipe.verl, "actor_rollout_ref.rollout"
    return {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": recipe.rollout.group_size,
        f"{rollout}.temperature": recipe.rollout.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.top_k": -1,
        f"{rollout}.seed": recipe.seed,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.max_model_len": lengths.window,
        f"{rollout}.max_num_seqs": cluster.max_sequences,
        f"{rollout}.tensor_model_parallel_size": cluster.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": cluster.rollout_memory,
        f"{rollout}.agent.num_workers": cluster.agent_workers,
        f"{rollout}.agent.default_agent_loop": LOOP,
        f"{rollout}.agent.agent_loop_manager_class": MANAGER,
        # Rewards are computed inside the loop.
        "reward.num_workers": 1,
    }


def _algorithm(recipe: Recipe) -> Settings:
    learning = recipe.learning
    in_reward = learning.kl_coefficient > 0 and learning.kl_placement == "reward"
    cap = learning.importance_cap
    return {
        "algorithm.adv_estimator": "gae" if learning.algorithm == "ppo" else "grpo",
        "algorithm.gamma": learning.gamma,
        "algorithm.lam": learning.lam,
        "algorithm.norm_adv_by_std_in_grpo": learning.scale_by_deviation,
        "algorithm.use_kl_in_reward": in_reward,
        "algorithm.kl_penalty": learning.kl_estimator,
        "algorithm.kl_ctrl.kl_coef": learning.kl_coefficient,
        "algorithm.rollout_correction.rollout_is": None if cap is None else "token",
        "algorithm.rollout_correction.rollout_is_threshold": cap or _NO_CAP,
    }


def _trainer(recipe: Recipe, searcher: LocalSearcher, place: Place) -> Settings:
    cluster, run = recipe.verl, recipe.run
    sampler = "trainer.v1.sampler"
    variables = "ray_kwargs.ray_init.runtime_env.env_vars"
    return {
        "hydra.run.dir": str(place.run / "logs" / "hydra"),
        "trainer.project_name": recipe.tracking.project,
        "trainer.experiment_name": recipe.name,
        "trainer.logger": ["console", "file", *recipe.tracking.services],
        "trainer.nnodes": cluster.nodes,
        "trainer.n_gpus_per_node": cluster.gpus_per_node,
        "trainer.device": searcher.device.partition(":")[0],
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": run.steps,
        "trainer.save_freq": run.save_every,
        "trainer.max_actor_ckpt_to_keep": run.keep_checkpoints,
        "trainer.max_critic_ckpt_to_keep": run.keep_checkpoints,
        "trainer.default_local_dir": str(place.checkpoints),
        "trainer.resume_mode": "auto",
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.v1.trainer_mode": "sync",
        f"{sampler}.custom_sampler.path": "pkg://searchrl.distributed.sampler",
        f"{sampler}.custom_sampler.name": "EpisodeSampler",
        f"{sampler}.sampler_kwargs.group_size": recipe.rollout.group_size,
        f"{sampler}.sampler_kwargs.smallest_group": 2 if recipe.learning.compares_groups else 1,
        f"{sampler}.sampler_kwargs.max_failed": recipe.rollout.max_failed,
        f"{sampler}.sampler_kwargs.stall_seconds": cluster.stall_seconds,
        f"{variables}.VERL_FILE_LOGGER_PATH": str(place.metrics),
    }


def _check_learning(recipe: Recipe) -> None:
    """What verl computes otherwise, or what its equality with ours is not shown of."""
    learning = recipe.learning
    refused = {
        "learning.algorithm": learning.algorithm not in ("ppo", "grpo"),
        "learning.whiten_advantages": (
            learning.algorithm == "ppo" and not learning.whiten_advantages
        ),
        "learning.lone_episodes": learning.lone_episodes,
        "learning.final_rate": learning.final_rate != 1,
        "learning.loss_average": learning.loss_average != "token",
        "learning.mask_retrieved": not learning.mask_retrieved,
        "learning.mask_truncated": learning.mask_truncated,
        "learning.kl_target": learning.kl_target is not None,
        "rollout.refill_rounds": recipe.rollout.refill_rounds > 0,
        "rollout.drop_equal_groups": recipe.rollout.drop_equal_groups,
        "rollout.engine": recipe.rollout.engine != "native",
        "run.parallel": recipe.run.parallel is not None,
    }
    for key, is_refused in refused.items():
        if is_refused:
            section, _, name = key.partition(".")
            value = json.dumps(getattr(getattr(recipe, section), name))
            raise InputError(
                f"{key} = {value} is not translated for verl; leave the key out, or train without "
                "--backend verl"
            )


def _check_numbers(recipe: Recipe, lengths: Lengths) -> None:
    learning, cluster = recipe.learning, recipe.verl
    questions, gpus = recipe.rollout.questions_per_step, cluster.nodes * cluster.gpus_per_node
    if questions % learning.mini_batches:
        raise InputError(
            f"learning.mini_batches = {learning.mini_batches}: verl cuts a step by its questions; "
            f"choose a divisor of rollout.questions_per_step = {questions}"
        )
    episodes = questions // learning.mini_batches * recipe.rollout.group_size
    if gpus % cluster.tensor_parallel or gpus % cluster.sequence_parallel:
        raise InputError(
            f"verl.tensor_parallel = {cluster.tensor_parallel} and verl.sequence_parallel = "
            f"{cluster.sequence_parallel} have to divide the {gpus} GPUs"
        )
    ranks = gpus // cluster.sequence_parallel
    if episodes % ranks:
        raise InputError(
            f"rollout.questions_per_step = {questions}: a mini-batch of {episodes} episodes does "
            f"not spread over {ranks} GPUs; change it, rollout.group_size or learning.mini_batches"
        )
    room = learning.tokens_per_micro_batch * cluster.sequence_parallel
    if room < lengths.window:
        raise InputError(
            f"learning.tokens_per_micro_batch = {learning.tokens_per_micro_batch}: an episode can "
            f"have {lengths.window} tokens and has to fit; raise it or verl.sequence_parallel"
        )


def _trainable(recipe: Recipe) -> LocalSearcher:
    searcher = recipe.searcher
    if isinstance(searcher, HttpSearcher):
        raise InputError(
            'searcher.kind = "http": a served searcher cannot be trained; name a local one'
        )
    if searcher.dtype != "float32":
        raise InputError(
            'searcher.dtype: trained weights must be "float32"; set learning.autocast = true to '
            "compute in bfloat16"
        )
    if recipe.lora is not None:
        raise InputError("lora: adapters are trained in process; leave it out for verl")
    return searcher


def _check_places(recipe: Recipe) -> None:
    """What a worker would open itself has to run without a GPU: Ray gives agent workers none."""
    devices = {
        section: getattr(options, "device", "cpu")
        for section, options in (
            ("generator", recipe.generator),
            ("judge", recipe.judge),
            ("rerank", recipe.rerank),
            ("retriever", recipe.retriever),
        )
        if not isinstance(options, HttpRetrieverOptions)
    }
    for section, device in devices.items():
        if device != "cpu":
            raise InputError(
                f"{section}.device = {device!r}: agent workers have no GPU; serve it once for all "
                f'of them and set {section}.kind = "http"'
            )
