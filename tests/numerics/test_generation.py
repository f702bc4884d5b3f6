"""Generation with the block filled at prefill, against recomputation without a cache."""

import io

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, pipeline

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.data.encode import chat
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.modeling import AMVLForConditionalGeneration, load_amvl
from amvl_core.methods.amvl.prefix import run_passes
from tests.tiny import LATENT, SAMPLES, amvl_model, batch, picture, stock_folder, tied_folder


def inputs(processor, samples):
    pictures = [
        [Image.open(io.BytesIO(picture(10 * n + i, *size))) for i, size in enumerate(sizes)]
        for n, (_, _, sizes) in enumerate(samples)
    ]
    prompts = [
        processor.apply_chat_template(chat(question), add_generation_prompt=True, tokenize=False)
        for question, _, _ in samples
    ]
    return processor(
        text=prompts,
        images=pictures if any(pictures) else None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


NOISE = torch.randn(len(SAMPLES), LATENT.num_slots, LATENT.dim, generator=torch.Generator().manual_seed(3))


def steps(number: int) -> dict[str, int]:
    return {"max_new_tokens": number, "min_new_tokens": number}


@pytest.mark.parametrize(
    "latent", [{}, {"tau": 0.7, "latent_noise": NOISE}, {"tau": 0.7}], ids=["mean", "given noise", "drawn"]
)
@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5, "top_k": 50},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 2, "temperature": 2.0},
    ],
    ids=["greedy", "sampled", "beams", "beams-two-returned", "three-returned", "sampled-beams"],
)
def test_cached_generation_of_a_mixed_batch_equals_uncached_recomputation(mode, latent) -> None:
    model, processor = amvl_model()
    model.eval()
    given = inputs(processor, SAMPLES)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        outputs.append(model.generate(**given, **steps(6), **mode, **latent, use_cache=use_cache))
    assert torch.equal(*outputs)
    returned = mode.get("num_return_sequences", 1)
    assert outputs[0].shape == (returned * len(SAMPLES), given["input_ids"].shape[1] + 6)


def test_greedy_generation_is_what_the_training_passes_predict() -> None:
    """Two ways to the same logits: the decoder row on the prior's mean, and the block filled at prefill."""
    model, processor = amvl_model()
    data = batch(processor)
    given = inputs(processor, SAMPLES)
    prefill = model(**given).logits[:, -1]
    embeds, positions = Amvl(model, AmvlMethod()).embed(data), Amvl(model, AmvlMethod()).positions(data)
    kept = []
    model.prior, original = lambda hidden: kept.append(original(hidden)) or kept[-1], model.prior
    passes = run_passes(model, data, embeds, positions, lambda _: kept[-1].mean[None], "natural")
    first = torch.cat([torch.ones(1, dtype=bool), passes.sample_N[1:] != passes.sample_N[:-1]])
    torch.testing.assert_close(passes.logits_MNV[0, first], prefill, rtol=1e-10, atol=1e-10)


def test_a_left_padded_sample_generates_what_it_generates_alone() -> None:
    model, processor = amvl_model()
    model.eval()
    together = inputs(processor, SAMPLES[2:3] * 2 + [("No image, and a longer question than the others?", "", ())])
    alone = inputs(processor, SAMPLES[2:3])
    a = model.generate(**together, **steps(5), do_sample=False)[0, -5:]
    b = model.generate(**alone, **steps(5), do_sample=False)[0, -5:]
    assert torch.equal(a, b)


@pytest.mark.parametrize("how", ["generator", "global seed"])
def test_drawn_latents_change_the_logits_and_are_repeatable(how: str) -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[:1])

    def logits(seed: int, **options) -> torch.Tensor:
        if how == "generator":
            options["generator"] = torch.Generator().manual_seed(seed)
        else:
            torch.manual_seed(seed)
        with torch.no_grad():
            return model(**given, **options).logits[:, -1]

    mean, one, again, other = logits(1), logits(1, tau=1.0), logits(1, tau=1.0), logits(2, tau=1.0)
    assert torch.equal(one, again)
    assert not torch.allclose(one, mean) and not torch.allclose(one, other)


def drawn(model, monkeypatch, given, **mode) -> torch.Tensor:
    """The latents that each row of a generation was decoded from."""
    found = []
    original = type(model)._latent
    monkeypatch.setattr(type(model), "_latent", lambda *a: found.append(original(*a)) or found[-1])
    model.generate(**given, **steps(2), tau=1.0, generator=torch.Generator().manual_seed(0), **mode)
    assert len(found) == 1
    return found[0]


