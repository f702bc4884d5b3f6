"""The shared-prefix step of AMVL: prior, posterior and decoder for little more than the price of one pass.

    context row   x <abs> | y slots          reads q(Z | x, y): under causal attention the slots see y
                    `---- | slots            reads p(Z | x)
    decoder row     `---- | Z </abs> y       predicts y, once for each draw of Z

y is the reply: steps and answer. Its first tokens may be hidden steps (`AmvlMethod.hidden_steps`). The posterior sees
them; the decoder row has none of them, and the rest of y stands right behind the block, as in generation.

x, the context and question, runs once. What stands behind a bar continues it: it attends to the keys and values of x
in every layer, with gradient, and not to the other branches. A micro-batch is two calls of every layer.

Shape suffixes: B samples, K slots, M draws, N tokens, R rows, D hidden size, Z latent dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from amvl_core.backbones.backbone import backbone_of
from amvl_core.contracts.errors import DataError
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.rows.attention import Context
from amvl_core.rows.bottleneck import token_kinds
from amvl_core.rows.cut import Cut
from amvl_core.rows.packed import run_row
from amvl_core.rows.spans import Run, Span, TokenKind, bottleneck_spans

PosteriorPositions = Literal["natural", "aligned"]


@dataclass
class Passes:
    """What a batch gives: both distributions [B, K, Z], the draws, and logits where y is predicted.

    `logits_MNV` are those of each draw; `labels_N` and `sample_N` say what is predicted and in which sample. The graph
    is cut before the decoder row: all else is differentiated behind it, with `cut.onward` (None: it is one graph).
    """

    prior: Gaussian
    posterior: Gaussian
    latent_MBKZ: Tensor
    logits_MNV: Tensor
    labels_N: Tensor
    sample_N: Tensor
    cut: Cut | None


@dataclass(frozen=True)
class Block:
    """One sample around its latent block: tokens of x with the start marker, of hidden steps, of what is written.

    `first_label` is the first predicted one of those that are written, counted from the first of them; where nothing is
    predicted it is the last token.
    """

    prefix: int
    hidden: int
    answer: int
    first_label: int

    @property
    def reply(self) -> int:
        """Tokens of y, hidden or written."""
        return self.hidden + self.answer


def find_blocks(batch: Batch, slot_token_ids: Sequence[int]) -> list[Block]:
    """Where the one latent block of every sample stands.

    A DataError names the sample that has none, two, or one out of order, nothing behind it, or a label before its end
    or on a hidden step.
    """
    slots = torch.tensor(slot_token_ids)
    ids, labels = batch.input_ids_N.split(batch.lengths), batch.labels_N.split(batch.lengths)
    hidden_B = batch.hidden_tokens or [0] * len(batch.lengths)
    blocks = []
    for name, ids_N, labels_N, hidden in zip(batch.sample_ids, ids, labels, hidden_B, strict=True):
        found = torch.isin(ids_N, slots).nonzero()[:, 0].tolist()
        if len(found) != len(slots):
            raise DataError(f"{name}: {len(found)} latent slots, but the model needs one block of {len(slots)}")
        start = found[0]
        if not torch.equal(ids_N[start : start + len(slots)], slots):
            raise DataError(
                f"{name}: the {len(slots)} latent slots stand at tokens {found}, not in order within one block"
            )
        behind = start + len(slots) + 1 + hidden
        answer = len(ids_N) - behind
        if answer < 1:
            raise DataError(f"{name}: {max(0, answer)} answer tokens behind the latent block, at least 1 is needed")
        labelled = (labels_N != IGNORED).nonzero()[:, 0].tolist()
        if labelled and labelled[0] < behind:
            raise DataError(
                f"{name}: a label at token {labelled[0]}, but the answer begins at token {behind}; labels belong on "
                "the answer alone"
            )
        blocks.append(Block(start, hidden, answer, labelled[0] - behind if labelled else answer - 1))
    return blocks


@dataclass
class ContextRow:
    """The context row of a batch: both distributions [B, K, Z], and what continues it.

    `samples` are the batch's samples in their parts, `context` holds their keys and values, and `runs` say where x
    stands in it. `kinds` are those of y.
    """

    prior: Gaussian
    posterior: Gaussian
    blocks: list[Block]
    samples: list[SampleRows]
    runs: list[list[Run]]
    kinds: list[list[TokenKind]]
    context: Context


def run_passes(
    model: Any,
    batch: Batch,
    embeds_ND: Tensor,
    positions_3N: Tensor,
    draw: Callable[[Gaussian], Tensor],
    posterior_positions: PosteriorPositions,
) -> Passes:
    """Prior and posterior, `draw` on the posterior [M, B, K, Z], and the decoder on each draw.

    `embeds_ND` are the embeddings of [x, <abs>, slots, </abs>, y] of all samples with image features in place,
    `positions_3N` their M-RoPE positions.
    """
    reading = read(model, batch, embeds_ND, positions_3N, posterior_positions)
    latent_MBKZ = draw(reading.posterior)
    if not all(parameter.requires_grad for parameter in model.injector.parameters()):  # no weight of a layer is trained
        return Passes(reading.prior, reading.posterior, latent_MBKZ, *decode(model, batch, reading, latent_MBKZ), None)
    cut = Cut()
    samples = [replace(s, end=_cut(cut, s.end), y=_cut(cut, s.y)) for s in reading.samples]
    behind = replace(reading, samples=samples, context=cut.context(reading.context))
    decoded = decode(model, batch, behind, cut(latent_MBKZ))
    return Passes(reading.prior, reading.posterior, latent_MBKZ, *decoded, cut)


def _cut(cut: Cut, rows: Rows) -> Rows:
    return rows._replace(embeds_ND=cut(rows.embeds_ND))


def read(
    model: Any, batch: Batch, embeds_ND: Tensor, positions_3N: Tensor, posterior_positions: PosteriorPositions
) -> ContextRow:
    """The context row: prior and posterior of every sample. Arguments as of `run_passes`."""
    num_slots = model.config.num_slots
    blocks = find_blocks(batch, model.config.slot_token_ids)
    samples = _samples(embeds_ND, positions_3N, blocks, num_slots)
    rows = [row for sample in samples for row in sample.context_row(posterior_positions)]
    spans, runs, kinds = _context_spans(model, batch, blocks, num_slots)
    hidden_RD, context = run_row(backbone_of(model).text(model), *joined(rows), spans)
    hidden_B2KD = hidden_RD.unflatten(0, (len(blocks), 2, num_slots))
    prior, posterior = model.prior(hidden_B2KD[:, 1]), model.posterior(hidden_B2KD[:, 0])
    return ContextRow(prior, posterior, blocks, samples, runs, kinds, context)


def decode(
    model: Any, batch: Batch, reading: ContextRow, latent_MBKZ: Tensor, kept: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder row on each of M latents: logits [M, N, V] where y is predicted, its labels [N], their samples [N].

    With `kept` only those slots stand in the block, each at its own position: nothing behind sees the others.
    """
    slots = range(model.config.num_slots) if kept is None else kept
    dtype = reading.samples[0].x.embeds_ND.dtype
    injected_MBKD = model.injector(latent_MBKZ.to(dtype))
    rows = [
        row
        for of_draw in injected_MBKD
        for z, s in zip(of_draw, reading.samples, strict=True)
        for row in s.decoder_row(z, slots)
    ]
    spans = _decoder_spans(reading, len(slots) + 1, 0, len(latent_MBKZ))
    hidden_RD, _ = run_row(backbone_of(model).text(model), *joined(rows), spans, [reading.context])
    return _logits(model, batch, reading.blocks, hidden_RD, draws=len(latent_MBKZ))


