"""Coconut's step, generation and probes against the stock model, and its curriculum's checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoder, laid_out, laid_out_to_train
from amvl_core.eval.benchmarks.prepared import question_images
from amvl_core.eval.predict import Answerer
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.coconut.method import Coconut
from tests.numerics.held import CLOCK, gradients, held_to_reference, one_reply_block, shaken, trained
from tests.numerics.test_generation import inputs, steps
from tests.numerics.test_valr_generation import naive, slots_in_blocks, stock_twin
from tests.tiny import SAMPLES, picture, stock_folder

LATENT = LatentConfig(num_slots=4)


def items() -> list[StoredSample]:
    given = [
        ("<image>What colour?", ("It is round.", "It is red.", "So."), "red"),
        ("How many legs?", ("A cat has four.",), "4"),
        ("<image>And now?", ("Zoom. <image>", "Again <image>"), "yes"),
        ("<image><image>No steps?", (), "none"),
    ]
    return [
        StoredSample(
            f"sample-{number}", "s", "t", question, texts, (None,) * len(texts), answer,
            tuple(picture(10 * number + i) for i in range("".join([question, *texts]).count("<image>"))),
        )
        for number, (question, texts, answer) in enumerate(given)
    ]  # fmt: skip


def method(folder: str | None = None, **fields: Any) -> tuple[Coconut, AMVLProcessor]:
    folder = folder or stock_folder()
    processor = load_processor(folder)
    model = shaken(Coconut.load(folder, processor, LATENT, dtype=torch.float64))
    return Coconut(model, CoconutMethod(**fields)), processor


def batch(ours: Coconut, processor: AMVLProcessor, chosen: list[StoredSample] | None = None) -> Batch:
    encoder = Encoder(processor)
    return collate([laid_out_to_train(encoder, ours.config, LATENT, item, {}) for item in chosen or items()])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    "fields",
    [
        {"replaced_steps": 1, "slots_per_step": 1},
        {"replaced_steps": 2, "slots_per_step": 2},
        {},
    ],
)
def test_loss_and_every_gradient_equal_the_stock_model_token_by_token(
    fields: dict[str, Any], checkpointing: bool
) -> None:
    """Float64. Worst seen: 0 in the loss, 1e-16 in gradients."""
    ours, processor = method(**fields)
    held_to_reference(trained(ours), batch(ours, processor), checkpointing)


def test_a_mixed_batch_has_blocks_of_every_length_and_equals_the_stock_model() -> None:
    """Float64. Worst seen: 0 in the loss, 5e-16 in gradients."""
    ours, processor = method(replaced_steps=1, slots_per_step=2, stage_mix=1.0)
    samples = [replace(item, sample_id=f"{item.sample_id}, {n}") for item in items() for n in range(4)]
    mixed = batch(ours, processor, samples)
    assert {len(places) for places in ours.slot_places(mixed)} == {0, 2, 4}
    held_to_reference(trained(ours), mixed, checkpointing=False)


def test_the_norm_of_slots_is_their_mean_over_a_step() -> None:
    """A micro-batch without a slot does not count, and a step without one has no norm."""
    ours, processor = method(slots_per_step=1, replaced_steps=1)
    parts = [ours(batch(ours, processor, [item]), CLOCK).terms["slot_norm"] for item in items()]
    total, number = sum(parts[1:], parts[0]).tolist()
    empty = torch.zeros(2)
    logged = ours.scalars({"loss": torch.ones(()), "slot_norm": sum(parts, empty)})
    assert logged == {"loss": 1.0, "slot_norm": pytest.approx(total / number)} and number == len(items())
    assert ours.scalars({"loss": torch.ones(()), "slot_norm": empty}) == {"loss": 1.0}


def test_gradient_hops_change_the_gradient_and_not_the_loss() -> None:
    ours, processor = method()
    data = batch(trained(ours), processor)
    whole = ours(data, CLOCK)
    grads = gradients(ours, whole.loss)
    ours.config = CoconutMethod(gradient_hops=0)
    cut = ours(data, CLOCK)
    assert torch.equal(cut.loss, whole.loss)
    assert any(not torch.equal(grads[name], grad) for name, grad in gradients(ours, cut.loss).items())


def test_a_stage_starts_from_a_checkpoint_with_another_number_of_slots(tmp_path: Path) -> None:
    """The number of slots is a setting of generation: the weights are the same, to the bit."""
    first, processor = method(replaced_steps=1)
    first.model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_processor(str(tmp_path))
    loaded = Coconut.load(str(tmp_path), again, LATENT, dtype=torch.float64)
    assert first.model.config.num_slots == 2 and loaded.config.num_slots == 4
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in first.model.state_dict().items())
    for steps_gone, slots in ((2, 4), (None, 4), (1, 2)):
        stage = Coconut(loaded, CoconutMethod(replaced_steps=steps_gone))
        if steps_gone is None:
            loaded.config.num_slots = LATENT.num_slots
        assert stage.model.config.num_slots == slots
        output = stage(collate([laid_out(Encoder(again), stage.config, LATENT, item) for item in items()]), CLOCK)
        assert torch.isfinite(output.loss)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_reply_begins_with_one_block_cached_as_uncached(how: dict[str, Any]) -> None:
    ours, processor = method()
    model, given = ours.model.eval(), inputs(processor, SAMPLES)
    one_reply_block(model, given, 4, **how)
    assert not any(map(len, [slots_in_blocks(model.config, ids) for ids in _never(model, given)]))


def _never(model: Any, given: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(**given, **steps(6), do_sample=False, latent_mode="never")
    return found[:, given["input_ids"].shape[1] :]


@torch.no_grad()
def test_greedy_generation_is_the_stock_model_token_by_token() -> None:
    ours, processor = method(replaced_steps=1, slots_per_step=3)
    model, given = ours.model.eval(), inputs(processor, SAMPLES)
    twin, c = stock_twin(model), model.config
    found = model.generate(**given, **steps(12), do_sample=False)
    width = given["input_ids"].shape[1]
    never = [c.block_start_token_id, c.slot_token_id, c.block_end_token_id, c.text_config.eos_token_id]
    for row, ids in enumerate(found):
        ids_T = torch.cat([given["input_ids"][row][given["attention_mask"][row].bool()], ids[width:]])
        logits_TV = twin.lm_head(naive(twin, c, ids_T, given, row))[-13:-1]
        logits_TV[:, never] = -torch.inf
        assert ids[width + 5 :].tolist() == logits_TV[5:].argmax(-1).tolist()


@torch.no_grad()
def test_the_unchanged_probe_is_the_model_and_every_other_changes_it() -> None:
    """Log-likelihoods against one forward of the whole sequence. Worst seen in float64: 2e-14."""
    ours, processor = method(replaced_steps=1)
    donor, *asked = items()
    answers = Coconut.prober(ours.model, processor, ours.config)(asked, donor, 6, seed=0)
    by_name = {(a.variant, a.sample_id): a for a in answers}
    texts = Answerer(ours.model, processor).answer(
        [question_images(item) for item in asked], [item.question for item in asked], 6
    )
    for item, text in zip(asked, texts, strict=True):
        data = collate([laid_out(Encoder(processor), ours.config, LATENT, item)])
        losses = ours.fed_back(data, None)[1]
        unchanged = by_name["unchanged", item.sample_id]
        assert unchanged.log_likelihood == pytest.approx(-float(losses.sum()), abs=1e-11)
        assert unchanged.raw_output == text
        for variant in ("zeroed", "noise", "swapped", "constant", "dropped 2", "markers alone", "no block"):
            assert by_name[variant, item.sample_id].log_likelihood != unchanged.log_likelihood
