"""`AMVLForConditionalGeneration`: Qwen2.5-VL with a latent block that is filled at prefill.

The base weights keep their names, so a stock Qwen2.5-VL checkpoint loads; the new parts are the two heads and the
injector. Shape suffixes: B samples, T tokens, K slots, D hidden size, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast as CausalLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.data.template import base_template
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.gaussian import Gaussian
from amvl_core.methods.amvl.heads import LatentInjector, VariationalHead
from amvl_core.methods.block import add_latent_tokens, slot_tokens, token_ids
from amvl_core.methods.exact import exact_rms
from amvl_core.methods.loading import block_ids, check_weights, grow, quiet
from amvl_core.rows.bottleneck import as_wide_as, has_bottleneck, through_slots
from amvl_core.rows.last_layer import columns_read, reading


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


class LatentParts:
    """What AMVL adds to a base model's class: one or two heads and the injector. The base comes behind it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        latent = LatentConfig.model_validate(config.latent or {})
        size = config.text_config.hidden_size
        self.prior_head = _head(latent, size)
        self.posterior_head = _head(latent, size) if latent.separate_heads else None
        self.injector = LatentInjector(latent.injector, latent.dim, size)
        self.post_init()  # type: ignore[attr-defined]

    def _init_weights(self, module: Any) -> None:
        """The base model's initialisation, which does not know the injector's own parameter."""
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, LatentInjector):
            init.ones_(module.scale)

    def prior(self, hidden_BKD: Tensor) -> Gaussian:
        """p(Z | x) from the final hidden states at the slots of [x, slots] (Eq. 6)."""
        return Gaussian(*self.prior_head(hidden_BKD))

    def posterior(self, hidden_BKD: Tensor) -> Gaussian:
        """q(Z | x, y) from the final hidden states at the slots of [x, y, slots] (Eq. 7)."""
        return Gaussian(*(self.prior_head if self.posterior_head is None else self.posterior_head)(hidden_BKD))


