"""How many bytes training needs, as formulas over a decoder's shape.

Activations are what PyTorch keeps for the backward pass of a model's blocks on packed rows, term by
term, as if the states of all tokens were wanted: the last block keeps less where they are not. The
tests compare them with what it really keeps. Allocators and libraries
add their own, so a plan that fits with nothing to spare does not fit.
"""

from __future__ import annotations

from typing import Literal

from searchrl.models.options import LoraOptions
from searchrl.models.shape import Shape

FULL, HALF = 4, 2
"""Bytes of a number in single precision, and of one in 16 bits."""


def cache_bytes(shape: Shape, tokens: int, bytes_a_number: int) -> int:
    """Keys and values of so many tokens."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * tokens * bytes_a_number


Form = Literal["float32", "autocast", "bfloat16"]
"""How a pass computes: in single precision, in 16 bits over such weights, or on 16-bit weights."""


def activation_bytes(shape: Shape, tokens: int, form: Form, checkpointed: bool = False) -> int:
    """What the blocks keep for one backward pass over so many tokens, padding included.

    With ``autocast`` a 16-bit copy of every matrix is kept beside. Checkpointed blocks keep their
    inputs, and one of them at a time all there is. An adapter's blocks keep less than this: their
    norms and matrices are frozen, and nothing is kept for those.
    """
    a_block = _block_numbers(shape, form)
    # The last norm, and the angles of the positions.
    final = (1.5 if form == "bfloat16" else 1.0) * shape.hidden + shape.head_size
    copies = HALF * shape.linear if form == "autocast" else 0
    if not checkpointed:
        return round(FULL * tokens * (shape.layers * a_block + final)) + shape.layers * copies
    an_input = (0.5 if form == "bfloat16" else 1.0) * shape.hidden
    return round(FULL * tokens * (shape.layers * an_input + a_block + final)) + copies


def _block_numbers(shape: Shape, form: Form) -> float:
    """What a block keeps of a token, in numbers of single precision.

    On 16-bit weights and with ``autocast`` the matrices' inputs and outputs are 16-bit; the norms
    compute in single precision in any form, and are fused where they are given that.
    """
    heads, small = shape.heads + shape.kv_heads, form != "float32"
    # Two norms keep their input, what they scale where they are not fused, and hand a copy on to
    # the matrices.
    stream = {"float32": 4.0, "autocast": 4.5, "bfloat16": 4.0}[form]
    # Gate, its activation, up, and their product.
    mlp = 2.0 if small else 4.0
    # Attention keeps queries, keys, values, and its output, which the next matrix reads as it is;
    # norms a head keep one more of queries and keys, or what they scale too.
    attention = (1.0 if small else 2.0) + ((1.5 if small else 1.0) if shape.head_norms else 0.0)
    scales = 2 + shape.heads + (heads if shape.head_norms else 0)
    return (
        stream * shape.hidden
        + mlp * shape.intermediate
        + attention * heads * shape.head_size
        + scales
    )


def prefill_bytes(shape: Shape, tokens: int, bytes_a_number: int) -> int:
    """What passes by as so many tokens are read without a backward pass."""
    a_token = bytes_a_number * (3 * shape.intermediate + 3 * shape.hidden)
    return tokens * (a_token + FULL * 2 * shape.hidden)


def drawing_bytes(shape: Shape, rows: int) -> int:
    """Distributions of so many rows that draw a token: logits and log-probabilities in single
    precision, probabilities and their sums in double.
    """
    return rows * shape.vocabulary * (2 * FULL + 2 * 2 * FULL)


def factor_weights(shape: Shape, lora: LoraOptions) -> int:
    """Weights of an adapter on the matrices of all blocks, or on those it names."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    hidden, intermediate = shape.hidden, shape.intermediate
    sides = {
        "q_proj": hidden + queries,
        "k_proj": hidden + keys,
        "v_proj": hidden + keys,
        "o_proj": queries + hidden,
        "gate_proj": hidden + intermediate,
        "up_proj": hidden + intermediate,
        "down_proj": intermediate + hidden,
    }
    chosen = sides if lora.targets is None else set(lora.targets) & sides.keys()
    return shape.layers * lora.rank * sum(sides[name] for name in chosen)


STATES_AT_A_TIME = 512
"""Whose distributions a checkpointed head holds together."""


def head_bytes(shape: Shape, predicted: int, checkpointed: bool = False) -> int:
    """The head over so many predicted tokens: distributions and their gradients.

    Two are kept for the backward pass, log-probabilities and probabilities, and two more pass by.
    """
    held = min(predicted, STATES_AT_A_TIME) if checkpointed else predicted
    return FULL * (held * 4 * shape.vocabulary + predicted * shape.hidden)


def adamw_bytes(weights: int, masters: bool = False) -> int:
    """AdamW's two moments, and copies of the weights in single precision where it steps those."""
    return (3 if masters else 2) * FULL * weights
