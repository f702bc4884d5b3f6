"""Packed rows against the stock text model, run on all rows of a step as one sequence with an explicit 4-D mask."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from amvl_core.backbones.qwen2_5_vl import QwenText
from amvl_core.rows.attention import Context
from amvl_core.rows.packed import run_row
from amvl_core.rows.spans import Piece, Rows, Span

DEPTH, SIZE = 3, 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of products this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def text_model(dtype: torch.dtype = torch.float64) -> Any:
    config = Qwen2_5_VLTextConfig(
        vocab_size=8,
        hidden_size=SIZE,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLTextModel._from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


class Case(NamedTuple):
    """A step: its packed rows, inputs [N, D] and positions [3, N] of all of them, and taps by row and layer."""

    rows: Rows
    embeds_ND: Tensor
    positions_3N: Tensor
    taps: list[dict[int, list[int]]]


def random_case(seed: int) -> Case:
    """Up to five packed rows, about half of them of spans of one row each, as fed-back states are."""
    draw = random.Random(seed)
    rows: list[list[Span]] = []
    for number in range(draw.randint(2, 5)):
        rows.append([])
        longest = draw.choice([1, 6])
        for _ in range(draw.randint(1, 4)):
            size = draw.randint(1, longest)
            rows[number].append(Span(size, draw.randint(0, size), random_context(draw, rows)))
    taps = [
        {layer: draw.sample(range(size := count(row)), draw.randint(1, size)) for layer in range(DEPTH + 1)}
        if draw.random() < 0.7
        else {}
        for row in rows
    ]
    generator = torch.Generator().manual_seed(seed)
    total = sum(map(count, rows))
    embeds_ND = torch.randn(total, SIZE, generator=generator, dtype=torch.float64)
    return Case(rows, embeds_ND, torch.randint(0, 40, (3, total), generator=generator), taps)


def random_context(draw: random.Random, rows: Rows) -> tuple[Piece, ...]:
    """Pieces of spans that are there, in any order; with a gap in some spans, and with nothing of others."""
    pieces = []
    for row, spans in enumerate(rows):
        for number, span in enumerate(spans):
            edges = sorted(draw.randint(0, span.rows) for _ in range(4))
            found = [Piece(row, number, *edges[:2]), Piece(row, number, *edges[2:]), Piece(row, number, 0, span.rows)]
            pieces += draw.choice([[], found[:2], found[:1], found[2:]])
    draw.shuffle(pieces)
    return tuple(pieces)


def count(spans: Any) -> int:
    return sum(span.rows for span in spans)


def starts(rows: Rows) -> list[list[int]]:
    """Where each span begins in the sequence of all rows."""
    found, at = [], 0
    for spans in rows:
        found.append([])
        for span in spans:
            found[-1].append(at)
            at += span.rows
    return found


def mask_of(rows: Rows, dtype: torch.dtype) -> Tensor:
    """The additive 4-D mask that says what `Span` says."""
    begin, total = starts(rows), sum(map(count, rows))
    seen = torch.zeros(total, total, dtype=torch.bool)
    for row, spans in enumerate(rows):
        for number, span in enumerate(spans):
            own = slice(begin[row][number], begin[row][number] + span.rows)
            seen[own, own] = torch.ones(span.rows, span.rows, dtype=torch.bool).tril()
            for piece in span.context:
                first = begin[piece.row][piece.span]
                seen[own, first + piece.start : first + piece.stop] = True
    return torch.zeros(total, total, dtype=dtype).masked_fill(~seen, -torch.inf)[None, None]


def stock(model: Any, rows: Rows, embeds_ND: Tensor, positions_3N: Tensor) -> list[Tensor]:
    """Hugging Face's `hidden_states`, [N, D] each."""
    output = model(
        inputs_embeds=embeds_ND[None],
        position_ids=positions_3N[:, None],
        attention_mask=mask_of(rows, embeds_ND.dtype),
        use_cache=False,
        output_hidden_states=True,
    )
    return [hidden[0] for hidden in output.hidden_states]


def packed(model: Any, case: Case, embeds_ND: Tensor) -> Tensor:
    """What is read and tapped in all rows."""
    sizes = [count(row) for row in case.rows]
    found: list[Tensor] = []
    before: list[Context] = []
    parts = zip(embeds_ND.split(sizes), case.positions_3N.split(sizes, 1), strict=True)
    for spans, (embeds, positions), taps in zip(case.rows, parts, case.taps, strict=True):
        hidden, context = run_row(QwenText(model), embeds, positions, spans, before, taps)
        before.append(context)
        found += [hidden, *(context.tapped[layer] for layer in taps)]
    return torch.cat(found)


