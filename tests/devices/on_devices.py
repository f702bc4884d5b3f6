"""Every method on simulated devices: a process of its own runs this (`tests/devices/test_devices.py`)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amvl_core.backbones import spread as spreading
from amvl_core.backbones.spread import spread
from amvl_core.backbones.tiny import save_tiny_base
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.records import SWAPPED, UNCHANGED
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import Batch
from amvl_core.encoders.pretrained import load_encoder
from amvl_core.eval.controls import Control
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.loading import load_model
from benchmarks.tiny import TINY
from tests.amvl_core.methods.amvl import test_probes as of_amvl
from tests.amvl_core.methods.feedback import test_probes as of_feedback
from tests.devices.simulated import DEVICES, simulated
from tests.numerics import held, test_bottleneck, test_coconut, test_codi, test_lvr, test_monet, test_mull, test_valr
from tests.tiny import LATENT, SAMPLES, amvl_model, batch, picture

PEERS: dict[str, Any] = {"coconut": test_coconut, "codi": test_codi, "lvr": test_lvr, "mull": test_mull}
QUESTIONS = [question for question, *_ in SAMPLES]
IMAGES = [[picture(10 * n + i, *size) for i, size in enumerate(sizes)] for n, (_, _, sizes) in enumerate(SAMPLES)]
CANDIDATES = [["red", "green square"], ["yes"], [], ["A", "zyxwv?"]]
WITHOUT_PROBES = ("sft", "pause", "markers")
KINDS = [*WITHOUT_PROBES, *PEERS, "amvl", "monet", "valr"]


def made(kind: str) -> tuple[Any, Any, Batch, list[StoredSample]]:
    """A method on the tiny model with its processor, a batch and samples. Those that may have a mask have one."""
    if kind in WITHOUT_PROBES:
        method, processor = test_bottleneck.trained(kind)
        return method, processor, test_bottleneck.data_of(kind, processor), of_amvl.items()
    if kind == "amvl":
        model, processor = amvl_model()
        config = AmvlMethod(posterior_samples=2, beta_warmup=1, gamma_start=0, gamma_warmup=1, mask="bottleneck")
        return Amvl(model, config), processor, batch(processor), of_amvl.items()
    if kind == "monet":
        method, processor = test_monet.method(3)
        return method, processor, test_monet.batch(method, processor), test_monet.items()
    if kind == "valr":
        method, processor = copy.deepcopy(test_valr.equipped(mask="bottleneck")), test_valr.loaded()[1]
        return method, processor, test_valr.batch(method), of_feedback.items()
    fields = {"guided": True} if kind == "mull" else {}
    method, processor = PEERS[kind].method(mask="bottleneck", **fields)
    return method, processor, PEERS[kind].batch(method, processor), PEERS[kind].items()


def same(one: Any, other: Any) -> bool:
    """To 1e-9, whatever they hold."""
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_and_its_reference_run_where_the_model_is(kind: str) -> None:
    """The batch is on the CPU, as the loader gives it.

    Worst seen: 1e-7 in gradients of VaLR, whose frozen encoders are in float32, and 7e-16 in all others.
    """
    method, _, data, _ = made(kind)
    held.trained(method)
    ways: list[Callable[[], Any]] = [lambda: method(data, held.CLOCK), lambda: method.reference(data, held.CLOCK)]
    expected = [held.gradients(method, way()) for way in ways]
    method.zero_grad()
    with simulated():
        method.to(DEVICES[0])
        for way, grads in zip(ways, expected, strict=True):
            for name, grad in held.gradients(method, way()).items():
                assert grad.device.type == DEVICES[0].type or not grad.any(), name
                torch.testing.assert_close(grad.cpu(), grads[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.fixture()
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has one of the tiny model's two layers: the rest is so large that the second would have both."""
    monkeypatch.setattr(spreading, "stretches", lambda rest, layers, devices: [0, 1])


def on_both(model: Any) -> bool:
    """Whether each device has a layer."""
    layers = model.model.language_model.layers
    return {parameter.device for layer in layers for parameter in layer.parameters()} == set(DEVICES)


@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_two_devices_says_what_it_says_on_one(kind: str) -> None:
    method, processor, _, items = made(kind)
    model = method.eval().model

    def answers() -> Any:
        asked = Answerer(model, processor)
        found = asked.predict(asked.encode(IMAGES, QUESTIONS), 4, CANDIDATES)
        return [(answer.text, answer.log_likelihoods) for answer in found]

    def probed() -> Any:
        if kind in WITHOUT_PROBES:
            return [
                tuple(answer) for answer in Control(Answerer(model, processor), method.config, LATENT)(items, "", 2)
            ]
        prober = type(method).prober(model, processor, method.config)
        slots_BKD, prompt_BD = prober.held(items[:2])
        asked = prober(items[:2], items[2], 2, seed=0, only=(UNCHANGED, SWAPPED, "dropped 1"))
        return [*map(tuple, asked), slots_BKD.tolist(), prompt_BD.tolist()]

    expected = answers(), probed()
    with simulated():
        spread(model, DEVICES)
        assert on_both(model)
        assert same((answers(), probed()), expected)


@pytest.mark.usefixtures("halves")
def test_generate_and_the_analysis_run_on_two_devices() -> None:
    method, processor, _, items = made("amvl")
    model = method.eval().model
    prober = Amvl.prober(model, processor, method.config)

    @torch.inference_mode()
    def found() -> Any:
        inputs = Answerer(model, processor).encode(IMAGES, QUESTIONS).inputs.to(model.device)
        beams = model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2).tolist()
        return beams, [prober.analyse(kind, items[:2], 0, 2) for kind in ("latents", "information", "occlusion")]

    expected = found()
    with simulated():
        spread(model, DEVICES)
        assert on_both(model)
        assert same(found(), expected)


@pytest.mark.parametrize("kind", ["dinov3", "dinov2", "siglip", "clip"])
def test_a_frozen_encoder_runs_where_it_is(kind: str) -> None:
    """Float32. Worst seen: 1e-6."""
    encoder = load_encoder(EncoderConfig(name=kind, source=f"tiny:{kind}", size=64))
    pixels_B3SS = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = encoder(pixels_B3SS)
    with simulated():
        found = encoder.to(DEVICES[0])(pixels_B3SS.to(DEVICES[0]))
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_each_device_holds_as_much_to_within_a_layer(tmp_path: Path) -> None:
    save_tiny_base(TINY.model_copy(update={"num_layers": 12}), tmp_path)
    model = load_model(str(tmp_path))
    layers = model.model.language_model.layers
    large = max(sum(p.nbytes for p in layer.parameters()) for layer in layers)
    with simulated():
        spread(model, DEVICES)
        held_by = dict.fromkeys(DEVICES, 0)
        for parameter in model.parameters():
            held_by[parameter.device] += parameter.nbytes
        assert max(held_by.values()) - sum(held_by.values()) / len(DEVICES) <= large
        first = {parameter.device for name, parameter in model.named_parameters() if ".layers." not in name}
        assert first == {DEVICES[0]}
