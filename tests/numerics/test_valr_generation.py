"""States fed back in `forward` and `generate`, against the stock model run token by token on embeddings."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    Qwen2_5_VLForConditionalGeneration,
    pipeline,
)

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, SLOT
from amvl_core.methods.valr.method import Valr
from amvl_core.methods.valr.modeling import VaLRForConditionalGeneration
from amvl_core.methods.written_mask import written_mask
from tests.numerics.test_generation import inputs, steps
from tests.tiny import LATENT, SAMPLES, picture, stock_folder

K = LATENT.num_slots


def valr_model(dtype: torch.dtype = torch.float64, eager_marker: float = 4.0):
    """A VaLR model on the stock folder that likes to write its marker, at other places in every row."""
    processor = load_processor(stock_folder())
    model = Valr.load(stock_folder(), processor, LATENT, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
        row = model.lm_head.weight[model.config.block_start_token_id]
        direction = torch.randn(row.shape, generator=generator, dtype=torch.float64).to(dtype)
        row.copy_(eager_marker * direction / direction.norm())
    return model, processor


def stock_twin(model) -> Qwen2_5_VLForConditionalGeneration:
    """The same weights in the stock class, which knows no latent block and no part of its own."""
    fields = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")}
    twin = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration.config_class(**fields))
    twin = twin.to(model.dtype)
    known = twin.state_dict().keys()
    twin.load_state_dict({name: value for name, value in model.state_dict().items() if name in known})
    return twin.eval()


def naive(twin, config, ids_T: torch.Tensor, given: dict, row: int, fed=lambda state: state) -> torch.Tensor:
    """Final states [T, D] of one row without padding: whole passes over embeddings, each slot's input the state before.

    Positions are the library's for the prompt, and one more for each token behind it.
    """
    mask = given["attention_mask"][row].bool()
    prompt_T = given["input_ids"][row][mask]
    images = [len(sizes) for _, _, sizes in SAMPLES]
    grid = pixels = None
    if "image_grid_thw" in given and images[row]:
        first = sum(images[:row])
        grids = given["image_grid_thw"]
        patches = grids.prod(1).tolist()
        begin = sum(patches[:first])
        grid = grids[first : first + images[row]]
        pixels = given["pixel_values"][begin : begin + sum(patches[first : first + images[row]])]
    positions = torch.arange(len(ids_T)).expand(3, 1, -1)
    if grid is not None:
        is_image = (prompt_T == config.image_token_id).int()[None]
        own = twin.model.get_rope_index(prompt_T[None], is_image, image_grid_thw=grid)[0]
        behind = own.amax() + 1 + torch.arange(len(ids_T) - len(prompt_T)).expand(3, 1, -1)
        positions = torch.cat([own, behind], -1)
    embeds_TD = twin.get_input_embeddings()(ids_T).clone()
    if grid is not None:
        embeds_TD[ids_T == config.image_token_id] = torch.cat(
            list(twin.model.get_image_features(pixels, grid).pooler_output)
        ).to(embeds_TD)

    whole = written_mask(SimpleNamespace(config=config, dtype=twin.dtype, device=twin.device), ids_T)

    def states(length: int) -> torch.Tensor:
        return twin.model.language_model(
            inputs_embeds=embeds_TD[None, :length],
            attention_mask=None if whole is None else whole[..., :length, :length],
            position_ids=positions[..., :length],
            use_cache=False,
        ).last_hidden_state[0]

    for column in (ids_T == config.slot_token_id).nonzero()[:, 0].tolist():
        embeds_TD[column] = fed(states(column)[-1])
    return states(len(ids_T))


def slots_in_blocks(config, reply_T: torch.Tensor) -> list[int]:
    """The numbers of slots of the whole blocks of a reply; nothing of a block stands outside one."""
    found, tokens = [], reply_T.tolist()
    while config.block_start_token_id in tokens:
        begin = tokens.index(config.block_start_token_id)
        assert not {config.slot_token_id, config.block_end_token_id} & set(tokens[:begin])
        if config.block_end_token_id not in tokens:
            assert set(tokens[begin + 1 :]) <= {config.slot_token_id}
            return found
        end = tokens.index(config.block_end_token_id)
        assert set(tokens[begin + 1 : end]) <= {config.slot_token_id}
        found.append(end - begin - 1)
        tokens = tokens[end + 1 :]
    return found


def reply_starts(config, found_BT: torch.Tensor, width: int) -> list[list[int]]:
    """Where blocks begin in each reply."""
    starts_BT = found_BT[:, width:] == config.block_start_token_id
    return [row.nonzero()[:, 0].tolist() for row in starts_BT]


MODES = [("written", K), ("first_step", K), ("every_step", 1), ("written", 0), ("never", K)]


@torch.no_grad()
@pytest.mark.parametrize(("mode", "number"), MODES)
def test_greedy_generation_is_the_stock_model_token_by_token(mode: str, number: int) -> None:
    """Every token that was not forced is the naive reference's best one, of rows that begin blocks in other places."""
    written_as_by_the_stock_model(*valr_model(), mode, number)