class AMVLForConditionalGeneration(LatentParts, Qwen2_5_VLForConditionalGeneration):
    """Reads the prior at the slots, samples, injects, and goes on decoding on the same K/V cache."""

    config_class = AMVLConfig
    config: AMVLConfig
    masks_images: ClassVar[bool] = True
    """Whether a prompt's pass hides images by itself, where the configuration says `bottleneck`."""

    def embed(self, input_ids_BT: Tensor, images: Tensor | None, videos: Tensor | None = None) -> Tensor:
        """Token embeddings [B, T, D] with features in the places of the tokens of images and of videos."""
        embeds_BTD: Tensor = self.get_input_embeddings()(input_ids_BT)
        for kind, token, features in (
            ("image", self.config.image_token_id, images),
            ("video", self.config.video_token_id, videos),
        ):
            mask_BT = input_ids_BT == token
            tokens, found = int(mask_BT.sum()), 0 if features is None else len(features)
            if tokens != found:
                raise ValueError(f"{tokens} {kind} tokens in the prompts, but the {kind}s have {found} features")
            if features is not None:
                embeds_BTD = embeds_BTD.masked_scatter(
                    mask_BT[..., None].expand_as(embeds_BTD), features.to(embeds_BTD)
                )
        return embeds_BTD

    @can_return_tuple
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
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: Any = None,
        logits_to_keep: int | Tensor = 0,
        tau: float = 0.0,
        latent_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base model's; where `input_ids` hold a latent block, its slots are filled from the prior first.

        `tau` scales the prior's standard deviation (0: the mean, Table 11). Its noise is `latent_noise` [B, K, Z], or
        drawn from `generator` (torch's own if there is none). With `latents` [B, K, Z] the slots are filled with those
        and the prior is not read. The block must stand in the same columns for every sample, as it does in left-padded
        prompts.

        Where the configuration says `bottleneck`, images and the slots that the prior is read at alone attend to the
        prompt's images; Z does not. Those of a cache are hidden by the mask.
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
                pixel_values_videos=pixel_values_videos,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                second_per_grid_ts=second_per_grid_ts,
                mm_token_type_ids=mm_token_type_ids,
                mm_encoder_outputs=mm_encoder_outputs,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        start = self._block_column(input_ids)
        seen = dict(mm_encoder_outputs or {})
        if pixel_values is not None:
            seen["image"] = self.get_image_features(pixel_values, image_grid_thw)
        if pixel_values_videos is not None:
            seen["video"] = self.get_video_features(pixel_values_videos, video_grid_thw)
        features = {kind: torch.cat(list(found.pooler_output)) for kind, found in seen.items() if found is not None}
        embeds_BTD = self.embed(input_ids, features.get("image"), features.get("video"))
        if position_ids is None:
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                raise ValueError("a prompt that goes on from a cache needs its position_ids")
            position_ids = self._positions(
                input_ids, attention_mask, image_grid_thw, mm_token_type_ids, video_grid_thw, second_per_grid_ts
            )

        def latent(hidden_BKD: Tensor) -> Tensor:
            return self._latent(hidden_BKD, tau, latent_noise, generator)

        masks = (attention_mask, attention_mask)
        if has_bottleneck(self):
            masks = self._masks(input_ids, attention_mask, past_key_values)
        given = None if latents is None else self._given(latents, len(input_ids), tau)
        filled = latent if given is None else given
        read = columns_read(self, logits_to_keep, kwargs)
        before, decoding, cache, first = self._fill(
            embeds_BTD, masks, position_ids, past_key_values, start, filled, read, kwargs
        )
        hidden_BTD = decoding.last_hidden_state
        if not isinstance(logits_to_keep, int) or not 0 < logits_to_keep <= hidden_BTD.shape[1]:
            hidden_BTD = torch.cat([before.last_hidden_state[:, :first], hidden_BTD], 1)
        logits = self.lm_head(slice_logits_to_keep(hidden_BTD, logits_to_keep))
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        use_cache = self.config.text_config.use_cache if use_cache is None else use_cache
        return CausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache if past_key_values is not None or use_cache else None,
            hidden_states=_joined(before.hidden_states, decoding.hidden_states, first),
            attentions=_joined(before.attentions, decoding.attentions, first),
        )

    def _fill(
        self,
        embeds_BTD: Tensor,
        masks: tuple[Tensor | None, Tensor | None],
        position_ids: Tensor,
        cache: Any,
        start: int,
        latent: Callable[[Tensor], Tensor] | Tensor,
        read: int,
        options: dict[str, Any],
    ) -> tuple[Any, Any, Any, int]:
        """Runs the prompt through its block, which begins at column `start`; takes Z from the hidden states at the
        slots; and runs on with Z in their place, on the same cache. Where Z is given one run is enough.

        `masks` are those of both runs. Gives the outputs of both, the cache, and the column at which the second begins.
        Of the outputs the last `read` columns are wanted (0: all).
        """
        total, behind = embeds_BTD.shape[1], start + self.config.num_slots
        through = min(behind + 1, total)
        # A layer that is run again in backward keeps no cache: the second part then runs what comes before it as well.
        twice = self.training and self.is_activation_checkpointing
        first = 0 if twice else start
        if cache is None and not twice:
            cache = DynamicCache(config=self.config.text_config)

        def run(embeds: Tensor, begin: int, stop: int, key_values: Any, mask: Tensor | None) -> Any:
            seen = None if mask is None else mask[..., : mask.shape[-1] - total + stop]
            if seen is not None and seen.ndim == 4:
                seen = as_wide_as(key_values, seen[..., begin:stop, :], stop - begin)
            return self.model.language_model(
                inputs_embeds=embeds,
                attention_mask=seen,
                position_ids=position_ids[..., begin:stop],
                past_key_values=key_values,
                use_cache=not twice,
                **options,
            )

        if isinstance(latent, Tensor):
            injected_BKD = self.injector(latent.to(embeds_BTD.dtype))
            whole = torch.cat([embeds_BTD[:, :start], injected_BKD, embeds_BTD[:, behind:]], 1)
            with reading(self, read):
                decoding = run(whole, 0, total, cache, masks[1])
            return decoding, decoding, cache, 0
        tail = through - start
        with reading(self, tail if 0 < read <= total - start else 0):
            before = run(embeds_BTD[:, :through], 0, through, cache, masks[0])
        latent_BKZ = latent(before.last_hidden_state[:, -tail:][:, : self.config.num_slots])
        injected_BKD = self.injector(latent_BKZ.to(embeds_BTD.dtype))
        filled_BTD = torch.cat([embeds_BTD[:, first:start], injected_BKD, embeds_BTD[:, behind:]], 1)
        with reading(self, 0):  # its keys take the place of others, all at once
            decoding = run(filled_BTD, first, total, None if twice else _Tail(cache, tail), masks[1])
        return before, decoding, cache, first

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        tau: float = 0.0,
        latent_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base model's, with the latents of `forward`, drawn or given.

        Each returned sequence of a prompt has latents of its own; the beams of a search share theirs, since a beam
        score is a probability given Z. A ValueError names a prompt without its latent block.
        """
        prompts = inputs if inputs is not None else kwargs.get("input_ids")
        if prompts is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("pass input_ids, not inputs_embeds: the latent block of a prompt is found by its tokens")
        if kwargs.get("past_key_values") is None:
            self._block_column(prompts)
        beams = kwargs.get("num_beams") or (generation_config or self.generation_config).num_beams or 1
        if tau > 0 and latent_noise is None and beams > 1:
            latent_noise = self._noise(len(prompts), generator)
        if tau > 0:
            kwargs |= {"tau": tau, "latent_noise": latent_noise, "generator": _OneDraw(generator)}
        if latents is not None:
            kwargs |= {"latents": latents}
        return super().generate(inputs, generation_config, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, past_key_values: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        """As the base model's; what is written behind a prompt does not see its images, where `forward` hides them."""
        if has_bottleneck(self) and past_key_values is not None and past_key_values.get_seq_length() > 0:
            seen_BS = ~backbone_of(self).stands_for_features(self, input_ids)
            attention_mask = seen_BS.long() if attention_mask is None else attention_mask * seen_BS
        return super().prepare_inputs_for_generation(
            input_ids, *args, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )

    def _masks(self, ids_BT: Tensor, mask: Tensor | None, cache: Any) -> tuple[Tensor, Tensor]:
        """Of the run that reads the prior, and of the one that has Z in the slots: the bottleneck's, [B, 1, T, S]."""
        columns = 0 if cache is None else cache.get_seq_length()
        before_BP = ids_BT.new_zeros(len(ids_BT), columns, dtype=torch.bool)
        reading, decoding = (through_slots(self, ids_BT, mask, self.dtype, before_BP, see) for see in (True, False))
        return reading, decoding

    @staticmethod
    def create_masks_for_generate(
        config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        """The masks of a decoding step on a static cache; `forward` makes those of a prompt's two parts."""
        if inputs_embeds.shape[1] > 1:
            return attention_mask
        return create_masks_for_generate(config, inputs_embeds, attention_mask, *args, **kwargs)

    def _latent(
        self, hidden_BKD: Tensor, tau: float, noise_BKZ: Tensor | None, generator: torch.Generator | _OneDraw | None
    ) -> Tensor:
        """Z from the prior, mu + tau sigma eps (App. I), [B, K, Z]."""
        prior = self.prior(hidden_BKD)
        if tau == 0:
            return prior.mean
        noise_BKZ = self._noise(len(hidden_BKD), generator) if noise_BKZ is None else noise_BKZ
        if noise_BKZ.shape != prior.mean.shape:
            raise ValueError(f"latent_noise is {tuple(noise_BKZ.shape)}, the latents are {tuple(prior.mean.shape)}")
        return prior.sample(noise_BKZ.to(prior.mean), tau)

    def _given(self, latents_BKZ: Tensor, rows: int, tau: float) -> Tensor:
        """`latents`, or a ValueError where their shape is another one or `tau` asks for a draw as well."""
        shape = (rows, self.config.num_slots, int((self.config.latent or {})["dim"]))
        if latents_BKZ.shape != shape:
            raise ValueError(f"latents is {tuple(latents_BKZ.shape)}, the block takes {shape}")
        if tau > 0:
            raise ValueError(f"latents are given and tau is {tau}: draw them first, or leave one of the two out")
        return latents_BKZ

    def _noise(self, rows: int, generator: torch.Generator | _OneDraw | None) -> Tensor:
        """Standard normal noise [rows, K, Z], drawn on the CPU or the generator's device."""
        if isinstance(generator, _OneDraw):
            if generator.noise_BKZ is None:
                generator.noise_BKZ = self._noise(rows, generator.generator)
            return generator.noise_BKZ
        shape = (rows, self.config.num_slots, int((self.config.latent or {})["dim"]))
        return torch.randn(shape, generator=generator, device=None if generator is None else generator.device)

    def _has_block(self, input_ids: Tensor) -> bool:
        """A decoding step is shorter than a block: it is not even looked at."""
        slots = self.config.slot_token_ids or []
        return 0 < len(slots) < input_ids.shape[1] and bool((input_ids == slots[0]).any())

    def _block_column(self, input_ids_BT: Tensor) -> int:
        """The column at which every sample's slots begin, or a ValueError that says what is wrong with which prompt."""
        slots = torch.tensor(self.config.slot_token_ids, device=input_ids_BT.device)
        is_slot = torch.isin(input_ids_BT, slots)
        for number, count in enumerate(is_slot.sum(1).tolist()):
            if count != len(slots):
                raise ValueError(f"prompt {number}: {count} latent slots, the model needs one block of {len(slots)}")
        starts = is_slot.int().argmax(1).tolist()
        if len(set(starts)) > 1:
            raise ValueError(f"latent blocks start in columns {starts}; pad the prompts on the left")
        in_order = (input_ids_BT[:, starts[0] : starts[0] + len(slots)] == slots).all(1).tolist()
        if not all(in_order):
            number = in_order.index(False)
            raise ValueError(f"prompt {number}: its {len(slots)} latent slots are not in order within one block")
        return int(starts[0])

    def _positions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_grid_thw: Tensor | None,
        mm_token_type_ids: Tensor | None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
    ) -> Tensor:
        """M-RoPE positions [3, B, T] (or 1-D ones where there is no image and no video)."""
        if image_grid_thw is not None or video_grid_thw is not None:
            if mm_token_type_ids is None:
                mm_token_type_ids = (input_ids == self.config.image_token_id).int()
                mm_token_type_ids += 2 * (input_ids == self.config.video_token_id).int()
            positions, self.model.rope_deltas = self.model.get_rope_index(
                input_ids,
                mm_token_type_ids,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                second_per_grid_ts=second_per_grid_ts,
                attention_mask=attention_mask,
            )
            return positions
        if attention_mask is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0).expand(3, *input_ids.shape)


