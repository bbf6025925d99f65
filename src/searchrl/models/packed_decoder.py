"""Decoding on packed rows: prefixes are computed once, kept across turns, and read together.

Prompts that come in together are merged into a token tree and run through the model in one row,
less what the prefix cache holds of them. From then on every step feeds one token a row. On a CPU, a
run of the tree that several rows stand on is read once a step for all of them; what a row has to
itself lies in its cohort's tail, padded to the longest. Elsewhere every row reads a tail of its
own, in one fused call.

A cohort is the rows that began together: its tails are allocated once, with room for all they may
say. What has ended stays in place until a quarter of a cohort has, then the rest is moved together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from searchrl.models.decoder import Decoder
from searchrl.models.drawing import Row
from searchrl.models.packed_attention import (
    Partial,
    attend_all,
    attend_masked,
    attend_nodes,
    flex_attend,
    masked,
    range_mask,
    run_packed,
)
from searchrl.models.prefix_cache import CachedRun, Layers, PrefixCache, path_length
from searchrl.models.protocol import StopReason
from searchrl.models.token_tree import Indices, TokenTree, build_tree, common_prefix

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_steps = 0
"""Optimizer steps in this process."""


def _count_step(*_: object) -> None:
    global _steps
    _steps += 1


# Fused optimizers change weights without counting up their version.
register_optimizer_step_post_hook(_count_step)

_WORTH_SHARING = 4096
"""Rows times tokens from which on reading a run once for its rows is faster than for each."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Keys and values that the rows (or tokens) from ``start`` to ``end`` all see."""

    keys: Layers
    values: Layers
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a prompt: keys and values that are at hand, and who else stands on them."""

    name: int
    keys: Layers
    values: Layers

    def __len__(self) -> int:
        return self.keys[0].shape[2]


@dataclass(slots=True)
class _Begun:
    """A row that has been prefilled: its prompt, and the pieces its keys and values are in."""

    row: Row
    prompt: Indices
    pieces: list[_Piece]
    shared: int = 0
    """Tokens at the prompt's beginning that it reads with others, outside its tail."""
    left: bool = False
    """Whether what it may be continued from has been handed on."""

    @property
    def position(self) -> int:
        """Of the last token drawn, which is fed next."""
        return len(self.prompt) + len(self.row.token_ids) - 1


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
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        memory: int = 1 << 30,
        tokens_per_batch: int = 8192,
        share: bool | None = None,
    ) -> None:
        super().__init__(model, tokenizer, max_length)
        self._room = max(1, memory // _bytes_per_token(model))
        self._tokens_per_batch = tokens_per_batch
        self._share = not masked(model.device) if share is None else share
        self._cache = PrefixCache(self._room)
        self._cohorts: list[_Cohort] = []
        self._ended: list[Row] = []
        self._weights = self._weights_now()

    @property
    def active(self) -> int:
        """Rows that are being decoded, and those whose end has not been told."""
        return len(self._ended) + sum(len(cohort.live) for cohort in self._cohorts)

    def admit(self, rows: Sequence[Row]) -> int:
        """Prefill as many rows as their keys and values have room for."""
        count = self._fitting(rows)
        if not self._cohorts:
            self._renew()
        order = sorted(rows[:count], key=lambda row: row.request.prompt)
        with self.inferring():
            for batch in self._batches(order):
                self._begin(batch)
        return count

    def advance(self) -> list[Row]:
        """Decode until a row ends."""
        with self.inferring():
            while self._cohorts and not self._ended:
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
        self._cohorts, self._ended = [], []
        self._cache.clear()

    def _renew(self) -> None:
        """Forget keys and values of weights that have changed since."""
        now = self._weights_now()
        if now != self._weights:
            self._cache.clear()
            self._weights = now

    def _weights_now(self) -> tuple[int, ...]:
        """Differs after an optimizer's step, any change in place, or an exchange of a parameter."""
        changes = ((p.data_ptr(), p._version) for p in self.model.parameters())
        return (_steps, *itertools.chain.from_iterable(changes))

    def _fitting(self, rows: Sequence[Row]) -> int:
        taken = sum(cohort.capacity for cohort in self._cohorts)
        count = 0
        for row in rows:
            taken += len(row.request.prompt) + row.limit
            if taken > self._room and (count or self._cohorts):
                break
            count += 1
        return count

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
        prefill = _Prefill(tree, paths, self.model.device)
        logits_BV = self._logits(tree, prefill)
        self.drawing.draw(rows, logits_BV)
        begun = [
            _Begun(row, prompt, _pieces(path, tree, places, prefill))
            for row, prompt, path, places in zip(rows, prompts, paths, tree.places, strict=True)
        ]
        self._ended += [row for row in rows if row.stop is not None]
        going = [one for one in begun if one.row.stop is None]
        if going:
            cohort = _Cohort(going, self._share, self.model.device)
            for span, prompt, known in cohort.to_keep():
                self._cache.insert(prompt, known, span.keys, span.values)
            self._cohorts.append(cohort)

    def _logits(self, tree: TokenTree, prefill: _Prefill) -> torch.Tensor:
        device = self.model.device
        hidden_ND = run_packed(
            self.model.model,
            torch.from_numpy(tree.token_ids).to(device),
            torch.from_numpy(tree.positions).to(device),
            prefill,
        )
        last_B = torch.tensor([int(places[-1]) for places in tree.places], device=device)
        logits_BV: torch.Tensor = self.model.lm_head(hidden_ND[last_B])
        return logits_BV

    def _step(self) -> None:
        """Feed every row its last token and draw the next one."""
        device = self.model.device
        rows = [one for cohort in self._cohorts for one in cohort.rows]
        for cohort in self._cohorts:
            cohort.begin_step()
        hidden_ND = run_packed(
            self.model.model,
            torch.tensor([one.row.token_ids[-1] for one in rows], device=device),
            torch.tensor([one.position for one in rows], device=device),
            _Step(self._cohorts),
        )
        live = [index for index, one in enumerate(rows) if one.row.stop is None]
        logits_BV = self.model.lm_head(hidden_ND[live] if len(live) < len(rows) else hidden_ND)
        for cohort in self._cohorts:
            cohort.end_step()
        self.drawing.draw([rows[index].row for index in live], logits_BV)
        ended = [rows[index] for index in live if rows[index].row.stop is not None]
        if ended:
            self._ended += [one.row for one in ended]
            self._retire()

    def _retire(self) -> None:
        """Keep what rows that have ended may be continued from, and close ranks."""
        for cohort in self._cohorts:
            for one, keys, values in cohort.leave():
                # A model that ends a sequence is not asked to go on from there.
                if one.row.stop is not StopReason.END_OF_SEQUENCE:
                    read = np.asarray(one.row.token_ids[:-1], dtype=np.int64)
                    whole = np.concatenate([one.prompt, read])
                    self._cache.insert(whole, one.shared, keys, values)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.live]


