"""The last layer on the columns that are read, against the stock model, which runs it on all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.method import configurations
from amvl_core.eval.predict import Answerer
from amvl_core.rows.decode import prefill
from amvl_core.rows.last_layer import reading
from tests.numerics.test_decode import asked
from tests.tiny import LATENT, stock_folder

IDS = torch.randint(5, 60, (3, 30), generator=torch.Generator().manual_seed(0))


def loaded(kind: str = "sft", dtype: torch.dtype = torch.float64) -> Answerer:
    """A method's model on the stock tiny one, with large biases."""
    processor = load_processor(stock_folder())
    torch.manual_seed(1)
    model = configurations()[kind].implementation().load(stock_folder(), processor, LATENT, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Answerer(model.eval(), processor)


def last_layer(model: Any) -> Any:
    return backbone_of(model).language_model(model).layers[-1]


@contextmanager
def counted(model: Any) -> Iterator[dict[str, list[int]]]:
    """While it is open, the columns of each call of the last layer's modules."""
    layer = last_layer(model)
    modules = {"keys": layer.self_attn.k_proj, "queries": layer.self_attn.q_proj, "mlp": layer.mlp}
    found: dict[str, list[int]] = {name: [] for name in modules}

    def hook(name: str) -> Any:
        return lambda _, given: found[name].append(given[0].shape[:-1].numel())

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    yield found
    for handle in handles:
        handle.remove()


def cache_of(kind: str, model: Any) -> Any:
    config = model.config.text_config
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=40)


