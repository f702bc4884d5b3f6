"""Attention of packed rows by itself, forward and backward: as `amvl_core/rows/attention.py` runs it, and otherwise.

Shape suffixes as there: N rows of a packed row, H heads, G key-value heads, C head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from amvl_core.rows.attention import KeyValues, plan_row
from amvl_core.rows.spans import Span
from benchmarks.measure import Step, interleaved

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def compare(lengths: Sequence[int], text: dict[str, Any], dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Milliseconds of each way on causal sequences of `lengths` in one row, and how far it is from each sequence alone.

    `difference` is of outputs and gradients, relative to the norm of those in float64. A way that this machine has not
    says why.
    """
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    heads, groups = text["num_attention_heads"], text["num_key_value_heads"]
    size, rows = text["hidden_size"] // heads, sum(lengths)
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, size), (rows, groups, size), (rows, groups, size), (rows, heads, size)]
    *inputs, gradient = (torch.randn(shape, generator=generator).to(where, dtype) for shape in shapes)
    for tensor in inputs:
        tensor.requires_grad_(True)
    found, steps, expected = dict[str, Any](), dict[str, Step](), _alone(inputs, gradient, lengths)
    for name, way in _ways(lengths, heads // groups, size, inputs[0]).items():

        def step(way: Attention = way) -> list[Tensor]:
            output = way(*inputs)
            return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]

        try:
            results = step()
        except RuntimeError as error:
            found[name] = {"missing": str(error).split(". ")[0]}
            continue
        found[name] = {"difference": max(relative(*pair) for pair in zip(results, expected, strict=True))}
        steps[name] = step
    for name, seconds in interleaved(steps, repeats).items():
        found[name]["milliseconds"] = round(1000 * seconds, 3)
    return found


def _alone(inputs: Sequence[Tensor], gradient: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Output and gradients of each sequence by itself, in float64."""
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    outputs = []
    for parts in zip(*(tensor.split(list(lengths)) for tensor in wide), strict=True):
        query, key, value = (part.transpose(0, 1)[None] for part in parts)
        outputs.append(scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)[0])
    output = torch.cat(outputs, 1).transpose(0, 1)
    return [output.detach(), *torch.autograd.grad(output, wide, gradient.double())]


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _ways(lengths: Sequence[int], repeats: int, size: int, like: Tensor) -> dict[str, Attention]:
    """Each is given queries [N, H, C], keys and values [N, G, C], and gives [N, H, C]; ours is the first."""
    module = SimpleNamespace(scaling=size**-0.5, attention_dropout=0.0, training=True)
    plan = plan_row([Span(length, read=length) for length in lengths], [], lengths, repeats, like)
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=like.device)
    number = torch.repeat_interleave(torch.tensor(lengths)).to(like.device)
    rows, longest = sum(lengths), max(lengths)
    mask = create_block_mask(
        lambda b, h, query, key: (number[query] == number[key]) & (query >= key), None, None, rows, rows, like.device
    )
    flex = torch.compile(flex_attention) if like.is_cuda else flex_attention

    def by_blocks(query_NHC: Tensor, key_NGC: Tensor, value_NGC: Tensor) -> Tensor:
        given = (part.transpose(0, 1)[None] for part in (query_NHC, key_NGC, value_NGC))
        output: Tensor = flex(*given, block_mask=mask, enable_gqa=True)
        return output[0].transpose(0, 1)

    def by_lengths(query_NHC: Tensor, key_NGC: Tensor, value_NGC: Tensor) -> Tensor:
        given = (query_NHC, key_NGC, value_NGC, ends, ends, longest, longest)
        output: Tensor = varlen_attn(*given, window_size=(-1, 0), enable_gqa=True)
        return output

    return {
        "span by span": lambda query, key, value: plan.attend(module, query, KeyValues(key, value), []),
        "flex_attention": by_blocks,
        "varlen_attn": by_lengths,
    }
