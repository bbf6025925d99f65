"""What a recipe says of its data: generated worlds or files, what is trained on and held out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from searchrl.options import Options

NAME = re.compile(r"[\w-]+")
"""What a dataset or a label may be called."""


class SynthWikiData(Options):
    """A generated world; see ``searchrl synthwiki``."""

    kind: Literal["synthwiki"] = "synthwiki"
    seed: int = Field(ge=0, le=9_999)
    """Worlds with different seeds share no entity."""
    size: PositiveInt = 1_000
    """Passages."""
    questions: PositiveInt = 500
    """Questions."""
    hops: dict[int, float] | None = None
    """Share of questions by number of gold passages; the default mix when left out."""


class FileData(Options):
    """A corpus and a question file of one's own."""

    kind: Literal["files"]
    corpus: Path | None = None
    """Passages, ``.jsonl`` or ``.jsonl.gz``; may be left out where the web is searched."""
    questions: Path
    """Questions, in any form that ``searchrl data convert`` reads."""
    index: Path | None = None
    """An index built before; one is built into the run directory when left out."""
    limit: PositiveInt | None = None
    """Use only the first questions."""


Data = Annotated[SynthWikiData | FileData, Field(discriminator="kind")]


class DataOptions(Options):
    """What is trained on, and what is held out."""

    train: Data
    test: Data
    datasets: dict[str, Data] = Field({})
    """What is evaluated in the place of `test`: datasets by name, each with a corpus of its own."""

    @model_validator(mode="after")
    def _check_held_out(self) -> DataOptions:
        for name, data in {"test": self.test, **self.datasets}.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"datasets.{name}: a name is made of letters, digits, _ and -")
            if data.kind == self.train.kind == "synthwiki" and data.seed == self.train.seed:
                raise ValueError(f"train and {name} are the same world: give them different seeds")
        return self

    @property
    def share_a_corpus(self) -> bool:
        """Whether one search service, which these options do not name, can answer for all."""
        corpora = {
            data.corpus if data.kind == "files" and data.index is None else None
            for data in (self.train, self.test, *self.datasets.values())
        }
        return len(corpora) == 1 and None not in corpora
