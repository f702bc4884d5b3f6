"""Fed-back rows against the stock text model with a cache, each sample alone and token by token through its slots."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from amvl_core.backbones.qwen2_5_vl import QwenText
from amvl_core.rows.feedback import run_fed_back
from tests.amvl_core.rows.test_packed import DEPTH, SIZE, one_thread, text_model
from tests.numerics.held import float64_norms

__all__ = ["float64_norms", "one_thread"]


class Case(NamedTuple):
    lengths: list[int]
    slots: list[list[range]]
    wanted: list[int]
    embeds_ND: Tensor
    positions_3N: Tensor


def random_case(seed: int) -> Case:
    """Up to four samples with up to three blocks of one to four slots, some without a block."""
    draw = random.Random(seed)
    lengths: list[int] = []
    slots: list[list[range]] = []
    wanted: list[int] = []
    for _ in range(draw.randint(1, 4)):
        begin, at = sum(lengths), draw.randint(1, 5)
        blocks = []
        for _ in range(draw.randint(0, 3)):
            blocks.append(range(at, at + draw.randint(1, 4)))
            at = blocks[-1].stop + draw.randint(1, 4)
        lengths.append(at)
        slots.append(blocks)
        free = [i for i in range(at) if not any(i in block for block in blocks)]
        wanted += [begin + i for i in sorted(draw.sample(free, draw.randint(0, len(free))))]
    generator = torch.Generator().manual_seed(seed)
    embeds_ND = torch.randn(sum(lengths), SIZE, generator=generator, dtype=torch.float64)
    positions_3N = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1) + torch.randint(
        0, 3, (3, sum(lengths)), generator=generator
    )
    return Case(lengths, slots, wanted, embeds_ND, positions_3N)


def one_by_one(model: Any, case: Case, tap: int, hops: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Wanted final states, the slots' inputs, and the slots behind layer `tap`."""
    hidden: list[Tensor] = []
    inputs: list[Tensor] = []
    tapped: list[Tensor] = []
    for sample, length in enumerate(case.lengths):
        begin = sum(case.lengths[:sample])
        cache, states = DynamicCache(config=model.config), []
        links = {place: link for block in case.slots[sample] for link, place in enumerate(block)}
        for place in range(length):
            given = case.embeds_ND[begin + place][None, None]
            if place in links:
                given = states[-1].detach() if hops is not None and links[place] % (hops + 1) == 0 else states[-1]
                inputs.append(given[0])
            output = model(
                inputs_embeds=given,
                position_ids=case.positions_3N[:, None, begin + place, None],
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
            )
            states.append(output.last_hidden_state)
            if place in links:
                tapped.append(output.hidden_states[tap][0])
            if begin + place in case.wanted:
                hidden.append(states[-1][0])
    nothing = torch.zeros(0, SIZE, dtype=torch.float64)
    found = [torch.cat(part) if part else nothing for part in (hidden, inputs, tapped)]
    return found[0], found[1], found[2]


