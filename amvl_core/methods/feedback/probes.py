"""A model that feeds back asked the same questions with its slots' inputs changed: its side of the faithfulness suite.

A question runs once. Behind it every variant has a block at the reply's start, whose slots are given inputs: the
model's own states for the unchanged one. Blocks that come later run by themselves. The answer's log-likelihood and the
generated text go on from copies of the question's keys and values.

Shape suffixes: B samples, V variants, K slots, T columns of questions, M columns of replies, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from amvl_core.backbones.backbone import backbone_of
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.records import CONSTANT, NO_BLOCK, SWAPPED, UNCHANGED
from amvl_core.contracts.sample import PLACEHOLDER, StoredSample
from amvl_core.data.batch import Visual, visual_inputs, visuals_of
from amvl_core.data.encode import IGNORED, Encoded, Encoder, laid_out
from amvl_core.methods.draws import mean_of_others, moved, normal
from amvl_core.methods.feedback.modeling import FeedbackForConditionalGeneration, LastState
from amvl_core.methods.losses import token_losses
from amvl_core.methods.probing import Held, ProbeAnswer, sums
from amvl_core.rows.decode import Prefilled, behind, extended, greedy, prefill

MARKERS = "markers alone"
"""A block without slots."""
AT_ONCE = 4
"""Variants that are run together: so many copies of the questions' keys and values are held."""


@dataclass(frozen=True)
class Variant:
    """One change: the inputs of the slots, of which those `kept` (None: all) are seen; None: there is no block."""

    name: str
    inputs_BKD: Tensor | None
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Reply:
    """What an item's reply holds behind its first block: ids and labels [M], and images with their places.

    `positions_3M` count from the first column. Only tokens outside blocks have labels: every variant scores the same.
    """

    ids_M: Tensor
    labels_M: Tensor
    positions_3M: Tensor
    visuals: list[Visual]


@dataclass(frozen=True)
class Reading:
    """Items whose questions have run; `inputs_BKD` are the unchanged model's, `start` is behind the questions.

    `prompt_BD` are the states at the questions' last tokens. `plain` are the replies without any block.
    """

    start: Prefilled
    prompt_BD: Tensor
    inputs_BKD: Tensor
    replies: list[Reply]
    plain: list[Reply]


