"""BERT's encoders on packed rows, in shapes that a text's company has no say in.

Texts lie one behind the other in one row of tokens, without padding. What is done token by token is
done for ``BLOCK`` of them at a time, never more or fewer, and attention for one text at a time: a
kernel chooses the order of its sums by the shapes it is given, and in 16 bits another order is
another vector. So a text has one vector, to the last bit, alone and in any batch.

The modules of transformers lend their weights, which are laid out once as the kernels read them;
what is between them is written here for families of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from searchrl.retrieval.networks import first_position

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 128
"""Tokens at a time. Fewer cost a large batch more, more a lone query."""
_FAMILIES = frozenset({"bert", "roberta", "xlm-roberta"})
"""Those whose packed results the tests hold against their padded ones."""


def packs(network: PreTrainedModel) -> bool:
    """Whether a network can be run on packed rows, on a CPU and in bfloat16."""
    config = network.config
    return (
        config.model_type in _FAMILIES
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and network.device.type == "cpu"
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class PackedNetwork:
    """The token vectors of texts.

    Args:
        network: of a kind that ``packs``, in bfloat16; its large weights are copied, so that it can
            be let go.
    """

    def __init__(self, network: Any) -> None:
        self._embeddings = network.embeddings
        self._first = first_position(network)
        self._layers = [_Layer(layer) for layer in network.encoder.layer]

    def hidden(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The last layer's vectors of each text, ``[T, D]`` in float32.

        Args:
            texts: token ids, none of them empty.
        """
        ends = list(accumulate(map(len, texts), initial=0))
        padding = -ends[-1] % BLOCK
        tokens = [token for text in texts for token in text] + [0] * padding
        first = self._first
        positions = [each for text in texts for each in range(first, first + len(text))]
        positions += [first] * padding
        blocks = [
            self._embeddings(input_ids=own, position_ids=places)[0]
            for own, places in zip(
                torch.tensor([tokens]).split(BLOCK, dim=1),
                torch.tensor([positions]).split(BLOCK, dim=1),
                strict=True,
            )
        ]
        spans = list(pairwise(ends))
        for layer in self._layers:
            blocks = layer.run(blocks, spans)
        hidden_ND = torch.cat(blocks).float()
        return [hidden_ND[start:end] for start, end in spans]


class _Layer:
    """One layer of the network."""

    def __init__(self, layer: Any) -> None:
        attention = layer.attention.self
        self._heads = attention.num_attention_heads
        self._read = _product(attention.query, attention.key, attention.value)
        self._mix = _product(layer.attention.output.dense)
        self._mixed_norm = layer.attention.output.LayerNorm
        self._widen = _product(layer.intermediate.dense)
        self._activation = layer.intermediate.intermediate_act_fn
        self._narrow = _product(layer.output.dense)
        self._norm = layer.output.LayerNorm

    def run(
        self, blocks: Sequence[torch.Tensor], spans: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor]:
        """The next states of all tokens, from blocks ``[BLOCK, D]`` to such blocks."""
        read_N3HD = torch.cat([self._read(block) for block in blocks])
        read_N3HD = read_N3HD.unflatten(-1, (3, self._heads, -1))
        seen = [_attend(read_N3HD[start:end]) for start, end in spans]
        # Padding sees nothing, and nobody sees it.
        seen.append(blocks[0].new_zeros(len(read_N3HD) - spans[-1][1], blocks[0].shape[1]))
        seen_ND = torch.cat(seen)
        return [
            self._each_token(own, block)
            for own, block in zip(seen_ND.split(BLOCK), blocks, strict=True)
        ]

    def _each_token(self, seen: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        mixed = self._mixed_norm(self._mix(seen) + hidden)
        own: torch.Tensor = self._norm(self._narrow(self._activation(self._widen(mixed))) + mixed)
        return own


def _attend(read_T3HD: torch.Tensor) -> torch.Tensor:
    """What the tokens of one text see of each other, ``[T, H * D]``."""
    queries, keys, values = read_T3HD.permute(1, 2, 0, 3).unsqueeze(1)
    seen_1HTD = functional.scaled_dot_product_attention(queries, keys, values)
    return seen_1HTD[0].transpose(0, 1).flatten(1)


def _product(*linears: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear layers over one input as one, their weights laid out for ``BLOCK`` rows.

    It is what ``torch.compile`` turns a linear layer into on a CPU; as ``functional.linear`` lays
    weights out anew each time, it takes a quarter longer for a whole batch of queries.
    """
    weight = torch.cat([linear.weight.detach() for linear in linears])
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, BLOCK)
    bias = torch.cat([linear.bias.detach() for linear in linears])

    def product(rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        return out

    return product
