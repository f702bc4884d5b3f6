"""LVR's step, fills, generation and probes against the stock model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Region, StoredSample, Video
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import IGNORED, Encoder, laid_out
from amvl_core.eval.benchmarks.prepared import question_images
from amvl_core.eval.predict import Answerer
from amvl_core.methods.lvr.config import LvrMethod
from amvl_core.methods.lvr.method import Lvr
from tests.numerics.held import CLOCK, held_to_reference, shaken, trained
from tests.numerics.test_generation import inputs, steps
from tests.numerics.test_valr_generation import naive, slots_in_blocks, stock_twin
from tests.tiny import SAMPLES, picture, stock_folder

LATENT = LatentConfig(num_slots=2)
STEPS = 3


def items() -> list[StoredSample]:
    """Regions in one of two images, of a whole image, of none, and in the image of a step that leaves the input."""
    given: list[Any] = [
        ("<image>What colour?", ("Look. <image>",), "red", [Region("cup", (17.0, 2.0, 40.0, 30.0))]),
        ("<image><image>Which one?", (), "the second", [Region("cup", (0.0, 0.0, 1.0, 1.0), 1)]),
        ("How many legs?", ("A cat has four.",), "4", []),
        ("<image>And now?", (), "yes", [Region("all", (0.0, 0.0, 64.0, 48.0)), Region("b", (0.0, 0.0, 9.0, 9.0))]),
        ("<image>Zoom?", ("So <image>",), "no", [Region("crop", (0.0, 0.0, 8.0, 8.0), 1)]),
    ]
    return [
        StoredSample(
            f"sample-{number}", "s", "t", question, texts, (None,) * len(texts), answer,
            tuple(picture(10 * number + i, 64, 48) for i in range("".join([question, *texts]).count("<image>"))),
            tuple(regions),
        )
        for number, (question, texts, answer, regions) in enumerate(given)
    ]  # fmt: skip


def method(**fields: Any) -> tuple[Lvr, AMVLProcessor]:
    processor = load_processor(stock_folder())
    model = shaken(Lvr.load(stock_folder(), processor, LATENT, dtype=torch.float64))
    return Lvr(model, LvrMethod(latent_steps=STEPS, **fields)), processor


def batch(ours: Lvr, processor: AMVLProcessor, chosen: list[StoredSample] | None = None) -> Batch:
    return collate([laid_out(Encoder(processor), ours.config, LATENT, item) for item in chosen or items()])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("fields", [{}, {"max_slots": 2, "replaced_steps": 0}, {"feature_weight": 0.0}])
def test_loss_and_every_gradient_equal_the_stock_model(fields: dict[str, Any], checkpointing: bool) -> None:
    """Float64. Worst seen: 3e-16 in the loss, 2e-16 in gradients."""
    ours, processor = method(**fields)
    held_to_reference(trained(ours), batch(ours, processor), checkpointing)


def test_slots_hold_the_stock_encoders_features_of_the_cells_that_the_box_reaches_into() -> None:
    ours, processor = method()
    data = batch(ours, processor)
    slots = (data.input_ids_N == ours.model.config.slot_token_id).nonzero()[:, 0].tolist()
    embeds, features = ours.filled(data, slots)
    assert torch.equal(embeds[slots], features) and not features.requires_grad
    images = ours.model.model.get_image_features(data.pixel_values, data.image_grid_thw).pooler_output
    merge = processor.image_processor.merge_size
    unit = processor.image_processor.patch_size * merge
    expected = []
    for number, (x1, y1, x2, y2) in ((0, (17, 2, 40, 30)), (2, (0, 0, 1, 1)), (3, (0, 0, 64, 48))):
        _, rows, columns = (data.image_grid_thw[number] // torch.tensor([1, merge, merge])).tolist()
        assert (rows * unit, columns * unit) == (48, 64)  # the pictures' own size
        for place in range(rows * columns):
            top, left = place // columns * unit, place % columns * unit
            if x1 < left + unit and left < x2 and y1 < top + unit and top < y2:
                expected.append(images[number][place])
    torch.testing.assert_close(features, torch.stack(expected).double(), rtol=0, atol=1e-12)
    assert [len(own) for own in data.filled_with] == [4, 1, 0, 12, 0]


def test_both_markers_are_labelled_and_slots_are_not() -> None:
    ours, processor = method()
    data, c = batch(ours, processor), ours.model.config
    for marker in (c.block_start_token_id, c.block_end_token_id):
        places = data.input_ids_N == marker
        assert int(places.sum()) == 3 and (data.labels_N[places] == marker).all()
    assert (data.labels_N[data.input_ids_N == c.slot_token_id] == IGNORED).all()


def test_a_sample_without_a_region_lacks_what_slots_are_trained_on() -> None:
    none = "regions in images that are shown"
    lacking = [LvrMethod().lacks(replace(item, images=())) for item in items()]
    assert lacking == [None, None, none, None, none]
    assert LvrMethod(replaced_steps=0).lacks(replace(items()[4], images=())) is None
    for region, lack in ((0, None), (1, none), (2, none), (3, None)):  # a still image, two frames, a still image
        sample = StoredSample(
            "i", "s", "t", "<image><video><image>Q?", (), (), "yes", tuple(picture(i, 64, 48) for i in range(4)),
            (Region("cup", (0.0, 0.0, 8.0, 8.0), region),), (Video(2, 1.0),),
        )  # fmt: skip
        assert LvrMethod().lacks(replace(sample, images=())) == lack
        fills = [segment.fill for segment in LvrMethod().layout(sample, LATENT) if segment.fill]
        assert [fill.image for fill in fills] == ([] if lack else [region])


def test_terms_add_up_however_the_batch_is_divided() -> None:
    """Worst seen: 4e-16."""
    ours, processor = method()
    whole = ours(batch(ours, processor), CLOCK)
    parts = [ours(batch(ours, processor, [item]), CLOCK) for item in items()]
    for name, value in whole.terms.items():
        torch.testing.assert_close(sum(part.terms[name] for part in parts), value, rtol=1e-12, atol=1e-14)


def test_slots_without_their_vision_tokens_are_refused() -> None:
    ours, processor = method()
    data = batch(ours, processor)
    wrong = replace(data, filled_with=[own[:1] for own in data.filled_with])
    with pytest.raises(DataError, match="sample-0: 4 latent slots, but 1 vision tokens"):
        ours(wrong, CLOCK)


def eager(model: Any) -> Any:
    """A model that likes to write its marker."""
    with torch.no_grad():
        row = model.lm_head.weight[model.config.block_start_token_id]
        noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(4), dtype=row.dtype)
        row.copy_(6 * noise / noise.norm())
    return model


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_block_that_is_entered_has_its_slots_cached_as_uncached(how: dict[str, Any]) -> None:
    ours, processor = method()
    model, given = eager(ours.model.eval()), inputs(processor, SAMPLES)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        outputs.append(model.generate(**given, **steps(20), **{"do_sample": False, **how}, use_cache=use_cache))
    assert torch.equal(*outputs)
    found = [slots_in_blocks(model.config, ids[given["input_ids"].shape[1] :]) for ids in outputs[0]]
    assert any(found) and all(len(blocks) <= 1 and set(blocks) <= {STEPS} for blocks in found)


@torch.no_grad()
def test_greedy_generation_is_the_stock_model_token_by_token() -> None:
    ours, processor = method()
    model, given = eager(ours.model.eval()), inputs(processor, SAMPLES)
    twin, c = stock_twin(model), model.config
    found = model.generate(**given, **steps(20), do_sample=False)
    width = given["input_ids"].shape[1]
    forced = (c.slot_token_id, c.block_end_token_id)
    for row, ids in enumerate(found):
        ids_T = torch.cat([given["input_ids"][row][given["attention_mask"][row].bool()], ids[width:]])
        logits_TV = twin.lm_head(naive(twin, c, ids_T, given, row))[-21:-1]
        logits_TV[:, [*forced, c.text_config.eos_token_id]] = -torch.inf
        entered = False
        for token, logits_V in zip(ids[width:].tolist(), logits_TV, strict=True):
            logits_V[c.block_start_token_id] = -torch.inf if entered else logits_V[c.block_start_token_id]
            assert token in forced or token == int(logits_V.argmax())
            entered |= token == c.block_start_token_id


@torch.no_grad()
def test_the_unchanged_probe_is_the_model_and_every_other_changes_it() -> None:
    """It scores what the evaluation scores, to the bit."""
    ours, processor = method()
    donor, *asked = items()
    answers = Lvr.prober(ours.model, processor, ours.config)(asked, donor, 6, seed=0)
    by_name = {(a.variant, a.sample_id): a for a in answers}
    ours.model.config.latent_mode = "first_step"
    answerer = Answerer(ours.model, processor)
    images, questions = [question_images(item) for item in asked], [item.question for item in asked]
    scores = answerer.score(images, questions, [[item.answer] for item in asked])
    texts = answerer.answer(images, questions, 6)
    for item, text, (score,) in zip(asked, texts, scores, strict=True):
        unchanged = by_name["unchanged", item.sample_id]
        assert unchanged.log_likelihood == score
        for variant in ("zeroed", "noise", "swapped", "constant", "shuffled", "dropped 2", "markers alone", "no block"):
            assert by_name[variant, item.sample_id].log_likelihood != unchanged.log_likelihood
        assert unchanged.raw_output == text


def test_a_reply_that_begins_with_an_image_is_probed_behind_its_question() -> None:
    """Nothing of an image has a label; it belongs to the reply all the same."""
    ours, processor = method(replaced_steps=0)
    donor, first = items()[3], items()[0]
    asked = replace(first, steps=("<image>There.",), regions=())
    answers = Lvr.prober(ours.model, processor, ours.config)([asked], donor, 6, seed=0, only=["unchanged", "zeroed"])
    assert len(answers) == 2
    plain = Lvr.prober(ours.model, processor, ours.config)(
        [replace(asked, steps=("There.",), images=first.images[:1])], donor, 6, 0
    )
    assert answers[0].log_likelihood != plain[0].log_likelihood
    assert answers[0].raw_output == plain[0].raw_output
