"""Mull-Tokens' two stages, generation and probes against the stock model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import IGNORED, Encoder, laid_out_to_train
from amvl_core.eval.benchmarks.prepared import question_images
from amvl_core.eval.predict import Answerer
from amvl_core.methods.feedback.probes import Variant, variants
from amvl_core.methods.loading import block_ids
from amvl_core.methods.mull.config import MullMethod
from amvl_core.methods.mull.method import Mull
from amvl_core.methods.mull.probes import MullProber, at_layers
from amvl_core.methods.written_mask import written_mask
from tests.numerics.held import CLOCK, held_to_reference, shaken, trained
from tests.tiny import picture, stock_folder

LATENT = LatentConfig(num_slots=3)


def items() -> list[StoredSample]:
    """Steps in words, with an image, an image alone, more than there are slots, and no image at all."""
    given: list[tuple[str, tuple[str, ...], str]] = [
        ("<image>What colour?", ("Look here.", "It is red."), "red"),
        ("How many legs?", ("A cat has four.",), "4"),
        ("<image><image>Which one?", ("Zoom in: <image> so it is larger.",), "the second"),
        ("<image>And now?", ("<image>",), "yes"),
        ("<image>Far?", ("One.", "Two.", "Three.", "Four."), "no"),
    ]
    return [
        StoredSample(
            f"sample-{number}", "s", "t", question, texts, (None,) * len(texts), answer,
            tuple(picture(10 * number + i, 64, 48) for i in range("".join([question, *texts]).count("<image>"))),
        )
        for number, (question, texts, answer) in enumerate(given)
    ]  # fmt: skip


def method(**fields: Any) -> tuple[Mull, AMVLProcessor]:
    processor = load_processor(stock_folder())
    model = shaken(Mull.load(stock_folder(), processor, LATENT, dtype=torch.float64))
    ours = Mull(model, MullMethod(image_size=32, **fields))
    ours.equip(processor, {})
    return ours, processor


def batch(ours: Mull, processor: AMVLProcessor, chosen: list[StoredSample] | None = None) -> Batch:
    encoder = Encoder(processor)
    return collate([laid_out_to_train(encoder, ours.config, LATENT, item, {}) for item in chosen or items()])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    "fields",
    [
        {"guided": True},
        {},
        {"guided": True, "words_weight": 2.0, "images_weight": 0.0},
        {"guided": True, "mask": "bottleneck"},
        {"mask": "bottleneck"},
    ],
)
def test_loss_and_every_gradient_equal_the_stock_model(fields: dict[str, Any], checkpointing: bool) -> None:
    """Float64. Worst seen: 2e-16 in the loss, 3e-16 in gradients."""
    ours, processor = method(**fields)
    held_to_reference(trained(ours), batch(ours, processor), checkpointing)


def test_a_guided_slot_stands_for_a_stretch_of_words_or_an_image() -> None:
    ours, processor = method(guided=True)
    data, decode = batch(ours, processor), processor.tokenizer.decode
    assert [[decode(ids) for ids in sample] for sample in data.words] == [
        ["Look here.", "It is red."],
        ["A cat has four."],
        ["Zoom in:", "", "so it is larger."],
        [""],
        ["One.", "Two.", "Three."],
    ]
    assert data.about == [[None, None], [None], [None, 0, None], [1], [None, None, None]]
    assert data.num_images == [1, 0, 2, 1, 1]
    answers = [decode(labels[labels != IGNORED]) for labels in data.labels_N.split(data.lengths)]
    end = processor.tokenizer.eos_token
    assert answers == [f"{item.answer}{end}" for item in items()]


def test_targets_are_the_stock_encoders_mean_features() -> None:
    """In float32, as features are kept. Worst seen: 1e-7."""
    ours, processor = method(guided=True)
    data, p = batch(ours, processor), processor.image_processor
    (square_I3SS,) = data.targets.values()
    pixels, grids = [], []
    for image in square_I3SS:
        found = p(images=[image.permute(1, 2, 0).numpy()], do_resize=False, return_tensors="pt")
        pixels.append(found["pixel_values"])
        grids.append(found["image_grid_thw"])
    features = ours.model.model.get_image_features(torch.cat(pixels).double(), torch.cat(grids)).pooler_output
    expected = torch.stack([part.mean(0) for part in features])
    torch.testing.assert_close(ours.targets(data).double(), expected, rtol=0, atol=1e-6)


def test_terms_add_up_however_the_batch_is_divided() -> None:
    """Worst seen: 2e-16."""
    ours, processor = method(guided=True)
    whole = ours(batch(ours, processor), CLOCK)
    parts = [ours(batch(ours, processor, [item]), CLOCK) for item in items()]
    assert set(whole.terms) == {"loss", "ntp", "words", "images"}
    for name, value in whole.terms.items():
        assert value > 0
        torch.testing.assert_close(sum(part.terms[name] for part in parts), value, rtol=1e-12, atol=1e-14)


def test_a_sample_without_steps_has_slots_that_stand_for_nothing() -> None:
    ours, processor = method(guided=True)
    data = batch(ours, processor, [replace(items()[1], steps=(), step_images=())])
    assert data.words == [[[], [], []]] and data.about == [[None, None, None]]
    terms = ours(data, CLOCK).terms
    assert terms["ntp"] == terms["loss"] > 0 == terms["words"] == terms["images"]


def test_what_cannot_be_trained_on_is_refused() -> None:
    guided, second = (stage.method for stage in list(PRESETS["mull-demo"]().stages.values())[1:])
    bare = replace(items()[1], steps=(), step_images=())
    assert [guided.lacks(bare), guided.lacks(items()[1]), second.lacks(bare)] == ["steps", None, None]
    ours, processor = method(guided=True)
    data = batch(ours, processor)
    with pytest.raises(DataError, match="sample-0: 2 latent slots stand for 1 steps"):
        ours(replace(data, words=[said[:1] for said in data.words]), CLOCK)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"mask": "bottleneck"}], ids=["full", "bottleneck"])
def test_the_unchanged_probe_is_the_model_and_every_other_changes_it(fields: dict[str, Any]) -> None:
    ours, processor = method(**fields)
    donor, *asked = items()
    answers = Mull.prober(ours.model.eval(), processor, ours.config)(asked, donor, 6, seed=0)
    by_name = {(a.variant, a.sample_id): a for a in answers}
    answerer = Answerer(ours.model, processor)
    images, questions = [question_images(item) for item in asked], [item.question for item in asked]
    scores = answerer.score(images, questions, [[item.answer] for item in asked])
    texts = answerer.answer(images, questions, 6)
    for item, text, (score,) in zip(asked, texts, scores, strict=True):
        unchanged = by_name["unchanged", item.sample_id]
        assert unchanged.log_likelihood == pytest.approx(score, abs=1e-11)
        for variant in ("zeroed", "noise", "swapped", "constant", "shuffled", "dropped 2", "markers alone", "no block"):
            assert by_name[variant, item.sample_id].log_likelihood != unchanged.log_likelihood, variant
        assert unchanged.raw_output == text


@torch.no_grad()
@pytest.mark.parametrize("mask", ["full", "bottleneck"])
def test_every_probe_is_the_stock_model_on_whole_sequences(mask: str) -> None:
    """Log-likelihoods in float64. Worst seen: 7e-15 of 38."""
    ours, processor = method(mask=mask)
    model, (donor, *asked) = ours.model.eval(), items()
    prober = Mull.prober(model, processor, ours.config)
    assert isinstance(prober, MullProber)
    found = {(a.variant, a.sample_id): a.log_likelihood for a in prober(asked, donor, 1, seed=0)}
    own, other, names = prober.states(asked), prober.states([donor]), [item.sample_id for item in asked]
    changes = list(zip(*(variants(*of, names, donor.sample_id, 0) for of in zip(own, other, strict=True)), strict=True))
    assert len(found) == len(changes) * len(asked)
    for layers in changes:
        for row, item in enumerate(asked):
            expected = expected_log_likelihood(ours, batch(ours, processor, [item]), layers, row)
            assert found[layers[0].name, item.sample_id] == pytest.approx(expected, rel=0, abs=1e-12), layers[0].name


def expected_log_likelihood(ours: Mull, data: Batch, layers: Sequence[Variant], row: int) -> float:
    """By one pass over one sequence, with the slots' states in front of each layer given."""
    model, slots, (change, *_) = ours.model, torch.tensor(ours.model.config.slot_token_ids), layers
    gone = slots[:0]
    if change.inputs_BKD is None:
        gone = torch.tensor(block_ids(model))
    elif not change.inputs_BKD.shape[1]:
        gone = slots
    kept_T = ~torch.isin(data.input_ids_N, gone)
    ids_T, labels_T = data.input_ids_N[kept_T], data.labels_N[kept_T]
    places = torch.isin(ids_T, slots).nonzero()[:, 0]
    written = written_mask(model, ids_T)
    causal_TT = torch.full((len(ids_T), len(ids_T)), -torch.inf, dtype=torch.float64).triu(1)
    mask_TT = causal_TT if written is None else written[0, 0]
    if change.kept is not None:
        for slot in {*range(len(slots))} - {*change.kept}:
            mask_TT[places[slot] + 1 :, places[slot]] = -torch.inf
    states = [None if layer.inputs_BKD is None else layer.inputs_BKD[row] for layer in layers]

    def given(layer: int, hidden_1TD: Tensor) -> Tensor | None:
        return hidden_1TD.index_copy(1, places, states[layer][None]) if len(places) else None

    positions_31T = backbone_of(model).positions(model, ids_T[None], data.image_grid_thw)
    embeds_1TD = ours.embed(replace(data, input_ids_N=ids_T, labels_N=labels_T, lengths=[len(ids_T)]))[None]
    with at_layers(model, given):
        output = model.model.language_model(
            inputs_embeds=embeds_1TD, attention_mask=mask_TT[None, None], position_ids=positions_31T, use_cache=False
        )
    logits_TV = model.lm_head(output.last_hidden_state[0, :-1])
    return -float(functional.cross_entropy(logits_TV, labels_T[1:], ignore_index=IGNORED, reduction="sum"))


@torch.no_grad()
@pytest.mark.parametrize("mask", ["full", "bottleneck"])
def test_slots_hold_the_stock_models_final_states(mask: str) -> None:
    """Each question alone. Float64; worst seen: 4e-15."""
    ours, processor = method(mask=mask)
    model = ours.model.eval()
    held = Mull.prober(model, processor, ours.config).held(items())
    answerer = Answerer(model, processor)
    for number, item in enumerate(items()):
        inputs = answerer.encode([question_images(item)], [item.question]).inputs
        ids_1T = inputs["input_ids"]
        positions = backbone_of(model).positions(model, ids_1T, inputs.get("image_grid_thw"))
        given = {**inputs, "attention_mask": written_mask(model, ids_1T[0]), "position_ids": positions}
        (hidden,) = model(**given, output_hidden_states=True).hidden_states[-1]
        ids = ids_1T[0].tolist()
        first = ids.index(model.config.slot_token_ids[0])
        torch.testing.assert_close(held.slots_BKD[number], hidden[first : first + 3], rtol=0, atol=1e-12)
        torch.testing.assert_close(held.prompt_BD[number], hidden[first - 2], rtol=0, atol=1e-12)
