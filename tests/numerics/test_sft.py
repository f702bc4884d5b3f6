import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.methods.amvl.reference import samples
from amvl_core.methods.block import block_text
from amvl_core.methods.method import Clock
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.pause.method import Pause
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from tests.tiny import LATENT, SAMPLES, amvl_model, batch, stock_folder


def stock(dtype: torch.dtype = torch.float32) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=dtype)


def padded(model, data, labels: bool = True) -> dict[str, torch.Tensor]:
    """The stock model's own inputs: padded on the right, with an attention mask."""
    ids = torch.nn.utils.rnn.pad_sequence(data.input_ids_N.split(data.lengths), batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor(data.lengths)[:, None]
    given = {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "pixel_values": data.pixel_values,
        "image_grid_thw": data.image_grid_thw,
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
    }
    if labels:
        given["labels"] = torch.nn.utils.rnn.pad_sequence(
            data.labels_N.split(data.lengths), batch_first=True, padding_value=-100
        )
    return given


def test_loss_and_gradients_are_those_of_the_stock_model() -> None:
    model = stock()
    data = batch(load_processor(stock_folder()), None)
    ours = Sft(model, SftMethod())(data, Clock(0, 0, data.num_label_tokens, len(data.lengths))).loss
    ours.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    theirs = model(**padded(model, data)).loss
    theirs.backward()
    # Measured: 2e-7 relative on the loss in float32.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    whole = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    for name, p in model.named_parameters():
        # Measured worst case: 2e-6.
        assert (grads[name] - p.grad).norm() < 1e-5 * torch.maximum(p.grad.norm(), 1e-3 * whole), name


def test_logits_are_those_of_the_stock_model() -> None:
    model = stock(torch.float64)
    data = batch(load_processor(stock_folder()), None)
    ours, labels = Sft(model, SftMethod()).logits(data)
    theirs = []
    for _, _, marks, embeds, positions in samples(model, data):
        logits = model(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits[0]
        theirs.append(logits[:-1][marks[1:] != -100])
    assert len(labels) == data.num_label_tokens
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-12, atol=1e-12)


def test_a_batch_without_images_runs_the_vision_encoder_with_weight_zero() -> None:
    model = stock()
    data = batch(load_processor(stock_folder()), None, [("Is it red?", "no", ())])
    output = Sft(model, SftMethod())(data, Clock(0, 0, data.num_label_tokens, len(data.lengths)))
    output.loss.backward()
    theirs = model(input_ids=data.input_ids_N[None], labels=data.labels_N[None]).loss
    torch.testing.assert_close(output.loss, theirs, rtol=1e-6, atol=0)
    visual = list(model.model.visual.parameters())
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in visual)


def test_pause_tokens_are_fine_tuning_with_the_block_in_the_sequence() -> None:
    processor = load_processor(stock_folder())
    model = Pause.load(stock_folder(), processor, LATENT, dtype=torch.float32)
    data = batch(processor)
    method = Pause(model, PauseMethod())
    output = method(data, Clock(0, 0, data.num_label_tokens, len(data.lengths)))
    torch.testing.assert_close(output.loss, model(**padded(model, data)).loss, rtol=1e-6, atol=0)
    output.loss.backward()
    grad = model.get_input_embeddings().weight.grad
    assert len(method.new_token_rows()) == LATENT.num_slots + 2
    assert (grad[method.new_token_rows()].abs().sum(1) > 0).all()


def test_a_prompt_ends_with_as_many_pause_tokens_as_the_stage_has() -> None:
    processor = load_processor(stock_folder())
    model = Pause.load(stock_folder(), processor, LATENT, dtype=torch.float32)
    for config in (PauseMethod(), PauseMethod(slots_per_step=1, replaced_steps=2), PauseMethod()):
        Pause(model, config).equip(processor, {})
        prompt = processor.apply_chat_template([{"role": "user", "content": "Q?"}], add_generation_prompt=True)
        assert prompt.endswith(block_text(config.slots(LATENT))), config


def test_a_pause_model_is_a_stock_checkpoint_that_amvl_can_start_from(tmp_path) -> None:
    processor = load_processor(stock_folder())
    model = Pause.load(stock_folder(), processor, LATENT, dtype=torch.float32)
    rows = Pause(model, PauseMethod()).new_token_rows()
    with torch.no_grad():
        model.get_input_embeddings().weight[rows] += torch.arange(len(rows))[:, None]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert type(again) is Qwen2_5_VLForConditionalGeneration
    assert again.generation_config.suppress_tokens == rows
    from amvl_core.methods.amvl.modeling import load_amvl

    latent = load_amvl(str(tmp_path), load_processor(str(tmp_path)), LATENT, dtype=torch.float32)
    assert torch.equal(latent.get_input_embeddings().weight[rows], model.get_input_embeddings().weight[rows])
    assert latent.config.slot_token_ids == rows[1:-1]


def test_methods_of_the_base_model_refuse_a_latent_checkpoint(tmp_path) -> None:
    model, processor = amvl_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for method in (Sft, Pause):
        with pytest.raises(CheckpointError, match="a 'amvl' model is no known base model, which are qwen2_5_vl"):
            method.load(str(tmp_path), processor, LATENT)


def test_missing_weights_are_refused(tmp_path) -> None:
    model = stock()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*missing.*layers\.1\.mlp"):
        Sft.load(str(tmp_path), load_processor(stock_folder()), LATENT)


def test_samples_are_told_apart_from_their_neighbours() -> None:
    """Packed end to end, the last token of one sample predicts nothing of the next."""
    model = stock(torch.float64)
    processor = load_processor(stock_folder())
    clock = Clock(0, 0, 1, 1)
    together = Sft(model, SftMethod())(batch(processor, None, SAMPLES[2:] + SAMPLES[2:3]), clock).loss
    alone = [Sft(model, SftMethod())(batch(processor, None, [s]), clock).loss for s in (SAMPLES[2], SAMPLES[2])]
    third = batch(processor, None, [SAMPLES[2], SAMPLES[3]])
    pair = Sft(model, SftMethod())(third, clock).loss
    torch.testing.assert_close(together, pair + alone[1], rtol=1e-12, atol=0)
