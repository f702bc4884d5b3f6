"""Mull-Tokens asked the same questions with its slots changed: its side of the faithfulness suite.

A slot's input is the same in every question, so its latent is its state in front of every layer. Each variant runs the
prompts again with those states replaced in all layers.

Shape suffixes: B samples, K slots, T columns of prompts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amvl_core.backbones.backbone import backbone_of
from amvl_core.contracts.sample import Segment, StoredSample
from amvl_core.data.batch import visual_inputs, visuals_of
from amvl_core.data.encode import IGNORED, Encoder
from amvl_core.methods.block import block_text
from amvl_core.methods.feedback.probes import Variant, variants
from amvl_core.methods.loading import block_ids
from amvl_core.methods.mull.config import MullMethod
from amvl_core.methods.probing import Held, ProbeAnswer
from amvl_core.rows.decode import Prefilled, greedy, log_likelihoods, prefill


class MullProber:
    """A model with slots in its prompts under every change of their states, greedy."""

    def __init__(self, model: Any, processor: Any, method: MullMethod) -> None:
        self.model, self.processor, self.method = model.eval(), processor, method
        self.encoder = Encoder(processor)
        self.block = block_text(processor.tokenizer.convert_ids_to_tokens(model.config.slot_token_ids))

    @torch.inference_mode()
    def __call__(
        self,
        items: Sequence[StoredSample],
        donor: StoredSample,
        max_new_tokens: int,
        seed: int,
        only: Sequence[str] = (),
    ) -> list[ProbeAnswer]:
        """As `Prober`. Only the constant state depends on what is asked together."""
        names = [item.sample_id for item in items]
        layers = [
            variants(own_BKD, donor_1KD, names, donor.sample_id, seed)
            for own_BKD, donor_1KD in zip(self.states(items), self.states([donor]), strict=True)
        ]
        end = self.processor.tokenizer.eos_token
        replies = [[self.processor.tokenizer(item.answer + end)["input_ids"]] for item in items]
        answers: list[ProbeAnswer] = []
        for variant in zip(*layers, strict=True):
            name = variant[0].name
            if only and name not in only:
                continue
            start = self._start(items, variant)
            scores = log_likelihoods(self.model, start, replies)
            texts = self.processor.tokenizer.batch_decode(
                greedy(self.model, start, max_new_tokens), skip_special_tokens=True
            )
            answers += [
                ProbeAnswer(item, name, text, score) for item, text, (score,) in zip(names, texts, scores, strict=True)
            ]
        return answers

    @torch.inference_mode()
    def held(self, items: Sequence[StoredSample]) -> Held:
        """The slots' final states, which say a step each in the first stage."""
        inputs, found = self._inputs(items), []
        text = backbone_of(self.model).language_model(self.model)
        handle = text.register_forward_hook(lambda _, given, output: found.append(output.last_hidden_state))
        try:
            prefill(self.model, inputs, read=0)
        finally:
            handle.remove()
        (hidden_BTD,) = found
        before_B = (inputs["input_ids"] == self.model.config.block_start_token_id).int().argmax(1) - 1
        slots_ND = hidden_BTD[self._slots(inputs["input_ids"])]
        return Held(slots_ND.unflatten(0, (len(items), -1)), hidden_BTD[torch.arange(len(items)), before_B])

    def states(self, items: Sequence[StoredSample]) -> list[Tensor]:
        """The unchanged model's states of the slots in front of each layer, [B, K, D]."""
        inputs, found = self._inputs(items), []
        with at_layers(self.model, lambda _, hidden_BTD: found.append(hidden_BTD)):
            prefill(self.model, inputs)
        slots_BT = self._slots(inputs["input_ids"])
        return [hidden_BTD[slots_BT.to(hidden_BTD.device)].unflatten(0, (len(items), -1)) for hidden_BTD in found]

    def _start(self, items: Sequence[StoredSample], variant: Sequence[Variant]) -> Prefilled:
        """Behind the prompts; `variant` has the slots' states of each layer."""
        given, kept = [layer.inputs_BKD for layer in variant], variant[0].kept
        first = given[0]
        if first is None or not first.shape[1]:
            gone = block_ids(self.model) if first is None else self.model.config.slot_token_ids
            return prefill(self.model, self._inputs(items, gone))
        inputs = self._inputs(items)
        slots_BT = self._slots(inputs["input_ids"])
        hidden_BT = None
        if kept is not None:
            hidden_BT = slots_BT & ~torch.isin(slots_BT.cumsum(1) - 1, torch.tensor(kept, device=slots_BT.device))

        def replace(layer: int, hidden_BTD: Tensor) -> Tensor:
            return hidden_BTD.masked_scatter(slots_BT[..., None].to(hidden_BTD.device), given[layer])

        with at_layers(self.model, replace):
            return prefill(self.model, inputs, hidden_BT)

    def _inputs(self, items: Sequence[StoredSample], gone: Sequence[int] = ()) -> dict[str, Tensor]:
        """Prompts as the model takes them, without the tokens that are `gone`."""
        prompts, visuals = [], []
        for item in items:
            segments = [Segment("prompt", item.question), Segment("latent", self.block), Segment("answer", item.answer)]
            images = [item.images[number] for number in self.method.shown(item)]
            encoded = self.encoder.encode(item.sample_id, segments, images, item.videos)
            ids_T = torch.from_numpy(encoded.input_ids[encoded.labels == IGNORED])
            prompts.append(ids_T[~torch.isin(ids_T, torch.tensor(gone))] if gone else ids_T)
            visuals += visuals_of(encoded)
        mask = pad_sequence([torch.ones_like(ids_T) for ids_T in prompts], True, 0, "left")
        ids = pad_sequence(prompts, True, self.processor.tokenizer.pad_token_id, "left")
        inputs = {"input_ids": ids, "attention_mask": mask} | visual_inputs(visuals)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _slots(self, ids_BT: Tensor) -> Tensor:
        return torch.isin(ids_BT, torch.tensor(self.model.config.slot_token_ids, device=ids_BT.device))


@contextmanager
def at_layers(model: Any, change: Any) -> Iterator[None]:
    """While it is open, `change(layer, states)` is asked in front of each decoder layer; None leaves them."""

    def hook(number: int) -> Any:
        def before(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            changed = change(number, given[0])
            return None if changed is None else (changed, *given[1:])

        return before

    layers = backbone_of(model).language_model(model).layers
    handles = [layer.register_forward_pre_hook(hook(number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