class Prober:
    """A model that feeds back under every change of its slots' inputs, greedy, at temperature 0."""

    def __init__(self, model: FeedbackForConditionalGeneration, processor: Any, method: MethodConfig) -> None:
        self.model, self.processor, self.method = model.eval(), processor, method
        self.encoder, self.latent = Encoder(processor), LatentConfig(num_slots=model.config.num_slots)

    @torch.inference_mode()
    def __call__(
        self,
        items: Sequence[StoredSample],
        donor: StoredSample,
        max_new_tokens: int,
        seed: int,
        only: Sequence[str] = (),
    ) -> list[ProbeAnswer]:
        """As `Prober`. Only the constant input depends on what is asked together."""
        reading = self.read(items)
        donor_1KD = self.read([donor]).inputs_BKD  # and nothing else of it: its keys and values are large
        chosen = variants(reading.inputs_BKD, donor_1KD, [item.sample_id for item in items], donor.sample_id, seed)
        answers: list[ProbeAnswer] = []
        for same in _together([variant for variant in chosen if not only or variant.name in only]):
            answers += self._answers(items, reading, same, max_new_tokens)
        return answers

    @torch.inference_mode()
    def held(self, items: Sequence[StoredSample]) -> Held:
        """The slots' inputs: states that are fed back."""
        reading = self.read(items)
        return Held(reading.inputs_BKD, reading.prompt_BD)

    def read(self, items: Sequence[StoredSample]) -> Reading:
        """Runs the questions, and behind each the unchanged block as far as the last slot's input."""
        c, device = self.model.config, self.model.device
        prompts, replies, plain, visuals = [], [], [], []
        for item in items:
            encoded = laid_out(self.encoder, self.method, self.latent, item)
            ids_T, labels_T = torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.labels)
            shown = len(PLACEHOLDER.findall(item.question))
            shows_T = (ids_T == c.vision_start_token_id).cumsum(0) > shown  # from an image of the reply on
            begin = int(((labels_T != IGNORED) | (ids_T == c.block_start_token_id) | shows_T).nonzero()[0])
            visuals += visuals_of(encoded)[:shown]
            prompts.append(ids_T[:begin])
            outside_T = outside_blocks(ids_T, c.block_start_token_id, c.block_end_token_id)
            first = begin
            if ids_T[begin] == c.block_start_token_id:
                first += int((ids_T[begin:] == c.block_end_token_id).nonzero()[0]) + 1
            labels_T = labels_T.masked_fill(~outside_T, IGNORED)  # an entry marker is not scored: a variant has none
            within_T = torch.arange(len(ids_T)) >= first
            replies.append(self._reply(encoded, ids_T[:begin], ids_T[within_T], labels_T[within_T], shown))
            within_T &= outside_T
            plain.append(self._reply(encoded, ids_T[:begin], ids_T[within_T], labels_T[within_T], shown))
        pad = self.processor.tokenizer.pad_token_id
        mask = pad_sequence([torch.ones_like(ids_T) for ids_T in prompts], True, 0, "left")
        inputs = {"input_ids": pad_sequence(prompts, True, pad, "left"), "attention_mask": mask}
        inputs |= visual_inputs(visuals)
        start = prefill(self.model, {name: value.to(device) for name, value in inputs.items()})
        prompt_BD = start.cache.layers[-1].last_B1D[:, 0]
        block = torch.tensor([c.block_start_token_id, *c.slot_token_ids[1:]], device=device).expand(len(items), -1)
        inputs_BKD = behind(self.model, start, torch.ones_like(block, dtype=torch.bool), input_ids=block)
        inputs_BKD = self.model.fed(inputs_BKD)
        start.cache.crop(-c.num_slots)
        return Reading(start, prompt_BD, inputs_BKD, replies, plain)

    def _reply(self, encoded: Encoded, prompt_T: Tensor, ids_M: Tensor, labels_M: Tensor, shown: int) -> Reply:
        """`ids_M` behind the prompt, whose images are the first `shown` ones."""
        grid, seconds = (None if x is None else torch.from_numpy(x) for x in (encoded.image_grid_thw, encoded.seconds))
        whole_T = torch.cat([prompt_T, ids_M])
        base = backbone_of(self.model)
        positions_3T = base.packed_positions(self.model, whole_T, [len(whole_T)], grid, seconds)
        last, own_3M = positions_3T[:, len(prompt_T) - 1].amax(), positions_3T[:, len(prompt_T) :]
        return Reply(ids_M, labels_M, own_3M - last - 1, visuals_of(encoded)[shown:])

    def _answers(
        self, items: Sequence[StoredSample], reading: Reading, chosen: Sequence[Variant], max_new_tokens: int
    ) -> list[ProbeAnswer]:
        """Answers [V x B] of variants with equally many columns."""
        block = chosen[0].inputs_BKD is not None
        start = self._start(reading, chosen)
        scores = self._log_likelihoods(start, (reading.replies if block else reading.plain) * len(chosen))
        assert reading.start.ids_BT is not None
        rules = self.model.rules(reading.start.ids_BT.shape[1], None if block else "never")
        tokens = greedy(self.model, start, max_new_tokens, rules=rules)
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        names = [(item.sample_id, variant.name) for variant in chosen for item in items]
        return [ProbeAnswer(*name, text, score) for name, text, score in zip(names, texts, scores, strict=True)]

    def _start(self, reading: Reading, chosen: Sequence[Variant]) -> Prefilled:
        """All variants behind copies of the same questions' cache: behind their blocks, where they have some."""
        start = repeated(self.model, reading.start, len(chosen))
        given = [variant.inputs_BKD for variant in chosen if variant.inputs_BKD is not None]
        if not given:
            return start
        c, inputs_NKD, (items, slots, _) = self.model.config, torch.cat(given), given[0].shape
        tokens = [c.block_start_token_id, *[c.slot_token_id] * slots, c.block_end_token_id]
        ids_NM = torch.tensor(tokens, device=inputs_NKD.device).expand(len(inputs_NKD), -1)
        embeds_NMD = self.model.get_input_embeddings()(ids_NM)
        embeds_NMD = torch.cat([embeds_NMD[:, :1], inputs_NKD, embeds_NMD[:, -1:]], 1)
        seen_NM = torch.ones_like(ids_NM, dtype=torch.bool)
        for number, variant in enumerate(chosen):
            hidden = set() if variant.kept is None else set(range(slots)) - set(variant.kept)
            for slot in hidden:
                seen_NM[number * items : (number + 1) * items, 1 + slot] = False
        hidden_NMD = behind(self.model, start, seen_NM, input_ids=ids_NM, inputs_embeds=embeds_NMD)
        return extended(self.model, start, hidden_NMD, seen_NM, ids_NM)

    def _log_likelihoods(self, start: Prefilled, replies: Sequence[Reply]) -> list[float]:
        """log p of the tokens of each reply that have a label; `start` stays as it is."""
        device = start.seen_BT.device
        ids_BM = pad_sequence([reply.ids_M for reply in replies], True).to(device)
        labels_BM = pad_sequence([reply.labels_M for reply in replies], True, IGNORED).to(device)
        places_BM3 = pad_sequence([reply.positions_3M.T for reply in replies], True).to(device)
        inputs = {"input_ids": ids_BM, "position_ids": places_BM3.permute(2, 0, 1) + start.position_B[:, None]}
        shown = visual_inputs([visual for reply in replies for visual in reply.visuals])
        inputs |= {name: value.to(device) for name, value in shown.items()}
        hidden_BMD = behind(self.model, start, torch.ones_like(ids_BM, dtype=torch.bool), **inputs)
        start.cache.crop(-ids_BM.shape[1])
        row_N, place_N = (labels_BM != IGNORED).nonzero(as_tuple=True)
        logits_NV = self.model.lm_head(hidden_BMD[row_N, (place_N - 1).clamp_min(0)]).to(start.logits_BV)
        first_N = place_N == 0
        logits_NV[first_N] = start.logits_BV[row_N[first_N]]
        return sums(-token_losses(logits_NV, labels_BM[row_N, place_N]), row_N, len(replies))


