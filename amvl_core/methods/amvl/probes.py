"""A latent model asked the same questions with its latents changed: the model's side of the faithfulness suite.

The context row of training (`methods/amvl/prefix.py`) runs a question once. Every variant continues it: the answer's
log-likelihood as a decoder row, generation from copies of the question's keys and values. A variant costs its block and
its answer, and no question is ever run again.

Shape suffixes: B samples, V variants, K slots, T tokens, N label tokens, G key-value heads, C head size, Z latent
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from amvl_core.backbones.backbone import backbone_of
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.records import CONSTANT, NO_BLOCK, SWAPPED, UNCHANGED
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoded, Encoder, laid_out
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.prefix import ContextRow, decode, decode_without_block, question_states, read
from amvl_core.methods.draws import mean_of_others, moved, normal
from amvl_core.methods.losses import token_losses
from amvl_core.methods.probing import Held, ProbeAnswer, sums
from amvl_core.rows.bottleneck import has_bottleneck
from amvl_core.rows.decode import Prefilled, greedy, prefilled

TAUS = (0.2, 0.5, 0.8, 1.0)
"""The sweep of Table 11; its tau = 0 is the unchanged model."""
AT_ONCE = 4
"""Variants that are generated together: so many copies of the questions' keys and values are held."""


@dataclass(frozen=True)
class Variant:
    """One change: `latent_BKZ` in the slots that are `kept` (None: all); without latents there is no block at all."""

    name: str
    latent_BKZ: Tensor | None
    kept: tuple[int, ...] | None = None


class Prober:
    """A latent model under every change of its latents, greedy, at temperature 0."""

    def __init__(self, model: Any, processor: Any, method: AmvlMethod) -> None:
        self.model, self.processor = model.eval(), processor
        self.method = Amvl(model, method)
        self.encoder, self.latent = Encoder(processor), LatentConfig.model_validate(model.config.latent)

    def encode(self, sample: StoredSample) -> Encoded:
        """As in training."""
        return laid_out(self.encoder, self.method.config, self.latent, sample)

    @torch.inference_mode()
    def __call__(
        self,
        items: Sequence[StoredSample],
        donor: StoredSample,
        max_new_tokens: int,
        seed: int,
        only: Sequence[str] = (),
    ) -> list[ProbeAnswer]:
        """As `Prober`. Noise is keyed by `seed` and the item; only `constant` depends on what is asked together."""
        batch, reading = self.read(items)
        donor_1KZ = self.read([donor])[1].prior.mean  # and nothing else of it: its keys and values are large
        chosen = variants(reading, donor_1KZ, [item.sample_id for item in items], donor.sample_id, seed)
        first, *others = [variant for variant in chosen if not only or variant.name in only]
        answers, drafts = self._answers(items, batch, reading, [first], max_new_tokens, ())
        # What one variant has said is what the others are likely to say.
        for same in _together(others):
            answers += self._answers(items, batch, reading, same, max_new_tokens, drafts)[0]
        return answers

    @torch.inference_mode()
    def held(self, items: Sequence[StoredSample]) -> Held:
        """mu of the prior."""
        _, reading = self.read(items)
        return Held(reading.prior.mean, question_states(self.model, reading))

    def analyse(self, kind: str, items: Sequence[StoredSample], seed: int, rows: int) -> list[dict[str, Any]]:
        """Rows of one table of the analysis (`analysis/parts.py`); masked images run `rows` at a time."""
        from amvl_core.methods.amvl.analysis import parts

        if kind == "occlusion":
            return parts.occlusion(self, items, rows)
        return {"latents": parts.latents, "information": parts.information}[kind](self, items, seed)

    def read(self, items: Sequence[StoredSample]) -> tuple[Batch, ContextRow]:
        """Prior and posterior of every item, and the keys and values of its question."""
        batch = collate([self.encode(item) for item in items])
        positions_3N = self.method.positions(batch)
        embeds_ND = self.method.embed(batch)
        return batch, read(self.model, batch, embeds_ND, positions_3N, self.method.config.posterior_positions)

    def _answers(
        self,
        items: Sequence[StoredSample],
        batch: Batch,
        reading: ContextRow,
        chosen: Sequence[Variant],
        max_new_tokens: int,
        drafts: Sequence[Sequence[int]],
    ) -> tuple[list[ProbeAnswer], list[list[int]]]:
        """Answers [V x B], and their tokens; `drafts` guess those of each item, or are none."""
        start = self._start(batch, reading, chosen)
        tokens = greedy(self.model, start, max_new_tokens, [*drafts] * len(chosen))
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        scores = [score for variant in chosen for score in self._log_likelihoods(batch, reading, variant)]
        names = [(item.sample_id, variant.name) for variant in chosen for item in items]
        return [ProbeAnswer(*name, text, score) for name, text, score in zip(names, texts, scores, strict=True)], tokens

    def _log_likelihoods(self, batch: Batch, reading: ContextRow, variant: Variant) -> list[float]:
        """log p of every item's reference answer."""
        if variant.latent_BKZ is None:
            logits_1NV, labels_N, sample_N = decode_without_block(self.model, batch, reading)
        else:
            logits_1NV, labels_N, sample_N = decode(self.model, batch, reading, variant.latent_BKZ[None], variant.kept)
        return sums(-token_losses(logits_1NV[0], labels_N), sample_N, len(reading.blocks))

    def _start(self, batch: Batch, reading: ContextRow, chosen: Sequence[Variant]) -> Prefilled:
        """All variants [V x B], which have a block or have none, behind copies of the same questions' cache."""
        slots = self.model.config.num_slots
        block = chosen[0].latent_BKZ is not None
        # Without a block the question's last token is run again: something must predict the first one of y.
        tail, columns = (slots + 1, 0) if block else (1, -2)
        columns_B = [of.prefix + columns for of in reading.blocks]
        ids, positions = [], []
        samples = zip(batch.input_ids_N.split(batch.lengths), columns_B, reading.samples, strict=True)
        for ids_T, begin, sample in samples:
            parts = [sample.x.positions_3N, sample.slots.positions_3N, sample.end.positions_3N]
            ids.append(ids_T[begin : begin + tail])
            positions.append(torch.cat(parts, 1)[:, begin : begin + tail])
        copies, longest = len(chosen), max(columns_B)
        seen_BT = torch.arange(-longest, tail) >= -torch.tensor(columns_B)[:, None]
        if has_bottleneck(self.model):
            for row, (ids_T, begin) in enumerate(zip(batch.input_ids_N.split(batch.lengths), columns_B, strict=True)):
                images_T = backbone_of(self.model).stands_for_features(self.model, ids_T[:begin])
                seen_BT[row, longest - begin : longest] &= ~images_T
        seen_VBT = seen_BT.repeat(copies, 1, 1)
        for number, variant in enumerate(chosen):
            hidden = set() if variant.kept is None else set(range(slots)) - set(variant.kept)
            for slot in hidden:
                seen_VBT[number, :, longest + slot] = False
        latents = [variant.latent_BKZ for variant in chosen if variant.latent_BKZ is not None]
        device = positions[0].device
        seen_NT, positions_3BT = seen_VBT.flatten(0, 1).to(device), torch.stack(positions, 1)
        output = self.model(
            input_ids=torch.stack(ids).repeat(copies, 1).to(device),
            attention_mask=seen_NT.long(),
            position_ids=positions_3BT.repeat(1, copies, 1),
            past_key_values=question_cache(self.model, reading, columns_B, copies),
            use_cache=True,
            logits_to_keep=1,
            latents=torch.cat(latents) if block else None,
        )
        return prefilled(output, seen_NT, positions_3BT[:, :, -1].amax(0).repeat(copies) + 1)


