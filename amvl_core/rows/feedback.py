"""Sequences in which the model's own state is the next input, for many samples at once ("wavefront").

A slot's input is the final state of the row before it, after the last norm: what the LM head reads. So the slots of a
block run one after the other, but no token runs twice, and samples run side by side:

    packed row   all samples up to their first slot
    K passes     one row for each sample that has a first block
    packed row   all samples that have a first block, from its end up to their second slot
    ...

Shape suffixes: N tokens of all samples, R wanted rows, T slots, B samples in a pass, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from amvl_core.backbones.backbone import TextStack
from amvl_core.rows.attention import Context
from amvl_core.rows.deferred import DeferredWeightGradients
from amvl_core.rows.packed import run_row
from amvl_core.rows.spans import Run, Span, TokenKind, bottleneck_spans, of_one_row


class Link(NamedTuple):
    """States that are fed back in one pass, [B, D], and the slots' inputs, which are leaves with the same values."""

    states_BD: Tensor
    inputs_BD: Tensor


class FedBack(NamedTuple):
    """What a batch gives, in packed order."""

    hidden_RD: Tensor
    """Final states, after the last norm, of the rows that are wanted."""
    inputs_TD: Tensor
    """What the slots were given: the final state of the row before each, as `feed` gives it."""
    tapped: dict[int, Tensor]
    """States [T, D] of the tapped rows behind each tapped layer."""
    links: list[Link]
    """In the order of the passes; none unless slots' inputs are leaves."""
    deferred: DeferredWeightGradients

    def handed_on(self, loss: Tensor) -> Tensor:
        """Zero, whose gradient is that of `loss` in the slots' inputs, taken for one in the states that they copy.

        The slots' inputs are leaves. So a path leads from the loss into one slot's input, and from the state before
        that slot into the weights, but never on through an earlier slot's input.
        """
        if not self.links or not loss.requires_grad:
            return loss.new_zeros(())
        inputs = [link.inputs_BD for link in self.links]
        gradients = torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True)
        self.deferred.forget()
        found = [(link.states_BD * grad_BD).sum() for link, grad_BD in zip(self.links, gradients, strict=True)]
        handed = torch.stack(found).sum()
        return handed - handed.detach()


def run_fed_back(
    text: TextStack,
    embeds_ND: Tensor,
    positions_3N: Tensor,
    lengths: Sequence[int],
    slots: Sequence[Sequence[range]],
    wanted: Sequence[int],
    taps: Sequence[int] = (),
    hops: int | None = None,
    tapped: Sequence[int] | None = None,
    feed: Callable[[Tensor], Tensor] | None = None,
    helpers: Sequence[Sequence[range]] = (),
    leaves: bool = False,
    kinds: Sequence[TokenKind] | None = None,
) -> FedBack:
    """Runs packed samples of `lengths` tokens, each with blocks of `slots`: ranges of the sample's own tokens.

    `wanted` are rows of the packed batch, ascending, none of them a slot. `taps` are layers, counted as in
    `hidden_states`, whose states are kept: of the rows `tapped`, or (None) of all slots. `feed` makes a slot's input
    [B, D] of the state before it (None: the state as it is). `kinds` of the packed batch's tokens say what the
    bottleneck mask hides (None: nothing).
    `hops` is how many feed-back links in a row gradient passes (None: all): the state is detached at every link
    number j of a block, counted from 0, with j % (hops + 1) == 0. The forward pass is the same.
    With `leaves` no gradient passes a link; each slot's input is a leaf, for `FedBack.handed_on`.
    `helpers` has for each block of each sample a range of its tokens, between it and the block before, that nothing but
    itself and the block's slots sees, such as an image. Left out: all is seen by all that follows.
    Raises ValueError where blocks are empty, out of order, touch, or begin at a sample's first token.
    """
    kinds = ["text"] * len(embeds_ND) if kinds is None else kinds
    run = _Run(text, embeds_ND, positions_3N, lengths, slots, wanted, taps, tapped, feed, helpers, leaves, kinds)
    for block in range(1 + max(map(len, slots), default=0)):
        samples = [sample for sample, own in enumerate(slots) if len(own) >= block]
        states = run.segments(samples, block)
        samples = [sample for sample in samples if len(slots[sample]) > block]
        for link in range(max((len(slots[sample][block]) for sample in samples), default=0)):
            going = [sample for sample in samples if link < len(slots[sample][block])]
            if hops is not None and link % (hops + 1) == 0:
                states = {sample: state.detach() for sample, state in states.items()}
            states = run.slots(going, block, link, states)
    return run.result()