def outside_blocks(ids_T: Tensor, begin: int | None, end: int | None) -> Tensor:
    """Which tokens stand in no latent block; its markers stand in it."""
    begins_T, ends_T = (ids_T == begin).long(), (ids_T == end).long()
    opened_T, closed_before_T = begins_T.cumsum(0), ends_T.cumsum(0) - ends_T
    return opened_T == closed_before_T


def repeated(model: Any, start: Prefilled, copies: int) -> Prefilled:
    """`start` so many times over, on a cache of its own."""
    cache = DynamicCache(config=model.config.text_config)
    for number in range(model.config.text_config.num_hidden_layers):
        layer = start.cache.layers[number]
        cache.update(layer.keys.repeat(copies, 1, 1, 1), layer.values.repeat(copies, 1, 1, 1), number)
    assert start.ids_BT is not None
    last = LastState()
    last.images_BS = start.cache.layers[-1].images_BS
    last.batch_select_indices(torch.arange(len(start.ids_BT)).repeat(copies))
    cache.layers.append(last)
    return Prefilled(
        cache,
        start.logits_BV.repeat(copies, 1),
        start.seen_BT.repeat(copies, 1),
        start.position_B.repeat(copies),
        start.ids_BT.repeat(copies, 1),
    )


def _together(chosen: Sequence[Variant]) -> Iterator[list[Variant]]:
    """`AT_ONCE` of equally many columns at a time, in order."""
    for _, same in groupby(chosen, lambda variant: None if variant.inputs_BKD is None else variant.inputs_BKD.shape):
        found = list(same)
        for first in range(0, len(found), AT_ONCE):
            yield found[first : first + AT_ONCE]


def variants(
    inputs_BKD: Tensor, donor_1KD: Tensor, sample_ids: Sequence[str], donor_id: str, seed: int
) -> list[Variant]:
    """Every change of the inputs of a batch's slots.

    - unchanged: the states before them. zeroed: 0. noise: a random direction with each input's norm. swapped: another
      item's inputs. shuffled: the slots' inputs in another order, none in its place (not where there is one slot).
    - dropped i: slot i hidden from everything behind it, all inputs and positions as they are.
    - constant: slot by slot the mean over the other items that are asked together and the donor.
    - markers alone: a block without slots. no block: the question, and no block anywhere in the reply.
    """
    slots = inputs_BKD.shape[1]
    direction_BKD = torch.stack([normal(inputs_BKD[0], seed, f"noise/{name}") for name in sample_ids])
    length_BK1 = inputs_BKD.norm(dim=-1, keepdim=True) / direction_BKD.norm(dim=-1, keepdim=True)
    found = [
        Variant(UNCHANGED, inputs_BKD),
        Variant("zeroed", torch.zeros_like(inputs_BKD)),
        Variant("noise", direction_BKD * length_BK1),
        Variant(SWAPPED, torch.cat([inputs_BKD[1:], donor_1KD])),
        Variant(CONSTANT, mean_of_others(inputs_BKD, donor_1KD, donor_id in sample_ids)),
    ]
    if slots > 1:
        orders = [moved(slots, seed, "shuffled", name) for name in sample_ids]
        shuffled = [own_KD[order] for own_KD, order in zip(inputs_BKD, orders, strict=True)]
        found.append(Variant("shuffled", torch.stack(shuffled)))
    for slot in range(slots):
        kept = tuple(other for other in range(slots) if other != slot)
        found.append(Variant(f"dropped {slot + 1}", inputs_BKD, kept))
    return [*found, Variant(MARKERS, inputs_BKD[:, :0]), Variant(NO_BLOCK, None)]