def whole(model: Any, case: Case, embeds_ND: Tensor) -> Tensor:
    """The same by the stock model."""
    hidden = stock(model, case.rows, embeds_ND, case.positions_3N)
    found = []
    for spans, begins, taps in zip(case.rows, starts(case.rows), case.taps, strict=True):
        for begin, span in zip(begins, spans, strict=True):
            found.append(hidden[-1][begin + span.rows - span.read : begin + span.rows])
        found += [hidden[layer][[begins[0] + row for row in rows]] for layer, rows in taps.items()]
    return torch.cat(found)


def gradients(model: Any, output_RD: Tensor, embeds_ND: Tensor) -> dict[str, Tensor]:
    """Of the inputs and of every parameter, for a loss that weighs every output."""
    weights = torch.randn(output_RD.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.zero_grad()
    embeds_ND.grad = None
    (output_RD.double() * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert embeds_ND.grad is not None
    return {**found, "inputs": embeds_ND.grad.clone()}


def error(ours: Tensor, theirs: Tensor, whole: float = 0.0) -> float:
    """Relative to the norm, or to a thousandth of `whole` where that is more."""
    return float((ours - theirs).detach().norm()) / max(float(theirs.detach().norm()), 1e-3 * whole, 1e-300)


def errors(model: Any, case: Case) -> tuple[float, float]:
    """Of outputs, and the worst of any gradient."""
    embeds_ND = case.embeds_ND.to(model.norm.weight.dtype).requires_grad_()
    ours, theirs = packed(model, case, embeds_ND), whole(model, case, embeds_ND)
    assert ours.shape == theirs.shape and len(ours)
    grads, stock_grads = gradients(model, ours, embeds_ND), gradients(model, theirs, embeds_ND)
    assert grads.keys() == stock_grads.keys()
    norm = float(torch.stack([grad.norm() for grad in stock_grads.values()]).norm())
    return error(ours, theirs), max(error(grads[name], grad, norm) for name, grad in stock_grads.items())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("dtype", "outputs_within", "gradients_within"),
    [
        # Measured worst case over 300 random cases: 1.4e-16 and 1.8e-14. The stock norms round to float32: where they
        # once round another way, a gradient is off by 1e-7.
        (torch.float64, 1e-12, 1e-6),
        # 1.7e-7 and 1.2e-5.
        (torch.float32, 1e-6, 1e-4),
        # 4.7e-3 and 5.7e-2.
        (torch.bfloat16, 1e-2, 1e-1),
    ],
    ids=["float64", "float32", "bfloat16"],
)
def test_what_is_read_and_tapped_and_every_gradient_equal_the_stock_model(
    dtype: torch.dtype, outputs_within: float, gradients_within: float, checkpointing: bool
) -> None:
    model = text_model(dtype)
    if checkpointing:
        model.activation_checkpointing_enable()
    for seed in range(8):
        outputs, grads = errors(model, random_case(seed))
        assert outputs < outputs_within and grads < gradients_within, (seed, outputs, grads)


SLOTS = 3


def slot_rows_fed_back(model: Any, xs: list[Tensor], steps: list[list[Tensor]]) -> tuple[list[Tensor], list[Context]]:
    """Of each sample its slots behind layer 2 and its steps' last states: a pass for all samples that have the block.

    A slot sees all before it; a step does not see rows 2 and 3 of x. Returns the packed rows too.
    """
    ends = [len(x) for x in xs]
    positions = torch.cat([torch.arange(end) for end in ends]).expand(3, -1)
    hidden, context = run_row(QwenText(model), torch.cat(xs), positions, [Span(end, 1) for end in ends])
    before, states = [context], dict(enumerate(hidden.split(1)))
    chains = {i: (Piece(0, i, 0, 2), Piece(0, i, 2, 4), Piece(0, i, 4, end)) for i, end in enumerate(ends)}
    found: list[list[Tensor]] = [[] for _ in xs]

    def run(inputs: dict[int, Tensor], spans: list[Span], taps: dict[int, range]) -> None:
        sizes = {i: len(rows) for i, rows in inputs.items()}
        positions = torch.cat([ends[i] + torch.arange(size) for i, size in sizes.items()]).expand(3, -1)
        hidden, context = run_row(QwenText(model), torch.cat([*inputs.values()]), positions, spans, before, taps)
        parts = hidden.split([span.read for span in spans])
        for place, (i, size) in enumerate(sizes.items()):
            states[i] = parts[place][-1:]
            found[i] += [context.tapped[2][place : place + 1]] if taps else [parts[place]]
            chains[i] = (*chains[i], Piece(len(before), place, 0, size))
            ends[i] += size
        before.append(context)

    for number in range(max(map(len, steps))):
        there = [i for i, of_sample in enumerate(steps) if number < len(of_sample)]
        for _ in range(SLOTS):
            run({i: states[i] for i in there}, [Span(1, 1, chains[i]) for i in there], {2: range(len(there))})
        answers = {i: steps[i][number] for i in there}
        run(answers, [Span(len(s), len(s), (chains[i][0], *chains[i][2:])) for i, s in answers.items()], {})
    return [torch.cat(of_sample) for of_sample in found], before


def slot_by_slot(model: Any, x: Tensor, steps: list[Tensor]) -> Tensor:
    """The same of one sample by the stock model, which runs the whole sequence again for every slot."""
    rows, embeds, kinds = [[Span(len(x), 1)]], x, ["x"]

    def append(part: Tensor, kind: str) -> None:
        nonlocal embeds
        pieces = [Piece(row, 0, 0, spans[0].rows) for row, spans in enumerate(rows)]
        if kind == "step":
            pieces = [Piece(0, 0, 0, 2), Piece(0, 0, 4, len(x)), *pieces[1:]]
        rows.append([Span(len(part), len(part), tuple(pieces))])
        embeds = torch.cat([embeds, part])
        kinds.append(kind)

    for step in steps:
        for _ in range(SLOTS):
            append(stock(model, rows, embeds, torch.arange(len(embeds)).expand(3, -1))[-1][-1:], "slot")
        append(step, "step")
    hidden = stock(model, rows, embeds, torch.arange(len(embeds)).expand(3, -1))
    layers = {"slot": 2, "step": DEPTH}
    ends = zip(kinds, starts(rows), rows, strict=True)
    return torch.cat([hidden[layers[k]][b[0] : b[0] + s[0].rows] for k, b, s in ends if k != "x"])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_states_fed_back_equal_the_stock_model_slot_by_slot(checkpointing: bool) -> None:
    """Three samples with two, one and two blocks: a chain of x, earlier slots and earlier steps, with a gap in x."""
    model = text_model()
    if checkpointing:
        model.activation_checkpointing_enable()
    sizes = [(7, (4, 2)), (5, (3,)), (6, (1, 5))]
    inputs_ND = torch.randn(33, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs_ND.requires_grad_()
    parts = iter(inputs_ND.split([part for x, steps in sizes for part in (x, *steps)]))
    samples = [(next(parts), [next(parts) for _ in steps]) for _, steps in sizes]
    found, rows = slot_rows_fed_back(model, *map(list, zip(*samples, strict=True)))
    ours, theirs = torch.cat(found), torch.cat([slot_by_slot(model, *sample) for sample in samples])
    grads, stock_grads = (gradients(model, output, inputs_ND) for output in (ours, theirs))
    # Measured: 1e-16 and 2e-15.
    assert error(ours, theirs) < 1e-12
    assert max(error(grads[name], grad) for name, grad in stock_grads.items()) < 1e-6
    # The keys of x are copied once for a block, not once for a slot.
    assert len(rows[0].blocks) == 2


def test_checkpointed_layers_run_again_in_backward() -> None:
    model, case = text_model(), random_case(0)
    model.activation_checkpointing_enable()
    calls: list[int] = []
    model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    packed(model, case, case.embeds_ND.clone().requires_grad_()).sum().backward()
    assert len(calls) == 2 * len(case.rows)


def test_only_rows_from_the_first_that_is_read_or_tapped_pass_the_last_mlp() -> None:
    model, embeds_ND = text_model(), torch.randn(9, SIZE, dtype=torch.float64)
    rows: list[int] = []
    model.layers[-1].mlp.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    for taps in ({}, {1: [0]}, {DEPTH: [7, 5]}):
        run_row(QwenText(model), embeds_ND, torch.arange(9).expand(3, -1), [Span(4, 2), Span(5, 0)], taps=taps)
    assert rows == [2, 2, 2 + 4]


def test_a_pass_without_gradient_does_not_take_it_from_the_next() -> None:
    model = text_model()
    embeds_ND = torch.randn(6, SIZE, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(6).expand(3, -1)
    _, context = run_row(QwenText(model), embeds_ND[:5], positions[:, :5], [Span(5, 0)])
    found = []
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            spans = [Span(1, 1, (Piece(0, 0, 0, 5),))]
            found.append(run_row(QwenText(model), embeds_ND[5:], positions[:, 5:], spans, [context])[0])
    found[1].sum().backward()
    assert torch.equal(*found) and embeds_ND.grad is not None and bool((embeds_ND.grad != 0).any(1).all())


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (Piece(1, 0, 0, 1), "not in any of the 1 packed rows"),
        (Piece(0, 2, 0, 1), "not in any of the 1 packed rows"),
        (Piece(0, 0, 1, 4), "its span, which has 3 rows"),
        (Piece(0, 0, 2, 1), "its span, which has 3 rows"),
    ],
)
def test_a_piece_that_is_not_there_is_refused(piece: Piece, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run_row(QwenText(text_model()), torch.zeros(5, SIZE), torch.zeros(3, 5), [Span(3, 0), Span(2, 2, (piece,))])
