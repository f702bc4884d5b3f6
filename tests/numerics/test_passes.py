"""The passes against stock Hugging Face forwards of one sample each, without padding."""

import pytest
import torch
from torch.nn import functional

from amvl_core.config import AmvlMethod, LatentConfig
from amvl_core.data.encode import IGNORED
from amvl_core.gaussian import Gaussian
from amvl_core.methods import Clock
from amvl_core.methods.amvl import Amvl, latent_noise
from amvl_core.objectives import forward_kl, reverse_kl
from tests.tiny import LATENT, SAMPLES, amvl_model, batch

CLOCK = Clock(seed=5, step=40, num_tokens=7.0)


def stock_hidden(model, embeds, positions):
    """The stock text stack on one sample."""
    return model.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state


def reference_loss(model, data, config: AmvlMethod, clock: Clock):
    """The whole objective, sample by sample, each sequence written out."""
    weights = (min(1.0, clock.step / config.beta_warmup), 0.0)
    k = model.config.num_slots
    nll, priors, posteriors = [], [], []
    patch = 0
    image = 0
    for row, length in enumerate(data.lengths_B.tolist()):
        ids = data.input_ids_BT[row, :length]
        labels = data.labels_BT[row, :length]
        count = int((ids == model.config.image_token_id).sum())
        merge = model.config.vision_config.spatial_merge_size**2
        grids = []
        while count:
            grid = data.image_grid_thw[image]
            grids.append(grid)
            count -= int(grid.prod()) // merge
            image += 1
        embeds = model.get_input_embeddings()(ids)[None]
        if grids:
            grid = torch.stack(grids)
            pixels = data.pixel_values[patch : patch + int(grid.prod(-1).sum())]
            patch += len(pixels)
            features = torch.cat(model.model.get_image_features(pixels, grid).pooler_output).to(embeds.dtype)
            embeds = embeds.clone()
            embeds[0, ids == model.config.image_token_id] = features
            positions, _ = model.model.get_rope_index(
                ids[None], (ids == model.config.image_token_id).int()[None], image_grid_thw=grid
            )
        else:
            positions = torch.arange(length).expand(3, 1, -1)
        start = ids.tolist().index(model.config.slot_token_ids[0])
        x, slots, tail, y = embeds[:, :start], embeds[:, start : start + k], embeds[:, start + k : start + k + 1], None
        y = embeds[:, start + k + 1 :]
        prior = model.prior(stock_hidden(model, torch.cat([x, slots], 1), positions[..., : start + k])[:, -k:])
        shifted = positions[..., : length - 1].clone()
        if config.posterior_positions == "aligned":
            shifted[..., -k:] = positions[..., start : start + k]
        posterior = model.posterior(stock_hidden(model, torch.cat([x, y, slots], 1), shifted)[:, -k:])
        latent = posterior.sample(latent_noise(clock, [data.sample_ids[row]], posterior.mean))
        hidden = stock_hidden(model, torch.cat([x, model.injector(latent), tail, y], 1), positions)
        logits = model.lm_head(hidden)[0]
        keep = labels[1:] != IGNORED
        nll.append(functional.cross_entropy(logits[:-1][keep].float(), labels[1:][keep], reduction="sum"))
        priors.append(prior)
        posteriors.append(posterior)
    p = Gaussian(torch.cat([g.mean for g in priors]), torch.cat([g.logvar for g in priors]))
    q = Gaussian(torch.cat([g.mean for g in posteriors]), torch.cat([g.logvar for g in posteriors]))
    ntp = sum(nll) / clock.num_tokens
    kl = forward_kl(q, p, config.kl_reduction, config.stop_gradient_forward)
    back = reverse_kl(q, p, config.kl_reduction, config.stop_gradient_reverse)
    gamma = config.gamma_max * min(1.0, max(0, clock.step - config.gamma_start) / config.gamma_warmup)
    return ntp + weights[0] * kl + gamma * back, {"ntp": ntp, "kl_forward": kl, "kl_reverse": back}