def test_returned_sequences_have_latents_of_their_own_and_beams_share_them(monkeypatch) -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[:2])
    returned = drawn(model, monkeypatch, given, do_sample=True, num_return_sequences=3)
    assert len(returned) == 6 and len(returned.unique(dim=0)) == 6
    beams = drawn(model, monkeypatch, given, do_sample=False, num_beams=3).unflatten(0, (2, 3))
    torch.testing.assert_close(beams[:, 0], beams[:, 2], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(beams[0, 0], beams[1, 0])


def test_noise_of_another_shape_is_refused_with_both_shapes() -> None:
    model, processor = amvl_model()
    with pytest.raises(ValueError, match=r"latent_noise is \(1, 2, 8\), the latents are \(1, 3, 8\)"):
        model(**inputs(processor, SAMPLES[:1]), tau=1.0, latent_noise=torch.zeros(1, 2, 8))


def test_hidden_states_and_attentions_are_those_of_the_sequence_with_its_latents() -> None:
    """The two parts, joined, are one plain pass over the prompt with its injected latents.

    In float32, for the library's eager attention makes NaN of a padding row in float64. On a CPU they are equal; the
    tolerance is for kernels whose sums depend on the number of rows.
    """
    model, processor = amvl_model(dtype=torch.float32)
    model.set_attn_implementation("eager")
    given = inputs(processor, SAMPLES)
    latents = []
    model.injector.register_forward_hook(lambda module, args, output: latents.append(output))
    wanted = {"output_hidden_states": True, "output_attentions": True}
    ids, mask, sizes = given["input_ids"], given["attention_mask"], given["image_grid_thw"]
    with torch.no_grad():
        output = model(**given, **wanted)
        start = model._block_column(ids)
        embeds = model.embed(ids, torch.cat(model.get_image_features(given["pixel_values"], sizes).pooler_output))
        embeds[:, start : start + LATENT.num_slots] = latents[0]
        positions = model._positions(ids, mask, sizes, given["mm_token_type_ids"])
        plain = model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, **wanted
        )
    rows = mask.bool()
    assert len(output.hidden_states) == len(plain.hidden_states) == model.config.text_config.num_hidden_layers + 1
    for found, expected in zip(output.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(found[rows], expected[rows], rtol=0, atol=1e-5)
    assert len(output.attentions) == len(plain.attentions) == model.config.text_config.num_hidden_layers
    for found, expected in zip(output.attentions, plain.attentions, strict=True):
        found, expected = found.transpose(1, 2)[rows], expected.transpose(1, 2)[rows]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_activation_checkpointing_changes_neither_loss_nor_gradients() -> None:
    """A layer that is run again in backward keeps no cache, so what comes before the latents is run with them again.

    In float64, with norms and softmax in float32: no gradient was further off than 1.0e-7 of its size.
    """
    losses, gradients = [], []
    for checkpointing in (False, True):
        model, processor = amvl_model()
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        given = inputs(processor, SAMPLES)
        output = model(**given, labels=given["input_ids"], use_cache=False)
        output.loss.backward()
        losses.append(output.loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("samples", [SAMPLES[:1], SAMPLES[2:3], SAMPLES[:1] * 2], ids=["image", "text", "two"])
def test_prompts_without_padding_are_answered_behind_the_bottleneck(samples) -> None:
    """The library drops a mask that hides nothing, so there is none to begin with."""
    model, processor = amvl_model()
    model.config.bottleneck = True
    model.eval()
    given = inputs(processor, samples)
    outputs = [model.generate(**given, **steps(4), do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_static_cache_generates_what_a_growing_one_does(bottleneck: bool) -> None:
    model, processor = amvl_model()
    model.config.bottleneck = bottleneck
    model.eval()
    given = inputs(processor, SAMPLES)
    plain = model.generate(**given, **steps(5), do_sample=False)
    static = model.generate(**given, **steps(5), do_sample=False, cache_implementation="static", disable_compile=True)
    assert torch.equal(plain, static)


def test_a_cache_that_cannot_take_back_the_slots_is_refused() -> None:
    model, processor = amvl_model()
    text = model.config.get_text_config()
    sliding = type(text)(
        **text.to_dict() | {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2}
    )
    with pytest.raises(ValueError, match="not a DynamicSlidingWindowLayer"):
        model(**inputs(processor, SAMPLES[:1]), past_key_values=DynamicCache(config=sliding))


def test_a_block_behind_a_cache_needs_positions() -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[2:3])
    cache = model(**given).past_key_values
    with pytest.raises(ValueError, match="needs its position_ids"):
        model(input_ids=given["input_ids"], past_key_values=cache)


def test_the_loss_is_that_of_labels_that_were_shifted_already() -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[:1])
    targets = torch.randint(5, 50, given["input_ids"].shape, generator=torch.Generator().manual_seed(4))
    output = model(**given, labels=given["input_ids"], shift_labels=targets, num_items_in_batch=7)
    expected = torch.nn.functional.cross_entropy(output.logits[0].float(), targets[0], reduction="sum") / 7
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=0)


def test_new_parts_that_no_checkpoint_has_are_initialised() -> None:
    config = amvl_model()[0].config
    model = AMVLForConditionalGeneration.from_pretrained(None, config=config, state_dict={})
    assert model.injector.scale.tolist() == [1.0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_slots_decide_what_is_read_and_not_what_is_decoded() -> None:
    """The prior's keys and values at the slots are dropped: decoding sees the injected latents only."""
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[:1])
    with torch.no_grad():
        cache = model(**given, use_cache=True).past_key_values
    assert cache.get_seq_length() == given["input_ids"].shape[1]


def test_save_and_load_give_the_same_model_through_the_auto_classes(tmp_path) -> None:
    model, processor = amvl_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64)
    reader = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(reader, AMVLProcessor)
    assert type(loaded) is type(model)
    given, same = inputs(processor, SAMPLES), inputs(reader, SAMPLES)
    assert torch.equal(given["input_ids"], same["input_ids"])
    with torch.no_grad():
        # Measured: equal. Weights that lie otherwise in memory may be summed in another order.
        torch.testing.assert_close(model(**given).logits, loaded(**same).logits, rtol=0, atol=1e-12)


