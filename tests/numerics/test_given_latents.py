"""Latents that are given in place of those that are read: the hook of the faithfulness suite."""

import pytest
import torch
from transformers import DynamicCache

from tests.numerics.test_generation import NOISE, inputs, steps
from tests.tiny import LATENT, SAMPLES, amvl_model


def read(model, given, **options) -> torch.Tensor:
    """What the model itself fills the slots with."""
    found = []
    handle = model.injector.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    with torch.no_grad():
        model(**given, **options)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("latent", [{}, {"tau": 0.7, "latent_noise": NOISE}], ids=["mean", "drawn"])
def test_given_latents_that_are_those_read_change_nothing(latent) -> None:
    """On a CPU the logits are equal; the tolerance is for kernels whose sums depend on the number of rows."""
    model, processor = amvl_model()
    model.eval()
    given = inputs(processor, SAMPLES)
    latents = read(model, given, **latent)
    with torch.no_grad():
        torch.testing.assert_close(
            model(**given, latents=latents).logits, model(**given, **latent).logits, rtol=0, atol=1e-12
        )
    plain = model.generate(**given, **steps(6), do_sample=False, **latent)
    assert torch.equal(model.generate(**given, **steps(6), do_sample=False, latents=latents), plain)
    beams = {"do_sample": False, "num_beams": 3}
    plain = model.generate(**given, **steps(4), **beams, **latent)
    assert torch.equal(model.generate(**given, **steps(4), **beams, latents=latents), plain)


def test_other_latents_are_answered_to_and_swapping_twice_is_no_swap() -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES)
    latents = read(model, given)
    with torch.no_grad():
        plain = model(**given, latents=latents).logits[:, -1]
        swapped = model(**given, latents=latents.roll(1, 0)).logits[:, -1]
        back = model(**given, latents=latents.roll(1, 0).roll(-1, 0)).logits[:, -1]
    assert bool(((swapped - plain).abs().amax(-1) > 1e-4).all())
    assert torch.equal(back, plain)


def test_a_block_goes_on_from_a_cache_of_what_stands_before_it() -> None:
    """[x, <abs>] run once and [Z, </abs>] behind it, against everything at once."""
    model, processor = amvl_model()
    model.eval()
    given = inputs(processor, SAMPLES)
    latents = read(model, given)
    ids, mask, grid = given["input_ids"], given["attention_mask"], given["image_grid_thw"]
    start = model._block_column(ids)
    positions = model._positions(ids, mask, grid, given["mm_token_type_ids"])
    features = torch.cat(model.get_image_features(given["pixel_values"], grid).pooler_output)
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model.model.language_model(
            inputs_embeds=model.embed(ids, features)[:, :start],
            attention_mask=mask[:, :start],
            position_ids=positions[..., :start],
            past_key_values=cache,
            use_cache=True,
        )
    tail = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    found = model.generate(**tail, latents=latents, **steps(6), do_sample=False)
    assert torch.equal(found, model.generate(**given, **steps(6), do_sample=False))


def test_latents_of_another_shape_or_with_a_draw_are_refused() -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[:2])
    with pytest.raises(ValueError, match=r"latents is \(1, 3, 8\), the block takes \(2, 3, 8\)"):
        model(**given, latents=torch.zeros(1, LATENT.num_slots, LATENT.dim))
    with pytest.raises(ValueError, match=r"latents are given and tau is 0\.5"):
        model(**given, latents=torch.zeros(2, LATENT.num_slots, LATENT.dim), tau=0.5)