def grads(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("latent", "method"),
    [
        (LATENT, AmvlMethod(beta_warmup=50, gamma_start=10, gamma_warmup=50)),
        (LatentConfig(num_slots=1, dim=4, head="linear", injector="mlp"), AmvlMethod(beta_warmup=50, gamma_start=0)),
        (
            LatentConfig(num_slots=2, dim=8, head="deeper", head_hidden=16, separate_heads=True),
            AmvlMethod(beta_warmup=80, posterior_positions="aligned", kl_reduction="mean", gamma_start=10),
        ),
        (
            LatentConfig(num_slots=4, dim=8, head="mlp", head_hidden=16),
            AmvlMethod(beta_warmup=50, gamma_start=10, stop_gradient_forward=False, stop_gradient_reverse=False),
        ),
    ],
    ids=["native", "one-slot-linear", "deeper-aligned-separate", "mlp-no-stop-gradient"],
)
def test_loss_terms_and_every_gradient_equal_the_written_out_reference(
    latent: LatentConfig, method: AmvlMethod
) -> None:
    model, processor = amvl_model(latent)
    data = batch(processor, latent.num_slots)
    output = Amvl(model, method)(data, CLOCK)
    output.loss.backward()
    ours = grads(model)
    model.zero_grad()
    loss, terms = reference_loss(model, data, method, CLOCK)
    loss.backward()
    # Cross-entropy is taken in float32 on both sides: measured worst case 9e-8 on loss and terms.
    torch.testing.assert_close(output.loss, loss, rtol=1e-6, atol=0)
    for name, value in terms.items():
        torch.testing.assert_close(output.terms[name], value.detach(), rtol=1e-6, atol=1e-9)
    theirs = grads(model)
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name, grad in theirs.items():
        error = (ours[name] - grad).norm() / grad.norm().clamp_min(1e-8)
        assert error < 1e-12, f"{name}: {error:.1e}"  # measured worst case: 7e-15


def test_a_sample_alone_gives_what_it_gives_in_a_padded_batch() -> None:
    model, processor = amvl_model()
    method = Amvl(model, AmvlMethod(beta_warmup=50, gamma_start=0))
    whole = method(batch(processor, LATENT.num_slots), CLOCK)
    alone = []
    for number, sample in enumerate(SAMPLES):
        data = batch(processor, LATENT.num_slots, [sample])
        # Pictures and noise are keyed by the sample's number in the batch.
        full = batch(processor, LATENT.num_slots, SAMPLES[: number + 1])
        data.sample_ids = full.sample_ids[-1:]
        if data.pixel_values is not None:
            data.pixel_values = full.pixel_values[-len(data.pixel_values) :]
        alone.append(method(data, CLOCK).terms)
    for name, reduce in (("ntp", sum), ("kl_forward", lambda v: sum(v) / len(SAMPLES))):
        torch.testing.assert_close(whole.terms[name], reduce([t[name] for t in alone]), rtol=1e-6, atol=0)


def test_the_prior_cannot_see_the_answer() -> None:
    model, processor = amvl_model()
    means = {}

    def keep(prior):
        means[answer] = prior
        return prior

    original = model.prior
    model.prior = lambda hidden: keep(original(hidden))  # type: ignore[method-assign]
    for answer in ("red", "bed"):
        Amvl(model, AmvlMethod())(batch(processor, 3, [(SAMPLES[0][0], answer, SAMPLES[0][2])]), CLOCK)
    assert torch.equal(means["red"].mean, means["bed"].mean)
    assert torch.equal(means["red"].logvar, means["bed"].logvar)


def test_next_token_loss_reaches_the_posterior_and_not_the_prior() -> None:
    model, processor = amvl_model(LatentConfig(num_slots=3, dim=8, head_hidden=32, separate_heads=True))
    Amvl(model, AmvlMethod(beta_max=0, gamma_max=0))(batch(processor, 3), CLOCK).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.posterior_head.parameters())
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in model.prior_head.parameters())


def test_noise_is_keyed_by_seed_step_and_sample_alone() -> None:
    like = torch.zeros(2, 3, 4)
    both = latent_noise(CLOCK, ["a", "b"], like)
    swapped = latent_noise(CLOCK, ["b", "a"], like)
    assert torch.equal(both, swapped.flip(0))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, latent_noise(Clock(5, 41, 1.0), ["a", "b"], like))
    assert not torch.equal(both, latent_noise(Clock(6, 40, 1.0), ["a", "b"], like))


@pytest.mark.parametrize("broken", ["none", "two"])
def test_a_sample_without_exactly_one_block_is_named(broken: str) -> None:
    model, processor = amvl_model()
    data = batch(processor, 3)
    slots = torch.tensor(model.config.slot_token_ids)
    if broken == "none":
        data.input_ids_BT[1][torch.isin(data.input_ids_BT[1], slots)] = 5
    else:
        data.input_ids_BT[1, :3] = slots
    with pytest.raises(ValueError, match=r"sample-1: [06] latent slots in the sample, the model needs one block of 3"):
        Amvl(model, AmvlMethod())(data, CLOCK)


def test_image_tokens_that_do_not_match_the_features_are_named() -> None:
    model, processor = amvl_model()
    data = batch(processor, 3)
    data.input_ids_BT[0, data.input_ids_BT[0].tolist().index(model.config.image_token_id)] = 5
    with pytest.raises(ValueError, match=r"image tokens but .* image features; .*'sample-0'"):
        Amvl(model, AmvlMethod())(data, CLOCK)
