"""Decoding on packed rows: prefixes are computed once, kept across turns, and read together.

Prompts that come in together are merged into a token tree and run through the model in one row,
less what the prefix cache holds of them. From then on every step feeds one token a row, in cohorts
(``cohorts``) or in slots of fixed shape (``slot_rows``). On a CPU the parts of what a prompt's
token sees are joined one by one; elsewhere they are read in one fused call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from searchrl.models.cohort import Begun, Piece, Span
from searchrl.models.cohorts import Cohorts
from searchrl.models.decoder import Decoder
from searchrl.models.drawing import Row
from searchrl.models.packed_attention import (
    attend_all,
    attend_parts,
    flex_attend,
    masked,
    range_mask,
    tree_parts,
)
from searchrl.models.packed_blocks import run_packed
from searchrl.models.prefix_cache import CachedRun, PrefixCache, path_length
from searchrl.models.protocol import StopReason
from searchrl.models.running import Running
from searchrl.models.slot_rows import SlotRows
from searchrl.models.steps import Steps
from searchrl.models.token_tree import Indices, TokenTree, build_tree, common_prefix
from searchrl.models.weight_watch import WeightWatch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PackedDecoder(Decoder):
    """Decodes rows that come and go.

    Args:
        model: of a kind that ``packs``.
        tokenizer: its tokenizer.
        max_length: longest prompt plus completion.
        memory: bytes of keys and values, for the rows being decoded and as much again at most for
            prefixes that are kept.
        tokens_per_batch: prompt tokens that are prefilled together.
        share: read runs that several rows stand on together; by default on a CPU only.
        steps: how steps of fixed shapes are run, on rows in slots; rows are in cohorts, whose
            shapes follow the rows, when left out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        memory: int = 1 << 30,
        tokens_per_batch: int = 8192,
        share: bool | None = None,
        steps: Steps | None = None,
    ) -> None:
        super().__init__(model, tokenizer, max_length)
        room = max(1, memory // _bytes_per_token(model))
        self._tokens_per_batch = tokens_per_batch
        together = not masked(model.device) if share is None else share
        self._cache = PrefixCache(room)
        self._cohorts = Cohorts(model, self.drawing, room, together)
        self._slots = None if steps is None else SlotRows(model, self.drawing, room, steps)
        self._running: Running = self._cohorts
        self._ended: list[Row] = []
        self._watch = WeightWatch(model)

    @property
    def active(self) -> int:
        """Rows that are being decoded, and those whose end has not been told."""
        return len(self._ended) + len(self._running.live)

    def admit(self, rows: Sequence[Row]) -> int:
        """Prefill as many rows as their keys and values have room for."""
        if not self._running.busy:
            self._renew()
        count = self._running.fitting(rows)
        order = sorted(rows[:count], key=lambda row: row.request.prompt)
        with self.inferring():
            for batch in self._batches(order):
                self._begin(batch)
        return count

    def advance(self) -> list[Row]:
        """Decode until a row ends."""
        with self.inferring():
            while self._running.busy and not self._ended:
                self._step()
        ended, self._ended = self._ended, []
        return ended

    def drop(self, rows: Sequence[Row]) -> None:
        """Stop decoding rows that nobody waits for any more."""
        for row in rows:
            row.stop = row.stop or StopReason.LENGTH
        self._retire()

    def forget(self) -> None:
        """Drop the rows and all that is kept."""
        self._running.clear()
        self._ended = []
        self._cache.clear()

    def rest(self) -> None:
        """Let go of what was recorded and of the slots, which the next rows get anew."""
        if self._slots is not None and not self._slots.busy:
            self._slots.clear()

    def _renew(self) -> None:
        """Nothing is being decoded: look at what the model is by now."""
        if self._watch.changed():
            self._cache.clear()
        if self._slots is not None:
            self._running = self._slots if self._slots.ready() else self._cohorts

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Neighbours together, within the budget of new tokens."""
        batch: list[Row] = []
        before: Indices = np.empty(0, dtype=np.int64)
        size = 0
        for row in rows:
            prompt = np.asarray(row.request.prompt)
            known = path_length(self._cache.match(prompt[:-1]))
            added = len(prompt) - max(known, common_prefix(before, prompt))
            if batch and size + added > self._tokens_per_batch:
                yield batch
                batch, size, added = [], 0, len(prompt) - known
            batch.append(row)
            size += added
            before = prompt
        if batch:
            yield batch

    def _begin(self, rows: Sequence[Row]) -> None:
        """Prefill rows in the order of their prompts, draw their first tokens, make a cohort."""
        prompts = [np.asarray(row.request.prompt, dtype=np.int64) for row in rows]
        # The last token is computed anew, for its logits. Twice, because a later prompt may cut a
        # run that an earlier one has passed.
        for prompt in prompts:
            self._cache.match(prompt[:-1])
        paths = [self._cache.match(prompt[:-1]) for prompt in prompts]
        tree = build_tree(prompts, [path_length(path) for path in paths])
        last_B = np.array([places[-1] for places in tree.places])
        wanted_U, states_B = np.unique(last_B, return_inverse=True)
        prefill = _Prefill(tree, paths, wanted_U, self.model.device)
        logits_BV = self._logits(tree, prefill, wanted_U)[torch.from_numpy(states_B)]
        self.drawing.draw(rows, logits_BV)
        begun = [
            Begun(row, prompt, _pieces(path, tree, places, prefill))
            for row, prompt, path, places in zip(rows, prompts, paths, tree.places, strict=True)
        ]
        self._ended += [row for row in rows if row.stop is not None]
        going = [one for one in begun if one.row.stop is None]
        if going:
            for span, prompt, known in self._running.begin(going):
                self._cache.insert(prompt, known, span.keys, span.values)

    def _logits(self, tree: TokenTree, prefill: _Prefill, wanted_U: Indices) -> torch.Tensor:
        device = self.model.device
        hidden_UD = run_packed(
            self.model.model,
            torch.from_numpy(tree.token_ids).to(device),
            torch.from_numpy(tree.positions).to(device),
            prefill,
            torch.from_numpy(wanted_U).to(device),
        )
        logits_UV: torch.Tensor = self.model.lm_head(hidden_UD)
        return logits_UV

    def _step(self) -> None:
        """Feed every row its last token and draw the next one."""
        ended = self._running.step()
        if ended:
            self._ended += ended
            self._retire()

    def _retire(self) -> None:
        """Keep what rows that have ended may be continued from."""
        for one, keys, values in self._running.leave():
            # A model that ends a sequence is not asked to go on from there.
            if one.row.stop is not StopReason.END_OF_SEQUENCE:
                read = np.asarray(one.row.token_ids[:-1], dtype=np.int64)
                whole = np.concatenate([one.prompt, read])
                self._cache.insert(whole, one.shared, keys, values)


class _Prefill:
    """What the tokens of new prompts see: their tree, and what is known of what stands before.

    ``keys`` and ``values`` fill with those of the new tokens, layer by layer.

    Args:
        tree: of the new tokens.
        paths: what is known of each prompt.
        wanted: the tokens whose states are wanted, in order.
        device: where it is computed.
    """

    def __init__(
        self,
        tree: TokenTree,
        paths: Sequence[Sequence[CachedRun]],
        wanted: Indices,
        device: torch.device,
    ) -> None:
        spans = _known_spans(tree, paths)
        # By their number: all tokens, and in the last layer those that are wanted.
        rows = {len(some): some for some in (np.arange(len(tree)), wanted)}
        self._masked = masked(device)
        self._known = {count: _spans_of(spans, some) for count, some in rows.items()}
        if self._masked:
            self._masks = {n: _prefill_mask(tree, spans, some, device) for n, some in rows.items()}
        else:
            self._parts = {n: tree_parts(tree.nodes, some) for n, some in rows.items()}
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See ``PackedAttention``."""
        self.keys.append(k)
        self.values.append(v)
        count = q.shape[2]
        spans = self._known[count]
        if self._masked:
            before = [(span.keys[layer], span.values[layer]) for span in spans]
            all_k = torch.cat([*(keys for keys, _ in before), k], dim=2)
            all_v = torch.cat([*(values for _, values in before), v], dim=2)
            return flex_attend(q, all_k, all_v, self._masks[count], scale)
        partial = attend_parts(q, k, v, self._parts[count], scale)
        for span in spans:
            rows = q[:, :, span.start : span.end]
            part = attend_all(rows, span.keys[layer], span.values[layer], scale)
            partial.join(span.start, span.end, part)
        return partial.out.to(q.dtype)


def _known_spans(tree: TokenTree, paths: Sequence[Sequence[CachedRun]]) -> list[Span]:
    """Each known run, once, with the new tokens that follow it: they are neighbours in the tree."""
    ranges: dict[CachedRun, tuple[int, int]] = {}
    for path, places in zip(paths, tree.places, strict=True):
        first, last = int(places[0]), int(places[-1]) + 1
        for run in path:
            start, end = ranges.get(run, (first, last))
            ranges[run] = min(start, first), max(end, last)
    return [Span(run.keys, run.values, *ends) for run, ends in ranges.items()]


def _spans_of(spans: Sequence[Span], wanted: Indices) -> list[Span]:
    """The same spans, over the wanted tokens alone; every known run has one that follows it."""
    starts = np.searchsorted(wanted, [span.start for span in spans])
    ends = np.searchsorted(wanted, [span.end for span in spans])
    return [
        Span(span.keys, span.values, int(start), int(end))
        for span, start, end in zip(spans, starts, ends, strict=True)
    ]


def _prefill_mask(
    tree: TokenTree, spans: Sequence[Span], wanted: Indices, device: torch.device
) -> BlockMask:
    lengths = [span.keys[0].shape[2] for span in spans]
    starts = np.repeat(np.array([span.start for span in spans], dtype=np.int64), lengths)
    ends = np.repeat(np.array([span.end for span in spans], dtype=np.int64), lengths)
    starts = np.concatenate([starts, np.arange(len(tree))])
    return range_mask(starts, np.concatenate([ends, tree.subtree_ends]), wanted, device)


def _pieces(
    path: Sequence[CachedRun], tree: TokenTree, places: Indices, prefill: _Prefill
) -> list[Piece]:
    """Where the keys and values of one prompt are, from its first token to its last."""
    pieces = [Piece(id(run), run.keys, run.values) for run in path]
    starts = [node.start for node in tree.nodes]
    place = 0
    while place < len(places):
        node = tree.nodes[int(np.searchsorted(starts, places[place]))]
        own = slice(node.start, node.end)
        keys = tuple(layer[:, :, own] for layer in prefill.keys)
        values = tuple(layer[:, :, own] for layer in prefill.values)
        pieces.append(Piece(id(node), keys, values))
        place += node.end - node.start
    return pieces


def _bytes_per_token(model: PreTrainedModel) -> int:
    """Keys and values of one token in all layers."""
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * width * model.dtype.itemsize)
