"""Checkpoints: bitwise round trips, damage, retention, kills."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from searchrl.data.storage import verify_directory
from searchrl.errors import InputError, IntegrityError
from searchrl.training import checkpoint
from searchrl.training.checkpoint import (
    drop_best_after,
    latest_checkpoint,
    load_checkpoint,
    save_best,
    save_checkpoint,
    save_final,
    searcher_path,
)
from searchrl.training.learner import Learner
from tests.training_fixtures import (
    assert_bitwise_equal,
    groups,
    learner,
    state,
    tiny_model,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def trained(algorithm: str = "grpo", tied: bool = True) -> Learner:
    subject = learner(tiny_model(0, tied), algorithm=algorithm)
    subject.update(groups(0, [[1.0, 0.0], [0.0, 1.0]]), 0)
    return subject


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_round_trip_is_bitwise(
    algorithm: str, tied: bool, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = trained(algorithm, tied)
    save_checkpoint(tmp_path, 1, subject, tiny_tokenizer, keep=1)
    found = latest_checkpoint(tmp_path)
    assert found == (1, tmp_path / "step_000001")
    other = learner(tiny_model(5, tied), algorithm=algorithm)
    load_checkpoint(found[1], other)
    assert_bitwise_equal(state(other), state(subject))
    more = groups(1, [[1.0, 0.0, 0.5]])
    assert subject.update(more, 1) == other.update(more, 1)
    assert_bitwise_equal(state(other), state(subject))


def test_weights_in_several_files_come_back_whole(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject, place = trained(), tmp_path / "step_000001" / "searcher"
    save_checkpoint(tmp_path, 1, subject, tiny_tokenizer, keep=1)
    weights = sorted(load_file(place / "model.safetensors").items())
    (place / "model.safetensors").unlink()
    for number, part in enumerate((weights[:5], weights[5:]), start=1):
        save_file(dict(part), place / f"model-{number:05d}-of-00002.safetensors")
    other = learner(tiny_model(5))
    load_checkpoint(tmp_path / "step_000001", other)
    assert_bitwise_equal(state(other), state(subject))


def test_a_learner_that_has_not_learned_yet_round_trips(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = learner()
    save_checkpoint(tmp_path, 1, subject, tiny_tokenizer, keep=1)
    other = learner(tiny_model(5))
    load_checkpoint(tmp_path / "step_000001", other)
    assert_bitwise_equal(state(other), state(subject))


def test_a_flipped_byte_in_any_file_falls_back_with_a_warning(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    subject = trained("ppo")
    for step in (1, 2):
        save_checkpoint(tmp_path, step, subject, tiny_tokenizer, keep=2)
    files = [file for file in (tmp_path / "step_000002").rglob("*") if file.is_file()]
    assert len(files) >= 7
    draw = random.Random(0)
    for file in files:
        before = file.read_bytes()
        place = draw.randrange(len(before))
        damaged = bytearray(before)
        # 0x80 leaves no byte of a JSON file a white space, which a manifest's own seal allows.
        damaged[place] ^= 0x80
        file.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert latest_checkpoint(tmp_path) == (1, tmp_path / "step_000001"), file
        assert "falling back" in caplog.text
        file.write_bytes(before)
    assert latest_checkpoint(tmp_path) == (2, tmp_path / "step_000002")


@pytest.mark.parametrize("name", ["optimizer.safetensors", "manifest.json"])
def test_a_missing_file_falls_back(
    name: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, trained(), tiny_tokenizer, keep=2)
    (tmp_path / "step_000002" / name).unlink()
    assert latest_checkpoint(tmp_path) == (1, tmp_path / "step_000001")


def test_when_every_checkpoint_is_damaged_the_run_does_not_begin_anew(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, trained(), tiny_tokenizer, keep=2)
        (tmp_path / f"step_{step:06d}" / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"step_000002.*no other checkpoint"):
        latest_checkpoint(tmp_path)


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "step_later").mkdir()
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("failing", ["_collected", "save_file"])
def test_a_failure_inside_a_save_leaves_the_one_before(
    failing: str,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = trained("ppo")
    save_checkpoint(tmp_path, 1, subject, tiny_tokenizer, keep=1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, failing, die)
    for step in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, step, subject, tiny_tokenizer, keep=1)
    assert latest_checkpoint(tmp_path) == (1, tmp_path / "step_000001")
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_a_failure_of_any_system_call_leaves_a_loadable_checkpoint(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = trained()
    save_checkpoint(tmp_path, 1, subject, tiny_tokenizer, keep=1)
    calls = limit = 0

    def counted(function):  # type: ignore[no-untyped-def]
        def call(*arguments, **keywords):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > limit:
                raise OSError(28, "No space left on device")
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(Path, "write_text", counted(Path.write_text))
        while limit < 40:
            calls = 0
            try:
                save_checkpoint(tmp_path, 2, subject, tiny_tokenizer, keep=1)
            except OSError:
                found = latest_checkpoint(tmp_path)
                assert found is not None
                limit += 1
            else:
                break
    assert limit > 5
    assert latest_checkpoint(tmp_path) == (2, tmp_path / "step_000002")


def test_the_best_is_kept_apart_and_replaced_by_a_better_one_only(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = trained()

    def save(step: int, score: float) -> bool:
        return save_best(tmp_path, step, score, subject.searcher, tiny_tokenizer, f"# {step}\n")

    def held() -> tuple[str, dict[str, object]]:
        about = verify_directory(tmp_path / "best")
        return (tmp_path / "best" / "README.md").read_text(), about

    assert [save(2, 0.5), save(4, 0.5), save(6, float("nan"))] == [True, False, False]
    assert held() == ("# 2\n", {"kind": "searcher", "step": 2, "score": 0.5})
    assert save(8, 0.6)
    assert held()[0] == "# 8\n"
    save_checkpoint(tmp_path, 9, subject, tiny_tokenizer, keep=1)
    assert searcher_path(tmp_path / "best") == tmp_path / "best"
    drop_best_after(tmp_path, 8)
    assert held()[0] == "# 8\n"
    (tmp_path / ".best.tmp").mkdir()
    (tmp_path / ".best.tmp" / "of a killed process").write_text("")
    drop_best_after(tmp_path, 7)
    assert not (tmp_path / "best").exists()
    assert save(2, 0.5)
    (tmp_path / "best" / "manifest.json").write_text("{")
    drop_best_after(tmp_path, 9)
    assert not (tmp_path / "best").exists()
    assert save(10, -1.0)


def test_the_weight_of_the_kl_term_is_part_of_a_checkpoint(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject, other = trained(), learner()
    subject.kl_coefficient = 0.1 + 0.2
    save_checkpoint(tmp_path, 1, subject, tiny_tokenizer, keep=1)
    load_checkpoint(tmp_path / "step_000001", other)
    assert other.kl_coefficient == subject.kl_coefficient


@pytest.mark.parametrize(("form", "readable"), [(None, True), (2, True), (3, False)])
def test_a_checkpoint_of_a_later_form_is_refused_and_of_an_earlier_one_read(
    form: int | None,
    readable: bool,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_checkpoint(tmp_path, 1, trained(), tiny_tokenizer, keep=1)
    about = {"kind": "checkpoint", "step": 1} | ({} if form is None else {"form": form})
    monkeypatch.setattr(checkpoint, "read_manifest", lambda path: {"about": about})
    subject = learner(tiny_model(5))
    if readable:
        load_checkpoint(tmp_path / "step_000001", subject)
        assert_bitwise_equal(state(subject), state(trained()))
    else:
        with pytest.raises(InputError, match="is of form 3, which a later version"):
            load_checkpoint(tmp_path / "step_000001", subject)


def test_the_last_ones_are_kept_and_leftovers_removed(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = trained()
    leftover = tmp_path / ".step_000002.abc.tmp"
    leftover.mkdir()
    (leftover / "half").write_text("")
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, subject, tiny_tokenizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004", "step_000005"]


def test_a_damaged_later_one_does_not_push_out_the_one_just_written(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = trained()
    for step in (2, 6):
        save_checkpoint(tmp_path, step, subject, tiny_tokenizer, keep=2)
    (tmp_path / "step_000006" / "optimizer.safetensors").write_bytes(b"")
    assert latest_checkpoint(tmp_path) == (2, tmp_path / "step_000002")
    save_checkpoint(tmp_path, 4, subject, tiny_tokenizer, keep=1)
    assert latest_checkpoint(tmp_path) == (4, tmp_path / "step_000004")


def test_a_checkpoint_of_another_model_is_refused_in_one_line(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_checkpoint(tmp_path, 1, trained(), tiny_tokenizer, keep=1)
    model = tiny_model()
    model.model.norm.weight = torch.nn.Parameter(torch.ones(7))
    with pytest.raises(InputError, match="does not fit") as caught:
        load_checkpoint(tmp_path / "step_000001", learner(model))
    assert "\n" not in str(caught.value)


def test_searcher_path_finds_the_searcher_in_each_kind_of_place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject, checkpoints = trained(), tmp_path / "run" / "checkpoints"
    save_checkpoint(checkpoints, 1, subject, tiny_tokenizer, keep=1)
    step = checkpoints / "step_000001"
    with pytest.raises(InputError, match="no trained searcher"):
        searcher_path(tmp_path / "run")
    final = save_final(checkpoints, subject.searcher, tiny_tokenizer, "# Card\n")
    foreign = tmp_path / "foreign"
    subject.searcher.save_pretrained(foreign)
    tiny_tokenizer.save_pretrained(foreign)
    assert searcher_path(tmp_path / "run") == final
    assert searcher_path(final) == final
    assert searcher_path(step) == step / "searcher"
    assert searcher_path(foreign) == foreign
    for nothing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no trained searcher"):
            searcher_path(nothing)
    for weights, place in ((final, tmp_path / "run"), (step / "searcher", step)):
        (weights / "model.safetensors").write_bytes(b"altered")
        with pytest.raises(IntegrityError, match="checksum"):
            searcher_path(place)


def test_the_final_searcher_loads_with_transformers(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    subject = trained("ppo")
    final = save_final(tmp_path, subject.searcher, tiny_tokenizer, "# Card\n")
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert_bitwise_equal(
        dict(model.state_dict().items()), dict(subject.searcher.state_dict().items())
    )
    text = "<query>Doc 1</query>"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


_WRITER = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from searchrl.training.checkpoint import save_checkpoint
from tests.training_fixtures import learner, tiny_model
import torch
folder = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
subject = learner(tiny_model())
for step in range(1, 100_000):
    for parameter in subject.searcher.parameters():
        parameter.data.fill_(step)
    save_checkpoint(folder, step, subject, tokenizer, keep=2)
    print(step, flush=True)
"""


@pytest.mark.pipeline
def test_a_killed_writer_never_leaves_an_unreadable_or_mixed_checkpoint(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder, draw = tmp_path / "checkpoints", random.Random(0)
    for _ in range(10):
        command = [sys.executable, "-c", _WRITER, str(folder), str(tmp_path / "tokenizer")]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline()
            time.sleep(draw.random() * 0.5)
            writer.send_signal(signal.SIGKILL)
        found = latest_checkpoint(folder)
        assert found is not None
        subject = learner(tiny_model())
        load_checkpoint(found[1], subject)
        weights = subject.searcher.parameters()
        values = {value for weight in weights for value in weight.detach().unique().tolist()}
        assert len(values) == 1
        for path in folder.glob("step_*"):
            verify_directory(path)
