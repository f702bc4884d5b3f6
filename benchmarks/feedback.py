"""A training step with fed-back slots against plain fine-tuning: `python -m benchmarks.feedback`.

Variants: `sft`, ours, without a block; `one_by_one`, the stock model with a cache, one sample at a time and token by
token through its slots; `valr`, ours, all samples at once. Text alone and no alignment, which costs a stage of its own.
`per_token_vs_stock` is the time of a generated token outside blocks against the stock model's. The last line is one
JSON object; ratios are of medians over interleaved rounds in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from amvl_core.contracts.presets import PRESETS
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.method import Clock
from amvl_core.rows.flops import rows_flops, sft_rows
from benchmarks.measure import Step, device_name, interleaved, peak_bytes
from benchmarks.shapes import END, SFT, SPECIAL, START, build

METHOD = PRESETS["valr"]().method.model_copy(update={"encoders": (), "align_layer": 1, "blocks": "every_step"})
SLOT = 0
"""Its token id."""


def main() -> None:
    """Measures every shape and prints the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved rounds per shape")
    parser.add_argument("--x", type=int, nargs="+", default=(512,), help="tokens of context and question")
    parser.add_argument("--y", type=int, nargs="+", default=(128,), help="tokens of steps and answer")
    parser.add_argument("--blocks", type=int, nargs="+", default=(1, 4), help="blocks, each before an equal part of y")
    parser.add_argument("--slots", type=int, default=16, help="slots of a block")
    parser.add_argument("--samples", type=int, default=8, help="samples of a step")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated behind the first")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    chosen = parser.parse_args()
    stock, ours = build(SFT, {}), build(METHOD, block_fields(chosen.slots))
    for model in (stock, ours) if chosen.checkpointing else ():
        model.activation_checkpointing_enable()
    rows = []
    for x in chosen.x:
        for y in chosen.y:
            for blocks in chosen.blocks:
                rows += measure(stock, ours, x, y, blocks, chosen)
                for row in rows[-3:]:
                    print(json.dumps(row), file=sys.stderr)
    result = {"rows": rows, "device": device_name(), "threads": torch.get_num_threads(), "repeats": chosen.repeats}
    result |= {"samples": chosen.samples, "checkpointing": chosen.checkpointing}
    print(json.dumps(result | {"per_token_vs_stock": per_token(stock.eval(), ours.eval(), chosen)}))


def block_fields(slots: int) -> dict[str, Any]:
    """The fields of a model with blocks of so many slots."""
    ends = {"block_start_token_id": START, "block_end_token_id": END}
    return {"slot_token_id": SLOT, "num_slots": slots, **ends}


def measure(stock: Any, ours: Any, x: int, y: int, blocks: int, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The three variants at one shape."""
    slots, samples = chosen.slots, chosen.samples
    vocab_size = ours.config.text_config.vocab_size
    plain = text_batch(x, y, 0, slots, samples, vocab_size)
    fed_back = text_batch(x, y, blocks, slots, samples, vocab_size)
    clock = Clock(seed=0, step=0, num_tokens=y * samples, num_samples=samples)
    sft, valr = SFT.implementation()(stock, SFT), METHOD.implementation()(ours, METHOD)
    steps: dict[str, Step] = {
        "sft": lambda: sft(plain, clock).backward(),
        "valr": lambda: valr(fed_back, clock).backward(),
    }
    if not chosen.checkpointing:  # the stock model keeps no cache then
        steps["one_by_one"] = lambda: valr.reference(fed_back, clock).backward()
    seconds = interleaved(steps, chosen.repeats)
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    # Every token runs once, slots and markers too, with logits where something is predicted.
    text = ours.config.text_config
    least = rows_flops(text, sft_rows(x, y + blocks * (slots + 2)), y + blocks)
    limit = least / rows_flops(text, sft_rows(x, y), y)
    limits = {"sft": 1.0, "valr": limit, "one_by_one": limit}
    return [
        {
            "x": x,
            "y": y,
            "blocks": blocks,
            "slots": slots,
            "variant": name,
            "time_vs_sft": round(seconds[name] / seconds["sft"], 4),
            "peak_vs_sft": round(peaks[name] / peaks["sft"], 4),
            "flops_limit_vs_sft": round(limits[name], 4),
        }
        for name in steps
    ]


@torch.inference_mode()
def per_token(stock: Any, ours: Any, chosen: argparse.Namespace) -> float:
    """The time per token of greedy `generate` outside blocks, with a cache, against the stock model's."""
    vocab_size, where = ours.config.text_config.vocab_size, ours.lm_head.weight.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIAL, vocab_size, (1, chosen.x[0]), generator=generator).to(where)

    def generating(model: Any, count: int, **options: Any) -> Step:
        lengths = {"max_new_tokens": count, "min_new_tokens": count}
        ends = {"pad_token_id": SPECIAL, "eos_token_id": SPECIAL}
        mask = torch.ones_like(ids)
        return lambda: model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **lengths, **ends, **options)

    many = chosen.tokens + 1
    seconds = interleaved(
        {
            **{f"stock {count}": generating(stock, count) for count in (1, many)},
            **{f"ours {count}": generating(ours, count, latent_mode="never") for count in (1, many)},
        },
        chosen.repeats,
    )
    took = {name: seconds[f"{name} {many}"] - seconds[f"{name} 1"] for name in ("stock", "ours")}
    return round(took["ours"] / took["stock"], 4)


def text_batch(x: int, y: int, blocks: int, slots: int, samples: int, vocab_size: int) -> Batch:
    """Samples of x tokens and y label tokens, which are cut in equal parts with a block before each."""
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = []
    labels: list[int] = []
    for _ in range(samples):
        tokens = torch.randint(SPECIAL, vocab_size, (x + y,), generator=generator).tolist()
        ids += tokens[:x]
        labels += [IGNORED] * x
        for part in range(max(1, blocks)):
            own = tokens[x + y * part // max(1, blocks) : x + y * (part + 1) // max(1, blocks)]
            inside = [*[SLOT] * slots, END] if blocks else []
            ids += [*([START] if blocks else []), *inside, *own]
            labels += [*([START] if blocks else []), *[IGNORED] * len(inside), *own]
    length = len(ids) // samples
    names = [f"sample-{number}" for number in range(samples)]
    return Batch(names, [length] * samples, [0] * samples, torch.tensor(ids), torch.tensor(labels), None, None)


if __name__ == "__main__":
    main()
