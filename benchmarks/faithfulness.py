"""What each group of changed latents costs against a plain evaluation: `python -m benchmarks.faithfulness`.

The demo's tiny model (random weights, or `--model`: a trained checkpoint's `model` folder) on microworld's test items,
in two settings: `demo`, where a prompt of some 85 tokens has an answer with its steps, and `image`, where the picture
is 784 tokens and the answer a word, as in the benchmarks of the paper. A plain evaluation is `Answerer.answer` on the
same items and batches; a group alone is its variants' generation and log-likelihoods with the questions they share.
`suite` is all groups at once, as the stage runs them, and `suite_per_group` its share of a group. The last line is one
JSON object; ratios are of medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from amvl_core.backbones.processor import load_processor
from amvl_core.backbones.tiny import save_tiny_base
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import CONSTANT, NO_BLOCK, UNCHANGED
from amvl_core.contracts.sample import StoredSample
from amvl_core.contracts.sources import MicroworldSource
from amvl_core.eval.predict import Answerer
from benchmarks.measure import Step, device_name, interleaved
from data_prep.microworld import generate

Target = Literal["answer", "steps_and_answer"]
SETTINGS: dict[str, tuple[int, Target, int]] = {"demo": (128, "steps_and_answer", 24), "image": (448, "answer", 6)}
"""Pixels of a picture's side, what an answer holds, and its tokens at most."""


def main() -> None:
    """Measures every group in both settings and prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an AMVL model; else the demo's, untrained")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--tokens", type=int, help="of an answer at most, instead of 24 and 6")
    arguments = parser.parse_args()
    answerer, ratios = load(arguments.model), {}
    for name in arguments.settings:
        side, target, tokens = SETTINGS[name]
        asked = items(arguments.items, side, target)
        ratios[name] = measure(answerer, asked, arguments.tokens or tokens, arguments.repeats)
    settings = {"items": arguments.items, "repeats": arguments.repeats, "device": device_name()}
    print(json.dumps({"vs_plain_evaluation": ratios, **settings}))


def measure(answerer: Answerer, asked: list[StoredSample], tokens: int, repeats: int) -> dict[str, float]:
    """Every group of variants alone, and all at once, in plain evaluations of the same items."""
    answerer.processor.image_processor.size = {"shortest_edge": 1, "longest_edge": 448 * 448}
    method = PRESETS["demo"]().method
    prober = method.implementation().prober(answerer.model, answerer.processor, method)
    everything = list(dict.fromkeys(answer.variant for answer in prober(asked, asked[0], 1, seed=0)))
    dropped, taus = ([name for name in everything if name.startswith(kind)] for kind in ("dropped", "tau"))
    groups = {
        "unchanged": [UNCHANGED],
        "zeroed, noise, swapped, shuffled": ["zeroed", "noise", "swapped", "shuffled"],
        CONSTANT: [CONSTANT],
        f"dropped 1 to {len(dropped)}": dropped,
        "posterior": ["posterior"],
        f"tau, {len(taus)} values": taus,
        NO_BLOCK: [NO_BLOCK],
    }
    assert sorted(everything) == sorted(name for names in groups.values() for name in names)

    def probing(names: list[str]) -> Step:
        return lambda: prober(asked, asked[0], tokens, seed=0, only=names)

    def plain() -> object:
        questions = [item.question for item in asked]
        return answerer.answer([item.images for item in asked], questions, tokens)

    steps: dict[str, Step] = {"plain": plain, **{name: probing(names) for name, names in groups.items()}}
    seconds = interleaved({**steps, "suite": probing(everything)}, repeats)
    seconds["suite_per_group"] = seconds["suite"] / len(groups)
    return {name: round(value / seconds["plain"], 3) for name, value in seconds.items() if name != "plain"}


def load(folder: str | None) -> Answerer:
    """The model to measure."""
    if folder is not None:
        return Answerer.from_pretrained(folder)
    config = PRESETS["demo"]()
    with tempfile.TemporaryDirectory() as base:
        save_tiny_base(config.model.tiny, Path(base))
        processor = load_processor(base)
        torch.manual_seed(0)
        model = config.method.implementation().load(base, processor, config.latent, dtype=torch.float32)
    return Answerer(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor)


def items(count: int, side: int, target: Target) -> list[StoredSample]:
    """Microworld's first test items with pictures of `side` pixels."""
    return [
        StoredSample(
            sample.sample_id,
            sample.source,
            sample.task,
            sample.question,
            steps := sample.steps if target == "steps_and_answer" else (),
            (None,) * len(steps),
            sample.answer,
            tuple(enlarged(image, side) for image in sample.images),
        )
        for sample in generate(MicroworldSource(test=count), "test")
    ]


def enlarged(image: bytes, side: int) -> bytes:
    """The picture at `side` x `side` pixels, as PNG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).resize((side, side)).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
