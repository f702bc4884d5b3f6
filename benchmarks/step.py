"""A training step (forward and backward) of AMVL against plain fine-tuning: `python -m benchmarks.step`.

Variants: `sft_stock`, the stock Hugging Face model with its own loss, logits on all rows; `sft`, ours, logits on label
rows; `amvl_three_pass`, the objective by three whole passes of the stock text stack; `amvl_shared_prefix`, ours. A step
has one sample, or `--samples` of the same shape. The last line is one JSON object; ratios are of medians over
interleaved rounds in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from amvl_core.methods.method import Clock
from amvl_core.rows.flops import PEAK_BF16_FLOPS
from benchmarks.measure import Step, device_name, interleaved, peak_bytes
from benchmarks.shapes import METHOD, SFT, build, latent_config, packed, text_batch

PREFIXES, ANSWERS = (256, 1024, 2048), (32, 128, 256)


def main() -> None:
    """Measures every shape and prints the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved rounds per shape")
    parser.add_argument("--x", type=int, nargs="+", default=PREFIXES, help="tokens of context and question")
    parser.add_argument("--y", type=int, nargs="+", default=ANSWERS, help="tokens of the answer")
    parser.add_argument("--samples", type=int, default=1, help="samples of a step")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    arguments = parser.parse_args()
    stock, ours = build(SFT), build(METHOD)
    for model in (stock, ours) if arguments.checkpointing else ():
        model.activation_checkpointing_enable()
    rows = []
    for x in arguments.x:
        for y in arguments.y:
            rows += measure(stock, ours, x, y, arguments.samples, arguments.repeats)
            for row in rows[-4:]:
                print(json.dumps(row), file=sys.stderr)
    result = {"rows": rows, "device": device_name(), "threads": torch.get_num_threads(), "repeats": arguments.repeats}
    print(json.dumps(result | {"samples": arguments.samples, "checkpointing": arguments.checkpointing}))


def measure(stock: Any, ours: Any, x: int, y: int, samples: int, repeats: int) -> list[dict[str, Any]]:
    """The four variants at one shape."""
    steps = _steps(stock, ours, x, y, samples)
    seconds = interleaved(steps, repeats)
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    text, ways = ours.config.text_config, METHOD.cost(latent_config()).ways(x, y)
    flops = {
        "sft_stock": ways["sft"].flops(text, x + y),
        "sft": ways["sft"].flops(text, y),
        "amvl_three_pass": ways["three_pass"].flops(text, y),
        "amvl_shared_prefix": ways["shared_prefix"].flops(text, y),
    }
    return [
        {
            "x": x,
            "y": y,
            "variant": name,
            "time_vs_sft": round(seconds[name] / seconds["sft"], 4),
            "time_vs_stock": round(seconds[name] / seconds["sft_stock"], 4),
            "peak_vs_sft": round(peaks[name] / peaks["sft"], 4),
            "flops_limit_vs_sft": round(flops[name] / flops["sft"], 4),
            **utilisation(flops[name] / seconds[name]),
        }
        for name in steps
    ]


def _steps(stock: Any, ours: Any, x: int, y: int, samples: int) -> dict[str, Step]:
    """One training step of each variant, with gradients added to those that are there."""
    vocab_size, where = ours.config.text_config.vocab_size, ours.lm_head.weight.device
    plain, latent = (
        packed([text_batch(x, y, block=block, vocab_size=vocab_size, seed=seed) for seed in range(samples)])
        for block in (False, True)
    )
    clock = Clock(seed=0, step=2000, num_tokens=y * samples, num_samples=samples)
    sft, amvl = SFT.implementation()(stock, SFT), METHOD.implementation()(ours, METHOD)
    ids, labels = (part.view(samples, x + y).to(where) for part in (plain.input_ids_N, plain.labels_N))
    return {
        "sft_stock": lambda: stock(input_ids=ids, labels=labels, use_cache=False).loss.backward(),
        "sft": lambda: sft(plain, clock).backward(),
        "amvl_three_pass": lambda: amvl.reference(latent, clock).backward(),
        "amvl_shared_prefix": lambda: amvl(latent, clock).backward(),
    }


def utilisation(flops_per_second: float) -> dict[str, float]:
    """Model FLOP utilisation, on a GPU whose peak is known."""
    peak = next((flops for name, flops in PEAK_BF16_FLOPS.items() if name in device_name()), None)
    return {} if peak is None else {"mfu": round(flops_per_second / peak, 4)}


if __name__ == "__main__":
    main()
