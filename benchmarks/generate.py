"""Time to first token and per further token, against the stock model: `python -m benchmarks.generate`.

AMVL's prompt has its latent block at the end; the stock model's prompt is the same text without the block. The last
line is one JSON object; ratios are of medians over interleaved rounds in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch

from amvl_core.rows.flops import decode_flops, prefill_flops
from benchmarks.measure import Step, device_name, interleaved
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

    def generating(name: str, count: int) -> Step:
        model, ids = prompts[name]
        mask = torch.ones_like(ids)
        return lambda: model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=SPECIAL,
            eos_token_id=SPECIAL,
        )

    steps = {f"{name} {count}": generating(name, count) for name in prompts for count in (1, tokens + 1)}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = interleaved(steps, repeats, clock)
    per_token = {name: (seconds[f"{name} {tokens + 1}"] - seconds[f"{name} 1"]) / tokens for name in prompts}
    text, k = ours.config.text_config, ours.config.num_slots
    return {
        "x": x,
        "ttft_vs_stock": round(seconds["ours 1"] / seconds["stock 1"], 4),
        "per_token_vs_stock": round(per_token["ours"] / per_token["stock"], 4),
        "ttft_flops_limit": round(METHOD.cost(latent_config()).prefill_flops(text, x) / prefill_flops(text, x), 4),
        "per_token_flops_limit": round(decode_flops(text, x + k + 2) / decode_flops(text, x), 4),
    }


if __name__ == "__main__":
    main()
