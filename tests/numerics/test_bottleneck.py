"""The bottleneck mask in training, decoding and scoring, against the stock model with an explicit mask in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import configurations
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.prefix import decode, read
from amvl_core.methods.amvl.reference import samples
from amvl_core.methods.feedback.method import FeedbackMethod
from amvl_core.methods.method import Clock
from amvl_core.methods.written_mask import written_mask
from amvl_core.rows.bottleneck import has_bottleneck
from tests.numerics import held, test_coconut, test_codi, test_lvr, test_valr, test_valr_generation
from tests.numerics.held import float64_norms
from tests.numerics.test_generation import inputs
from tests.numerics.test_valr_generation import stock_twin
from tests.tiny import LATENT, SAMPLES, amvl_model, batch, picture, stock_folder

__all__ = ["float64_norms"]

CLOCK = Clock(seed=5, step=40, num_tokens=7.0, num_samples=5)
ASKED = [*SAMPLES, ("<image>A<image>B?", "so <image> it is", ((32, 32), (16, 32), (48, 32)))]
CANDIDATES = [["red", "green square"], ["yes"], [], ["A", "zyxwv?"]]
TOKENS = 5
PEERS: dict[str, Any] = {"coconut": test_coconut, "codi": test_codi, "lvr": test_lvr}


def trained(kind: str, mask: str = "bottleneck") -> tuple[Any, Any]:
    """A method on the stock tiny model with large biases, and its processor."""
    config, processor = configurations()[kind].model_validate({"mask": mask}), load_processor(stock_folder())
    torch.manual_seed(1)
    model = config.implementation().load(stock_folder(), processor, LATENT, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.model.visual.requires_grad_(False)
    return config.implementation()(model.train(), config), processor


def data_of(kind: str, processor: Any, chosen: Any = ASKED) -> Batch:
    """With the block of pause tokens, or with both markers in the reply."""
    begin = "<latent></latent>" if kind == "markers" else ""
    asked = [(question, begin + answer, sizes) for question, answer, sizes in chosen]
    return batch(processor, LATENT if kind in ("pause", "mull") else None, asked)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", ["sft", "pause", "markers"])
def test_loss_and_every_gradient_are_the_stock_models(kind: str, checkpointing: bool) -> None:
    """Measured worst case: loss 2e-16, gradients 2e-15."""
    method, processor = trained(kind)
    model, data = method.model, data_of(kind, processor)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ours = method(data, CLOCK).loss
    ours.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = []
    for _, ids, labels, embeds, positions in samples(model, data):
        mask = written_mask(model, ids)
        logits = model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False).logits[0]
        losses.append(functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum"))
    theirs = torch.stack(losses).sum() / CLOCK.num_tokens
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == expected.keys() and len(grads) > 25
    whole = torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() < 1e-12 * torch.maximum(grad.norm(), 1e-3 * whole), name


@pytest.mark.parametrize("kind", ["sft", "pause", "markers", "mull"])
def test_answers_and_scores_are_the_stock_models(kind: str) -> None:
    """A batch padded on the left with a cache against whole sequences one by one; log p was off by at most 8e-15."""
    method, processor = trained(kind)
    ours, model, tokenizer = Answerer(method.model, processor), method.model, processor.tokenizer
    images = [[picture(10 * n + i, *size) for i, size in enumerate(sizes)] for n, (_, _, sizes) in enumerate(SAMPLES)]
    questions = [question for question, _, _ in SAMPLES]
    found = ours.predict(ours.encode(images, questions), TOKENS, CANDIDATES)
    never, end = model.generation_config.suppress_tokens or [], tokenizer.eos_token_id
    for row, answer in enumerate(found):
        inputs = dict(ours.encode(images[row : row + 1], questions[row : row + 1]).inputs)
        prompt = inputs["input_ids"][0].tolist()

        @torch.no_grad()
        def logits(behind: list[int], prompt: list[int] = prompt, inputs: dict[str, Any] = inputs) -> Tensor:
            ids = torch.tensor([[*prompt, *behind]])
            positions = backbone_of(model).positions(model, ids, inputs.get("image_grid_thw"))
            given = {**inputs, "input_ids": ids, "attention_mask": written_mask(model, ids[0])}
            given["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
            return model(**given, position_ids=positions, use_cache=False).logits[0, len(prompt) - 1 :]

        written: list[int] = []
        while len(written) < TOKENS and end not in written:
            last = logits(written)[-1]
            last[never] = -torch.inf
            written.append(int(last.argmax()))
        assert answer.text == tokenizer.decode(written, skip_special_tokens=True)
        for text, score in zip(CANDIDATES[row], answer.log_likelihoods, strict=True):
            tokens = tokenizer(text + tokenizer.eos_token)["input_ids"]
            wanted = logits(tokens)[:-1].log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).sum()
            assert score == pytest.approx(float(wanted), rel=0, abs=1e-12)


@pytest.mark.parametrize(("kind", "knows"), [("sft", False), ("markers", False), ("pause", True), ("mull", True)])
def test_what_an_image_changes_has_passed_the_slots(kind: str, knows: bool) -> None:
    method, processor = trained(kind)
    data = data_of(kind, processor, SAMPLES)  # an image of a reply predicts its own end
    found = []
    with torch.no_grad():
        for _ in range(2):
            found.append(method.logits(data)[0])
            data.pixel_values = -data.pixel_values
    assert ((found[0] - found[1]).abs().max() > 1e-3) == knows


@pytest.mark.parametrize("kind", ["pause", "mull", "amvl", "coconut", "codi", "lvr", "valr"])
def test_a_checkpoint_says_how_it_is_asked_and_the_next_stage_says_it_anew(kind: str, tmp_path: Path) -> None:
    method, processor = trained(kind)
    for part in (method.model, processor):
        part.save_pretrained(tmp_path)
    assert has_bottleneck(Answerer.from_pretrained(str(tmp_path)).model)
    for config in (configurations()[kind].model_validate({}), *[AmvlMethod()] * (kind == "pause")):
        implementation = config.implementation()
        model = implementation.load(str(tmp_path), load_processor(str(tmp_path)), LATENT, dtype=torch.float32)
        assert has_bottleneck(model)
        assert not has_bottleneck(implementation(model, config).model)


def fed_back(kind: str) -> tuple[Any, Batch]:
    """A method that feeds states back, with samples of its own."""
    if kind == "valr":
        valr = test_valr.equipped(mask="bottleneck")
        return valr, test_valr.batch(valr)
    method, processor = PEERS[kind].method(mask="bottleneck")
    return held.trained(method), PEERS[kind].batch(method, processor)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", ["coconut", "codi", "lvr", "valr"])
def test_fed_back_slots_train_as_the_stock_model_token_by_token(kind: str, checkpointing: bool) -> None:
    """Float64. Worst seen: 3e-16 in the loss, 5e-16 in gradients."""
    method, data = fed_back(kind)
    assert written_mask(method.model, data.input_ids_N[: data.lengths[0]]) is not None  # the reference has it
    held.held_to_reference(method, data, checkpointing)


@pytest.mark.parametrize("kind", ["coconut", "codi", "lvr", "valr"])
def test_behind_a_block_an_image_is_known_through_its_slots(kind: str) -> None:
    """Pixels change the loss of a sample with slots, and not of the same sample without any."""
    method, _ = fed_back(kind)
    config, processor = method.model.config, load_processor(stock_folder())
    method.load(stock_folder(), processor, LATENT)  # for the tokens
    slots = "<latent>" + "<latent_slot>" * config.num_slots + "</latent>"
    found = []
    for begin in (slots, "<latent></latent>"):
        data = batch(processor, None, [("<image>What colour?", begin + "red", ((32, 32),))])
        data.labels_N[torch.isin(data.input_ids_N, torch.tensor([config.slot_token_id, config.block_end_token_id]))] = (
            IGNORED
        )
        losses = []
        with torch.no_grad():
            for _ in range(2):
                losses.append(FeedbackMethod.fed_back(method, data, None)[1])
                assert data.pixel_values is not None
                data.pixel_values = -data.pixel_values
        found.append(bool((losses[0] - losses[1]).abs().max() > 1e-6))
    assert found == [True, False]


@torch.no_grad()
@pytest.mark.parametrize(("mode", "number"), test_valr_generation.MODES)
def test_blocks_are_written_as_the_stock_model_would(mode: str, number: int) -> None:
    """Rows begin blocks in other places; a slot in any of them sees the images."""
    model, processor = test_valr_generation.valr_model()
    model.config.bottleneck = True
    test_valr_generation.written_as_by_the_stock_model(model, processor, mode, number)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
@pytest.mark.parametrize("kind", ["coconut", "codi", "lvr"])
def test_a_block_is_the_same_with_a_cache_and_without(kind: str, how: dict[str, Any]) -> None:
    method, _ = fed_back(kind)
    processor = load_processor(stock_folder())
    method.load(stock_folder(), processor, LATENT)
    model, slots = method.model.eval(), method.config.slots(LatentConfig(num_slots=method.model.config.num_slots))
    model.config.latent_mode = "first_step"  # an LVR model is else free to write none
    held.one_reply_block(model, inputs(processor, SAMPLES), len(slots), **how)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["coconut", "codi", "lvr"])
def test_answers_and_scores_behind_a_block_are_the_stock_models(kind: str) -> None:
    """log p was off by at most 7e-15 of 52."""
    method, processor = PEERS[kind].method(mask="bottleneck")
    model, tokenizer, c = method.model.eval(), processor.tokenizer, method.model.config
    c.latent_mode = "first_step"
    ours, twin, given = Answerer(model, processor), stock_twin(model), inputs(processor, SAMPLES)
    images = [[picture(10 * n + i, *size) for i, size in enumerate(sizes)] for n, (_, _, sizes) in enumerate(SAMPLES)]
    found = ours.predict(ours.encode(images, [question for question, _, _ in SAMPLES]), TOKENS, CANDIDATES)
    width, block = given["input_ids"].shape[1], model.before_answer()
    replies = model.generate(**given, max_new_tokens=TOKENS + len(block), do_sample=False)[:, width:]
    for row, answer in enumerate(found):
        assert answer.text == tokenizer.decode(replies[row], skip_special_tokens=True)
        prompt = given["input_ids"][row][given["attention_mask"][row].bool()].tolist()
        for text, score in zip(CANDIDATES[row], answer.log_likelihoods, strict=True):
            tokens = tokenizer(text + tokenizer.eos_token)["input_ids"]
            states = test_valr_generation.naive(
                twin, c, torch.tensor([*prompt, *block, *tokens]), given, row, model.fed
            )
            logits = twin.lm_head(states[-len(tokens) - 1 : -1])
            wanted = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).sum()
            assert score == pytest.approx(float(wanted), rel=0, abs=1e-12)


def test_a_pass_on_embeddings_alone_is_refused() -> None:
    method, _ = fed_back("coconut")
    with pytest.raises(ValueError, match="input_ids say which columns are images"):
        method.model(inputs_embeds=torch.zeros(1, 2, 8))


@pytest.mark.usefixtures("float64_norms")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("positions", ["natural", "aligned"])
def test_prior_posterior_and_decoder_are_three_masked_passes(positions: str, checkpointing: bool) -> None:
    """AMVL, with hidden steps and images in the reply. Worst seen: 2e-16 in the loss, 7e-16 in gradients.

    With the stock norm, which rounds to float32: 0 in the loss, 8e-9 in gradients.
    """
    model, processor = amvl_model()
    method = held.trained(Amvl(model, AmvlMethod(mask="bottleneck", posterior_positions=positions)))
    asked = [*ASKED, ("<image>So?", "<image>it is", ((32, 32), (48, 32)), "look")]
    held.held_to_reference(method, batch(processor, LATENT, asked), checkpointing)


@torch.no_grad()
def test_a_filled_block_is_the_decoder_row_and_hides_images_from_what_follows() -> None:
    """AMVL's training row, its prompt's pass, and generation with a cache and without."""
    model, processor = amvl_model()
    method, given = Amvl(model, AmvlMethod(mask="bottleneck")).eval(), inputs(processor, SAMPLES)
    found = [model.generate(**given, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)]
    assert torch.equal(*found)
    data = batch(processor, LATENT, SAMPLES)
    reading = read(model, data, method.embed(data), method.positions(data), "natural")
    logits_1NV, _, sample_N = decode(model, data, reading, reading.prior.mean[None])
    first = [sample_N.tolist().index(sample) for sample in range(len(SAMPLES))]
    torch.testing.assert_close(model(**given).logits[:, -1], logits_1NV[0, first], rtol=1e-10, atol=1e-10)
    # With Z given, nothing else of an image reaches what follows.
    zeros = torch.zeros_like(reading.prior.mean)
    blind = {**given, "pixel_values": -given["pixel_values"]}
    seen, unseen = (model(**of, latents=zeros).logits[:, -1] for of in (given, blind))
    assert torch.equal(seen, unseen)
    assert not torch.equal(model(**given).logits[:, -1], model(**blind).logits[:, -1])