def _together(chosen: Sequence[Variant]) -> Iterator[list[Variant]]:
    """`AT_ONCE` at a time, those without a block apart."""
    for block in (True, False):
        same = [variant for variant in chosen if (variant.latent_BKZ is not None) == block]
        for first in range(0, len(same), AT_ONCE):
            yield same[first : first + AT_ONCE]


def question_cache(model: Any, reading: ContextRow, columns: Sequence[int], copies: int) -> DynamicCache:
    """The keys and values of the first `columns` tokens of every question, padded on the left, `copies` times over."""
    cache, slots = DynamicCache(config=model.config.text_config), model.config.num_slots
    sizes = [of.prefix + of.reply + 2 * slots for of in reading.blocks]  # x first
    longest = max(columns)
    for number, layer in enumerate(reading.context.layers):
        keys, values = (
            torch.stack(
                [
                    pad(rows_TGC[:length].transpose(0, 1), (0, 0, longest - length, 0))
                    for rows_TGC, length in zip(part.split(sizes), columns, strict=True)
                ]
            ).repeat(copies, 1, 1, 1)
            for part in layer
        )
        cache.update(keys, values, number)
    return cache


def variants(
    reading: ContextRow, donor_1KZ: Tensor, sample_ids: Sequence[str], donor_id: str, seed: int
) -> list[Variant]:
    """Every change of the latents of a batch.

    - unchanged: mu of the prior; posterior: mu of the posterior, which sees the answer (oracle).
    - zeroed: Z = 0; noise: a random direction with the norm of each slot's mu; swapped: another item's mu;
      constant: slot by slot the mean mu of the other items that are asked together and of the donor;
      shuffled: the slots in another order, none in its place (not where there is one slot).
    - dropped i: slot i hidden from everything behind it, all other rows at their own positions. No value stands in its
      place: the mean latent would still be one, and zero is a value that the model was never trained on.
    - tau: mu + tau sigma eps (App. I, Table 11), the same eps at every tau. no block: the question without it.
    """
    mean_BKZ, slots = reading.prior.mean, reading.prior.mean.shape[1]
    noise_BKZ, direction_BKZ = (
        torch.stack([normal(mean_BKZ[0], seed, f"{kind}/{name}") for name in sample_ids]) for kind in ("tau", "noise")
    )
    length = mean_BKZ.norm(dim=-1, keepdim=True) / direction_BKZ.norm(dim=-1, keepdim=True)
    found = [
        Variant(UNCHANGED, mean_BKZ),
        Variant("zeroed", torch.zeros_like(mean_BKZ)),
        Variant("noise", direction_BKZ * length),
        Variant(SWAPPED, torch.cat([mean_BKZ[1:], donor_1KZ])),
        Variant(CONSTANT, mean_of_others(mean_BKZ, donor_1KZ, donor_id in sample_ids)),
    ]
    if slots > 1:
        shuffled = [z[list(moved(slots, seed, "shuffled", name))] for z, name in zip(mean_BKZ, sample_ids, strict=True)]
        found.append(Variant("shuffled", torch.stack(shuffled)))
    for slot in range(slots):
        kept = tuple(other for other in range(slots) if other != slot)
        found.append(Variant(f"dropped {slot + 1}", mean_BKZ, kept))
    found.append(Variant("posterior", reading.posterior.mean))
    found += [Variant(f"tau {tau:g}", reading.prior.sample(noise_BKZ, tau)) for tau in TAUS]
    return [*found, Variant(NO_BLOCK, None)]
