"""Every variant against the stock text model on one whole sequence at a time: nothing shared, nothing cached."""

from __future__ import annotations

from functools import cache
from itertools import count
from typing import Any

import pytest
import torch
from torch.nn import functional

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import collate
from amvl_core.data.encode import IGNORED, Encoder, laid_out
from amvl_core.eval.benchmarks.prepared import question_images
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.reference import samples, stock_hidden
from amvl_core.methods.feedback.probes import Prober, outside_blocks, variants
from amvl_core.methods.valr.config import ValrMethod
from amvl_core.methods.written_mask import written_mask
from tests.numerics.test_valr_generation import K, stock_twin, valr_model
from tests.shards import sample_of
from tests.tiny import picture

TOKENS = 12
METHOD = ValrMethod(blocks="every_step", encoders=())


def items() -> list[StoredSample]:
    """With one block, with several, with a picture in a step, and without any picture."""
    return [
        sample_of("one", "<image>What colour is it?", "red", [picture(1)], ["look at the circle"]),
        sample_of(
            "two", "<image><image>More?", "no, fewer", [picture(2, 48, 32), picture(3)], ["left", "right", "top"]
        ),
        sample_of("three", "Is there a circle in the image?", "yes", [], []),
        sample_of(
            "four", "<image>What shape?", "star", [picture(4), picture(5, 32, 48)], ["look", "<image>here", "a star"]
        ),
    ]