def written_as_by_the_stock_model(model, processor, mode: str, number: int) -> None:
    """Asserts it of greedy replies in one mode with blocks of `number` slots."""
    twin, c = stock_twin(model), model.config
    given = inputs(processor, SAMPLES)
    found = model.generate(**given, **steps(24), do_sample=False, latent_mode=mode, latent_steps=number)
    width = given["input_ids"].shape[1]
    for row, ids in enumerate(found):
        ids_T = torch.cat([given["input_ids"][row][given["attention_mask"][row].bool()], ids[width:]])
        prompt = len(ids_T) - 24
        logits_TV = twin.lm_head(naive(twin, c, ids_T, given, row))[prompt - 1 : -1]
        never = [c.slot_token_id, c.block_end_token_id, c.text_config.eos_token_id]
        logits_TV[:, [*never, c.block_start_token_id] if mode == "never" else never] = -torch.inf
        for place, (token, best) in enumerate(zip(ids[width:].tolist(), logits_TV.argmax(-1).tolist(), strict=True)):
            opened = mode in ("first_step", "every_step") and token == c.block_start_token_id
            assert token in (c.slot_token_id, c.block_end_token_id) or opened or token == best, (row, place)
        assert set(slots_in_blocks(c, ids[width:])) <= {number}
    starts = reply_starts(c, found, width)
    if mode == "written":
        assert len({tuple(places) for places in starts}) > 2, starts
    if mode in ("first_step", "every_step"):
        assert all(places[0] == 0 for places in starts)
    if mode == "never":
        assert not any(starts)


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5, "top_k": 50},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "latent_mode": "first_step"},
        {"do_sample": True, "num_beams": 2, "temperature": 2.0},
        {"do_sample": False, "num_beams": 3, "latent_mode": "every_step", "latent_steps": 2},
    ],
    ids=["greedy", "sampled", "beams", "beams-two-returned", "three-returned", "sampled-beams", "beams-every-step"],
)
def test_cached_generation_of_a_mixed_batch_equals_uncached_recomputation(how) -> None:
    model, processor = valr_model()
    given = inputs(processor, SAMPLES)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        outputs.append(model.generate(**given, **steps(20), **how, use_cache=use_cache))
    assert torch.equal(*outputs)
    found = [slots_in_blocks(model.config, ids[given["input_ids"].shape[1] :]) for ids in outputs[0]]
    assert any(found) and {slots for one in found for slots in one} == {how.get("latent_steps", K)}


