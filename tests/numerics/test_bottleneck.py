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
from amvl_core.contracts.config import validate
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.method import configurations
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.presets import demo
from amvl_core.methods.amvl.reference import samples
from amvl_core.methods.method import Clock
from amvl_core.rows.decode import has_bottleneck
from tests.tiny import LATENT, SAMPLES, batch, picture, stock_folder

CLOCK = Clock(seed=5, step=40, num_tokens=7.0, num_samples=5)
ASKED = [*SAMPLES, ("<image>A<image>B?", "so <image> it is", ((32, 32), (16, 32), (48, 32)))]
CANDIDATES = [["red", "green square"], ["yes"], [], ["A", "zyxwv?"]]
TOKENS = 5


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


def explicit(model: Any, ids: list[int]) -> Tensor:
    """The mask of one sequence, [1, 1, T, T], pair by pair."""
    mask = torch.zeros(1, 1, len(ids), len(ids), dtype=torch.float64)
    image, slots = model.config.image_token_id, getattr(model.config, "slot_token_ids", None) or []
    for asks, asking in enumerate(ids):
        for seen, token in enumerate(ids):
            if seen > asks or (token == image and asking != image and asking not in slots):
                mask[0, 0, asks, seen] = -torch.inf
    return mask


def data_of(kind: str, processor: Any, chosen: Any = ASKED) -> Batch:
    """With the block of pause tokens, or with both markers in the reply."""
    begin = "<latent></latent>" if kind == "markers" else ""
    asked = [(question, begin + answer, sizes) for question, answer, sizes in chosen]
    return batch(processor, LATENT if kind == "pause" else None, asked)


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
        mask = explicit(model, ids.tolist())
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


@pytest.mark.parametrize("kind", ["sft", "pause", "markers"])
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
            given = {**inputs, "input_ids": ids, "attention_mask": explicit(model, ids[0].tolist())}
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


@pytest.mark.parametrize(("kind", "knows"), [("sft", False), ("markers", False), ("pause", True)])
def test_what_an_image_changes_has_passed_the_slots(kind: str, knows: bool) -> None:
    method, processor = trained(kind)
    data = data_of(kind, processor, SAMPLES)  # an image of a reply predicts its own end
    found = []
    with torch.no_grad():
        for _ in range(2):
            found.append(method.logits(data)[0])
            data.pixel_values = -data.pixel_values
    assert ((found[0] - found[1]).abs().max() > 1e-3) == knows


def test_a_checkpoint_says_how_it_is_asked_and_the_next_stage_says_it_anew(tmp_path: Path) -> None:
    method, processor = trained("pause")
    for part in (method.model, processor):
        part.save_pretrained(tmp_path)
    assert has_bottleneck(Answerer.from_pretrained(str(tmp_path)).model)
    for config in (configurations()["pause"].model_validate({}), AmvlMethod()):
        kind = config.implementation()
        model = kind.load(str(tmp_path), load_processor(str(tmp_path)), LATENT, dtype=torch.float32)
        assert has_bottleneck(model)
        assert not has_bottleneck(kind(model, config).model)
    assert Amvl is kind


@pytest.mark.parametrize("kind", ["amvl", "valr"])
def test_other_methods_refuse_it(kind: str) -> None:
    fields = demo().model_dump(mode="json")
    fields["stages"] = {"only": {"method": {"kind": kind, "mask": "bottleneck"}, "steps": 1}}
    with pytest.raises(ConfigError, match=rf"stages.only.method.{kind}.mask: Extra inputs|method.mask: Extra inputs"):
        validate(fields)