class _Prefill:
    """What the tokens of new prompts see: their tree, and what is known of what stands before.

    ``keys`` and ``values`` fill with those of the new tokens, layer by layer.
    """

    def __init__(
        self, tree: TokenTree, paths: Sequence[Sequence[CachedRun]], device: torch.device
    ) -> None:
        self._tree = tree
        self._spans = _known_spans(tree, paths)
        self._mask = _prefill_mask(tree, self._spans, device) if masked(device) else None
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See ``PackedAttention``."""
        self.keys.append(k)
        self.values.append(v)
        if self._mask is not None:
            before = [(span.keys[layer], span.values[layer]) for span in self._spans]
            all_k = torch.cat([*(keys for keys, _ in before), k], dim=2)
            all_v = torch.cat([*(values for _, values in before), v], dim=2)
            return flex_attend(q, all_k, all_v, self._mask, scale)
        partial = attend_nodes(q, k, v, self._tree.nodes, scale)
        for span in self._spans:
            rows = q[:, :, span.start : span.end]
            part = attend_all(rows, span.keys[layer], span.values[layer], scale)
            partial.join(span.start, span.end, part)
        return partial.out.to(q.dtype)


def _known_spans(tree: TokenTree, paths: Sequence[Sequence[CachedRun]]) -> list[_Span]:
    """Each known run, once, with the new tokens that follow it: they are neighbours in the tree."""
    ranges: dict[CachedRun, tuple[int, int]] = {}
    for path, places in zip(paths, tree.places, strict=True):
        first, last = int(places[0]), int(places[-1]) + 1
        for run in path:
            start, end = ranges.get(run, (first, last))
            ranges[run] = min(start, first), max(end, last)
    return [_Span(run.keys, run.values, *ends) for run, ends in ranges.items()]


def _prefill_mask(tree: TokenTree, spans: Sequence[_Span], device: torch.device) -> BlockMask:
    lengths = [span.keys[0].shape[2] for span in spans]
    starts = np.repeat(np.array([span.start for span in spans], dtype=np.int64), lengths)
    ends = np.repeat(np.array([span.end for span in spans], dtype=np.int64), lengths)
    starts = np.concatenate([starts, np.arange(len(tree))])
    return range_mask(starts, np.concatenate([ends, tree.subtree_ends]), len(tree), device)


def _pieces(
    path: Sequence[CachedRun], tree: TokenTree, places: Indices, prefill: _Prefill
) -> list[_Piece]:
    """Where the keys and values of one prompt are, from its first token to its last."""
    pieces = [_Piece(id(run), run.keys, run.values) for run in path]
    starts = [node.start for node in tree.nodes]
    place = 0
    while place < len(places):
        node = tree.nodes[int(np.searchsorted(starts, places[place]))]
        own = slice(node.start, node.end)
        keys = tuple(layer[:, :, own] for layer in prefill.keys)
        values = tuple(layer[:, :, own] for layer in prefill.values)
        pieces.append(_Piece(id(node), keys, values))
        place += node.end - node.start
    return pieces


class _Cohort:
    """Rows that began together, with the keys and values that they read.

    Args:
        rows: in the order of their prompts, so that who stands on the same piece are neighbours.
        share: leave pieces that several rows stand on outside the tails.
        device: where the tails are.
    """

    def __init__(self, rows: Sequence[_Begun], share: bool, device: torch.device) -> None:
        self.rows = list(rows)
        self._spans: list[_Span] = []
        self._kept: list[tuple[_Span, Indices, int]] = []
        like = self.rows[0].pieces[0].keys[0]
        layers = len(self.rows[0].pieces[0].keys)
        tails = self._divide(share)
        lengths = [sum(map(len, tail)) for tail in tails]
        room = max(n + one.row.limit for n, one in zip(lengths, self.rows, strict=True))
        self._keys = [_tails(like, len(tails), room) for _ in range(layers)]
        self._values = [_tails(like, len(tails), room) for _ in range(layers)]
        for index, tail in enumerate(tails):
            self._fill(index, tail)
        self._lengths = lengths
        self._device = device
        self._places = torch.arange(len(tails), device=device)
        self._ends = torch.tensor(lengths, device=device)
        self._bias = like.new_empty(0)

    @property
    def capacity(self) -> int:
        """Tokens that its tails have room for."""
        return len(self.rows) * self._keys[0].shape[2]

    @property
    def live(self) -> list[_Begun]:
        """Rows that have not ended."""
        return [one for one in self.rows if one.row.stop is None]

    def _divide(self, share: bool) -> list[list[_Piece]]:
        """Make spans of the pieces that several rows stand on; returns the rest, row by row."""
        standing: dict[int, list[int]] = {}
        for index, one in enumerate(self.rows):
            for piece in one.pieces:
                standing.setdefault(piece.name, []).append(index)
        tails: list[list[_Piece]] = []
        for index, one in enumerate(self.rows):
            joint = list(
                itertools.takewhile(
                    lambda piece: (
                        share and len(standing[piece.name]) * len(piece) >= _WORTH_SHARING
                    ),
                    one.pieces,
                )
            )
            for piece in joint:
                if standing[piece.name][0] == index:
                    span = _Span(piece.keys, piece.values, index, standing[piece.name][-1] + 1)
                    self._spans.append(span)
                    end = one.shared + len(piece)
                    self._kept.append((span, one.prompt[:end], one.shared))
                one.shared += len(piece)
            tails.append(one.pieces[len(joint) :])
            one.pieces = []
        return tails

    def _fill(self, index: int, tail: Sequence[_Piece]) -> None:
        """Copy what a row has to itself into its tail."""
        place = 0
        for piece in tail:
            own = slice(place, place + len(piece))
            for layer, (keys, values) in enumerate(zip(piece.keys, piece.values, strict=True)):
                self._keys[layer][index, :, own] = keys[0]
                self._values[layer][index, :, own] = values[0]
            place += len(piece)

    def to_keep(self) -> list[tuple[_Span, Indices, int]]:
        """What its rows share, once: keys and values, the tokens up to their end, those before."""
        kept, self._kept = self._kept, []
        return kept

    def begin_step(self) -> None:
        """Make room for one token a row."""
        self._longest = max(self._lengths) + 1
        columns = torch.arange(self._longest, device=self._device)
        unseen = (columns > self._ends.unsqueeze(1))[:, None, None]
        self._bias = self._keys[0].new_zeros(unseen.shape).masked_fill_(unseen, -torch.inf)

    def end_step(self) -> None:
        """Count the token that was fed; rows that have ended write over their last one."""
        for index, one in enumerate(self.rows):
            self._lengths[index] += one.row.stop is None
        self._ends = torch.tensor(self._lengths, device=self._device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of one new token a row; shapes as in ``PackedAttention``, with N rows."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._places, :, self._ends] = k[0].transpose(0, 1)
        values[self._places, :, self._ends] = v[0].transpose(0, 1)
        seen = slice(0, self._longest)
        query = q[0].transpose(0, 1).unflatten(1, (k.shape[1], -1))
        part = attend_masked(query, keys[:, :, seen], values[:, :, seen], self._bias, scale)
        out = part[0].flatten(1, 2).transpose(0, 1).unsqueeze(0)
        if not self._spans:
            return out
        partial = Partial(q)
        partial.first(0, len(self.rows), (out, part[1].flatten(1, 2).T.unsqueeze(0)))
        for span in self._spans:
            rows = q[:, :, span.start : span.end]
            joint = attend_all(rows, span.keys[layer], span.values[layer], scale)
            partial.join(span.start, span.end, joint)
        return partial.out.to(q.dtype)

    def leave(self) -> Iterator[tuple[_Begun, Layers, Layers]]:
        """Rows that have ended since, with the keys and values of their tails."""
        for index, one in enumerate(self.rows):
            if one.row.stop is not None and not one.left:
                own = slice(0, self._lengths[index])
                one.left = True
                yield (
                    one,
                    tuple(layer[index : index + 1, :, own] for layer in self._keys),
                    tuple(layer[index : index + 1, :, own] for layer in self._values),
                )
        live = [index for index, one in enumerate(self.rows) if one.row.stop is None]
        if live and len(live) <= 0.75 * len(self.rows):
            self._close_ranks(live)

    def _close_ranks(self, live: Sequence[int]) -> None:
        chosen = torch.tensor(live, device=self._device)
        self.rows = [self.rows[index] for index in live]
        self._keys = [layer[chosen] for layer in self._keys]
        self._values = [layer[chosen] for layer in self._values]
        self._lengths = [self._lengths[index] for index in live]
        self._ends, self._places = self._ends[chosen], self._places[: len(live)]
        place = np.searchsorted(live, [[span.start, span.end] for span in self._spans])
        self._spans = [
            _Span(span.keys, span.values, int(start), int(end))
            for span, (start, end) in zip(self._spans, place, strict=True)
            if start < end
        ]


def _tails(like: torch.Tensor, rows: int, room: int) -> torch.Tensor:
    """``[R, K, room, D]``, zero: what is masked must be finite all the same."""
    return like.new_zeros(rows, like.shape[1], room, like.shape[3])


class _Step:
    """One new token for each row of each cohort."""

    def __init__(self, cohorts: Sequence[_Cohort]) -> None:
        self._cohorts = cohorts

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See ``PackedAttention``."""
        ends = list(itertools.accumulate(len(cohort.rows) for cohort in self._cohorts))
        parts = []
        for cohort, end in zip(self._cohorts, ends, strict=True):
            own = slice(end - len(cohort.rows), end)
            parts.append(cohort.attend(layer, q[:, :, own], k[:, :, own], v[:, :, own], scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _bytes_per_token(model: PreTrainedModel) -> int:
    """Keys and values of one token in all layers."""
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * width * model.dtype.itemsize)
