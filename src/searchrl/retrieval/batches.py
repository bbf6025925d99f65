"""Token batches for the encoders: alike lengths together, padded on the right.

The order is undone by whoever asked, so a text's place in a batch is nobody's business but ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from searchrl.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def token_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    batch_size: int,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield ``(places in texts, tensors of shape (B, T))``, longest texts first.

    Args:
        tokenizer: cuts texts at ``max_length`` tokens; of a pair, it cuts the second text.
        texts: what is read.
        pairs: what is read after each of them, if anything.
        max_length: in tokens, special ones included.
        batch_size: texts a batch.
    """
    if not texts:
        return
    tokens = _tokens(tokenizer, texts, pairs, max_length)
    lengths = [len(ids) for ids in tokens["input_ids"]]
    order = sorted(range(len(texts)), key=lambda place: -lengths[place])
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        yield places, _padded(tokens, places, tokenizer.pad_token_id or 0)


def token_lists(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, batch_size: int
) -> Iterator[tuple[range, list[list[int]]]]:
    """Yield ``(places in texts, their tokens)`` in order; see ``token_batches``."""
    if not texts:
        return
    tokens = _tokens(tokenizer, texts, None, max_length)["input_ids"]
    for start in range(0, len(texts), batch_size):
        own = tokens[start : start + batch_size]
        yield range(start, start + len(own)), own


def _tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> Mapping[str, Any]:
    truncation = True if pairs is None else "only_second"
    try:
        tokens: Mapping[str, Any] = tokenizer(
            list(texts), None if pairs is None else list(pairs),
            truncation=truncation, max_length=max_length,
        )  # fmt: skip
    except Exception as error:
        # The tokenizer's own errors are bare exceptions; a query longer than the limit is one.
        raise InputError(f"texts cannot be cut to {max_length} tokens: {error}") from error
    return tokens


def _padded(
    tokens: Mapping[str, Any], places: Sequence[int], padding: int
) -> dict[str, torch.Tensor]:
    import torch

    width = len(tokens["input_ids"][places[0]])
    tensors = {}
    for name in _INPUTS:
        if name in tokens:
            fill = padding if name == "input_ids" else 0
            rows = [tokens[name][place] for place in places]
            tensors[name] = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
    return tensors