def decode_without_block(model: Any, batch: Batch, reading: ContextRow) -> tuple[Tensor, Tensor, Tensor]:
    """As `decode`, once, with y right behind the question: no marker and no slot (M = 1)."""
    shift = model.config.num_slots + 2
    rows = [
        row
        for sample in reading.samples
        for row in (
            _last_of_question(sample),
            Rows(sample.y.embeds_ND, sample.y.positions_3N - shift),
        )
    ]
    spans = _decoder_spans(reading, 1, 2, 1)
    hidden_RD, _ = run_row(backbone_of(model).text(model), *joined(rows), spans, [reading.context])
    return _logits(model, batch, reading.blocks, hidden_RD, draws=1)


def question_states(model: Any, reading: ContextRow) -> Tensor:
    """The final states [B, D] of each question's last token, which stands before the block."""
    rows = [_last_of_question(sample) for sample in reading.samples]
    spans: list[Span] = []
    for block, runs in zip(reading.blocks, reading.runs, strict=True):
        spans += bottleneck_spans(["text"], first_rows(runs, block.prefix - 2), 1, len(spans), 0)
    hidden_BD, _ = run_row(backbone_of(model).text(model), *joined(rows), spans, [reading.context])
    return hidden_BD


def _last_of_question(sample: SampleRows) -> Rows:
    """To be run again: the start marker stands behind it."""
    return Rows(sample.x.embeds_ND[-2:-1], sample.x.positions_3N[:, -2:-1])


