"""Qwen2.5-VL that reasons in its own states between two markers: what every method that feeds them back shares.

In a latent block the input of a slot is the state before it, after the final norm: what the LM head reads. Nothing is
added to the base model but three tokens, so a stock Qwen2.5-VL checkpoint loads and every weight keeps its name. The
last state travels in the cache, so that whatever selects or reorders a cache's rows does the same to it. A method has
a configuration and a model class of its own, with a model type of its own, and one call of `register`.

Shape suffixes: B samples, T columns, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    LogitsProcessorList,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.cache_utils import DummyLayer
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.methods.feedback.rules import LatentMode, LatentRules
from amvl_core.methods.loading import block_ids
from amvl_core.methods.reply_blocks import LATENT_START
from amvl_core.rows.bottleneck import as_wide_as, has_bottleneck, through_slots
from amvl_core.rows.last_layer import columns_read, reading


class FeedbackConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration, the latent block's tokens, and how blocks come into a reply.

    `latent_mode` and `latent_steps` (None: `num_slots`) are the defaults of `generate`. A reply has `max_blocks` blocks
    at most. Where `block_first` is set, a given answer is scored behind a block at the reply's start.
    """

    block_start_token_id: int | None = None
    block_end_token_id: int | None = None
    slot_token_id: int | None = None
    num_slots: int = 16
    latent_mode: str = "written"
    latent_steps: int | None = None
    max_blocks: int = 8
    block_first: bool = True
    line_end_token_ids: list[int] | None = None

    @property
    def slot_token_ids(self) -> list[int | None]:
        """The slots of a block: K times the same token."""
        return [self.slot_token_id] * self.num_slots


