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
from data_prep.layouts import lay_out
from PIL import Image

from amvl_core.backbones.processor import load_processor
from amvl_core.backbones.tiny import save_tiny_base
from amvl_core.contracts.records import NO_BLOCK, PRIOR
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.modeling import load_amvl
from amvl_core.methods.amvl.presets import demo
from amvl_core.methods.amvl.probes import TAUS, Item, Prober
from benchmarks.measure import Step, device_name, interleaved
from data_prep.microworld import generate


def main() -> None:
    """Measures every group in both settings and prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an AMVL model; else the demo's, untrained")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    answerer = load(arguments.model)
    ratios = {
        "demo": measure(answerer, items(arguments.items, 128, "steps_and_answer"), 24, arguments.repeats),
        "image": measure(answerer, items(arguments.items, 448, "answer"), 6, arguments.repeats),
    }
    settings = {"items": arguments.items, "repeats": arguments.repeats, "device": device_name()}
    print(json.dumps({"vs_plain_evaluation": ratios, **settings}))


def measure(answerer: Answerer, asked: list[Item], tokens: int, repeats: int) -> dict[str, float]:
    """Every group of variants alone, and all at once, in plain evaluations of the same items."""
    answerer.processor.image_processor.size = {"shortest_edge": 1, "longest_edge": 448 * 448}
    slots = answerer.model.config.num_slots
    groups = {
        "unchanged": [PRIOR],
        "zeroed, noise, swapped, shuffled": ["zeroed", "noise", "swapped", "shuffled"],
        f"dropped 1 to {slots}": [f"dropped {slot}" for slot in range(1, slots + 1)],
        "posterior": ["posterior"],
        f"tau, {len(TAUS)} values": [f"tau {tau:g}" for tau in TAUS],
        NO_BLOCK: [NO_BLOCK],
    }
    everything = [name for names in groups.values() for name in names]
    prober = Prober(answerer.model, answerer.processor, "natural")

    def probing(names: list[str]) -> Step:
        return lambda: prober(asked, asked[0], tokens, seed=0, only=names)

    def plain() -> object:
        questions = [item.segments[0].text for item in asked]
        return answerer.answer([item.images for item in asked], questions, tokens)

    steps: dict[str, Step] = {"plain": plain, **{name: probing(names) for name, names in groups.items()}}
    seconds = interleaved({**steps, "suite": probing(everything)}, repeats)
    seconds["suite_per_group"] = seconds["suite"] / len(groups)
    return {name: round(value / seconds["plain"], 3) for name, value in seconds.items() if name != "plain"}


def load(folder: str | None) -> Answerer:
    """The model to measure."""
    if folder is not None:
        return Answerer.from_pretrained(folder)
    config = demo()
    with tempfile.TemporaryDirectory() as base:
        save_tiny_base(config.model.tiny, Path(base))
        processor = load_processor(base)
        torch.manual_seed(0)
        model = load_amvl(base, processor, config.latent, dtype=torch.float32)
    return Answerer(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor)


def items(count: int, side: int, target: Literal["answer", "steps_and_answer"]) -> list[Item]:
    """Microworld's first test items with pictures of `side` pixels, laid out as the demo's."""
    config = demo()
    source = config.data.sources[0].model_copy(update={"test": count})
    data = config.data.model_copy(update={"target": target})
    assert source.kind == "microworld"
    return [
        Item(
            sample.sample_id,
            lay_out(sample, data, config.latent.num_slots),
            [enlarged(image, side) for image in sample.images],
        )
        for sample in generate(source, "test")
    ]


def enlarged(image: bytes, side: int) -> bytes:
    """The picture at `side` x `side` pixels, as PNG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).resize((side, side)).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