def test_beams_take_their_own_states_with_them() -> None:
    """Beams change places between slots: rows of other blocks are forced meanwhile. With states left behind, the text
    would be another one than without a cache.
    """
    model, processor = valr_model()
    given = inputs(processor, SAMPLES)
    how = {"num_beams": 5, "num_return_sequences": 5, "do_sample": False, "output_scores": True}
    found = [
        model.generate(**given, **steps(24), **how, return_dict_in_generate=True, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(found[0].sequences_scores, found[1].sequences_scores, rtol=1e-5, atol=1e-5)
    assert (
        len({tuple(places) for places in reply_starts(model.config, found[0].sequences, given.input_ids.shape[1])}) > 4
    )


def test_a_left_padded_sample_generates_what_it_generates_alone() -> None:
    model, processor = valr_model()
    together = inputs(processor, SAMPLES[2:3] * 2 + [("No image, and a longer question than the others?", "", ())])
    alone = inputs(processor, SAMPLES[2:3])
    a = model.generate(**together, **steps(16), do_sample=False)[0, -16:]
    b = model.generate(**alone, **steps(16), do_sample=False)[0, -16:]
    assert torch.equal(a, b) and slots_in_blocks(model.config, a)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_static_cache_generates_what_a_growing_one_does(bottleneck: bool) -> None:
    model, processor = valr_model()
    model.config.bottleneck = bottleneck
    given = inputs(processor, SAMPLES)
    plain = model.generate(**given, **steps(16), do_sample=False)
    static = model.generate(**given, **steps(16), do_sample=False, cache_implementation="static")
    assert torch.equal(plain, static)


def test_a_reply_has_so_many_blocks_and_no_more() -> None:
    model, processor = valr_model(eager_marker=40.0)
    model.config.max_blocks = 2
    given = inputs(processor, SAMPLES)
    found = model.generate(**given, **steps(24), do_sample=False)[:, given["input_ids"].shape[1] :]
    assert [slots_in_blocks(model.config, ids) for ids in found if (ids == model.config.block_start_token_id).any()]
    assert max(int((ids == model.config.block_start_token_id).sum()) for ids in found) == 2


def test_slots_and_exit_markers_are_never_chosen() -> None:
    model, processor = valr_model()
    c = model.config
    with torch.no_grad():  # what the model would like to write most
        model.lm_head.weight[[c.slot_token_id, c.block_end_token_id]] = 0
        model.lm_head.weight[c.block_start_token_id] = 0
        model.lm_head.weight[c.slot_token_id] = 40 * model.lm_head.weight[5]
    given = inputs(processor, SAMPLES)
    for mode in ("never", "written"):
        found = model.generate(**given, **steps(12), do_sample=True, latent_mode=mode, suppress_tokens=None)
        for ids in found[:, given["input_ids"].shape[1] :]:
            slots_in_blocks(c, ids)


def rows_with_blocks(processor, config):
    """Prompts with an answer that has begun and holds blocks, in other columns and of other lengths in each row."""
    tokens = processor.tokenizer.convert_tokens_to_ids
    start, slot, end = (tokens(name) for name in (LATENT_START, SLOT, LATENT_END))
    given = dict(inputs(processor, SAMPLES))
    behind = torch.randint(5, 200, (len(SAMPLES), 14), generator=torch.Generator().manual_seed(3))
    for row, (begin, slots) in enumerate([(1, 3), (4, 2), (0, 5), (2, 0)]):
        behind[row, begin : begin + slots + 2] = torch.tensor([start, *[slot] * slots, end])
    behind[0, 8:12] = torch.tensor([start, slot, slot, end])  # a second block, of another length
    prompt = given["input_ids"]
    given["input_ids"] = torch.cat([prompt, behind], 1)
    given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(behind)], 1)
    given["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(behind)], 1)
    return given, prompt


def naive_states(twin, config, given, prompt):
    """Row by row, without padding: [T, D] each."""
    short = {**given, "input_ids": prompt, "attention_mask": given["attention_mask"][:, : prompt.shape[1]]}
    rows = zip(given["input_ids"], given["attention_mask"].bool(), strict=True)
    return [naive(twin, config, ids_T[mask_T], short, row) for row, (ids_T, mask_T) in enumerate(rows)]


def test_forward_is_the_naive_pass_at_every_column() -> None:
    """Logits and hidden states, in float64 with norms and softmax in float32. Measured: equal up to 3e-15. Kernels that
    round otherwise before a norm would show in float32's last digits.
    """
    model, processor = valr_model()
    given, prompt = rows_with_blocks(processor, model.config)
    with torch.no_grad():
        output = model(**given, output_hidden_states=True, use_cache=False)
        expected = naive_states(stock_twin(model), model.config, given, prompt)
    assert output.past_key_values is None
    for row, states_TD in enumerate(expected):
        mask = given["attention_mask"][row].bool()
        torch.testing.assert_close(output.hidden_states[-1][row][mask], states_TD, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output.logits[row][mask], model.lm_head(states_TD), rtol=1e-5, atol=1e-5)
    assert len(output.hidden_states) == model.config.text_config.num_hidden_layers + 1


@pytest.mark.parametrize("cut", [3, 5, 9])
def test_forward_goes_on_from_a_cache_that_ends_within_a_block(cut: int) -> None:
    model, processor = valr_model()
    given, prompt = rows_with_blocks(processor, model.config)
    first = prompt.shape[1] + cut
    positions = model._prepare_position_ids_for_generation(given["input_ids"], {**given, "past_key_values": None})
    with torch.no_grad():
        whole = model(**given, position_ids=positions).logits
        begun = {name: given[name][:, :first] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        pictures = {name: given[name] for name in ("pixel_values", "image_grid_thw")}
        cache = model(**begun, **pictures, position_ids=positions[..., :first], use_cache=True).past_key_values
        rest = model(
            input_ids=given["input_ids"][:, first:],
            attention_mask=given["attention_mask"],
            position_ids=positions[..., first:],
            past_key_values=cache,
        ).logits
    torch.testing.assert_close(rest, whole[:, first:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_naive_pass(checkpointing: bool) -> None:
    """Through every fed-back state. In float64 with norms and softmax in float32: no gradient was further off than
    1.5e-7 of its size.
    """
    model, processor = valr_model()
    given, prompt = rows_with_blocks(processor, model.config)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[:, : prompt.shape[1]] = -100
    labels[(labels == model.config.slot_token_id) | (labels == model.config.block_end_token_id)] = -100
    twin = stock_twin(model)
    states = naive_states(twin, model.config, given, prompt)
    rows = [labels[row][given["attention_mask"][row].bool()] for row in range(len(SAMPLES))]
    logits = torch.cat([twin.lm_head(states_TD[:-1]) for states_TD in states])
    expected = torch.nn.functional.cross_entropy(logits.float(), torch.cat([row[1:] for row in rows]))
    expected.backward()
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    loss = model(**given, labels=labels, use_cache=False).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    gradients = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        wanted = gradients[name].grad
        assert (parameter.grad - wanted).norm() <= 1e-5 * wanted.norm() + 1e-12, name


def test_attentions_of_the_parts_are_joined() -> None:
    model, processor = valr_model(dtype=torch.float32)
    model.set_attn_implementation("eager")
    given, _ = rows_with_blocks(processor, model.config)
    with torch.no_grad():
        output = model(**given, output_attentions=True, use_cache=False)
    rows = given["attention_mask"].bool()
    for weights_BHTS in output.attentions:
        sums_BTH = weights_BHTS.sum(-1).transpose(1, 2)
        assert weights_BHTS.shape[-2:] == (rows.shape[1], rows.shape[1])
        torch.testing.assert_close(sums_BTH[rows], torch.ones_like(sums_BTH[rows]))


def test_a_prompt_may_end_within_a_block() -> None:
    """What the prompt has begun is finished, in every mode."""
    model, processor = valr_model()
    given = inputs(processor, SAMPLES[2:3])
    c = model.config
    for begun in ([c.block_start_token_id], [c.block_start_token_id, c.slot_token_id]):
        ids = torch.cat([given["input_ids"], torch.tensor([begun])], 1)
        mask = torch.ones_like(ids)
        for mode in ("written", "first_step", "never"):
            found = model.generate(input_ids=ids, attention_mask=mask, **steps(6), do_sample=False, latent_mode=mode)
            missing = K + 1 - len(begun)
            expected = [*[c.slot_token_id] * missing, c.block_end_token_id]
            assert found[0, ids.shape[1] :][: missing + 1].tolist() == expected


def test_slots_without_a_state_before_them_are_refused() -> None:
    model, processor = valr_model()
    given = inputs(processor, SAMPLES[2:3])
    slot = model.config.slot_token_id
    ids = given["input_ids"].clone()
    ids[0, 5] = slot
    with pytest.raises(ValueError, match="sample 0: the latent slot in column 5 stands behind neither <latent> nor a"):
        model(input_ids=ids)
    ids[0, 0] = slot
    with pytest.raises(ValueError, match="sample 0 begins with a latent slot"):
        model(input_ids=ids)
    cache = model(**given).past_key_values
    cache.crop(-given["input_ids"].shape[1])
    with pytest.raises(ValueError, match="sample 0 begins with a latent slot"):
        model(input_ids=torch.tensor([[slot]]), past_key_values=cache)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_mode": "always"}, "latent_mode is 'always'; it is one of written, first_step, every_step, never"),
        ({"latent_steps": -1}, "latent_steps is -1; a block has 0 or more slots"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message: str) -> None:
    model, processor = valr_model()
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs(processor, SAMPLES[2:3]), **arguments)


def test_embeddings_in_place_of_tokens_are_answered_too() -> None:
    model, processor = valr_model()
    given = inputs(processor, SAMPLES[2:3])
    embeds = model.get_input_embeddings()(given["input_ids"])
    found = model.generate(inputs_embeds=embeds, **steps(12), do_sample=False, latent_mode="first_step")
    expected = model.generate(**given, **steps(12), do_sample=False, latent_mode="first_step")
    assert torch.equal(found[:, -12:], expected[:, -12:])


def test_save_and_load_give_the_same_model_through_the_auto_classes(tmp_path) -> None:
    model, processor = valr_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64)
    reader = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(reader, AMVLProcessor) and type(loaded) is VaLRForConditionalGeneration
    saved, again = (one.config.to_dict() | {"_name_or_path": None} for one in (model, loaded))
    assert saved == again
    given, same = inputs(processor, SAMPLES), inputs(reader, SAMPLES)
    expected = model.generate(**given, **steps(12), do_sample=False)
    assert torch.equal(loaded.generate(**same, **steps(12), do_sample=False), expected)


def test_the_pipeline_of_the_library_answers_without_markers(tmp_path) -> None:
    model, processor = valr_model(dtype=torch.float32)
    model.config.latent_mode = "first_step"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answer = pipeline("image-text-to-text", model=str(tmp_path))
    content = [
        {"type": "image", "image": Image.open(io.BytesIO(picture(0)))},
        {"type": "text", "text": "What colour is the circle?"},
    ]
    given = inputs(processor, SAMPLES[:1])
    expected = model.generate(**given, max_new_tokens=12, do_sample=False)[:, given["input_ids"].shape[1] :]
    assert slots_in_blocks(model.config, expected[0])
    text = processor.tokenizer.batch_decode(expected, skip_special_tokens=True)[0]
    for messages in ([{"role": "user", "content": content}], [[{"role": "user", "content": content}]] * 2):
        found = answer(text=messages, max_new_tokens=12, return_full_text=False)
        found = found if isinstance(found[0], dict) else [part[0] for part in found]
        assert [part["generated_text"] for part in found] == [text] * len(found)
    assert "<latent" not in text


def test_a_stock_checkpoint_keeps_its_weights_and_gets_mean_rows() -> None:
    processor = load_processor(stock_folder())
    template, old = processor.chat_template, len(processor.tokenizer)
    model = Valr.load(stock_folder(), processor, LATENT, dtype=torch.float32)
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float32)
    assert model.state_dict().keys() == stock.state_dict().keys()
    for name, value in stock.state_dict().items():
        rows = slice(0, old) if name.endswith(("embed_tokens.weight", "lm_head.weight")) else slice(None)
        assert torch.equal(model.state_dict()[name][rows], value[rows]), name
    embedding = model.get_input_embeddings().weight
    for row in range(old, old + 3):
        torch.testing.assert_close(embedding[row], embedding[:old].mean(0))
    assert len(processor.tokenizer) == old + 3 and processor.chat_template == template


def test_lines_end_in_tokens_whose_text_does() -> None:
    model, processor = valr_model()
    ends = model.config.line_end_token_ids
    texts = processor.tokenizer.batch_decode([[number] for number in ends])
    assert texts and all(text.endswith("\n") for text in texts)
    assert processor.tokenizer("Look left.\n")["input_ids"][-1] in ends


def test_a_checkpoint_with_another_number_of_slots_is_refused(tmp_path) -> None:
    model, processor = valr_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has 3 latent slots, the run asks for 4"):
        Valr.load(str(tmp_path), processor, LatentConfig(num_slots=4))
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* has None as block_start_token_id"):
        Valr.load(str(tmp_path), load_processor(stock_folder()), LATENT)


def test_missing_weights_and_other_models_are_refused(tmp_path) -> None:
    model, processor = valr_model()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*missing.*layers\.1\.mlp"):
        Valr.load(str(tmp_path), processor, LATENT)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "model_type": "qwen2_vl"}))
    with pytest.raises(CheckpointError, match="holds a 'qwen2_vl' model; VaLR starts from qwen2_5_vl or valr"):
        Valr.load(str(tmp_path), processor, LATENT)


