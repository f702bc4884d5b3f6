"""transformers' own common model and generation tests, run against `AMVLForConditionalGeneration`.

They are not part of the installed package, so they are a run of their own, on a checkout of the installed version:

    git clone --depth 1 --branch v5.23.0 https://github.com/huggingface/transformers /tmp/transformers
    pip install parameterized
    AMVL_TRANSFORMERS_TESTS=/tmp/transformers pytest tests/transformers_common

Every prompt is words, an image, a latent block and the first words of an answer, so it is our prefill that the
inherited tests exercise.
"""

from __future__ import annotations

import importlib.util
import os
import re
import unittest
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import tests
from amvl_core.methods.amvl.modeling import AMVLConfig, AMVLForConditionalGeneration
from tests.transformers_common.conftest import VARIABLE


def checkout() -> Path:
    """The checkout's root; a RuntimeError says what does not fit."""
    root = Path(os.environ[VARIABLE])
    source = root / "src" / "transformers" / "__init__.py"
    found = re.search(r'^__version__ = "(.+)"', source.read_text(), re.MULTILINE) if source.exists() else None
    if found is None or found[1] != transformers.__version__:
        version = found[1] if found else "no transformers"
        raise RuntimeError(f"{VARIABLE}={root} holds {version}, version {transformers.__version__} is installed")
    if importlib.util.find_spec("parameterized") is None:
        raise RuntimeError("transformers' tests need `pip install parameterized`")
    return root


# Their package is called `tests` too and imports itself by that name: ours is extended by their folder.
tests.__path__.append(str(checkout() / "tests"))

from tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402

# Only classes of this table get labels from them.
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["amvl"] = AMVLForConditionalGeneration.__name__

PAD, EOS, BOS, VISION_START, IMAGE, VIDEO, BLOCK_START, BLOCK_END = range(8)
SLOTS = [8, 9, 10]
FIRST_WORD = 11


class ModelTester:
    """What their tests ask for: a tiny configuration and prompts. `with_images` says whether the prompts hold one."""

    batch_size = 7  # what their comparison of attention implementations asks for
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_words = 7
    num_answer_words = 3
    seq_length = num_words + 2 + len(SLOTS) + 2 + num_answer_words
    is_training = True
    image_token_id, video_token_id, vision_start_token_id = IMAGE, VIDEO, VISION_START
    with_images = True

    def get_config(self) -> AMVLConfig:
        text = {
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "max_position_embeddings": 512,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "vocab_size": self.vocab_size,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        }
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 4,
            "out_hidden_size": self.hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 1,
        }
        return AMVLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            latent={"num_slots": len(SLOTS), "dim": 8, "head_hidden": 16},
            block_start_token_id=BLOCK_START,
            block_end_token_id=BLOCK_END,
            slot_token_ids=SLOTS,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        image = [VISION_START, IMAGE] if self.with_images else [FIRST_WORD, FIRST_WORD]
        words = torch.randint(FIRST_WORD, self.vocab_size, (self.batch_size, self.num_words + self.num_answer_words))
        block = torch.tensor([*image, BLOCK_START, *SLOTS, BLOCK_END]).expand(self.batch_size, -1)
        input_ids = torch.cat([words[:, : self.num_words], block, words[:, self.num_words :]], 1)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if not self.with_images:
            return config, inputs
        patch = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
        return config, inputs | {
            "mm_token_type_ids": (input_ids == IMAGE).long(),
            "pixel_values": torch.rand(self.batch_size, patch),
            "image_grid_thw": torch.ones(self.batch_size, 3, dtype=torch.long),
        }


class AMVLModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (AMVLForConditionalGeneration,)
    test_can_init_all_missing_weights_before_2023 = True  # they find a model's year in the copyright line of its source
    _is_composite = True
    additional_model_inputs = ("pixel_values", "image_grid_thw", "mm_token_type_ids")

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model_tester = ModelTester()
        self.config_tester = ConfigTester(self, config_class=AMVLConfig, has_text_modality=False)

    def test_the_prompts_reach_our_prefill(self) -> None:
        config, inputs = self.prepare_config_and_inputs_for_generate()
        model = AMVLForConditionalGeneration(config).eval()
        filled = []
        model.injector.register_forward_hook(lambda module, args, output: filled.append(output.shape))
        model.generate(**inputs, max_new_tokens=3)
        self.assertEqual(filled, [(2, len(SLOTS), self.model_tester.hidden_size)])

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _get_logits_processor_kwargs(self, do_sample=False, config=None):
        """Theirs, without the latent block's tokens: `load_amvl` puts those into the generation configuration."""
        kwargs = super()._get_logits_processor_kwargs(do_sample, config)
        return kwargs | {"suppress_tokens": [BLOCK_START, *SLOTS, BLOCK_END]}

    def test_assisted_decoding_matches_greedy_search_0_random(self) -> None:
        # The library prefills an assistant without its images; our class refuses image tokens that have no image.
        self.model_tester.with_images = False
        super().test_assisted_decoding_matches_greedy_search_0_random()

    def test_assisted_decoding_matches_greedy_search_1_same(self) -> None:
        self.model_tester.with_images = False
        super().test_assisted_decoding_matches_greedy_search_1_same()

    def test_assisted_decoding_sample(self) -> None:
        self.model_tester.with_images = False
        super().test_assisted_decoding_sample()


def skip(reason: str, *names: str) -> None:
    """Skips inherited tests; a name that their version does not have is passed over."""
    for name in names:
        if hasattr(AMVLModelTest, name):
            setattr(AMVLModelTest, name, unittest.skip(reason)(getattr(AMVLModelTest, name)))


skip(
    "generate takes token ids only: a block is found by its tokens, and a prompt without one is refused",
    "test_generate_from_inputs_embeds_0_greedy",
    "test_generate_from_inputs_embeds_1_beam_search",
    "test_generate_from_inputs_embeds_with_static_cache",
    "test_generate_from_random_inputs_embeds",
    "test_generate_without_input_ids",
)
skip(
    "the states of a prompt's two parts are joined for the caller: the logits do not come from the joined copies",
    "test_retain_grad_hidden_states_attentions",
)
skip(
    "it looks at the direct bases; the generation mixin comes from Qwen2.5-VL's class",
    "test_inherits_generation_mixin",
)
skip(
    "a row without padding would hold several prompts, and a row has one latent block",
    "test_eager_padding_matches_padding_free_with_position_ids",
    "test_sdpa_padding_matches_padding_free_with_position_ids",
)