@torch.inference_mode()
def run(model: Any, columns: int, kind: str, padding: int, parts: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Final states of the last columns, and keys and values of all, of ids that come in parts."""
    cache, mask = cache_of(kind, model), torch.ones_like(IDS)
    mask[1, :padding] = 0
    begin, states = 0, torch.empty(0)
    for end in parts:
        with reading(model, columns):
            states = model.model(
                IDS[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True
            ).last_hidden_state
        begin = end
    return states, [part for layer in cache.layers for part in (layer.keys, layer.values)]


@pytest.mark.parametrize("parts", [[30], [13, 30]], ids=["whole", "two-parts"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_and_cache_are_the_stock_models(attention: str, padding: int, cache: str, parts: list[int]) -> None:
    """Worst seen: states equal in float64, keys and values 3e-15 apart; in float32, of eager attention, 2e-6.

    The library's eager attention makes NaN of a padding column in float64.
    """
    float64 = attention == "sdpa" or not padding
    model = loaded(dtype=torch.float64 if float64 else torch.float32).model
    model.set_attn_implementation(attention)
    expected, held = run(model, 0, cache, padding, parts)
    for columns in (1, 4):
        states, own = run(model, columns, cache, padding, parts)
        assert states.shape[1] == columns
        for found, stock in zip([states, *own], [expected[:, -columns:], *held], strict=True):
            torch.testing.assert_close(found, stock, rtol=0, atol=1e-12 if float64 else 1e-5)


@pytest.mark.parametrize("kind", sorted(configurations()))
def test_no_prompt_runs_the_last_layer_whole(kind: str) -> None:
    """Keys of every column; all else of the columns that are read alone. Logits are 2e-14 from whole passes."""
    ours = loaded(kind)
    prompts = ours.encode(*asked()).inputs
    samples, columns = prompts["input_ids"].shape
    block = LATENT.num_slots + 1
    with torch.inference_mode():
        with counted(ours.model) as found:
            start = prefill(ours.model, prompts)
        whole = ours.model(**prompts).logits[:, -1]
    torch.testing.assert_close(start.logits_BV, whole, rtol=0, atol=1e-12)
    parts = [block, block] if kind == "amvl" else [1]
    assert found["queries"] == found["mlp"] == [samples * part for part in parts]
    assert sum(found["keys"]) == samples * (columns + (block if kind == "amvl" else 0))


@pytest.mark.parametrize("kind", ["amvl", "valr"])
def test_generate_does_not_run_the_last_layer_whole_either(kind: str) -> None:
    ours = loaded(kind)
    prompts = ours.encode(*asked()).inputs
    with counted(ours.model) as found:
        ours.model.generate(**prompts, max_new_tokens=1, do_sample=False)
    assert max(found["mlp"]) == len(prompts["input_ids"]) * (LATENT.num_slots + 1 if kind == "amvl" else 1)


@pytest.mark.parametrize("kind", ["amvl", "valr"])
@pytest.mark.parametrize("asked_in", ["the call", "the configuration"])
def test_hidden_states_that_are_asked_for_are_of_all_columns(kind: str, asked_in: str) -> None:
    ours = loaded(kind)
    prompts = ours.encode(*asked()).inputs
    options = {"output_hidden_states": True} if asked_in == "the call" else {}
    if not options:
        ours.model.config.text_config.output_hidden_states = True
    with torch.inference_mode():
        output = ours.model(**prompts, **options, logits_to_keep=1)
    assert {states.shape[1] for states in output.hidden_states} == {prompts["input_ids"].shape[1]}


def test_a_layer_whose_weights_come_when_it_is_called_runs_whole() -> None:
    """As under a device map that offloads it."""
    model = loaded().model
    expected, _ = run(model, 1, "dynamic", 0, [30])
    layer = last_layer(model)
    weights, forward = layer.state_dict(), layer.forward
    layer.to("meta")

    def called(*given: Any, **options: Any) -> Any:
        layer.load_state_dict(weights, assign=True)
        output = forward(*given, **options)
        layer.to("meta")
        return output

    layer.forward = called
    states, _ = run(model, 1, "dynamic", 0, [30])
    assert states.shape[1] == IDS.shape[1]
    torch.testing.assert_close(states[:, -1:], expected, rtol=0, atol=1e-12)


def test_a_layer_that_is_run_again_in_backward_runs_whole() -> None:
    """It drops the cache."""
    model = loaded().model.train()
    model.activation_checkpointing_enable()
    with reading(model, 1):
        output = model.model(IDS, past_key_values=cache_of("dynamic", model))
    assert output.last_hidden_state.shape[1] == IDS.shape[1]


def test_a_layer_whose_mask_is_no_tensor_runs_whole() -> None:
    """As flex attention's blocks are."""
    AttentionMaskInterface.register("in_a_list", lambda *given, **options: [sdpa_mask(*given, **options)])
    AttentionInterface.register(
        "in_a_list", lambda *given, **options: sdpa_attention_forward(*given[:4], given[4][0], **options)
    )
    model = loaded().model
    expected, _ = run(model, 0, "dynamic", 4, [30])
    model.set_attn_implementation("in_a_list")
    states, _ = run(model, 1, "dynamic", 4, [30])
    assert torch.equal(states, expected)


def test_a_pass_without_a_cache_runs_whole() -> None:
    model = loaded().model
    with torch.inference_mode(), reading(model, 1):
        assert model.model(IDS, use_cache=False).last_hidden_state.shape[1] == IDS.shape[1]


def test_the_inner_one_holds_in_its_own_thread_and_nothing_is_left_behind() -> None:
    model = loaded().model
    found: list[int] = []

    @torch.inference_mode()
    def rows() -> None:
        found.append(model.model(IDS, use_cache=True).last_hidden_state.shape[1])

    with reading(model, 1):
        with reading(model, 3):
            rows()
        rows()
        other = threading.Thread(target=rows)
        other.start()
        other.join()
    rows()
    assert found == [3, 1, 30, 30]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_slot_behind_a_state_that_was_not_read_is_refused() -> None:
    """Its cache holds the state of the last column, and of no other."""
    model = loaded("valr").model
    c = model.config
    ids = torch.cat([IDS, torch.tensor([[c.block_start_token_id, 7]] * 3)], 1)
    slot = torch.full((3, 1), c.slot_token_id)
    with torch.inference_mode():
        for keep, fine in ((2, True), (1, False)):
            cache = model(ids, logits_to_keep=keep, use_cache=True).past_key_values
            cache.crop(-1)
            if fine:
                model(slot, past_key_values=cache)
                continue
            with pytest.raises(ValueError, match="the state before it is not known"):
                model(slot, past_key_values=cache)
