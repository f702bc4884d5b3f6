"""A refactor must not move the loss: `python -m benchmarks.loss_compare [--update]`.

50 steps of AMVL on a tiny model in float64 with plain AdamW, from fixed weights on fixed batches of microworld-like
samples, against the curve in `baselines/loss_curve.json`. Every term that adds to the loss is compared. The last line
is one JSON object: `{"max_abs_diff", "steps"}`. `--update` rewrites the curve: say in the commit why it moved.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from amvl_core.config import AmvlMethod, LatentConfig, StageConfig, TinyConfig
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoder
from amvl_core.methods import Clock
from amvl_core.methods.amvl import Amvl
from amvl_core.modeling import load_amvl
from amvl_core.processor import load_processor
from amvl_core.sample import Segment
from amvl_core.schedules import cosine_with_warmup
from amvl_core.tiny import save_tiny_base
from amvl_core.tokens import slot_tokens
from amvl_core.train.engine import parameter_groups, set_trainable

STEPS, SAMPLES, AT_ONCE, SEED = 50, 4, 2, 0
CURVE = Path(__file__).parent / "baselines" / "loss_curve.json"
TERMS = ("loss", "ntp", "kl_forward", "kl_reverse")

TINY = TinyConfig(hidden_size=64, num_layers=2, intermediate_size=96, vision_hidden_size=32, vision_layers=2)
LATENT = LatentConfig(num_slots=3, dim=8, head_hidden=32)
# Both KL terms are on within the 50 steps, and large enough to matter.
METHOD = AmvlMethod(beta_warmup=10, gamma_start=5, gamma_warmup=10)
STAGE = StageConfig(method=METHOD, steps=STEPS, global_batch=SAMPLES, lr=5e-4)

Curve = list[dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="rewrite the golden curve")
    chosen = parser.parse_args(arguments)
    curve = run()
    if chosen.update:
        lines = ",\n".join(json.dumps(step) for step in curve)
        CURVE.write_text(f"[\n{lines}\n]\n")
    print(json.dumps({"max_abs_diff": max_abs_diff(curve, golden()), "steps": len(curve)}))


def golden() -> Curve:
    """The curve in the repository."""
    curve: Curve = json.loads(CURVE.read_text())
    return curve


def max_abs_diff(curve: Curve, other: Curve) -> float:
    """The largest difference of any term at any step; both curves have the same steps."""
    return max(abs(a[name] - b[name]) for a, b in zip(curve, other, strict=True) for name in TERMS)


def run() -> Curve:
    """The terms of every step; depends on nothing but the code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        with tempfile.TemporaryDirectory(prefix="amvl-loss-") as folder, torch.random.fork_rng(devices=[]):
            return _train(Path(folder))
    finally:
        torch.set_num_threads(threads)


def _train(folder: Path) -> Curve:
    save_tiny_base(TINY, folder)
    processor = load_processor(str(folder))
    torch.manual_seed(SEED)
    method = Amvl(load_amvl(str(folder), processor, LATENT, dtype=torch.float64).train(), METHOD)
    _disturb(method)
    set_trainable(method, STAGE.trainable)
    optimizer = torch.optim.AdamW(parameter_groups(method, STAGE), lr=STAGE.lr, betas=(0.9, STAGE.beta2))
    encoder = Encoder(processor, slot_tokens(LATENT))
    return [_step(method, optimizer, _batches(encoder, step), step) for step in range(STEPS)]


def _disturb(method: Amvl) -> None:
    """Moves every weight, so that no bias, and no difference of prior and posterior, hides near zero."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def _step(method: Amvl, optimizer: Any, micro: list[Batch], step: int) -> dict[str, float]:
    """One optimiser step, as the training loop and its engine take it; the sum of each term."""
    for group in optimizer.param_groups:
        group["lr"] = STAGE.lr * cosine_with_warmup(step, STEPS, STAGE.warmup_ratio)
    clock = Clock(SEED, step, sum(batch.num_label_tokens for batch in micro), SAMPLES)
    sums = dict.fromkeys(TERMS, 0.0)
    for batch in micro:
        output = method(batch, clock)
        output.loss.backward()
        for name in TERMS:
            sums[name] += float(output.terms[name])
    torch.nn.utils.clip_grad_norm_([p for p in method.parameters() if p.requires_grad], STAGE.clip)
    optimizer.step()
    optimizer.zero_grad()
    return sums


def _batches(encoder: Encoder, step: int) -> list[Batch]:
    """Questions about the colour and size of one rectangle, drawn from the step's number."""
    random = np.random.default_rng([SEED, step])
    samples = []
    for number in range(SAMPLES):
        colours = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 80, 220)}
        colour = str(random.choice(list(colours)))
        width, height = (16 * int(random.integers(2, 5)) for _ in range(2))
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        pixels[4 : height // 2 + 4, 4 : width // 2 + 4] = colours[colour]
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        segments = [
            Segment("prompt", "<image>What colour is the rectangle?"),
            Segment("latent", num_slots=LATENT.num_slots),
            Segment("answer", f"{colour}, {'wide' if width > height else 'not wide'}"),
        ]
        samples.append(encoder.encode(f"{step}-{number}", segments, [buffer.getvalue()]))
    return [collate(samples[i : i + AT_ONCE]) for i in range(0, SAMPLES, AT_ONCE)]


if __name__ == "__main__":
    main()