def _logits(
    model: Any, batch: Batch, blocks: list[Block], hidden_RD: Tensor, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [M, N, V], labels and samples of the rows that predict a label, among those that a decoder row read."""
    labels_R, sample_R = _predicted(batch, blocks)
    labelled_R = labels_R != IGNORED
    where = hidden_RD.device
    logits_MNV = model.lm_head(hidden_RD.unflatten(0, (draws, -1))[:, labelled_R.to(where)])
    return logits_MNV, labels_R[labelled_R].to(where), sample_R[labelled_R].to(where)


class Rows(NamedTuple):
    """Some rows: embeddings [N, D] and M-RoPE positions [3, N]."""

    embeds_ND: Tensor
    positions_3N: Tensor


@dataclass(frozen=True)
class SampleRows:
    """One sample in its parts; `y` is what the decoder reads of what it writes of `reply`, at the positions that it has
    right behind the block: all but the last token, which predicts nothing.
    """

    x: Rows
    slots: Rows
    end: Rows
    reply: Rows
    y: Rows

    def context_row(self, posterior_positions: PosteriorPositions) -> list[Rows]:
        """x, the whole y and the posterior's slots; the prior's slots.

        Without the block before it y follows x. The posterior's slots follow y, or stand where the prior's do.
        """
        num_slots = len(self.slots.embeds_ND)
        y_3N = self.reply.positions_3N - num_slots - 1
        slots_3K = self.slots.positions_3N
        if posterior_positions == "natural":
            slots_3K = (y_3N.max() + 1 + torch.arange(num_slots, device=y_3N.device)).expand(3, -1)
        return [self.x, Rows(self.reply.embeds_ND, y_3N), Rows(self.slots.embeds_ND, slots_3K), self.slots]

    def decoder_row(self, z_KD: Tensor, kept: Sequence[int]) -> list[Rows]:
        """Z in the places of the slots that are `kept`, the end marker, and y."""
        z = Rows(z_KD, self.slots.positions_3N)
        if len(kept) < len(z_KD):
            z = Rows(z_KD[list(kept)], z.positions_3N[:, list(kept)])
        return [z, self.end, self.y]


def _samples(embeds_ND: Tensor, positions_3N: Tensor, blocks: list[Block], num_slots: int) -> list[SampleRows]:
    sizes = [size for block in blocks for size in (block.prefix, num_slots, 1, block.reply)]
    parts = (Rows(*part) for part in zip(embeds_ND.split(sizes), positions_3N.split(sizes, dim=1), strict=True))
    samples = []
    for block in blocks:
        x, slots, end, reply = islice(parts, 4)
        samples.append(SampleRows(x, slots, end, reply, _written(reply, block.hidden)))
    return samples


def _written(reply: Rows, hidden: int) -> Rows:
    """A reply without its first `hidden` tokens and its last one, from the position on at which it began.

    Its first token and the first that is left are no image tokens, so each has one position in all three dimensions.
    """
    shift_31 = reply.positions_3N[:, hidden : hidden + 1] - reply.positions_3N[:, :1]
    return Rows(reply.embeds_ND[hidden:-1], reply.positions_3N[:, hidden:-1] - shift_31)


def joined(rows: Sequence[Rows]) -> Rows:
    """Rows one behind the other."""
    return Rows(torch.cat([row.embeds_ND for row in rows]), torch.cat([row.positions_3N for row in rows], 1))


def _context_spans(
    model: Any, batch: Batch, blocks: list[Block], num_slots: int
) -> tuple[list[Span], list[list[Run]], list[list[TokenKind]]]:
    """Of each sample: x, the whole y and the posterior's slots; the prior's slots, which continue x.

    Without the bottleneck mask each of both is one span, and the long one needs no mask. With the spans: where x has
    been run, and the kinds of y.
    """
    spans: list[Span] = []
    runs: list[list[Run]] = []
    kinds: list[list[TokenKind]] = []
    for ids_N, block in zip(batch.input_ids_N.split(batch.lengths), blocks, strict=True):
        found = token_kinds(model, ids_N)
        behind = block.prefix + num_slots
        x, slots, kinds_y = found[: block.prefix], found[block.prefix : behind], found[behind + 1 :]
        own = list[Run]()
        spans += bottleneck_spans([*x, *kinds_y, *slots], own, 0, len(spans), block.prefix + block.reply)
        runs.append(first_rows(own, block.prefix))
        spans += bottleneck_spans(slots, [*runs[-1]], 0, len(spans))
        kinds.append(kinds_y)
    return spans, runs, kinds


def _decoder_spans(reading: ContextRow, before_y: int, less: int, draws: int) -> list[Span]:
    """Of each sample, once a draw: `before_y` rows that are as text, and y, which continue x without its last `less`.

    They are read from the first row that predicts a label. Z sees no image: what y knows of one has passed Z itself.
    """
    spans: list[Span] = []
    for _ in range(draws):
        for block, runs, kinds in zip(reading.blocks, reading.runs, reading.kinds, strict=True):
            own: list[TokenKind] = ["text"] * before_y
            own += kinds[block.hidden : -1]
            x = first_rows(runs, block.prefix - less)
            spans += bottleneck_spans(own, x, 1, len(spans), before_y - 1 + block.first_label)
    return spans


def first_rows(runs: Sequence[Run], rows: int) -> list[Run]:
    """The first `rows` rows of `runs`."""
    found: list[Run] = []
    for kind, piece in runs:
        if rows > 0:
            found.append((kind, replace(piece, stop=min(piece.rows, rows))))
        rows -= piece.rows
    return found


def _predicted(batch: Batch, blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """What the rows that the decoder reads predict, and in which sample, [R] each."""
    labels, samples = [], []
    for i, (labels_N, b) in enumerate(zip(batch.labels_N.split(batch.lengths), blocks, strict=True)):
        labels.append(labels_N[len(labels_N) - b.answer + b.first_label :])
        samples.append(torch.full_like(labels[-1], i))
    return torch.cat(labels), torch.cat(samples)
