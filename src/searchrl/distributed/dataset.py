"""verl's data set of a run: its schedule of questions, one row a question.

verl reads ``raw_prompt`` and ``index``; the agent loop reads the question and its step. Prompts are
rendered by the agent, with what it retrieved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from searchrl.distributed.schedule import read_schedule


class QuestionSchedule(Dataset[dict[str, Any]]):
    """The rows of a schedule.

    Args:
        data_files: the schedule, as ``data.train_files`` names it.
        tokenizer: not used.
        config: verl's ``data`` section; not used.
        processor: not used.
        max_samples: most rows; -1 for all.
    """

    def __init__(
        self,
        data_files: str | Sequence[str],
        tokenizer: Any = None,
        config: Any = None,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        files = [data_files] if isinstance(data_files, str) else list(data_files)
        rows = [row for file in files for row in read_schedule(Path(file))]
        self._rows = rows if max_samples < 0 else rows[:max_samples]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, question = self._rows[index]
        return {
            "raw_prompt": [{"role": "user", "content": question.text}],
            "index": index,
            "data_source": question.source,
            "question": question.to_row(),
            "step": step,
            # verl's batches hold at least one tensor.
            "dummy_tensor": torch.zeros(1, dtype=torch.uint8),
        }
