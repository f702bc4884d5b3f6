"""`AMVLForConditionalGeneration`: Qwen2.5-VL with a latent block that is filled at prefill.

The base weights keep their names, so a stock Qwen2.5-VL checkpoint loads; the new parts are the two heads and the
injector. Shape suffixes: B samples, T tokens, K slots, D hidden size, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import CausalLMOutputWithPast as CausalLMOutput
from transformers.utils import logging

from amvl_core.config import LatentConfig
from amvl_core.errors import CheckpointError
from amvl_core.gaussian import Gaussian
from amvl_core.heads import LatentInjector, VariationalHead
from amvl_core.processor import AMVLProcessor
from amvl_core.tokens import add_latent_tokens, token_ids

NEW_PARTS = ("prior_head.", "posterior_head.", "injector.")


class AMVLConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration and the latent block's: `latent` holds the fields of `LatentConfig`."""

    model_type = "amvl"
    latent: dict[str, Any] | None = None
    block_start_token_id: int | None = None
    block_end_token_id: int | None = None
    slot_token_ids: list[int] | None = None

    @property
    def num_slots(self) -> int:
        """K."""
        return len(self.slot_token_ids or [])


class AMVLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Reads the prior at the slots, samples, injects, and goes on decoding on the same K/V cache."""

    config_class = AMVLConfig
    config: AMVLConfig

    def __init__(self, config: AMVLConfig) -> None:
        super().__init__(config)
        latent = LatentConfig.model_validate(config.latent or {})
        size = config.text_config.hidden_size
        self.prior_head = _head(latent, size)
        self.posterior_head = _head(latent, size) if latent.separate_heads else None
        self.injector = LatentInjector(latent.injector, latent.dim, size)
        self.post_init()

    def prior(self, hidden_BKD: Tensor) -> Gaussian:
        """p(Z | x) from the final hidden states at the slots of [x, slots] (Eq. 6)."""
        return Gaussian(*self.prior_head(hidden_BKD))

    def posterior(self, hidden_BKD: Tensor) -> Gaussian:
        """q(Z | x, y) from the final hidden states at the slots of [x, y, slots] (Eq. 7)."""
        return Gaussian(*(self.prior_head if self.posterior_head is None else self.posterior_head)(hidden_BKD))

    def embed(self, input_ids_BT: Tensor, pixel_values: Tensor | None, image_grid_thw: Tensor | None) -> Tensor:
        """Token embeddings [B, T, D] with image features in the places of the image tokens."""
        embeds_BTD: Tensor = self.get_input_embeddings()(input_ids_BT)
        if pixel_values is None:
            return embeds_BTD
        features = torch.cat(self.model.get_image_features(pixel_values, image_grid_thw).pooler_output)
        tokens = int((input_ids_BT == self.config.image_token_id).sum())
        if tokens != len(features):
            raise ValueError(f"{tokens} image tokens in the prompts, but the images have {len(features)} features")
        mask, _ = self.model.get_placeholder_mask(input_ids_BT, inputs_embeds=embeds_BTD, image_features=features)
        return embeds_BTD.masked_scatter(mask, features.to(embeds_BTD.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        tau: float = 0.0,
        latent_seed: int = 0,
        **kwargs: Any,
    ) -> Any:
        """As the base model's; where `input_ids` hold a latent block, its slots are filled from the prior first.

        `tau` scales the prior's standard deviation (0: the mean, Table 11), `latent_seed` seeds its noise. The block
        must stand in the same columns for every sample, as it does in left-padded prompts.
        """
        if input_ids is None or inputs_embeds is not None or not self._has_block(input_ids):
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                mm_token_type_ids=mm_token_type_ids,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        cache = past_key_values if past_key_values is not None else DynamicCache(config=self.config.text_config)
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, image_grid_thw, mm_token_type_ids)
        embeds_BTD = self.embed(input_ids, pixel_values, image_grid_thw)
        hidden_BTD = self._fill(input_ids, embeds_BTD, attention_mask, position_ids, cache, tau, latent_seed)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.lm_head(hidden_BTD[:, keep] if not isinstance(keep, int) else hidden_BTD)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        wants_cache = past_key_values is not None or use_cache
        return CausalLMOutput(loss=loss, logits=logits, past_key_values=cache if wants_cache else None)

    def _fill(
        self,
        input_ids: Tensor,
        embeds_BTD: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: Any,
        tau: float,
        latent_seed: int,
    ) -> Tensor:
        """Runs [x, slots], reads Z off the slots, drops their keys and values, runs on with Z in their place."""
        start = self._block_column(input_ids)
        end, past = start + self.config.num_slots, cache.get_seq_length()
        first = self.model.language_model(
            inputs_embeds=embeds_BTD[:, :end],
            attention_mask=None if attention_mask is None else attention_mask[:, : past + end],
            position_ids=position_ids[..., :end],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        prior = self.prior(first[:, start:end])
        latent_BKZ = prior.mean
        if tau > 0:
            noise = torch.randn(prior.mean.shape, generator=torch.Generator().manual_seed(latent_seed))
            latent_BKZ = prior.sample(noise.to(prior.mean), tau)
        cache.crop(-self.config.num_slots)
        second = self.model.language_model(
            inputs_embeds=torch.cat([self.injector(latent_BKZ).to(embeds_BTD.dtype), embeds_BTD[:, end:]], dim=1),
            attention_mask=attention_mask,
            position_ids=position_ids[..., start:],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return torch.cat([first[:, :start], second], dim=1)

    def _has_block(self, input_ids: Tensor) -> bool:
        slots = self.config.slot_token_ids or []
        return bool(slots) and bool((input_ids == slots[0]).any())

    def _block_column(self, input_ids_BT: Tensor) -> int:
        """The column at which every sample's slots begin, or a ValueError that says what is wrong with the prompt."""
        slots = torch.tensor(self.config.slot_token_ids, device=input_ids_BT.device)
        is_slot = torch.isin(input_ids_BT, slots)
        counts = is_slot.sum(1)
        if not bool((counts == len(slots)).all()):
            found = counts.tolist()
            raise ValueError(f"every prompt needs one block of {len(slots)} latent slots; the prompts have {found}")
        starts = is_slot.int().argmax(1)
        if not bool((starts == starts[0]).all()):
            raise ValueError(f"latent blocks start in columns {starts.tolist()}; pad the prompts on the left")
        start = int(starts[0])
        if not bool((input_ids_BT[:, start : start + len(slots)] == slots).all()):
            raise ValueError("the latent slots of a prompt are not in order within one block")
        return start

    def _positions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_grid_thw: Tensor | None,
        mm_token_type_ids: Tensor | None,
    ) -> Tensor:
        """M-RoPE positions [3, B, T] (or 1-D ones where there is no image)."""
        if image_grid_thw is not None:
            if mm_token_type_ids is None:
                mm_token_type_ids = (input_ids == self.config.image_token_id).int()
            positions, self.model.rope_deltas = self.model.get_rope_index(
                input_ids, mm_token_type_ids, image_grid_thw=image_grid_thw, attention_mask=attention_mask
            )
            return positions
        if attention_mask is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0).expand(3, *input_ids.shape)


