"""A Qwen2.5-VL of a few hundred thousand parameters, built offline: real architecture, tokenizer and processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.config import TinyConfig

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# The pre-tokenisation of Qwen2, so that merges never cross the boundaries the real tokenizer keeps.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Words of short visual questions; each becomes one token, anything else falls back to bytes.
CORPUS = """
user assistant yes no true false left right above below top bottom middle centre center corner row column
circles squares triangles stars color
red green blue yellow orange purple pink brown black white gray grey teal cyan color colour colors colours
circle square triangle rectangle star diamond hexagon pentagon cross shape shapes object objects item items
what which where how many is are there the a an in of on to at and or not than this that it does do contain contains
image picture present more fewer less same different odd one out piece fits fit missing part quarter
maze path exit ball flag goal start reach reached can lead leads from wall hole lake safe grid cell
zero two three four five six seven eight nine ten A B C D
box boxes tower block blocks exactly only least most all every each with has have touching edge side base
wall item items big small large medium color black yellow blue item under over between next line lines
upper lower player frozen move moves up down action sequence
"""

EMBEDDING_STD = 0.5

# Projections that write into the residual stream.
RESIDUAL_OUTPUTS = ("self_attn.o_proj", "mlp.down_proj", "attn.proj")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor(config: TinyConfig) -> AMVLProcessor:
    """Tokenizer and image processor of the tiny model; the same for every seed."""
    tokenizer = build_tokenizer()
    unit = 2 * config.patch_size
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=config.patch_size, merge_size=2, size={"shortest_edge": unit * unit, "longest_edge": 256 * unit**2}
    )
    return AMVLProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE in Qwen2's manner, trained on the words above."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    words = sorted(set(CORPUS.split()))
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
        min_frequency=1,
    )
    variants = [form for word in words for form in (word, f" {word}", f" {word.capitalize()}", word.capitalize())]
    bpe.train_from_iterator(variants, trainer=trainer)
    state: dict[str, Any] = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIAL_TOKENS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


def build_config(config: TinyConfig, processor: AMVLProcessor) -> Qwen2_5_VLConfig:
    """The Qwen2.5-VL configuration of the tiny model."""
    ids = {name: processor.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    head_dim = config.hidden_size // config.num_heads
    rotary = head_dim // 2
    section = [rotary - 2 * (rotary * 3 // 8), rotary * 3 // 8, rotary * 3 // 8]
    vocab_size = -(-len(processor.tokenizer) // 64) * 64
    text = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": section},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    vision = {
        "depth": config.vision_layers,
        "hidden_size": config.vision_hidden_size,
        "intermediate_size": config.vision_intermediate_size,
        "num_heads": config.vision_heads,
        "patch_size": config.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16 * config.patch_size,
        "out_hidden_size": config.hidden_size,
        "fullatt_block_indexes": list(range(config.vision_layers)),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=config.tie_word_embeddings,
    )


def save_tiny_base(config: TinyConfig, folder: Path) -> None:
    """Writes the random tiny model, its tokenizer and processor as a Hugging Face folder; depends on the seed alone."""
    processor = build_processor(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen2_5_VLForConditionalGeneration(build_config(config, processor))
        initialise(model)
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def initialise(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Weights at the scale of their fan-in, image features and token embeddings at one scale.

    The library's deviation of 0.02 suits widths in the thousands: in a narrow model signals die out, and the vision
    encoder learns nothing for thousands of steps. Where the output layer is the token embeddings, the norm in front of
    it starts smaller, so that logits have the scale that an output layer of its own gives them.
    """
    text = model.config.text_config
    depth = {"language_model": text.num_hidden_layers, "visual": model.config.vision_config.depth}
    for name, module in model.named_modules():
        if module is model.lm_head and text.tie_word_embeddings:
            norm = model.model.language_model.norm.weight
            torch.nn.init.constant_(norm, text.hidden_size**-0.5 / EMBEDDING_STD)
        elif isinstance(module, (torch.nn.Linear, torch.nn.Conv3d)):
            deviation = module.weight[0].numel() ** -0.5
            if name.endswith(RESIDUAL_OUTPUTS):
                deviation *= (2 * depth[name.split(".")[1]]) ** -0.5
            torch.nn.init.normal_(module.weight, std=deviation)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=EMBEDDING_STD)
