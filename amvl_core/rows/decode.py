"""Greedy or drawn answers and log-likelihoods of given ones, all from one run of the prompts.

The prompts (images, latent block and all) run once and leave their keys and values. Greedy decoding goes on from there
with the rows that have not ended yet; the candidates of a question are so many short continuations of the same prompt,
run side by side in one pass. The model is a stock one or a method's; one whose next input is not always a token's
embedding says so by being a `FeedsBack`.

Shape suffixes: B prompts, T prompt columns (padded on the left), S columns of the cache, M columns of continuations,
N continued tokens of all prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from amvl_core.backbones.backbone import backbone_of
from amvl_core.rows.bottleneck import additive, causal, has_bottleneck, through_slots
from amvl_core.rows.last_layer import reading


@runtime_checkable
class FeedsBack(Protocol):
    """A model some of whose inputs are its own states, and some of whose tokens are forced."""

    dtype: torch.dtype

    def states(self, **inputs: Any) -> Any:
        """An output with `last_hidden_state` [B, M, D], from token ids `input_ids` and what a text model takes.

        What has to be known of the columns before it keeps in the cache.
        """

    def rules(self, prompt_columns: int) -> Callable[[Tensor, Tensor], Tensor]:
        """From ids [B, T], of prompts and what is written behind them, and logits [B, V]: logits of what may follow."""

    def before_answer(self) -> list[int]:
        """Ids of the tokens behind a prompt behind which a given answer is scored."""

    def uncounted(self) -> list[int]:
        """Ids of the tokens that count as no part of an answer's length. `rules` let only so many be written."""


@dataclass
class Prefilled:
    """Prompts that have been run: their keys and values, and what is needed to go on from them."""

    cache: Any
    logits_BV: Tensor
    """Of the token behind each prompt, in float32 or what the model has."""
    seen_BT: Tensor
    """Which columns of the cache are no padding."""
    position_B: Tensor
    """M-RoPE position of the token behind each prompt, the same in all three dimensions."""
    ids_BT: Tensor | None = None
    """The prompts' tokens: a model that feeds back is asked what may follow them."""


