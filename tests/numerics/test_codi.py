"""CODI's step, generation and probes against the stock model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoder, laid_out, laid_out_to_train
from amvl_core.methods.codi.config import CodiMethod
from amvl_core.methods.codi.method import Codi
from tests.numerics.held import CLOCK, gradients, held_to_reference, one_reply_block, shaken, trained
from tests.numerics.test_coconut import items
from tests.numerics.test_generation import inputs, steps
from tests.tiny import SAMPLES, stock_folder

LATENT = LatentConfig(num_slots=3)


def method(**fields: Any) -> tuple[Codi, AMVLProcessor]:
    processor = load_processor(stock_folder())
    torch.manual_seed(1)
    model = shaken(Codi.load(stock_folder(), processor, LATENT, dtype=torch.float64))
    return Codi(model, CodiMethod(**fields)), processor


def batch(ours: Codi, processor: AMVLProcessor, chosen: list[StoredSample] | None = None) -> Batch:
    encoder = Encoder(processor)
    return collate([laid_out_to_train(encoder, ours.config, LATENT, item, {}) for item in chosen or items()])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("fields", [{}, {"replaced_steps": 1}, {"distil_weight": 0.0}])
def test_loss_and_every_gradient_equal_the_stock_model_token_by_token(
    fields: dict[str, Any], checkpointing: bool
) -> None:
    """Float64. Worst seen: 0 in the loss, 5e-16 in gradients."""
    ours, processor = method(**fields)
    grads = held_to_reference(trained(ours), batch(ours, processor), checkpointing)
    assert sum(name.startswith("model.projection.") and bool(grad.any()) for name, grad in grads.items()) == 6


def test_no_gradient_of_the_distillation_reaches_the_teacher() -> None:
    """Without the teacher's states the gradient is that of the student against constants."""
    ours, processor = method()
    data = batch(trained(ours), processor)
    whole = gradients(ours, ours(data, CLOCK).loss)
    plain = ours.config
    ours.config = plain.model_copy(update={"distil_weight": 0.0})
    rest = gradients(ours, ours(data, CLOCK).loss)
    name = "model.model.language_model.embed_tokens.weight"
    moved = (whole[name] != rest[name]).any(-1).nonzero()[:, 0].tolist()
    student = set(data.input_ids_N.tolist())
    assert moved and set(moved) <= student  # tokens of steps, which the teacher alone reads, feel nothing of it
    assert data.teacher is not None and set(data.teacher.input_ids_N.tolist()) - student


def test_terms_add_up_however_the_batch_is_divided() -> None:
    """Worst seen: 2e-16 of a term."""
    ours, processor = method()
    whole = ours(batch(ours, processor), CLOCK)
    parts = [ours(batch(ours, processor, [item]), CLOCK) for item in items()]
    for name, value in whole.terms.items():
        torch.testing.assert_close(sum(part.terms[name] for part in parts), value, rtol=1e-12, atol=1e-14)
    assert ours.rows(batch(ours, processor)) > batch(ours, processor).num_tokens


def test_a_batch_without_its_teacher_or_with_another_is_refused() -> None:
    ours, processor = method()
    data = batch(ours, processor)
    with pytest.raises(DataError, match="sample-0: no teacher's sequence"):
        ours(replace(data, teacher=None), CLOCK)
    assert data.teacher is not None
    data.teacher.input_ids_N[data.teacher.lengths[0] - 2] += 1
    with pytest.raises(DataError, match="sample-0: the teacher's sequence does not end as the student's"):
        ours(data, CLOCK)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_reply_begins_with_one_block_cached_as_uncached(how: dict[str, Any]) -> None:
    ours, processor = method()
    model, given = ours.model.eval(), inputs(processor, SAMPLES)
    one_reply_block(model, given, 3, **how)


@torch.no_grad()
def test_greedy_generation_is_whole_passes_over_projected_states() -> None:
    ours, processor = method()
    model, given = ours.model.eval(), inputs(processor, SAMPLES[2:3])
    c, prompt = model.config, given["input_ids"].shape[1]
    found = model.generate(**given, **steps(12), do_sample=False)[0]
    embeds = model.get_input_embeddings()(found)[None].clone()
    where = torch.arange(len(found)).expand(3, 1, -1)

    def states(length: int) -> torch.Tensor:
        inputs_embeds, places = embeds[:, :length], where[..., :length]
        output = model.model.language_model(inputs_embeds=inputs_embeds, position_ids=places, use_cache=False)
        return output.last_hidden_state[0]

    layer, _, last, norm = model.projection
    for place in (found == c.slot_token_id).nonzero()[:, 0].tolist():
        middle = layer.weight @ states(place)[-1] + layer.bias
        wide = last.weight @ (middle / 2 * (1 + torch.erf(middle / 2**0.5))) + last.bias
        unit = (wide - wide.mean()) / (wide.var(correction=0) + norm.eps).sqrt()
        embeds[0, place] = unit * norm.weight + norm.bias
    logits = model.lm_head(states(len(found)))[prompt - 1 : -1]
    logits[:, [c.block_start_token_id, c.slot_token_id, c.block_end_token_id, c.text_config.eos_token_id]] = -torch.inf
    assert found[prompt + 5 :].tolist() == logits[5:].argmax(-1).tolist()


@torch.no_grad()
def test_the_unchanged_probe_is_the_model_and_every_other_changes_it() -> None:
    """Log-likelihoods against the training step's. Worst seen in float64: 0."""
    ours, processor = method()
    donor, *asked = items()
    answers = Codi.prober(ours.model, processor, ours.config)(asked, donor, 6, seed=0)
    by_name = {(a.variant, a.sample_id): a.log_likelihood for a in answers}
    for item in asked:
        losses = ours.fed_back(collate([laid_out(Encoder(processor), ours.config, LATENT, item)]), None)[1]
        unchanged = by_name["unchanged", item.sample_id]
        assert unchanged == pytest.approx(-float(losses.sum()), abs=1e-11)
        for variant in ("zeroed", "noise", "swapped", "constant", "shuffled", "dropped 2", "markers alone", "no block"):
            assert by_name[variant, item.sample_id] != unchanged


def test_the_projection_is_the_models_own_and_comes_back(tmp_path: Path) -> None:
    ours, processor = method()
    own = {id(parameter) for parameter in ours.own_parameters()}
    assert own == {id(parameter) for parameter in ours.model.projection.parameters()}
    ours.model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")
    again = Codi.load(str(tmp_path), load_processor(str(tmp_path)), LATENT, dtype=torch.float64)
    for model in (plain, again):
        weights = model.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in ours.model.state_dict().items())


def test_a_new_projection_is_one_of_the_seed() -> None:
    """Two processes begin with the same one."""
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(Codi.load(stock_folder(), load_processor(stock_folder()), LATENT).projection.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert found[0]["0.weight"].std() > 0 and torch.equal(found[0]["3.weight"], torch.ones_like(found[0]["3.weight"]))
