"""What a recipe says of its reward."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from searchrl.options import Options


class RewardOptions(Options):
    """What training maximises."""

    kind: Literal[
        "gain_beyond_rag",
        "context_recall",
        "exact_match",
        "f1",
        "sub_em",
        "search_r1_format",
        "deep_retrieval",
        "function",
        "per_question",
    ] = "gain_beyond_rag"
    scale: Literal["paper", "code"] = "paper"
    """Gain Beyond RAG: accuracy - base, or the released code's 2 accuracy - base."""
    rag_k: PositiveInt = 3
    """Passages of naive RAG, here and in evaluation."""
    drop_solved: bool = True
    """Do not train on questions that naive RAG already answers."""
    cache: Path | None = None
    """A RAG cache made before; the run directory's own when left out."""
    structure_score: float = Field(0.2, ge=0, le=1)
    """Search-R1's format: what a valid form is worth beside a wrong answer."""
    final_score: float = Field(0.1, ge=0, le=1)
    """Search-R1's format: what a wrong answer in no valid form is worth."""
    retrieval_score: float = Field(0.0, ge=0, le=1)
    """Search-R1's format: what a retrieved gold answer adds to a valid form."""
    deep_retrieval_table: Literal["evidence", "recall", "ndcg"] = "evidence"
    """DeepRetrieval: bands of the rank of the first passage with a gold answer, bands of the recall
    of gold passages, or their NDCG."""
    deep_retrieval_depth: PositiveInt = 3_000
    """DeepRetrieval: passages of the query that are ranked."""
    function: str | None = None
    """A function of your own, as ``module:function``, for the kind ``function``, and for those
    questions of the kind ``per_question`` that want it."""

    @model_validator(mode="after")
    def _check_function(self) -> RewardOptions:
        if self.kind != "per_question" and (self.kind == "function") != (self.function is not None):
            raise ValueError(
                'kind = "function" and function = "module:function" go together: set both or none'
            )
        return self