def prefill(
    model: Any, inputs: Mapping[str, Tensor], hidden_BT: Tensor | None = None, read: int = 1, **latent: Any
) -> Prefilled:
    """Runs the processor's `inputs`, padded on the left; `latent` are arguments of the method's own model.

    Columns of `hidden_BT` keep their positions and are seen by no other column. The last layer of a stock model runs on
    the last `read` columns (0: on all).
    """
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    base = backbone_of(model)
    grids = [inputs.get(name) for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")]
    positions_3BT = base.positions(model, ids_BT, grids[0], mask_BT, *grids[1:])
    given, seen_BT = dict(inputs), mask_BT.bool()
    if hidden_BT is not None:
        seen_BT = seen_BT & ~hidden_BT
        given["attention_mask"] = causal(seen_BT, ids_BT.shape[1], model.dtype)
    if has_bottleneck(model):
        if not getattr(model, "masks_images", False):  # a stock model; a method's own does so by itself
            given["attention_mask"] = through_slots(model, ids_BT, given["attention_mask"], model.dtype)
        if not isinstance(model, FeedsBack):  # nothing behind the prompt is a slot
            seen_BT = seen_BT & ~base.stands_for_features(model, ids_BT)
    with reading(model, read):
        output = model(**given, position_ids=positions_3BT, use_cache=True, logits_to_keep=1, **latent)
    start = prefilled(output, seen_BT, positions_3BT[..., -1].amax(0) + 1)
    start.ids_BT = ids_BT
    return start


def prefilled(output: Any, seen_BT: Tensor, position_B: Tensor) -> Prefilled:
    """To go on from what a model gave (`output`, with cache) for prompts."""
    return Prefilled(output.past_key_values, _wide(output.logits[:, -1]), seen_BT, position_B)


def behind(model: FeedsBack, start: Prefilled, seen_BM: Tensor, **inputs: Any) -> Tensor:
    """Final states [B, M, D] of columns behind prompts, which are added to their cache.

    Columns that `seen_BM` leaves out are seen by nothing behind them. `inputs` are arguments of the model's `states`;
    positions go on by one where they are not among them.
    """
    _, width = seen_BM.shape
    diagonal_MM = torch.eye(width, dtype=torch.bool, device=seen_BM.device)
    own_BMM = (seen_BM[:, None] | diagonal_MM).tril()
    seen_BMS = torch.cat([start.seen_BT[:, None].expand(-1, width, -1), own_BMM], -1)
    at_BM = start.position_B[:, None] + torch.arange(width, device=seen_BM.device)
    given = {"position_ids": at_BM.expand(3, *at_BM.shape), **inputs}
    mask_B1MS = additive(seen_BMS[:, None], model.dtype)
    output = model.states(attention_mask=mask_B1MS, past_key_values=start.cache, use_cache=True, **given)
    hidden_BMD: Tensor = output.last_hidden_state
    return hidden_BMD


def extended(model: Any, start: Prefilled, hidden_BMD: Tensor, seen_BM: Tensor, ids_BM: Tensor) -> Prefilled:
    """To go on from the last of the columns that `behind` gave, which hold the tokens `ids_BM`."""
    return Prefilled(
        start.cache,
        _wide(model.lm_head(hidden_BMD[:, -1])),
        torch.cat([start.seen_BT, seen_BM], 1),
        start.position_B + seen_BM.shape[1],
        None if start.ids_BT is None else torch.cat([start.ids_BT, ids_BM], 1),
    )


def greedy(
    model: Any,
    start: Prefilled,
    max_new_tokens: int,
    drafts: Sequence[Sequence[int]] = (),
    rules: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[list[int]]:
    """The most likely next token, again and again, up to and with an end token: what stock greedy `generate` gives.

    No other rule of the generation configuration holds (Qwen2.5-VL's has a repetition penalty of 1.05) but its list of
    tokens that are never generated. A row that has ended leaves the batch. `start` is used up.

    `drafts` are guesses of the answers, one a row: what of them the model says too is found in one pass over them, and
    decoding goes on from the first token that differs. They change what an answer costs, not what it is. A model that
    feeds back takes no guess: its inputs follow one from another. It follows `rules`, or its own for these prompts, and
    `max_new_tokens` are those of its answer alone.
    """
    return _written(model, start, max_new_tokens, lambda logits_BV, rows: logits_BV.argmax(-1), drafts, rules)


def sampled(
    model: Any, start: Prefilled, max_new_tokens: int, temperature: float, keys: Sequence[int]
) -> list[list[int]]:
    """As `greedy`, with each token drawn from softmax(logits / `temperature`), of all that may follow.

    A row's key seeds its draws: they are the same whatever stands beside it.
    """
    generators = [torch.Generator().manual_seed(key) for key in keys]

    def draw(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        at = [torch.rand(1, generator=generators[row], dtype=torch.float64) for row in rows]
        below_BV = (logits_BV.double() / temperature).softmax(-1).cumsum(-1)
        return (below_BV < torch.stack(at).to(below_BV.device) * below_BV[:, -1:]).sum(-1)

    return _written(model, start, max_new_tokens, draw)


def _written(
    model: Any,
    start: Prefilled,
    max_new_tokens: int,
    choose: Callable[[Tensor, Sequence[int]], Tensor],
    drafts: Sequence[Sequence[int]] = (),
    rules: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[list[int]]:
    """What `greedy` says; `choose` gives the next token of each of some rows, from logits [B, V] and their numbers."""
    ends, never = end_tokens(model), list(model.generation_config.suppress_tokens or [])
    ids_BT = start.ids_BT if isinstance(model, FeedsBack) else None
    if rules is None and ids_BT is not None:
        rules = model.rules(ids_BT.shape[1])
    found: list[list[int]] = [[] for _ in start.position_B]
    if rules is None and any(guesses := [_until_end(draft, ends)[:max_new_tokens] for draft in drafts]):
        found = _taken(model, start, guesses, never)
    rows = list(range(len(found)))
    columns = start.seen_BT.shape[1]
    seen_BS = torch.nn.functional.pad(start.seen_BT, (0, max_new_tokens), value=True)
    mask_B11S = additive(seen_BS[:, None, None], model.dtype)
    position_B, chosen_B = start.position_B, torch.empty(0)
    logits_BV = start.logits_BV

    uncounted = model.uncounted() if isinstance(model, FeedsBack) else []

    def goes_on(row: int) -> bool:
        length = len(found[row]) - sum(found[row].count(token) for token in uncounted)
        return length < max_new_tokens and not (found[row] and found[row][-1] in ends)

    for step in count():
        going = [number for number, row in enumerate(rows) if goes_on(row)]
        if not going:
            break
        kept = torch.tensor(going, device=position_B.device)
        if len(going) < len(rows):
            start.cache.batch_select_indices(torch.tensor(going))  # its layers may lie on several devices
            position_B, mask_B11S = position_B[kept], mask_B11S[kept]
            ids_BT = None if ids_BT is None else ids_BT[kept]
            rows = [rows[number] for number in going]
        if step == 0:
            logits_BV = logits_BV[kept]
        else:
            ids_B1, at_B1 = chosen_B[kept, None], position_B[:, None] + step - 1
            if columns + step > mask_B11S.shape[-1]:
                mask_B11S = torch.nn.functional.pad(mask_B11S, (0, max_new_tokens))
            hidden_B1D = _run(model, start.cache, ids_B1, at_B1, mask_B11S, columns + step - 1)
            logits_BV = _wide(model.lm_head(hidden_B1D[:, -1]))
        logits_BV[:, never] = -torch.inf
        if rules is not None and ids_BT is not None:
            chosen_B = choose(rules(ids_BT, logits_BV), rows)
            ids_BT = torch.cat([ids_BT, chosen_B[:, None]], 1)
        else:
            chosen_B = choose(logits_BV, rows)
        for row, token in zip(rows, chosen_B.tolist(), strict=True):
            found[row].append(token)
    return found


def _until_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """Up to and with the first end token."""
    return list(tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), None)])


def _taken(model: Any, start: Prefilled, drafts: Sequence[Sequence[int]], never: Sequence[int]) -> list[list[int]]:
    """What each row says of its draft; `start` is then behind that, with the columns of what it does not say hidden."""
    width = max(map(len, drafts))
    columns, device = start.seen_BT.shape[1], start.seen_BT.device
    ids_BM = torch.tensor([[*draft, *[0] * (width - len(draft))] for draft in drafts], device=device)
    length_B = torch.tensor([len(draft) for draft in drafts], device=device)
    offset_M = torch.arange(width, device=device)
    seen_BMS = torch.cat(
        [
            start.seen_BT[:, None].expand(-1, width, -1),
            torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(drafts), -1, -1),
        ],
        -1,
    )
    mask_B1MS = additive(seen_BMS[:, None], model.dtype)
    hidden_BMD = _run(model, start.cache, ids_BM, start.position_B[:, None] + offset_M, mask_B1MS, columns)

    def logits(hidden_ND: Tensor) -> Tensor:
        found_NV = _wide(model.lm_head(hidden_ND))
        found_NV[:, never] = -torch.inf
        return found_NV

    start.logits_BV[:, never] = -torch.inf
    behind_BM = torch.stack([logits(hidden_MD).argmax(-1) for hidden_MD in hidden_BMD])  # row by row: V is large
    said_BM = torch.cat([start.logits_BV.argmax(-1, keepdim=True), behind_BM[:, :-1]], 1)
    same_BM = (said_BM == ids_BM) & (offset_M < length_B[:, None])
    taken_B = same_BM.long().cumprod(1).sum(1)
    some = taken_B > 0
    if some.any():
        start.logits_BV[some] = logits(hidden_BMD[some, taken_B[some] - 1])
    start.seen_BT = torch.cat([start.seen_BT, offset_M < taken_B[:, None]], 1)
    start.position_B = start.position_B + taken_B
    return [list(draft[:count]) for draft, count in zip(drafts, taken_B.tolist(), strict=True)]