def _head(latent: LatentConfig, size: int) -> VariationalHead:
    return VariationalHead(latent.head, size, latent.head_hidden, latent.dim, latent.logvar_min, latent.logvar_max)


class _OneDraw:
    """The noise of one call of `generate`, drawn when it is first asked for: without a cache every step asks again."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.noise_BKZ: Tensor | None = None


class _Tail:
    """A cache whose last `rows` are written again: keys and values of Z take the place of the slots', in place.

    What the text model asks of a cache, and no more. Nothing of the prefix is copied, unless gradients are kept.
    """

    is_compileable = False

    def __init__(self, cache: Any, rows: int) -> None:
        for layer in cache.layers:
            if type(layer) not in (DynamicLayer, StaticLayer):
                raise ValueError(f"a latent block needs a dynamic or a static cache, not a {type(layer).__name__}")
        self.cache, self.rows = cache, rows
        self.start = int(cache.get_seq_length()) - rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Rows before the tail."""
        return self.start

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Rows before the tail."""
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys after `query_length` rows have been written."""
        length, offset = self.cache.get_mask_sizes(max(0, query_length - self.rows), layer_idx)
        return int(length), int(offset)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *arguments: Any, **options: Any) -> Any:
        """Writes the tail again, appends what goes beyond it; the layer's keys and values."""
        layer = self.cache.layers[layer_idx]
        tail = slice(self.start, self.start + self.rows)
        if torch.is_grad_enabled():
            layer.keys = _replaced(layer.keys, keys[..., : self.rows, :], self.start)
            layer.values = _replaced(layer.values, values[..., : self.rows, :], self.start)
        else:
            layer.keys[..., tail, :] = keys[..., : self.rows, :]
            layer.values[..., tail, :] = values[..., : self.rows, :]
        if keys.shape[-2] > self.rows:
            return self.cache.update(keys[..., self.rows :, :], values[..., self.rows :, :], layer_idx)
        return layer.keys, layer.values