class Naive:
    """One item under every variant, in whole passes of the stock text model."""

    def __init__(self, model, processor, item: StoredSample) -> None:
        self.model, self.twin, c = model, stock_twin(model), model.config
        self.begin, self.slot, self.end = c.block_start_token_id, c.slot_token_id, c.block_end_token_id
        encoded = laid_out(Encoder(processor), METHOD, LatentConfig(num_slots=K), item)
        ((_, self.ids, self.labels, self.embeds, self.positions),) = samples(model, collate([encoded]))
        self.prompt = int((self.labels != IGNORED).nonzero()[0])
        assert self.ids[self.prompt] == self.begin and self.ids[self.prompt + K + 1] == self.end
        rows = model.get_input_embeddings().weight.detach().numpy()
        self.known = {row.tobytes(): token for token, row in reversed(list(enumerate(rows)))}
        self.known |= {row.tobytes(): c.image_token_id for row in self.embeds[0, self.ids == c.image_token_id].numpy()}

    def token(self, number: int) -> torch.Tensor:
        return self.model.get_input_embeddings()(torch.tensor([[number]]))

    def state(self, embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        mask = written_mask(self.model, torch.tensor(self.tokens(embeds)))
        return stock_hidden(self.twin, embeds, positions, mask)[:, -1:]

    def tokens(self, embeds: torch.Tensor) -> list[int]:
        """What each column is, by its embedding: an image's feature, a token, or else something fed to a slot."""
        return [self.known.get(row.numpy().tobytes(), self.slot) for row in embeds[0]]

    def inputs(self) -> torch.Tensor:
        """The unchanged inputs of the first block's slots, [1, K, D]."""
        embeds, found = self.embeds[:, : self.prompt + 1], []
        for slot in range(K):
            found.append(self.state(embeds, self.positions[..., : self.prompt + 1 + slot]))
            embeds = torch.cat([embeds, found[-1]], 1)
        return torch.cat(found, 1)

    def before(self, variant, row: int):
        """Embeddings and positions of the question and the changed block, and the position of what follows."""
        embeds, positions = self.embeds[:, : self.prompt], self.positions[..., : self.prompt]
        place = positions.max() + 1
        if variant.inputs_BKD is None:
            return embeds, positions, place
        given = variant.inputs_BKD[row : row + 1]
        slots = given.shape[1]
        kept = list(range(slots) if variant.kept is None else variant.kept)
        at = place + torch.tensor([0, *(1 + slot for slot in kept), slots + 1])
        block = torch.cat([self.token(self.begin), given[:, kept], self.token(self.end)], 1)
        return torch.cat([embeds, block], 1), torch.cat([positions, at.expand(3, 1, -1)], -1), place + slots + 2

    def log_likelihood(self, variant, row: int) -> float:
        embeds, positions, place = self.before(variant, row)
        first = self.prompt + K + 2
        kept = torch.arange(len(self.ids)) >= first
        if variant.inputs_BKD is None:
            kept &= outside_blocks(self.ids, self.begin, self.end)
        removed = (~kept & (torch.arange(len(self.ids)) >= first)).long().cumsum(0)
        # Where the text stands behind the block in the whole sequence, and where it stands here.
        shift = place - (self.positions[..., first - 1].max() + 1)
        total = 0.0
        for column in kept.nonzero()[:, 0].tolist():
            token = int(self.ids[column])
            state = self.state(embeds, positions)
            if self.labels[column] != IGNORED and token != self.begin:
                total += float(self.model.lm_head(state)[0, 0].log_softmax(-1)[token])
            embeds = torch.cat([embeds, state if token == self.slot else self.embeds[:, column : column + 1]], 1)
            at = self.positions[..., column : column + 1] + shift - removed[column]
            positions = torch.cat([positions, at], -1)
        return total

    def text(self, processor, variant, row: int) -> str:
        embeds, positions, place = self.before(variant, row)
        ids = self.ids[: self.prompt].tolist()
        if variant.inputs_BKD is not None:
            ids += [self.begin, *[self.slot] * variant.inputs_BKD.shape[1], self.end]
        rules = self.model.rules(self.prompt, "never" if variant.inputs_BKD is None else None)
        written: list[int] = []
        for step in count():
            if sum(token not in (self.begin, self.slot, self.end) for token in written) == TOKENS:
                break
            state = self.state(embeds, positions)
            logits = self.model.lm_head(state)[:, 0]
            written.append(int(rules(torch.tensor([ids]), logits).argmax()))
            if written[-1] == self.model.generation_config.eos_token_id:
                break
            ids.append(written[-1])
            fed = state if written[-1] == self.slot else self.token(written[-1])
            embeds = torch.cat([embeds, fed], 1)
            positions = torch.cat([positions, (place + step).expand(3, 1, 1)], -1)
        return processor.tokenizer.decode(written, skip_special_tokens=True)


def masked_model(mask: str) -> tuple[Any, AMVLProcessor]:
    model, processor = valr_model(eager_marker=3.0)
    model.config.bottleneck = mask == "bottleneck"
    return model, processor


DONOR = sample_of("donor", "<image>Where is it?", "left", [picture(9)])


@cache
@torch.no_grad()
def expected(mask: str) -> list[tuple[str, str, float, str]]:
    """Variant, sample, log-likelihood and text of every answer, one sequence at a time."""
    model, processor = masked_model(mask)
    asked = items()
    naive = [Naive(model, processor, item) for item in asked]
    natural, other = torch.cat([one.inputs() for one in naive]), Naive(model, processor, DONOR).inputs()
    return [
        (variant.name, item.sample_id, one.log_likelihood(variant, row), one.text(processor, variant, row))
        for variant in variants(natural, other, [item.sample_id for item in asked], DONOR.sample_id, seed=3)
        for row, (item, one) in enumerate(zip(asked, naive, strict=True))
    ]


@torch.no_grad()
@pytest.mark.parametrize(("at_once", "mask"), [(1, "full"), (4, "full"), (100, "full"), (4, "bottleneck")])
def test_every_variant_is_the_stock_model_on_the_changed_sequence(at_once: int, mask: str, monkeypatch) -> None:
    """In float64 no log-likelihood was further off than 2e-14 of 100."""
    monkeypatch.setattr("amvl_core.methods.feedback.probes.AT_ONCE", at_once)
    prober = Prober(*masked_model(mask), METHOD)
    for answer, (variant, sample_id, log_likelihood, text) in zip(
        prober(items(), DONOR, TOKENS, seed=3), expected(mask), strict=True
    ):
        assert (answer.variant, answer.sample_id, answer.raw_output) == (variant, sample_id, text)
        assert answer.log_likelihood == pytest.approx(log_likelihood, rel=0, abs=1e-12), variant
    texts = {(sample_id, text) for _, sample_id, _, text in expected(mask)}
    assert len(texts) > len(items())  # else a generation that ignores the slots would pass


@torch.no_grad()
@pytest.mark.parametrize("bottleneck", [False, True])
def test_slots_hold_the_stock_models_states_before_them(bottleneck: bool) -> None:
    """In float64. Worst seen: 4e-15."""
    model, processor = valr_model()
    model.config.bottleneck = bottleneck
    held = Prober(model, processor, METHOD).held(items())
    naive = [Naive(model, processor, item) for item in items()]
    prompts = [one.state(one.embeds[:, : one.prompt], one.positions[..., : one.prompt])[:, 0] for one in naive]
    torch.testing.assert_close(held.slots_BKD, torch.cat([one.inputs() for one in naive]), rtol=0, atol=1e-12)
    torch.testing.assert_close(held.prompt_BD, torch.cat(prompts), rtol=0, atol=1e-12)


def test_the_unchanged_model_writes_what_an_evaluation_writes() -> None:
    model, processor = valr_model()
    model.config.latent_mode = "first_step"
    donor, *asked = items()
    found = Prober(model, processor, METHOD)(asked, donor, 8, seed=0, only=["unchanged"])
    questions = [item.question for item in asked]
    plain = Answerer(model, processor).answer([question_images(item) for item in asked], questions, 8)
    assert [answer.raw_output for answer in found] == plain


def test_what_is_asked_together_does_not_matter_but_for_the_constant() -> None:
    """Alone or three at a time; in float64 no log-likelihood was further off than 2e-15."""
    model, processor = valr_model()
    prober = Prober(model, processor, METHOD)
    asked = items()
    together = prober(asked[:3], asked[3], 5, seed=1)
    alone = [answer for number in range(3) for answer in prober([asked[number]], asked[number + 1], 5, seed=1)]
    by_name = {(answer.sample_id, answer.variant): answer for answer in alone}
    assert len(by_name) == len(together)
    for answer in together:
        other = by_name[answer.sample_id, answer.variant]
        if answer.variant != "constant":
            assert answer.raw_output == other.raw_output
            assert answer.log_likelihood == pytest.approx(other.log_likelihood, rel=0, abs=1e-12)


def test_the_changes_are_what_they_are_called() -> None:
    inputs = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    donor = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    names = ["a", "b", "c"]
    found = {v.name: v for v in variants(inputs, donor, names, "d", seed=0)}
    assert list(found) == [
        "unchanged", "zeroed", "noise", "swapped", "constant", "shuffled",
        "dropped 1", "dropped 2", "dropped 3", "dropped 4", "markers alone", "no block",
    ]  # fmt: skip
    assert torch.equal(found["unchanged"].inputs_BKD, inputs)
    assert not found["zeroed"].inputs_BKD.any()
    noise = found["noise"].inputs_BKD
    torch.testing.assert_close(noise.norm(dim=-1), inputs.norm(dim=-1))
    assert functional.cosine_similarity(noise, inputs, dim=-1).abs().max() < 0.99
    assert torch.equal(found["swapped"].inputs_BKD, torch.cat([inputs[1:], donor]))
    torch.testing.assert_close(found["constant"].inputs_BKD[0], torch.cat([inputs[1:], donor]).mean(0))
    for sample in range(3):
        rows = found["shuffled"].inputs_BKD[sample]
        order = [[bool(torch.equal(a, b)) for b in inputs[sample]].index(True) for a in rows]
        assert sorted(order) == [0, 1, 2, 3] and all(order[slot] != slot for slot in range(4))
    assert [found[f"dropped {slot}"].kept for slot in (1, 4)] == [(1, 2, 3), (0, 1, 2)]
    assert found["markers alone"].inputs_BKD.shape == (3, 0, 8) and found["no block"].inputs_BKD is None
    other = {v.name: v for v in variants(inputs, donor, names, "d", seed=1)}
    assert not torch.equal(other["noise"].inputs_BKD, noise)


def test_tokens_outside_blocks() -> None:
    ids = torch.tensor([5, 1, 9, 9, 2, 6, 7, 1, 2, 8, 1, 9])
    assert outside_blocks(ids, 1, 2).int().tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0]