def test_a_cache_keeps_states_as_it_keeps_keys() -> None:
    model, processor = valr_model()
    given = inputs(processor, SAMPLES)
    with torch.no_grad():
        output = model(**given, use_cache=True, past_key_values=DynamicCache(config=model.config.text_config))
    cache = output.past_key_values
    state = cache.layers[-1].last_B1D
    torch.testing.assert_close(model.lm_head(state), output.logits[:, -1:])
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.layers[-1].last_B1D, state.repeat_interleave(2, 0))
    cache.batch_select_indices(torch.tensor([4, 1]))
    assert torch.equal(cache.layers[-1].last_B1D, state[[2, 0]])
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.layers[-1].last_B1D, state[[0, 2]])
    cache.crop(-2)
    torch.testing.assert_close(model.lm_head(cache.layers[-1].last_B1D), output.logits[[0, 2], -3:-2])
    cache.reset()
    assert cache.layers[-1].last_B1D is None


def test_assisted_decoding_gives_what_greedy_decoding_gives() -> None:
    """Guesses are taken from the prompt, and the cache is cropped to what of them was right, within blocks too."""
    model, processor = valr_model(eager_marker=8.0)
    question = "red circle red circle " * 4 + "What colour is the circle?"
    given = inputs(processor, [(question, "", ())])
    for mode in ("written", "first_step"):
        plain = model.generate(**given, **steps(32), do_sample=False, latent_mode=mode)
        guessed = model.generate(**given, **steps(32), do_sample=False, latent_mode=mode, prompt_lookup_num_tokens=3)
        assert torch.equal(plain, guessed)
        assert slots_in_blocks(model.config, plain[0, given["input_ids"].shape[1] :])