class LastState(DummyLayer):
    """A layer of a cache that keeps the states of the last pass, [B, T, D], and no keys or values.

    Under the bottleneck mask it also knows which of the cache's columns are images, [B, S].
    """

    def __init__(self) -> None:
        super().__init__()
        self.states_BTD: Tensor | None = None
        self.images_BS: Tensor | None = None

    @property
    def last_B1D(self) -> Tensor | None:
        """The state at the last column of the cache; None where that is not known."""
        return None if self.states_BTD is None or not self.states_BTD.shape[1] else self.states_BTD[:, -1:]

    def reset(self) -> None:
        """There is no column any more."""
        self.states_BTD = self.images_BS = None

    def crop(self, tokens_to_remove: int) -> None:
        """As keys and values are; states of earlier passes, and of columns that were not read, are not known."""
        if self.states_BTD is not None:
            self.states_BTD = self.states_BTD[:, : max(0, self.states_BTD.shape[1] - abs(tokens_to_remove))]
        if self.images_BS is not None:
            self.images_BS = self.images_BS[:, : max(0, self.images_BS.shape[1] - abs(tokens_to_remove))]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As keys and values are."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As keys and values are."""
        if self.states_BTD is not None:
            self.states_BTD = self.states_BTD.repeat_interleave(repeats, dim=0)
        if self.images_BS is not None:
            self.images_BS = self.images_BS.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As keys and values are."""
        if self.states_BTD is not None:
            self.states_BTD = self.states_BTD[indices.to(self.states_BTD.device)]
        if self.images_BS is not None:
            self.images_BS = self.images_BS[indices.to(self.images_BS.device)]


class FeedbackForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Feeds its own states back where `input_ids` hold slots, and writes blocks in `generate`."""

    config_class = FeedbackConfig
    config: FeedbackConfig
    new_parts: ClassVar[tuple[str, ...]] = ()
    """What the names of its parts begin with that a stock checkpoint does not have."""

    masks_images: ClassVar[bool] = True
    """Whether a pass hides images by itself, where the configuration says `bottleneck`."""

    def fed(self, states_ND: Tensor) -> Tensor:
        """What slots are given, from the states before them: these, as they are."""
        return states_ND

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
        **kwargs: Any,
    ) -> Any:
        """As the base model's; the input of a slot in `input_ids` is the state before it.

        Blocks may stand in other columns in every sample. A ValueError names a slot that has no state before it.
        Where the configuration says `bottleneck`, only slots and images attend to images; `inputs_embeds` then stand
        in the place of the embeddings of `input_ids`, which say what each column is.
        """
        output = self.states(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            second_per_grid_ts=second_per_grid_ts,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            read=columns_read(self, logits_to_keep, kwargs),
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def states(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        read: int = 0,
        **inputs: Any,
    ) -> Any:
        """What the LM head reads, [B, T, D], as the base model's output; the arguments are those of `forward`.

        Of the last `read` columns it is given, and remembered, in any case (0: of all).
        """
        images_BS = None
        if has_bottleneck(self):
            if input_ids is None:
                raise ValueError(
                    "under the bottleneck mask input_ids say which columns are images and slots: pass them"
                )
            before_BP = None if (kept := _kept(past_key_values)) is None else kept.images_BS
            inputs = self._masked(input_ids, past_key_values, before_BP, **inputs)
            images_BT = backbone_of(self).stands_for_features(self, input_ids)
            images_BS = images_BT if before_BP is None else torch.cat([before_BP, images_BT], 1)
            input_ids = None if inputs_embeds is not None else input_ids
        with reading(self, read):
            output = self._states(input_ids, past_key_values, inputs_embeds, **inputs)
        output.last_hidden_state = output.last_hidden_state[:, -read:]
        return _remembered(output, images_BS)

    def _masked(
        self,
        ids_BT: Tensor,
        cache: Any,
        images_BP: Tensor | None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """The inputs of a pass with the bottleneck in their mask, and with positions, which the plain mask gives."""
        if position_ids is None:
            given = {name: inputs.get(name) for name in _PLACES}
            position_ids = self.model.compute_3d_position_ids(
                input_ids=ids_BT,
                inputs_embeds=ids_BT[..., None],  # for its shape alone
                attention_mask=attention_mask,
                past_key_values=cache,
                **given,
            )
        mask = through_slots(self, ids_BT, attention_mask, self.dtype, images_BP)
        return {**inputs, "attention_mask": mask, "position_ids": position_ids}

    def _states(
        self, input_ids: Tensor | None, past_key_values: Any, inputs_embeds: Tensor | None, **inputs: Any
    ) -> Any:
        """`states`, where nothing hides images, or the mask says what does."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        columns = 0 if given is None else given.shape[1]
        whole = {**inputs, "attention_mask": as_wide_as(past_key_values, inputs.get("attention_mask"), columns)}
        if input_ids is None or inputs_embeds is not None:
            return self.model(input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **whole)
        is_slot_BT = input_ids == self.config.slot_token_id
        before_B1D = _last_state(past_key_values)
        if before_B1D is not None and columns == 1:  # a decoding step: nothing is asked of the device
            embeds_B1D = torch.where(
                is_slot_BT[..., None], self.fed(before_B1D), self.get_input_embeddings()(input_ids)
            )
            return self.model(past_key_values=past_key_values, inputs_embeds=embeds_B1D, **whole)
        if is_slot_BT.any():
            self._check_slots(input_ids, is_slot_BT, before_B1D)
            return self._feed_back(input_ids, is_slot_BT, past_key_values, before_B1D, **inputs)
        return self.model(input_ids, past_key_values=past_key_values, **whole)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        *,
        latent_mode: LatentMode | None = None,
        latent_steps: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base model's, with latent blocks.

        `latent_mode` (None: the configuration's): "written", a block where the model writes its entry marker;
        "first_step", one at the reply's start and where it writes one; "every_step", one before every line of the
        reply and where it writes one; "never", none. A block has `latent_steps` slots (None: K; 0: the exit marker
        follows the entry marker). Slots and exit markers are forced and never chosen, and so cost a beam nothing.
        """
        prompts = inputs if inputs is not None else kwargs.get("input_ids")
        rules = self.rules(0 if prompts is None else prompts.shape[1], latent_mode, latent_steps)
        processors = LogitsProcessorList([*(logits_processor or []), rules])
        return super().generate(inputs, generation_config, processors, **kwargs)

    def rules(
        self, prompt_columns: int, latent_mode: LatentMode | None = None, latent_steps: int | None = None
    ) -> LatentRules:
        """What may be written behind prompts of so many columns; the other arguments are those of `generate`."""
        steps = next(n for n in (latent_steps, self.config.latent_steps, self.config.num_slots) if n is not None)
        return LatentRules(self.config, prompt_columns, latent_mode or self.config.latent_mode, steps)

    def before_answer(self) -> list[int]:
        """The block behind which a given answer is scored; nothing where replies begin without one."""
        c = self.config
        if c.latent_mode == "never" or not c.block_first:
            return []
        steps = c.num_slots if c.latent_steps is None else c.latent_steps
        ids: list[Any] = [c.block_start_token_id, *[c.slot_token_id] * steps, c.block_end_token_id]
        return ids

    def uncounted(self) -> list[int]:
        """The block's tokens: `max_blocks` bounds them."""
        return block_ids(self)

    @staticmethod
    def create_masks_for_generate(
        config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        """None but the two-dimensional one: `states` may run a prompt in parts."""
        return attention_mask

    def _valid_auto_compile_criteria(self, *args: Any, **kwargs: Any) -> bool:
        """A cache gets its last layer in the first pass, which a compiled pass would not know."""
        return False

    def _check_slots(self, ids_BT: Tensor, is_slot_BT: Tensor, before_B1D: Tensor | None) -> None:
        """A ValueError where a slot stands behind neither an entry marker nor a slot."""
        if before_B1D is None and (rows := is_slot_BT[:, 0].nonzero()).numel():
            raise ValueError(
                f"sample {int(rows[0])} begins with a latent slot, and the state before it is not known: give the "
                "whole sequence, or the cache as the pass before left it"
            )
        opens_BT = is_slot_BT[:, :-1] | (ids_BT[:, :-1] == self.config.block_start_token_id)
        if (wrong := (is_slot_BT[:, 1:] & ~opens_BT).nonzero()).numel():
            row, column = wrong[0].tolist()
            raise ValueError(
                f"sample {row}: the latent slot in column {column + 1} stands behind neither {LATENT_START} nor a slot"
            )

    def _feed_back(
        self,
        ids_BT: Tensor,
        is_slot_BT: Tensor,
        cache: Any,
        before_B1D: Tensor | None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: Any = None,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """Columns without a slot in runs, columns with one alone, on one cache."""
        features = dict(mm_encoder_outputs or {})
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values, image_grid_thw)
        if pixel_values_videos is not None:
            features["video"] = self.get_video_features(pixel_values_videos, video_grid_thw)
        embeds_BTD = self._embed(ids_BT, features)
        if position_ids is None:
            position_ids = self.model.compute_3d_position_ids(
                input_ids=ids_BT,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                second_per_grid_ts=second_per_grid_ts,
                inputs_embeds=embeds_BTD,
                attention_mask=attention_mask,
                past_key_values=cache,
                mm_token_type_ids=mm_token_type_ids,
            )
        # A layer that is run again in backward keeps no cache: every part then runs what comes before it as well.
        again = self.training and self.is_activation_checkpointing
        wanted = self.config.text_config.use_cache if use_cache is None else use_cache
        if cache is None and not again:
            cache = DynamicCache(config=self.config.text_config)
        total = ids_BT.shape[1]
        parts: list[Any] = []
        filled = embeds_BTD[:, :0]
        for begin, stop in _runs(is_slot_BT.any(0).tolist()):
            inputs_BtD = embeds_BTD[:, begin:stop]
            if before_B1D is not None:
                slots_Bt1 = is_slot_BT[:, begin:stop, None]
                inputs_BtD = torch.where(slots_Bt1, self.fed(before_B1D), inputs_BtD)
            if again:
                filled = inputs_BtD = torch.cat([filled, inputs_BtD], 1)
            first = 0 if again else begin
            output = self.model.language_model(
                inputs_embeds=inputs_BtD,
                attention_mask=as_wide_as(cache, _part_of_mask(attention_mask, total, first, stop), stop - first),
                position_ids=None if position_ids is None else position_ids[..., first:stop],
                past_key_values=cache,
                use_cache=not again,
                **options,
            )
            before_B1D = output.last_hidden_state[:, -1:]
            parts = [output] if again else [*parts, output]
        return BaseModelOutputWithPast(
            last_hidden_state=torch.cat([part.last_hidden_state for part in parts], 1),
            past_key_values=cache if wanted else None,
            hidden_states=_joined([part.hidden_states for part in parts]),
            attentions=_joined([part.attentions for part in parts]),
        )

    def _embed(self, ids_BT: Tensor, features: dict[str, Any]) -> Tensor:
        """Token embeddings [B, T, D] with the features of images and videos in their places."""
        embeds_BTD: Tensor = self.get_input_embeddings()(ids_BT)
        for place, kind in enumerate(("image", "video")):
            if features.get(kind) is not None:
                found_FD = torch.cat(list(features[kind].pooler_output)).to(embeds_BTD)
                masks = self.model.get_placeholder_mask(ids_BT, embeds_BTD, **{f"{kind}_features": found_FD})
                embeds_BTD = embeds_BTD.masked_scatter(masks[place], found_FD)
        return embeds_BTD


_PLACES = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
"""Arguments that positions follow from."""


def _kept(cache: Any) -> LastState | None:
    layers = [] if cache is None else cache.layers
    return layers[-1] if layers and isinstance(layers[-1], LastState) else None


def _last_state(cache: Any) -> Tensor | None:
    return None if (kept := _kept(cache)) is None else kept.last_B1D


def _remembered(output: Any, images_BS: Tensor | None = None) -> Any:
    """`output`, whose cache now knows the states of this pass, and which of its columns are images."""
    if (cache := output.past_key_values) is not None:
        if not isinstance(cache.layers[-1], LastState):
            cache.layers.append(LastState())
        cache.layers[-1].states_BTD, cache.layers[-1].images_BS = output.last_hidden_state, images_BS
    return output


def _runs(with_slot: list[bool]) -> Iterator[tuple[int, int]]:
    """Runs of columns without a slot, and columns with one alone: (first, behind the last)."""
    begin = 0
    for column, slot in enumerate(with_slot):
        if slot:
            if begin < column:
                yield begin, column
            yield column, column + 1
            begin = column + 1
    if begin < len(with_slot):
        yield begin, len(with_slot)


def _part_of_mask(mask: Tensor | None, total: int, begin: int, stop: int) -> Tensor | None:
    """What columns `begin` to `stop` of `total` new ones see: of a mask [B, S], or an additive one [B, 1, T, S]."""
    if mask is None:
        return None
    seen = mask[..., : mask.shape[-1] - total + stop]
    return seen if mask.ndim == 2 else seen[..., begin:stop, :]


def _joined(parts: list[Any]) -> tuple[Tensor | None, ...] | None:
    """Layer by layer, one part behind another.

    Hidden states are [B, T, D]; attention weights [B, heads, T, S], where earlier parts have fewer columns.
    """
    if not parts or not parts[0]:
        return None
    return tuple(
        None
        if layer[0] is None
        else torch.cat([pad(part, (0, layer[-1].shape[-1] - part.shape[-1])) for part in layer], -2)
        for layer in zip(*parts, strict=True)
    )


def register(kind: type[FeedbackForConditionalGeneration]) -> None:
    """Makes a method's model class, and its configuration's model type, known to the Auto classes."""
    mapping = get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__)
    register_checkpoint_conversion_mapping(kind.__name__, mapping, overwrite=True)
    AutoConfig.register(kind.config_class.model_type, kind.config_class, exist_ok=True)
    AutoModelForImageTextToText.register(kind.config_class, kind, exist_ok=True)
    AutoProcessor.register(kind.config_class, AMVLProcessor, exist_ok=True)