def _head(latent: LatentConfig, size: int) -> VariationalHead:
    return VariationalHead(latent.head, size, latent.head_hidden, latent.dim, latent.logvar_min, latent.logvar_max)


def load_amvl(
    folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any
) -> AMVLForConditionalGeneration:
    """An AMVL model from a folder of its own, or, with new parts, from a stock Qwen2.5-VL one.

    `processor` is the one that was loaded from the same folder; a CheckpointError names weights that do not fit.
    """
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "qwen2_5_vl":
        return _from_base(folder, config, processor, latent, **kwargs)
    if config.model_type != "amvl":
        raise CheckpointError(f"{folder} holds a {config.model_type!r} model; AMVL starts from a qwen2_5_vl one")
    if config.num_slots != latent.num_slots:
        raise CheckpointError(f"{folder} has {config.num_slots} latent slots, the run asks for {latent.num_slots}")
    model: AMVLForConditionalGeneration
    model, report = AMVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **kwargs)
    _check(folder, report, new_parts=())
    return model


def _from_base(
    folder: str, base: Any, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any
) -> AMVLForConditionalGeneration:
    """Adds the latent tokens to `processor` and the new parts to the base weights.

    New embedding rows start at the mean of the old ones (App. E); no row is ever removed.
    """
    old_tokens = len(processor.tokenizer)
    add_latent_tokens(processor, latent.num_slots)
    fields = {key: value for key, value in base.to_dict().items() if key not in ("model_type", "architectures")}
    config = AMVLConfig(**fields, latent=latent.model_dump(), **token_ids(processor, latent.num_slots))
    model: AMVLForConditionalGeneration
    with _quiet():  # the library warns about the new parts; _check says whether anything else is missing
        model, report = AMVLForConditionalGeneration.from_pretrained(
            folder, config=config, output_loading_info=True, **kwargs
        )
    _check(folder, report, NEW_PARTS)
    _grow(model, old_tokens, len(processor.tokenizer))
    embedding = model.get_input_embeddings().weight
    model.injector.calibrate(float(embedding[:old_tokens].detach().float().square().mean().sqrt()), latent.dim)
    model.generation_config.suppress_tokens = [
        config.block_start_token_id,
        *(config.slot_token_ids or []),
        config.block_end_token_id,
    ]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's warnings to itself."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check(folder: str, report: dict[str, Any], new_parts: tuple[str, ...]) -> None:
    missing = sorted(key for key in report["missing_keys"] if not new_parts or not key.startswith(new_parts))
    wrong = {"missing": missing, "unexpected": report["unexpected_keys"], "misshapen": report["mismatched_keys"]}
    found = {name: sorted(keys)[:5] for name, keys in wrong.items() if keys}
    if found:
        raise CheckpointError(f"the weights in {folder} do not fit the model: {found}")


def _grow(model: AMVLForConditionalGeneration, old: int, new: int) -> None:
    """Room for tokens `old` to `new`, each row at the mean of the first `old` rows."""
    if new > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(-(-new // 64) * 64, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = module.weight
            weight[old:new] = weight[:old].float().mean(0).to(weight.dtype)


# A checkpoint's names of the base weights are those of a stock Qwen2.5-VL one, in reading and in writing.
register_checkpoint_conversion_mapping(
    AMVLForConditionalGeneration.__name__,
    get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__),
    overwrite=True,
)
AutoConfig.register("amvl", AMVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(AMVLConfig, AMVLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(AMVLConfig, AMVLProcessor, exist_ok=True)