def gradients(model: Any, case: Case, outputs: tuple[Tensor, ...]) -> list[Tensor]:
    model.zero_grad()
    generator = torch.Generator().manual_seed(9)
    loss = sum((part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in outputs)
    assert isinstance(loss, Tensor)
    parameters = [*model.parameters(), case.embeds_ND]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("hops", [None, 0, 1])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_states_taps_and_every_gradient_equal_the_stock_model_token_by_token(
    checkpointing: bool, hops: int | None
) -> None:
    """Float64; worst seen: 4e-16 in states, 9e-16 in gradients relative to the largest."""
    stock, model = text_model(), text_model()
    if checkpointing:
        model.activation_checkpointing_enable()
    for seed in range(6):
        case, tap = random_case(seed), seed % (DEPTH + 1)
        case.embeds_ND.requires_grad_(True)
        if not case.wanted and not any(case.slots):
            continue
        expected = one_by_one(stock, case, tap, hops)
        fed = run_fed_back(
            QwenText(model), case.embeds_ND, case.positions_3N, case.lengths, case.slots, case.wanted, [tap], hops
        )
        found = (fed.hidden_RD, fed.inputs_TD, fed.tapped[tap])
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        ours_grads, stock_grads = gradients(model, case, found), gradients(stock, case, expected)
        for ours, theirs in zip(ours_grads, stock_grads, strict=True):
            assert (ours - theirs).abs().max() <= 1e-10 * (1 + theirs.abs().max()), (seed, tap)


def test_any_rows_are_tapped_behind_several_layers_and_a_module_stands_before_the_slots() -> None:
    """Float64; worst seen: 5e-16."""
    stock, model, feed = text_model(), text_model(), torch.nn.Linear(SIZE, SIZE, dtype=torch.float64)
    lengths, slots, rows = [6, 5], [[range(2, 4)], [range(1, 3)]], [1, 4, 9]
    case = Case(lengths, slots, [5, 10], *random_case(0)[3:])
    embeds_ND, positions_3N = (part[..., :11] if part is case.positions_3N else part[:11] for part in case[3:])
    layers = range(DEPTH + 1)
    fed = run_fed_back(
        QwenText(model), embeds_ND, positions_3N, lengths, slots, case.wanted, layers, tapped=rows, feed=feed
    )
    for start, length, own in ((0, 6, slots[0]), (6, 5, slots[1])):
        inputs = embeds_ND[start : start + length].clone()
        where = positions_3N[:, None, start : start + length]
        for place in own[0]:
            states = stock(inputs_embeds=inputs[None], position_ids=where).last_hidden_state[0]
            inputs = torch.cat([inputs[:place], feed(states[place - 1 : place]), inputs[place + 1 :]])
        found = stock(inputs_embeds=inputs[None], position_ids=where, output_hidden_states=True).hidden_states
        for number, row in enumerate(rows):
            for layer in layers if start <= row < start + length else ():
                torch.testing.assert_close(fed.tapped[layer][number], found[layer][0, row - start], rtol=0, atol=1e-12)


def test_what_helps_a_block_is_seen_by_its_slots_alone() -> None:
    """One sample with two blocks and a helper each, against whole passes under a mask. Float64; worst seen: 4e-16."""
    stock, model, slots, helpers = text_model(), text_model(), [range(5, 7), range(11, 14)], [range(2, 4), range(9, 10)]
    generator = torch.Generator().manual_seed(4)
    embeds_ND = torch.randn(16, SIZE, generator=generator, dtype=torch.float64)
    where, free = torch.arange(16).expand(3, 16), [row for row in range(16) if not any(row in own for own in slots)]
    seen = torch.ones(16, 16).tril().bool()
    for block, helper in zip(slots, helpers, strict=True):
        for row in set(range(helper.stop, 16)) - set(block):
            seen[row, helper.start : helper.stop] = False
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    inputs = embeds_ND.clone()
    for place in (*slots[0], *slots[1]):
        output = stock(inputs_embeds=inputs[None], position_ids=where[:, None], attention_mask=mask)
        inputs[place] = output.last_hidden_state[0, place - 1].detach()
    expected = stock(inputs_embeds=inputs[None], position_ids=where[:, None], attention_mask=mask).last_hidden_state[0]
    fed = run_fed_back(QwenText(model), embeds_ND, where, [16], [slots], free, helpers=[helpers])
    torch.testing.assert_close(fed.hidden_RD, expected[free], rtol=0, atol=1e-12)
    torch.testing.assert_close(fed.inputs_TD, inputs[[*slots[0], *slots[1]]], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64_norms")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_loss_is_handed_on_to_the_states_before_the_slots_and_no_further(checkpointing: bool) -> None:
    """Against two passes of the stock model, whose slots' inputs have no gradient. Float64; worst seen: 2e-15."""
    stock, model, slots, free = text_model(), text_model(), range(4, 7), [0, 1, 2, 3, 7, 8]
    if checkpointing:
        model.activation_checkpointing_enable()
    embeds_ND, where = random_case(0).embeds_ND[:9].requires_grad_(), torch.arange(9).expand(3, 9)
    case = Case([9], [[slots]], free, embeds_ND, where)

    def passed(vectors: list[Tensor]) -> Tensor:
        rows = torch.cat([embeds_ND[:4], *(vector[None] for vector in vectors), embeds_ND[4 + len(vectors) :]])
        found: Tensor = stock(inputs_embeds=rows[None], position_ids=where[:, None]).last_hidden_state[0]
        return found

    states: list[Tensor] = []
    for place in slots:
        states.append(passed([state.detach() for state in states])[place - 1])
    inputs = [state.detach().requires_grad_() for state in states]
    weights = torch.autograd.grad(passed(inputs)[free].square().sum(), inputs)
    expected = torch.stack([(state * weight).sum() for state, weight in zip(states, weights, strict=True)]).sum()
    fed = run_fed_back(QwenText(model), embeds_ND, where, *case[:3], leaves=True)
    handed = fed.handed_on(fed.hidden_RD.square().sum())
    assert handed == 0
    found = gradients(model, case, (handed[None],)), gradients(stock, case, (expected[None],))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * (1 + theirs.abs().max())


@pytest.mark.parametrize("slots", [[range(2)], [range(2, 2)], [range(3, 5)], [range(1, 2), range(2, 3)]], ids=str)
def test_a_block_without_tokens_around_it_is_refused(slots: list[range]) -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match="each needs a slot and tokens around it"):
        run_fed_back(QwenText(text_model()), case.embeds_ND[:5], case.positions_3N[:, :5], [5], [slots], [])


def test_a_wanted_slot_is_refused() -> None:
    case = random_case(0)
    with pytest.raises(ValueError, match="a wanted row is a slot"):
        run_fed_back(QwenText(text_model()), case.embeds_ND[:5], case.positions_3N[:, :5], [5], [[range(1, 3)]], [1, 4])
