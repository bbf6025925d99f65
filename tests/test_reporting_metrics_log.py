"""The metrics file: torn lines, malformed ones, what a resumed run drops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from searchrl.errors import InputError
from searchrl.reporting.metrics_log import MetricsLog, read_metrics


def test_metrics_are_written_a_line_a_step(tmp_path: Path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(1, {"loss": 0.5, "tokens": 1200, "kl": math.nan, "ratio": -math.inf})
    log.append(2, {"loss": np.float32(0.25)})
    assert path.read_text() == (
        '{"step": 1, "loss": 0.5, "tokens": 1200, "kl": null, "ratio": null}\n'
        '{"step": 2, "loss": 0.25}\n'
    )
    assert read_metrics(path)[1] == {"step": 2, "loss": 0.25}
    with pytest.raises(ValueError, match="step"):
        log.append(3, {"step": 9.0})


@pytest.mark.parametrize("kept", [1, 9, 20, 23])
def test_torn_last_line_is_left_out_and_healed(tmp_path: Path, kept: int):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(1, {"łoss": 0.5})
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b"1", b"2", 1)[:kept])
    expected = [{"step": 1, "łoss": 0.5}]
    if kept == len(whole) - 1:
        expected.append({"step": 2, "łoss": 0.5})
    assert read_metrics(path) == expected
    MetricsLog(path).append(3, {"łoss": 0.1})
    assert read_metrics(path) == [*expected, {"step": 3, "łoss": 0.1}]


def test_every_tear_loses_at_most_the_last_step(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2):
        log.append(step, {"łoss": step / 4})
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        complete = content[:length].count(b"\n")
        assert [row["step"] for row in read_metrics(path)][:complete] == [1, 2][:complete]
        assert len(read_metrics(path)) <= complete + 1


def test_malformed_line_before_the_last_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)
    path.write_text('{"loss": 1}\n{"step": 3}\n')
    with pytest.raises(InputError, match='integer "step"'):
        read_metrics(path)
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "absent.jsonl")


def test_truncate_drops_later_and_torn_lines(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.truncate_after(0)
    assert not path.exists()
    for step in range(1, 6):
        log.append(step, {"loss": step / 8})
    with path.open("ab") as handle:
        handle.write(b'{"step": 6, "lo')
    log.truncate_after(3)
    assert path.read_text() == "".join(f'{{"step": {s}, "loss": {s / 8}}}\n' for s in (1, 2, 3))
    log.append(4, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]