def test_a_stock_checkpoint_keeps_its_weights_and_gets_mean_rows() -> None:
    processor = load_processor(stock_folder())
    old = len(processor.tokenizer)
    model = load_amvl(stock_folder(), processor, LATENT, dtype=torch.float32)
    from transformers import Qwen2_5_VLForConditionalGeneration

    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float32)
    for name, value in stock.state_dict().items():
        ours = model.state_dict()[name]
        rows = slice(0, old) if name.endswith(("embed_tokens.weight", "lm_head.weight")) else slice(None)
        assert torch.equal(ours[rows], value[rows]), name
    embedding = model.get_input_embeddings().weight
    for row in model.config.slot_token_ids:
        torch.testing.assert_close(embedding[row], embedding[:old].mean(0))


def test_a_checkpoint_with_another_block_is_refused(tmp_path) -> None:
    model, processor = amvl_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    other = LATENT.model_copy(update={"num_slots": 5, "head": "mlp", "token_init": ":"})
    with pytest.raises(
        CheckpointError,
        match=r"has latent\.num_slots 3 and not 5, latent\.head 'native' and not 'mlp': take its values",
    ):
        load_amvl(str(tmp_path), processor, other)


def test_missing_weights_are_refused(tmp_path) -> None:
    model, processor = amvl_model()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*missing.*layers\.1\.mlp"):
        load_amvl(str(tmp_path), processor, LATENT)


@pytest.mark.parametrize("problem", ["missing", "right-padded"])
def test_a_prompt_without_its_block_in_place_is_refused(problem: str) -> None:
    model, processor = amvl_model()
    given = inputs(processor, [SAMPLES[2], ("A longer question about nothing at all?", "", ())])
    if problem == "missing":
        given["input_ids"][1, -4] = 5
        message = "prompt 1: 2 latent slots, the model needs one block of 3"
    else:
        given["input_ids"][0] = given["input_ids"][0].roll(-2)
        message = "pad the prompts on the left"
    with pytest.raises(ValueError, match=message):
        model(**given)


def test_a_prompt_without_a_block_is_not_answered_without_latents() -> None:
    model, processor = amvl_model()
    given = processor(text=["What colour is it?"], return_tensors="pt")
    with pytest.raises(ValueError, match="prompt 0: 0 latent slots, the model needs one block of 3"):
        model.generate(**given, max_new_tokens=2)


def test_embeddings_in_place_of_tokens_are_not_answered_without_latents() -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[2:3])
    embeds = model.get_input_embeddings()(given["input_ids"])
    with pytest.raises(ValueError, match="pass input_ids, not inputs_embeds"):
        model.generate(**given, inputs_embeds=embeds, max_new_tokens=2)


def test_images_that_do_not_match_their_tokens_are_refused_with_both_numbers() -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[:1])
    given["input_ids"][given["input_ids"] == model.config.image_token_id] = 5
    with pytest.raises(ValueError, match="0 image tokens in the prompts, but the images have 4 features"):
        model(**given)


def test_the_pipeline_of_the_library_answers_from_a_saved_folder(tmp_path) -> None:
    model, processor = amvl_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answer = pipeline("image-text-to-text", model=str(tmp_path))
    image = Image.open(io.BytesIO(picture(0)))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What colour is the circle?"}]
    given = inputs(processor, SAMPLES[:1])
    expected = model.generate(**given, max_new_tokens=5, do_sample=False)[:, given["input_ids"].shape[1] :]
    text = processor.tokenizer.batch_decode(expected, skip_special_tokens=True)[0]
    for messages in ([{"role": "user", "content": content}], [[{"role": "user", "content": content}]] * 2):
        found = answer(text=messages, max_new_tokens=5, return_full_text=False)
        found = found if isinstance(found[0], dict) else [part[0] for part in found]
        assert [part["generated_text"] for part in found] == [text] * len(found)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_tied_and_untied_embeddings_survive_saving(tied: bool, tmp_path) -> None:
    folder = tied_folder(tmp_path / "stock") if tied else stock_folder()
    processor = load_processor(folder)
    model = load_amvl(folder, processor, LATENT, dtype=torch.float32)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = load_amvl(str(tmp_path / "saved"), load_processor(str(tmp_path / "saved")), LATENT)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
