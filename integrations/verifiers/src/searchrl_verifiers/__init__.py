"""SearchRL's questions, retrievers and rewards as a taskset of verifiers (v1)."""

from searchrl_verifiers.taskset import SearchTaskset

__all__ = ["SearchTaskset"]
