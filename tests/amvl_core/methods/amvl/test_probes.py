"""Every variant against the stock text model on one whole sequence at a time: nothing shared, nothing cached."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.encode import IGNORED, Encoder, laid_out
from amvl_core.eval.controls import Control
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.probes import Prober, variants
from amvl_core.methods.amvl.reference import samples, stock_hidden
from amvl_core.methods.loading import load_stock
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.written_mask import written_mask
from tests.shards import sample_of
from tests.tiny import LATENT, SAMPLES, amvl_model, picture, stock_folder

TOKENS = 5


def items() -> list[StoredSample]:
    return [
        sample_of(f"sample-{n}", question, answer, [picture(10 * n + i, *size) for i, size in enumerate(sizes)])
        for n, (question, answer, sizes) in enumerate(SAMPLES)
    ]


def stepwise() -> list[StoredSample]:
    """The same questions with steps: none, one that shows an image, two, one."""
    steps = ((), ("It is here: <image>.",), ("Look.", "There is one."), ("Yes.",))
    return [
        replace(item, steps=texts, images=(*item.images, *[picture(9, 48, 32)] * ("<image>" in "".join(texts))))
        for item, texts in zip(items(), steps, strict=True)
    ]


def continuations(model, batch, variant):
    """Of each sample: embeddings, positions and kinds of all before what is written; its ids, labels and embeddings.

    Kinds are token ids, in which Z, whatever it holds, is so many end markers.
    """
    k = model.config.num_slots
    rows = enumerate(samples(model, batch))
    for number, (_, ids, labels, embeds, positions) in rows:
        start = ids.tolist().index(model.config.slot_token_ids[0])
        end = start + k + 1
        first = end + batch.hidden_tokens[number]
        y = (ids[first:], labels[first:], embeds[:, first:])
        if variant.latent_BKZ is None:
            yield embeds[:, : start - 1], positions[..., : start - 1], ids[: start - 1], *y
            continue
        z = model.injector(variant.latent_BKZ[number].to(embeds.dtype))[None]
        kept = list(range(k) if variant.kept is None else variant.kept)
        at = [*range(start), *(start + slot for slot in kept), start + k]
        kinds = torch.cat([ids[:start], ids[end - 1].repeat(len(kept) + 1)])
        yield torch.cat([embeds[:, :start], z[:, kept], embeds[:, end - 1 : end]], 1), positions[..., at], kinds, *y


def hidden_states(model, embeds, positions, kinds) -> torch.Tensor:
    return stock_hidden(model, embeds, positions, written_mask(model, kinds))


def expected_log_likelihood(model, before, positions, kinds, ids, labels, y) -> float:
    place = positions.max() + 1 + torch.arange(len(ids)).expand(3, 1, -1)
    whole = torch.cat([before, y], 1), torch.cat([positions, place], -1), torch.cat([kinds, ids])
    hidden = hidden_states(model, *whole)
    logits = model.lm_head(hidden[0, -len(ids) - 1 : -1])
    keep = labels != IGNORED
    return -float(functional.cross_entropy(logits[keep], ids[keep], reduction="sum"))


def expected_text(model, processor, before, positions, kinds) -> str:
    written: list[int] = []
    settings = model.generation_config
    for _ in range(TOKENS):
        logits = model.lm_head(hidden_states(model, before, positions, kinds)[0, -1])
        logits[settings.suppress_tokens] = -torch.inf
        written.append(int(logits.argmax()))
        if written[-1] in torch.tensor(settings.eos_token_id).reshape(-1):
            break
        kinds = torch.cat([kinds, torch.tensor(written[-1:])])
        before = torch.cat([before, model.get_input_embeddings()(kinds[-1:])[None]], 1)
        positions = torch.cat([positions, positions.max().expand(3, 1, 1) + 1], -1)
    return processor.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("at_once", "asked", "fields"),
    [
        (1, items, {}),
        (4, items, {}),
        (100, items, {}),
        (4, stepwise, {"hidden_steps": 1}),
        (4, stepwise, {"hidden_steps": 1, "mask": "bottleneck"}),
    ],
)
def test_every_variant_is_the_stock_model_on_the_changed_sequence(
    at_once: int,
    asked: Callable[[], list[StoredSample]],
    fields: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float64 no log-likelihood was further off than 2e-14 of 57."""
    monkeypatch.setattr("amvl_core.methods.amvl.probes.AT_ONCE", at_once)
    model, processor = amvl_model()
    prober = Prober(model, processor, AmvlMethod.model_validate(fields))
    *asked, donor = asked()
    answers = prober(asked, donor, TOKENS, seed=3)
    with torch.no_grad():
        batch, reading = prober.read(asked)
        _, other = prober.read([donor])
        chosen = variants(reading, other.prior.mean, [item.sample_id for item in asked], donor.sample_id, seed=3)
        assert [answer.variant for answer in answers] == [v.name for v in chosen for _ in asked]
        found = iter(answers)
        texts = set()
        for variant in chosen:
            for item, (before, positions, kinds, ids, labels, y) in zip(
                asked, continuations(model, batch, variant), strict=True
            ):
                answer = next(found)
                assert answer.sample_id == item.sample_id
                expected = expected_log_likelihood(model, before, positions, kinds, ids, labels, y)
                assert answer.log_likelihood == pytest.approx(expected, rel=0, abs=1e-12), variant.name
                text = expected_text(model, processor, before, positions, kinds)
                assert answer.raw_output == text, variant.name
                texts.add((item.sample_id, text))
    assert len(texts) > len(asked)  # else a generation that ignores the latents would pass