def _replaced(whole: Tensor, part: Tensor, start: int) -> Tensor:
    return torch.cat([whole[..., :start, :], part, whole[..., start + part.shape[-2] :, :]], -2)


def _joined(reading: Any, decoding: Any, first: int) -> tuple[Tensor | None, ...] | None:
    """Layer by layer, `first` rows of the reading part and then the decoding part's; the last dimension as wide.

    Hidden states are [B, T, D]; attention weights are [B, heads, T, T'], where the reading part has fewer columns.
    """
    if not reading:
        return None
    pairs = zip(reading, decoding, strict=True)
    return tuple(
        None if a is None else torch.cat([pad(a[..., :first, :], (0, b.shape[-1] - a.shape[-1])), b], -2)
        for a, b in pairs
    )


def load_amvl(folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
    """An AMVL model from a folder of its own, or, with new parts, from a base model's.

    `processor` is the one that was loaded from the same folder; a CheckpointError names weights that do not fit.
    """
    config = AutoConfig.from_pretrained(folder)
    if config.model_type in MODELS:
        return _from_base(MODELS[config.model_type], folder, config, processor, latent, **kwargs)
    own = {kind.config_class.model_type: kind for kind in MODELS.values()}
    if config.model_type not in own:
        raise CheckpointError(f"{folder} holds a {config.model_type!r} model; AMVL starts from: {', '.join(MODELS)}")
    found = LatentConfig.model_validate(config.latent).model_dump(exclude={"token_init"})  # of new rows alone
    if other := {name: value for name, value in found.items() if value != getattr(latent, name)}:
        said = ", ".join(f"latent.{name} {value!r} and not {getattr(latent, name)!r}" for name, value in other.items())
        raise CheckpointError(f"{folder} has {said}: take its values, or start from a model without latents")
    if base_template(processor) == processor.chat_template:
        raise CheckpointError(
            f"{folder} was written by an earlier version, whose prompts end in another way; train again"
        )
    model, report = own[config.model_type].from_pretrained(folder, output_loading_info=True, **kwargs)
    check_weights(folder, report)
    return model


def _from_base(kind: Any, folder: str, base: Any, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
    """Adds the latent tokens to `processor` and the new parts to the base weights.

    New embedding rows start as `latent.token_init` says; no row is ever removed.
    """
    old_tokens = len(processor.tokenizer)
    slots = slot_tokens(latent)
    add_latent_tokens(processor, slots)
    skipped = ("model_type", "architectures", *token_ids(processor, slots))
    fields = {key: value for key, value in base.to_dict().items() if key not in skipped}
    config = kind.config_class(**fields, latent=latent.model_dump(), **token_ids(processor, slots))
    with quiet():  # the library warns about the new parts; check_weights says whether anything else is missing
        model, report = kind.from_pretrained(folder, config=config, output_loading_info=True, **kwargs)
    check_weights(folder, report, AmvlMethod.own_parts)
    grow(model, old_tokens, processor, latent.token_init)
    model.injector.calibrate(exact_rms(model.get_input_embeddings().weight.detach()[:old_tokens]), latent.dim)
    model.generation_config.suppress_tokens = block_ids(model)
    return model


MODELS: dict[str, Any] = {}
"""Model type of a base model -> AMVL's class on it, which has a model type of its own."""


def register(kind: Any, base: Any) -> None:
    """Makes AMVL's class on a base model's class known to this package and to transformers.

    A checkpoint's names of the base weights are those of the base model's, in reading and in writing.
    """
    MODELS[base.config_class.model_type] = kind
    mapping = get_checkpoint_conversion_mapping(base.__name__)
    register_checkpoint_conversion_mapping(kind.__name__, mapping, overwrite=True)
    AutoConfig.register(kind.config_class.model_type, kind.config_class, exist_ok=True)
    AutoModelForImageTextToText.register(kind.config_class, kind, exist_ok=True)
    AutoProcessor.register(kind.config_class, AMVLProcessor, exist_ok=True)


register(AMVLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration)
