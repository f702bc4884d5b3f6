"""Generation with the block filled at prefill, against recomputation without a cache."""

import io

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from amvl_core.config import LatentConfig
from amvl_core.data.encode import chat
from amvl_core.errors import CheckpointError
from amvl_core.modeling import load_amvl
from amvl_core.processor import AMVLProcessor, load_processor
from tests.tiny import LATENT, SAMPLES, amvl_model, picture, stock_folder


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


def uncached(model, given, steps: int, **options) -> torch.Tensor:
    """Greedy decoding that runs the whole sequence anew for each token."""
    ids, mask = given["input_ids"], given["attention_mask"]
    for _ in range(steps):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=given.get("pixel_values"),
            image_grid_thw=given.get("image_grid_thw"),
            **options,
        ).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        logits[:, model.config.text_config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


@pytest.mark.parametrize("options", [{}, {"tau": 0.7, "latent_seed": 3}], ids=["mean", "sampled"])
def test_cached_generation_of_a_mixed_batch_equals_uncached_recomputation(options) -> None:
    model, processor = amvl_model()
    model.eval()
    given = inputs(processor, SAMPLES)
    with torch.no_grad():
        output = model.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)
        assert torch.equal(output, uncached(model, given, 6, **options))


def test_a_left_padded_sample_generates_what_it_generates_alone() -> None:
    model, processor = amvl_model()
    model.eval()
    together = inputs(processor, SAMPLES[2:3] * 2 + [("No image, and a longer question than the others?", "", ())])
    alone = inputs(processor, SAMPLES[2:3])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    a = model.generate(**together, **options)[0, -5:]
    b = model.generate(**alone, **options)[0, -5:]
    assert torch.equal(a, b)


def test_tau_changes_the_answer_logits_and_the_seed_makes_it_repeatable() -> None:
    model, processor = amvl_model()
    given = inputs(processor, SAMPLES[:1])
    with torch.no_grad():
        mean, one, again, other = (
            model(**given, **options).logits[:, -1]
            for options in ({}, {"tau": 1.0}, {"tau": 1.0}, {"tau": 1.0, "latent_seed": 1})
        )
    assert torch.equal(one, again)
    assert not torch.allclose(one, mean) and not torch.allclose(one, other)


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
        torch.testing.assert_close(model(**given).logits, loaded(**same).logits, rtol=0, atol=0)


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


def test_a_checkpoint_with_another_number_of_slots_is_refused(tmp_path) -> None:
    model, processor = amvl_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has 3 latent slots, the run asks for 5"):
        load_amvl(str(tmp_path), processor, LatentConfig(num_slots=5, dim=8, head_hidden=32))


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
        message = r"every prompt needs one block of 3 latent slots; the prompts have \[3, 2\]"
    else:
        given["input_ids"][0] = given["input_ids"][0].roll(-2)
        message = "pad the prompts on the left"
    with pytest.raises(ValueError, match=message):
        model(**given)
