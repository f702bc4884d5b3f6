"""VaLR's training step against the stock model token by token, and its alignment against readable formulas."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.encoders import Patches
from amvl_core.contracts.errors import ConfigError, DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import StoredSample, Video
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoder, laid_out_to_train
from amvl_core.data.pixels import square
from amvl_core.methods.valr.alignment import upsampled
from amvl_core.methods.valr.config import ValrMethod
from amvl_core.methods.valr.method import Valr
from tests.numerics.held import CLOCK, gradients, held_to_reference, shaken, trained
from tests.tiny import picture, stock_folder

LATENT = LatentConfig(num_slots=4)
TINY = [{"name": name, "source": f"tiny:{name}", "size": 16} for name in ("dinov3", "siglip")]
BASE = {"name": "qwen", "source": "base", "size": 32}
SAMPLES = [
    ("<image>What colour?", ("It is round.", "It is red."), (0, 0), "red"),
    ("<image><image>Which one?", ("Look at the second.", "And the first.", "So."), (1, 0, None), "the second"),
    ("How many legs?", ("A cat has four.",), (None,), "4"),
    ("<image>And now?", ("Zoom. <image>", "<image>Again"), (1, 2), "yes"),
    ("<image>No steps?", (), (), "none"),
]


def samples() -> list[StoredSample]:
    found = []
    for number, (question, steps, about, answer) in enumerate(SAMPLES):
        count = sum(text.count("<image>") for text in (question, *steps))
        images = tuple(picture(10 * number + i, 32 + 16 * (i % 2), 32) for i in range(count))
        found.append(StoredSample(f"sample-{number}", "s", "t", question, steps, about, answer, images))
    return found


@lru_cache(maxsize=1)
def loaded() -> tuple[Any, AMVLProcessor]:
    processor = load_processor(stock_folder())
    return shaken(Valr.load(stock_folder(), processor, LATENT, dtype=torch.float64)).train(), processor


def equipped(**fields: Any) -> Valr:
    """A method on the one model, with projectors from a fixed seed and its vision encoder frozen."""
    settings = {"encoders": TINY, "align_layer": 1, "projector_width": 16, "max_blocks": 3, **fields}
    model, processor = loaded()
    method = Valr(model, ValrMethod.model_validate(settings))
    torch.manual_seed(3)
    method.equip(processor, {})
    trained(method)
    return method


def batch(method: Valr, chosen: list[StoredSample] | None = None) -> Batch:
    encoder = Encoder(loaded()[1])
    return collate([laid_out_to_train(encoder, method.config, LATENT, sample, {}) for sample in chosen or samples()])


def test_a_layer_that_is_not_there_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="align_layer is 3, the base model has 2 layers; set it lower"):
        equipped(align_layer=3)
    equipped(align_layer=3, encoders=[])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"blocks": "every_step"},
        {"align_layer": 2, "interpolation": "linear"},
        {"encoders": [BASE, *TINY]},
        {"encoders": []},
    ],
    ids=["paper", "every step", "last layer, linear", "three encoders", "no alignment"],
)
def test_loss_and_every_gradient_equal_the_stock_model_token_by_token(
    fields: dict[str, Any], checkpointing: bool
) -> None:
    """Float64. Worst seen: 2e-16 in the loss, 3e-16 in gradients."""
    method = equipped(**fields)
    grads = held_to_reference(method, batch(method), checkpointing)
    projectors = {name for name in grads if name.startswith("projectors.")}
    assert len(projectors) == 6 * len(method.config.aligned_with)


def test_terms_add_up_however_the_batch_is_divided() -> None:
    """Worst seen: 2e-16 in a term, 3e-16 in gradients."""
    method = equipped(blocks="every_step")
    whole = method(batch(method), CLOCK)
    grads = gradients(method, whole.loss)
    sums: dict[str, Tensor] = {}
    method.zero_grad()
    for part in (samples()[:2], samples()[2:3], samples()[3:]):
        output = method(batch(method, part), CLOCK)
        output.loss.backward()
        for name, value in output.terms.items():
            sums[name] = sums.get(name, torch.zeros(())) + value
    for name in ("loss", "ntp", "align", "align_dinov3", "align_siglip"):
        torch.testing.assert_close(sums[name], whole.terms[name], rtol=1e-12, atol=1e-14)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            grad = torch.zeros(()) if parameter.grad is None else parameter.grad
            assert (grad - grads[name]).abs().max() < 1e-12, name


def test_features_that_were_computed_before_give_the_same_loss() -> None:
    live = equipped()
    data = batch(live)
    computed = replace(data, targets={name: live.features(name, data) for name in data.targets})
    processor = loaded()[1]
    cached = Valr(loaded()[0], live.config)
    cached.equip(processor, live.patches)
    cached.projectors.load_state_dict(live.projectors.state_dict())
    assert not len(cached.encoders)
    assert torch.equal(cached.train()(computed, CLOCK).loss, live(data, CLOCK).loss)


def test_a_batch_without_a_target_moves_nothing_of_the_projectors() -> None:
    method = equipped()
    grads = gradients(method, method(batch(method, samples()[2:3]), CLOCK).loss)
    assert all(not grads[name].any() and grads[name].ndim for name in grads if name.startswith("projectors."))


def test_encoders_are_frozen_and_neither_they_nor_projectors_are_the_models() -> None:
    method = equipped()
    assert not any(parameter.requires_grad for parameter in method.encoders.parameters())
    own = {id(parameter) for parameter in method.own_parameters()}
    assert own == {id(parameter) for parameter in method.projectors.parameters()}
    assert not any(name.startswith(("projectors", "encoders")) for name in method.model.state_dict())


def test_bilinear_states_are_those_of_a_readable_sum() -> None:
    """Each patch is a weighted mean of the four slots around its centre. Worst seen: 1e-15."""
    side, patches = 3, Patches(4, 7, 5)
    slots = torch.randn(1, side * side, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = upsampled(slots, patches, "bilinear")[0].numpy()
    grid = slots[0].numpy().reshape(side, side, 2)
    for place in range(patches.number):
        row, column = divmod(place, patches.columns)
        value = np.zeros(2)
        y = min(max((row + 0.5) * side / patches.rows - 0.5, 0), side - 1)
        x = min(max((column + 0.5) * side / patches.columns - 0.5, 0), side - 1)
        for i in range(side):
            for j in range(side):
                value += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * grid[i, j]
        np.testing.assert_allclose(found[place], value, atol=1e-13)


def test_features_of_another_grid_are_refused() -> None:
    method = equipped()
    data = batch(method)
    data.targets["dinov3"] = torch.zeros(len(data.targets["dinov3"]), 3, 32)
    with pytest.raises(DataError, match=r"the features of dinov3 are \(3, 32\), the encoder's are 2 x 2 patches of 32"):
        method(data, CLOCK)


def test_slots_that_are_no_whole_block_are_refused() -> None:
    method = equipped()
    data = batch(method)
    place = int((data.input_ids_N == method.model.config.slot_token_id).nonzero()[0])
    data.input_ids_N[place] = 5
    with pytest.raises(DataError, match=r"sample-0: latent slots stand at tokens .* not in blocks of 4"):
        method(data, CLOCK)


def test_a_question_about_a_video_trains_as_the_stock_model_token_by_token() -> None:
    """Beside one about an image; the block is about the frame in the middle. Worst seen: 2e-16."""
    frames = tuple(picture(90 + number, 32, 32) for number in range(4))
    video = StoredSample(
        "video", "s", "t", "<video>What moves?", ("A ball.",), (None,), "it", frames, videos=(Video(4, 2.0),)
    )
    method = equipped()
    data = batch(method, [video, samples()[0]])
    assert data.about == [[0], [1]]
    held_to_reference(method, data, checkpointing=False)
    middle = laid_out_to_train(Encoder(loaded()[1]), method.config, LATENT, video, {}).targets.arrays["dinov3"][0]
    np.testing.assert_array_equal(middle, square(frames[2], 16))