def log_likelihoods(
    model: Any, start: Prefilled, continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """log p(tokens | prompt and latents) in nats of every continuation of every prompt; `start` stays as it is.

    All continuations of a prompt stand behind it in one row; each sees the prompt and itself.
    """
    places = [(row, number) for row, given in enumerate(continuations) for number in range(len(given))]
    if not places:
        return [[] for _ in continuations]
    if isinstance(model, FeedsBack) and (before := model.before_answer()):
        ids_BM = torch.tensor(before, device=start.seen_BT.device).expand(len(start.seen_BT), -1)
        seen_BM = torch.ones_like(ids_BM, dtype=torch.bool)
        hidden_BMD = behind(model, start, seen_BM, input_ids=ids_BM)
        found = _scores(model, extended(model, start, hidden_BMD, seen_BM, ids_BM), continuations, places)
        start.cache.crop(-len(before))
        return found
    return _scores(model, start, continuations, places)


def _scores(
    model: Any,
    start: Prefilled,
    continuations: Sequence[Sequence[Sequence[int]]],
    places: Sequence[tuple[int, int]],
) -> list[list[float]]:
    """`log_likelihoods` right behind `start`; `places` are (row, number) of all continuations."""
    rows = torch.tensor([row for row, _ in places], device=start.logits_BV.device)
    first = torch.tensor([continuations[row][number][0] for row, number in places], device=rows.device)
    found_N = start.logits_BV.log_softmax(-1)[rows, first]
    sums = dict(zip(places, found_N.tolist(), strict=True))
    width = max(sum(len(tokens) - 1 for tokens in given) for given in continuations)
    if width:
        for place, value in _rest(model, start, continuations, width):
            sums[place] += value
    return [[sums[row, number] for number in range(len(given))] for row, given in enumerate(continuations)]


def _rest(
    model: Any, start: Prefilled, continuations: Sequence[Sequence[Sequence[int]]], width: int
) -> list[tuple[tuple[int, int], float]]:
    """(row, continuation) and log p of each token behind the first, from one pass over all of them."""
    prompts, columns = start.seen_BT.shape
    device = start.seen_BT.device
    ids_BM = torch.zeros(prompts, width, dtype=torch.long)
    offset_BM = torch.zeros(prompts, width, dtype=torch.long)
    own_BMM = torch.zeros(prompts, width, width, dtype=torch.bool)
    targets: list[tuple[tuple[int, int], int, int]] = []
    for row, given in enumerate(continuations):
        begin = 0
        for number, tokens in enumerate(given):
            end = begin + len(tokens) - 1
            ids_BM[row, begin:end] = torch.tensor(tokens[:-1], dtype=torch.long)
            offset_BM[row, begin:end] = torch.arange(end - begin)
            own_BMM[row, begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
            targets += [((row, number), begin + i, token) for i, token in enumerate(tokens[1:])]
            begin = end
    seen_BMS = torch.cat([start.seen_BT[:, None].expand(-1, width, -1), own_BMM.to(device)], -1)
    mask_B1MS = additive(seen_BMS[:, None], model.dtype)
    position_BM = start.position_B[:, None] + offset_BM.to(device)
    hidden_BMD = _run(model, start.cache, ids_BM.to(device), position_BM, mask_B1MS, columns)
    start.cache.crop(-width)
    rows = torch.tensor([row for (row, _), _, _ in targets], device=device)
    at = torch.tensor([column for _, column, _ in targets], device=device)
    wanted_N = torch.tensor([token for _, _, token in targets], device=device)
    found_N = _wide(model.lm_head(hidden_BMD[rows, at])).log_softmax(-1).gather(-1, wanted_N[:, None])[:, 0]
    return [(place, value) for (place, _, _), value in zip(targets, found_N.tolist(), strict=True)]


def _run(model: Any, cache: Any, ids_BM: Tensor, position_BM: Tensor, mask_B1MS: Tensor, before: int) -> Tensor:
    """Final hidden states [B, M, D] of tokens behind the `before` columns of the cache, to which they are added."""
    inputs = {
        "attention_mask": mask_B1MS[..., : before + ids_BM.shape[1]],
        "position_ids": position_BM.expand(3, *position_BM.shape),
        "past_key_values": cache,
        "use_cache": True,
    }
    if isinstance(model, FeedsBack):
        output = model.states(input_ids=ids_BM, **inputs)
    else:
        embeds_BMD = model.get_input_embeddings()(ids_BM)
        output = backbone_of(model).language_model(model)(inputs_embeds=embeds_BMD, **inputs)
    hidden_BMD: Tensor = output.last_hidden_state
    return hidden_BMD


def _wide(logits: Tensor) -> Tensor:
    """At least float32: a sum over a vocabulary of 150,000 is not to be taken in bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def end_tokens(model: Any) -> set[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.text_config.eos_token_id
    return {ends} if isinstance(ends, int) else set(ends)
