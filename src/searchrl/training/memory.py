"""How many bytes training needs, as formulas over a decoder's shape.

Activations are what PyTorch keeps for the backward pass of transformers' modules with its fused
attention, term by term; the tests compare them with what it really keeps. Allocators and libraries
add their own, so a plan that fits with nothing to spare does not fit.
"""

from __future__ import annotations

from searchrl.models.shape import Shape

FULL, HALF = 4, 2
"""Bytes of a number in single precision, and of one in 16 bits."""


def cache_bytes(shape: Shape, tokens: int, bytes_a_number: int) -> int:
    """Keys and values of so many tokens."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * tokens * bytes_a_number


def activation_bytes(shape: Shape, tokens: int, autocast: bool) -> int:
    """What the blocks keep for one backward pass over so many tokens, padding included.

    With ``autocast`` the matrices' inputs and outputs are 16-bit, the norms stay in single
    precision, and a 16-bit copy of every matrix is kept beside them.
    """
    heads = shape.heads + shape.kv_heads
    # Two norms keep their input and what they scale, and hand a copy on to the matrices.
    stream = 6.5 if autocast else 6.0
    # Gate, its activation, up, and their product.
    mlp = 2.0 if autocast else 4.0
    # Attention keeps queries, keys, values and its output; norms a head keep two more of the first.
    attention = (1.0 if autocast else 2.0) + (
        (1.5 if autocast else 2.0) if shape.head_norms else 0.0
    )
    scales = 2 + shape.heads + (heads if shape.head_norms else 0)
    a_token = (
        stream * shape.hidden
        + mlp * shape.intermediate
        + attention * heads * shape.head_size
        + scales
    )
    copies = HALF * shape.layers * shape.linear if autocast else 0
    return round(FULL * tokens * (shape.layers * a_token + 2 * shape.hidden)) + copies


def head_bytes(shape: Shape, predicted: int) -> int:
    """The head over so many predicted tokens: distributions and their gradients.

    Two are kept for the backward pass, log-probabilities and probabilities, and two more pass by.
    """
    return FULL * predicted * (4 * shape.vocabulary + shape.hidden)


def adamw_bytes(weights: int) -> int:
    """AdamW's two moments."""
    return 2 * FULL * weights