@torch.no_grad()
@pytest.mark.parametrize("mask", ["full", "bottleneck"])
def test_slots_hold_the_mean_of_the_prior_that_the_stock_text_model_gives(mask: str) -> None:
    """In float64. Worst seen: 4e-15."""
    model, processor = amvl_model()
    prober, k = Prober(model, processor, AmvlMethod.model_validate({"mask": mask})), model.config.num_slots
    held = prober.held(items())
    batch, _ = prober.read(items())
    for number, (_, ids, _, embeds, positions) in enumerate(samples(model, batch)):
        start = ids.tolist().index(model.config.slot_token_ids[0])
        hidden = hidden_states(model, embeds[:, : start + k], positions[..., : start + k], ids[: start + k])[0]
        prior = model.prior(hidden[None, start:]).mean[0]
        torch.testing.assert_close(held.slots_BKD[number], prior, rtol=0, atol=1e-12)
        torch.testing.assert_close(held.prompt_BD[number], hidden[start - 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["full", "bottleneck"])
def test_the_unchanged_model_writes_and_scores_as_an_evaluation_does(mask: str) -> None:
    """In float64 log-likelihoods were equal; the tolerance is that of the variants."""
    model, processor = amvl_model()
    *asked, donor = items()
    method = AmvlMethod.model_validate({"mask": mask})
    found = Prober(model, processor, method)(asked, donor, 8, seed=0, only=["unchanged"])
    answerer, shown, questions = (
        Answerer(model, processor),
        [item.images for item in asked],
        [i.question for i in asked],
    )
    assert [answer.raw_output for answer in found] == answerer.answer(shown, questions, 8)
    scores = answerer.score(shown, questions, [[item.answer] for item in asked])
    for answer, (score,) in zip(found, scores, strict=True):
        assert answer.log_likelihood == pytest.approx(score, rel=0, abs=1e-12)


def test_what_is_asked_together_does_not_matter() -> None:
    """Alone or three at a time; in float64 no log-likelihood was further off than 2e-15 of 30.

    The constant is a mean over what is asked together.
    """
    model, processor = amvl_model()
    prober = Prober(model, processor, AmvlMethod())
    asked = items()
    together = prober(asked[:3], asked[3], TOKENS, seed=1)
    alone = [answer for number in range(3) for answer in prober([asked[number]], asked[number + 1], TOKENS, seed=1)]
    by_name = {(answer.sample_id, answer.variant): answer for answer in alone}
    assert len(by_name) == len(together)
    for answer in together:
        if answer.variant == "constant":
            continue
        other = by_name[answer.sample_id, answer.variant]
        assert answer.raw_output == other.raw_output
        assert answer.log_likelihood == pytest.approx(other.log_likelihood, rel=0, abs=1e-12)


def test_the_changes_are_what_they_are_called() -> None:
    model, processor = amvl_model()
    prober = Prober(model, processor, AmvlMethod())
    with torch.no_grad():
        _, reading = prober.read(items()[:3])
    mean = reading.prior.mean
    names = ["sample-0", "sample-1", "sample-2"]
    found = {v.name: v for v in variants(reading, mean[:1], names, "another", seed=0)}
    assert list(found) == [
        "unchanged", "zeroed", "noise", "swapped", "constant", "shuffled", "dropped 1", "dropped 2", "dropped 3",
        "posterior", "tau 0.2", "tau 0.5", "tau 0.8", "tau 1", "no block",
    ]  # fmt: skip
    assert torch.equal(found["unchanged"].latent_BKZ, mean)
    assert not found["zeroed"].latent_BKZ.any()
    noise = found["noise"].latent_BKZ
    torch.testing.assert_close(noise.norm(dim=-1), mean.norm(dim=-1))
    assert functional.cosine_similarity(noise, mean, dim=-1).abs().max() < 0.99
    assert torch.equal(found["swapped"].latent_BKZ, mean.roll(-1, 0))
    torch.testing.assert_close(found["constant"].latent_BKZ[1], torch.stack([mean[0], mean[2], mean[0]]).mean(0))
    for sample in range(3):
        order = [
            [bool(torch.equal(a, b)) for b in mean[sample]].index(True) for a in found["shuffled"].latent_BKZ[sample]
        ]
        assert sorted(order) == [0, 1, 2]
        assert all(order[slot] != slot for slot in range(3))
    assert [found[f"dropped {slot}"].kept for slot in (1, 2, 3)] == [(1, 2), (0, 2), (0, 1)]
    assert torch.equal(found["posterior"].latent_BKZ, reading.posterior.mean)
    noises = [
        (found[f"tau {tau:g}"].latent_BKZ - mean) / tau * torch.exp(-0.5 * reading.prior.logvar)
        for tau in (0.2, 0.5, 0.8, 1.0)
    ]
    for other in noises[1:]:
        torch.testing.assert_close(other, noises[0])
    other_seed = {v.name: v for v in variants(reading, mean[:1], names, "another", seed=1)}
    assert not torch.equal(other_seed["noise"].latent_BKZ, noise)


@pytest.mark.parametrize("kind", [SftMethod, PauseMethod])
def test_a_control_is_scored_as_the_stock_model_scores_itself(kind: type, tmp_path) -> None:
    """In float64; the tolerance is that of the variants."""
    processor = load_processor(stock_folder())
    method = kind()
    slots = method.slots(LATENT)
    model = load_stock(stock_folder(), processor, slots or None, dtype=torch.float64)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answerer = Answerer.from_pretrained(str(tmp_path))
    asked = items()
    found = Control(answerer, method, LATENT)(asked, "control", TOKENS)
    plain = answerer.answer([item.images for item in asked], [item.question for item in asked], TOKENS)
    assert [answer.raw_output for answer in found] == plain
    assert {answer.variant for answer in found} == {"control"}
    for item, answer in zip(asked, found, strict=True):
        encoded = laid_out(Encoder(processor), method, LATENT, item)
        ids, labels = torch.from_numpy(encoded.input_ids)[None], torch.from_numpy(encoded.labels)
        given = {}
        if encoded.pixel_values is not None:
            given = {
                "pixel_values": torch.from_numpy(encoded.pixel_values),
                "image_grid_thw": torch.from_numpy(encoded.image_grid_thw),
                "mm_token_type_ids": (ids == processor.image_token_id).int(),
            }
        model.model.rope_deltas = None
        with torch.no_grad():
            logits = model(input_ids=ids, **given).logits[0, :-1]
        keep = labels[1:] != IGNORED
        expected = -float(functional.cross_entropy(logits[keep], labels[1:][keep], reduction="sum"))
        assert answer.log_likelihood == pytest.approx(expected, rel=0, abs=1e-12)
