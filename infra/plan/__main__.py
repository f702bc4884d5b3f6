"""`python -m infra.plan --preset paper`: what a run will take, before any GPU is rented."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, replace

from rich.console import Console

from amvl_core.contracts.config import override
from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.overrides import parse
from amvl_core.contracts.presets import PRESETS
from infra.plan.machines import MACHINES, UTILISATION
from infra.plan.planner import plan
from infra.plan.shapes import model_shape
from infra.plan.show import tables
from infra.plan.workload import assumed


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 where stages and evaluation fit, 1 where one does not or a message says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m infra.plan", description=__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="paper")
    parser.add_argument("--param", action="append", default=[], metavar="FIELD=JSON", help="a field of RunConfig")
    parser.add_argument("--gpu", choices=list(MACHINES), default="A100-80GB")
    parser.add_argument("--network", type=_amount, metavar="GB/S", help="what a node sends to others")
    parser.add_argument("--utilisation", type=float, default=UTILISATION, help="share of the GPU's peak")
    parser.add_argument("--rows", type=_count, help="training samples; else as the sources say")
    parser.add_argument("--prompt-tokens", type=_count, help="of a mean sample, images included")
    parser.add_argument("--answer-tokens", type=_count, help="of a mean sample, images included")
    parser.add_argument("--json", action="store_true", help="the plan as one JSON object")
    chosen = parser.parse_args(arguments)
    try:
        config = override(PRESETS[chosen.preset](), parse(chosen.param))
        shape = model_shape(config.model)
        load = assumed(config.data, shape, chosen.rows, chosen.prompt_tokens, chosen.answer_tokens)
        machines = MACHINES[chosen.gpu]
        if chosen.network is not None:
            machines = replace(machines, node_gb_s=chosen.network)
        found = plan(config, machines, chosen.utilisation, load)
    except AmvlError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(asdict(found)))
    else:
        Console().print(tables(found), highlight=False, soft_wrap=True)
    return 0 if found.fits else 1


def _count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _amount(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