class _Run:
    """Packed rows as they are run, and what is kept of them."""

    def __init__(
        self,
        text: TextStack,
        embeds_ND: Tensor,
        positions_3N: Tensor,
        lengths: Sequence[int],
        slots: Sequence[Sequence[range]],
        wanted: Sequence[int],
        taps: Sequence[int],
        tapped: Sequence[int] | None,
        feed: Callable[[Tensor], Tensor] | None,
        helpers: Sequence[Sequence[range]],
        leaves: bool,
        kinds: Sequence[TokenKind],
    ) -> None:
        self.text, self.embeds_ND, self.positions_3N = text, embeds_ND, positions_3N
        self.starts = [0, *accumulate(lengths)]
        self.places, self.wanted, self.taps, self.feed = slots, set(wanted), taps, feed
        self.helpers, self.leaves, self.kinds = helpers, leaves, kinds
        every = (
            start + place for start, own in zip(self.starts, slots, strict=False) for block in own for place in block
        )
        self.kept = set(every if tapped is None else tapped)
        self.before: list[Context] = []
        self.deferred = DeferredWeightGradients()
        self.chains: list[list[Run]] = [[] for _ in lengths]
        self.helping: list[list[Run]] = [[] for _ in lengths]
        self.links: list[Link] = []
        self.edges = [_edges(length, own) for length, own in zip(lengths, slots, strict=True)]
        self.read: list[tuple[list[int], Tensor]] = []
        self.fed: list[tuple[list[int], Tensor]] = []
        self.tapped: dict[int, list[tuple[list[int], Tensor]]] = {layer: [] for layer in taps}

    def segments(self, samples: Sequence[int], block: int) -> dict[int, Tensor]:
        """Runs what stands before block `block` of each sample; gives the last state [D] where that block is."""
        spans: list[Span] = []
        rows: list[int] = []
        read: list[int] = []
        last: dict[int, int] = {}
        for sample in samples:
            parts = self._parts(sample, block)
            before = parts[-1][0].stop - 1 if len(self.places[sample]) > block else None
            for part, helps in parts:
                asked = [row for row in part if row in self.wanted or row == before]
                first = min(asked, default=part.stop)
                chain = self.chains[sample]
                runs = [*chain] if helps else chain
                spans += self._spans(part, runs, len(spans), first)
                self.helping[sample] += runs[len(chain) :]
                rows += part
                read += range(first, part.stop)
            if before is not None:
                last[sample] = len(read) - 1
        hidden_RD = self._row(spans, rows, self._of(self.embeds_ND, rows, 0))
        self.read.append((read, hidden_RD))
        return {sample: hidden_RD[place] for sample, place in last.items()}

    def slots(self, samples: Sequence[int], block: int, link: int, states: dict[int, Tensor]) -> dict[int, Tensor]:
        """Runs slot `link` of a block of each sample on its state; gives the states behind."""
        rows = [self.starts[sample] + self.places[sample][block][link] for sample in samples]
        feeds = [link + 1 < len(self.places[sample][block]) for sample in samples]
        spans: list[Span] = []
        for sample, row, goes_on in zip(samples, rows, feeds, strict=True):
            runs = [*self.chains[sample], *self.helping[sample]]
            spans += self._spans(range(row, row + 1), runs, len(spans), row + 1 - goes_on)
            self.chains[sample].append(runs[-1])
        states_BD = torch.stack([states[sample] for sample in samples])
        inputs_BD = states_BD if self.feed is None else self.feed(states_BD)
        if self.leaves:
            self.links.append(Link(inputs_BD, inputs_BD.detach().requires_grad_(inputs_BD.requires_grad)))
            inputs_BD = self.links[-1].inputs_BD
        self.fed.append((rows, inputs_BD))
        hidden_RD = self._row(spans, rows, inputs_BD)
        going = [sample for sample, goes_on in zip(samples, feeds, strict=True) if goes_on]
        return dict(zip(going, hidden_RD, strict=True))

    def result(self) -> FedBack:
        """All that was kept, in packed order."""
        hidden_RD = _in_order(self.read, self.embeds_ND, self.wanted)
        inputs_TD = _in_order(self.fed, self.embeds_ND)
        tapped = {layer: _in_order(parts, self.embeds_ND) for layer, parts in self.tapped.items()}
        return FedBack(hidden_RD, inputs_TD, tapped, self.links, self.deferred)

    def _parts(self, sample: int, block: int) -> list[tuple[range, bool]]:
        """The rows before a block, in up to three parts, and whether they are those that its slots alone see."""
        self.helping[sample] = []
        start, stop = (self.starts[sample] + edge for edge in self.edges[sample][block])
        own = self.helpers[sample] if self.helpers else ()
        if len(own) <= block:
            return [(range(start, stop), False)]
        first, last = (self.starts[sample] + edge for edge in (own[block].start, own[block].stop))
        parts = [(range(start, first), False), (range(first, last), True), (range(last, stop), False)]
        return [part for part in parts if part[0]]

    def _spans(self, rows: range, runs: list[Run], number: int, read_from: int) -> list[Span]:
        """Rows of a sample that go on `runs`, as spans `number` and on of the next packed row."""
        kinds = self.kinds[rows.start : rows.stop]
        return bottleneck_spans(kinds, runs, len(self.before), number, read_from - rows.start)

    def _row(self, spans: Sequence[Span], rows: list[int], inputs_ND: Tensor) -> Tensor:
        """Runs a packed row."""
        kept = [place for place, row in enumerate(rows) if row in self.kept] if self.taps else []
        taps = dict.fromkeys(self.taps if kept else (), kept)
        positions_3N = self._of(self.positions_3N, rows, 1)
        around = self.deferred if of_one_row(spans) else None
        hidden_RD, context = run_row(self.text, inputs_ND, positions_3N, spans, self.before, taps, around)
        self.before.append(context)
        for layer in taps:
            self.tapped[layer].append(([rows[place] for place in kept], context.tapped[layer]))
        return hidden_RD

    @staticmethod
    def _of(whole: Tensor, rows: list[int], dim: int) -> Tensor:
        if rows == list(range(whole.shape[dim])):
            return whole
        return whole.index_select(dim, torch.tensor(rows, device=whole.device))


def _edges(length: int, slots: Sequence[range]) -> list[tuple[int, int]]:
    """Where the stretches between blocks begin and end."""
    starts, stops = [0, *(block.stop for block in slots)], [*(block.start for block in slots), length]
    edges = list(zip(starts, stops, strict=True))
    if any(start >= stop for start, stop in edges) or any(not block for block in slots):
        raise ValueError(f"blocks {list(slots)} of a sample of {length} tokens: each needs a slot and tokens around it")
    return edges


def _in_order(parts: Sequence[tuple[list[int], Tensor]], like_ND: Tensor, kept: set[int] | None = None) -> Tensor:
    """The rows of all parts by their number, those that are `kept`."""
    if not parts:
        return like_ND[:0]
    rows = [row for numbers, _ in parts for row in numbers]
    order = sorted((row, place) for place, row in enumerate(rows) if kept is None or row in kept)
    if kept is not None and len(order) < len(kept):
        raise ValueError("a wanted row is a slot, or stands in no sample")
    places = torch.tensor([place for _, place in order], dtype=torch.long, device=like_ND.device)
    return torch.cat([part for _, part in parts]).index_select(0, places)
