"""Time to first token and per further token, against the stock model: `python -m benchmarks.generate`.

AMVL's prompt has its latent block at the end; the stock model's prompt is the same text without the block. The last
line is one JSON object; ratios are of medians over interleaved rounds in one process. Without a GPU the time is that of
the CPU, on which other work has no share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from amvl_core.rows.flops import decode_flops, prefill_flops
from benchmarks.measure import device_name, interleaved
from benchmarks.shapes import METHOD, SFT, SPECIAL, build, latent_config

PREFIXES = (256, 1024, 2048)


def main() -> None:
    """Measures every prompt length and prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="interleaved rounds per prompt length")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated behind the first")
    parser.add_argument("--x", type=int, nargs="+", default=PREFIXES, help="tokens of the prompt")
    arguments = parser.parse_args()
    stock, ours = build(SFT).eval(), build(METHOD).eval()
    rows = []
    for x in arguments.x:
        rows.append(measure(stock, ours, x, arguments.tokens, arguments.repeats))
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({"rows": rows, "device": device_name(), "repeats": arguments.repeats, "tokens": arguments.tokens}))


@torch.inference_mode()
def measure(stock: Any, ours: Any, x: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Both models on one prompt of x tokens."""
    vocab_size, where = ours.config.text_config.vocab_size, ours.lm_head.weight.device
    plain = torch.randint(SPECIAL, vocab_size, (1, x), generator=torch.Generator().manual_seed(0))
    block = [SPECIAL - 5, *range(latent_config().num_slots), SPECIAL - 6]
    latent = torch.cat([plain, torch.tensor([block])], 1)
    prompts = {"stock": (stock, plain.to(where)), "ours": (ours, latent.to(where))}

    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in prompts}

    def answer(name: str) -> None:
        model, ids = prompts[name]
        ticks = Ticks()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens + 1,
            min_new_tokens=tokens + 1,
            do_sample=False,
            pad_token_id=SPECIAL,
            eos_token_id=SPECIAL,
            streamer=ticks,
        )
        begin, _, first, *_, last = ticks.seconds
        rounds[name].append((first - begin, (last - first) / tokens))

    interleaved({name: partial(answer, name) for name in prompts}, repeats)
    ours_first, ours_further = map(statistics.median, zip(*rounds["ours"][1:], strict=True))  # the first warms up
    stock_first, stock_further = map(statistics.median, zip(*rounds["stock"][1:], strict=True))
    text, k = ours.config.text_config, ours.config.num_slots
    return {
        "x": x,
        "ttft_vs_stock": round(ours_first / stock_first, 4),
        "per_token_vs_stock": round(ours_further / stock_further, 4),
        "ttft_flops_limit": round(METHOD.cost(latent_config()).prefill_flops(text, x) / prefill_flops(text, x), 4),
        "per_token_flops_limit": round(decode_flops(text, x + k + 2) / decode_flops(text, x), 4),
    }


class Ticks(BaseStreamer):
    """When an answer was begun, its prompt taken, and each of its tokens known."""

    def __init__(self) -> None:
        self.clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        self.seconds = [self.clock()]

    def put(self, value: Tensor) -> None:
        """Tokens, on the CPU."""
        self.seconds.append(self.clock())

    def end(self) -> None:
        """Nothing is held back."""


if __name__ == "__main__":
    main()
