"""Monet's three stages, generation and probes against the stock model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Region, StoredSample
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import IGNORED, Encoder, laid_out_to_train
from amvl_core.eval.benchmarks.prepared import question_images
from amvl_core.eval.predict import Answerer
from amvl_core.methods.monet.config import MonetMethod
from amvl_core.methods.monet.method import Monet
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from tests.numerics.held import CLOCK, float64_norms, gradients, held_to_reference, trained
from tests.numerics.test_generation import inputs, steps
from tests.numerics.test_lvr import eager
from tests.numerics.test_valr_generation import naive, slots_in_blocks, stock_twin
from tests.tiny import SAMPLES, picture, stock_folder

__all__ = ["float64_norms"]

LATENT = LatentConfig(num_slots=3)
EMBEDDINGS = "model.model.language_model.embed_tokens.weight"


def items() -> list[StoredSample]:
    """Images within, at the end and at the beginning of steps; none; two regions for two steps; one without steps."""
    given: list[Any] = [
        ("<image>What colour?", ("Look.", "Zoom. <image> It is red.", "So."), "red", []),
        ("<image>Two?", ("First <image>", "a cup", "<image> then a <image> dog"), "yes", []),
        ("How many legs?", ("A cat has four.",), "4", []),
        ("<image>And?", ("In the corner.", "Blue."), "no", [Region("a", (0, 0, 16, 16)), Region("b", (8, 3, 31, 30))]),
        ("<image><image>Which?", (), "none", [Region("c", (2.5, 2.0, 20.0, 20.0), 1)]),
    ]
    return [
        StoredSample(
            f"sample-{number}", "s", "t", question, texts, (None,) * len(texts), answer,
            tuple(picture(10 * number + i) for i in range("".join([question, *texts]).count("<image>"))),
            tuple(regions),
        )
        for number, (question, texts, answer, regions) in enumerate(given)
    ]  # fmt: skip


def untaught(stage: int, seed: int, **fields: Any) -> tuple[Monet, AMVLProcessor]:
    """A stage whose weights are large enough that nothing hides at zero; another seed, another model."""
    processor, generator = load_processor(stock_folder()), torch.Generator().manual_seed(seed)
    model = Monet.load(stock_folder(), processor, LATENT, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return Monet(model, MonetMethod.model_validate({"stage": stage, "crop_tokens": 4, **fields})), processor


def method(stage: int, **fields: Any) -> tuple[Monet, AMVLProcessor]:
    """A stage with its teacher, which is another model."""
    ours, processor = untaught(stage, 2, **fields)
    if ours.config.weight_of_alignment:
        ours.equip(processor, {}, untaught(stage - 1, 3, **fields)[0])
    return ours, processor


def batch(ours: Monet, processor: AMVLProcessor, chosen: list[StoredSample] | None = None) -> Batch:
    encoder = Encoder(processor)
    return collate([laid_out_to_train(encoder, ours.config, LATENT, item, {}) for item in chosen or items()])


@pytest.mark.usefixtures("float64_norms")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    ("stage", "fields"), [(1, {}), (2, {}), (2, {"align_weight": 0.0}), (2, {"max_blocks": 1}), (3, {})]
)
def test_loss_and_every_gradient_equal_the_stock_model_in_two_passes(
    stage: int, fields: dict[str, Any], checkpointing: bool
) -> None:
    """Float64. Worst seen: 3e-16 in the loss, 2e-15 in gradients."""
    ours, processor = method(stage, **fields)
    held_to_reference(trained(ours), batch(ours, processor), checkpointing)


def test_stage_1_without_weights_is_fine_tuning() -> None:
    """On samples whose steps show images, and on one without. Worst seen: 0."""
    ours, processor = method(1, observation_weight=1.0)
    some = items()[:3]
    plain = Sft(ours.model, SftMethod())
    data = batch(ours, processor, some)
    tuned = [laid_out_to_train(Encoder(processor), plain.config, LATENT, item, {}) for item in some]
    assert data.input_ids_N.tolist() == [token for one in tuned for token in one.input_ids]
    assert data.labels_N.tolist() == [label for one in tuned for label in one.labels]
    torch.testing.assert_close(ours(data, CLOCK).loss, plain(data, CLOCK).loss, rtol=1e-12, atol=0)
    assert ours.label_weight(data) == data.num_label_tokens


def test_observations_weigh_what_their_stage_says() -> None:
    for stage, weight in ((1, 2), (2, 4), (3, 4)):
        ours, processor = method(stage)
        data = batch(ours, processor)
        found = ours.label_weights(data)
        observed = {token for own in data.observed for token in own}
        labels = [token for token in range(data.num_tokens) if data.labels_N[token] != IGNORED]
        assert found.tolist() == [weight if token in observed else 1 for token in labels]
        assert ours.label_weight(data) == found.sum()


def test_alignment_reaches_the_weights_through_the_slots_inputs_alone_in_stage_2() -> None:
    """The output layer, and tokens that stand behind the last slot alone, get nothing of it."""
    ours, processor = method(2)
    data = batch(trained(ours), processor)
    whole = gradients(ours, ours(data, CLOCK).loss)
    ours.config = ours.config.model_copy(update={"align_weight": 0.0})
    rest = gradients(ours, ours(data, CLOCK).loss)
    moved = (whole[EMBEDDINGS] != rest[EMBEDDINGS]).any(-1).nonzero()[:, 0].tolist()
    slot = ours.model.config.slot_token_id
    before = {
        token
        for ids_T in data.input_ids_N.split(data.lengths)
        if slot in ids_T
        for token in ids_T[: int((ids_T == slot).nonzero()[-1])].tolist()
    }
    assert moved and set(moved) <= before
    assert {int(data.input_ids_N[token]) for own in data.observed for token in own} - before
    assert torch.equal(whole["model.lm_head.weight"], rest["model.lm_head.weight"])


def test_nothing_but_the_slots_sees_an_auxiliary_image() -> None:
    """Another one changes what the second slot is given, and not what the first is, nor a log p before a slot."""
    ours, processor = method(2)
    found = []
    for seed in (5, 6):
        item = items()[0]
        changed = replace(item, images=(item.images[0], picture(seed)))
        data = batch(ours, processor, [changed])
        fed, losses = ours.fed_back(data, None, helpers=ours.helpers(data))
        found.append((fed.inputs_TD, losses))
    (one, first_losses), (other, other_losses) = found
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    labels = [token for token in data.labels_N.tolist() if token != IGNORED]
    before = labels.index(ours.model.config.block_start_token_id) + 1
    assert torch.equal(first_losses[:before], other_losses[:before])
    assert (first_losses[before:] != other_losses[before:]).all()


def test_terms_add_up_however_the_batch_is_divided() -> None:
    """Worst seen: 4e-16 of a term."""
    for stage in (1, 2, 3):
        ours, processor = method(stage)
        whole = ours(batch(ours, processor), CLOCK)
        parts = [ours(batch(ours, processor, [item]), CLOCK) for item in items()]
        assert set(whole.terms) >= {"loss", "ntp", "observed", *(["align", "slot_norm"] if stage > 1 else [])}
        for name in whole.terms:
            together = sum(part.terms[name] for part in parts)
            torch.testing.assert_close(together, whole.terms[name], rtol=1e-12, atol=1e-14)
        data = batch(ours, processor)
        taught = 0 if data.teacher is None else data.teacher.num_tokens
        assert ours.rows(data) == data.num_tokens + taught and (taught > 0) == (stage > 1)


def test_a_batch_without_its_teacher_or_with_another_is_refused() -> None:
    ours, processor = method(3)
    data = batch(ours, processor)
    with pytest.raises(DataError, match="sample-0: no teacher, or no sequence of it"):
        ours(replace(data, teacher=None), CLOCK)
    ours.equip(processor, {})
    with pytest.raises(DataError, match="sample-0: no teacher, or no sequence of it"):
        ours(data, CLOCK)
    ours = method(2)[0]
    data = batch(ours, processor)
    assert data.teacher is not None
    data.teacher.observed[1] = data.teacher.observed[1][1:]
    with pytest.raises(DataError, match="sample-1: 11 tokens to align, but 10 of the teacher's"):
        ours(data, CLOCK)
    data = batch(ours, processor)
    data.input_ids_N[data.input_ids_N == ours.model.config.image_token_id] = 0
    with pytest.raises(DataError, match="sample-0: no image stands before the block at token"):
        ours.helpers(data)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_blocks_have_their_slots_cached_as_uncached(how: dict[str, Any]) -> None:
    ours, processor = method(3, max_blocks=2)
    model, given = eager(ours.model.eval()), inputs(processor, SAMPLES)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        outputs.append(model.generate(**given, **steps(20), **{"do_sample": False, **how}, use_cache=use_cache))
    assert torch.equal(*outputs)
    found = [slots_in_blocks(model.config, ids[given["input_ids"].shape[1] :]) for ids in outputs[0]]
    assert any(found) and all(len(blocks) <= 2 and set(blocks) <= {LATENT.num_slots} for blocks in found)


@torch.no_grad()
def test_greedy_generation_is_the_stock_model_token_by_token() -> None:
    ours, processor = method(3, max_blocks=1)
    model, given = eager(ours.model.eval()), inputs(processor, SAMPLES)
    twin, c = stock_twin(model), model.config
    found = model.generate(**given, **steps(20), do_sample=False)
    width = given["input_ids"].shape[1]
    forced = (c.slot_token_id, c.block_end_token_id)
    entered_at_all = False
    for row, ids in enumerate(found):
        ids_T = torch.cat([given["input_ids"][row][given["attention_mask"][row].bool()], ids[width:]])
        logits_TV = twin.lm_head(naive(twin, c, ids_T, given, row))[-21:-1]
        logits_TV[:, [*forced, c.text_config.eos_token_id]] = -torch.inf
        entered = False
        for token, logits_V in zip(ids[width:].tolist(), logits_TV, strict=True):
            logits_V[c.block_start_token_id] = -torch.inf if entered else logits_V[c.block_start_token_id]
            assert token in forced or token == int(logits_V.argmax())
            entered |= token == c.block_start_token_id
        entered_at_all |= entered
    assert entered_at_all


@torch.no_grad()
def test_a_model_of_stage_1_writes_no_block() -> None:
    ours, processor = method(1)
    given = inputs(processor, SAMPLES)
    found = eager(ours.model.eval()).generate(**given, **steps(12), do_sample=False)
    assert not any(slots_in_blocks(ours.model.config, ids) for ids in found[:, given["input_ids"].shape[1] :])


@torch.no_grad()
@pytest.mark.parametrize("stage", [2, 3])
def test_the_unchanged_probe_is_the_model_and_every_other_changes_it(stage: int) -> None:
    """It scores what the evaluation scores behind a block, on replies without images. Worst seen in float64: 4e-15."""
    ours, processor = method(stage)
    donor, *asked = [replace(item, steps=(), step_images=(), images=question_images(item)) for item in items()]
    answers = Monet.prober(ours.model, processor, ours.config)(asked, donor, 6, seed=0)
    by_name = {(a.variant, a.sample_id): a for a in answers}
    ours.model.config.latent_mode, ours.model.config.block_first = "first_step", True
    answerer = Answerer(ours.model, processor)
    images, questions = [question_images(item) for item in asked], [item.question for item in asked]
    scores = answerer.score(images, questions, [[item.answer] for item in asked])
    texts = answerer.answer(images, questions, 6)
    for item, text, (score,) in zip(asked, texts, scores, strict=True):
        unchanged = by_name["unchanged", item.sample_id]
        assert unchanged.log_likelihood == pytest.approx(score, abs=1e-11)
        for variant in ("zeroed", "noise", "swapped", "constant", "shuffled", "dropped 2", "markers alone", "no block"):
            assert by_name[variant, item.sample_id].log_likelihood != unchanged.log_likelihood
        assert unchanged.raw_output == text
