"""What starts from a base model that another method has trained."""

from pathlib import Path

import pytest

from amvl_core.backbones.processor import load_processor
from amvl_core.data.encode import chat
from amvl_core.data.template import base_template
from amvl_core.methods.markers.method import Markers
from amvl_core.methods.mull.method import Mull
from amvl_core.methods.sft.method import Sft
from amvl_core.methods.valr.method import Valr
from tests.tiny import LATENT, stock_folder


@pytest.mark.parametrize("kind", [Sft, Markers, Valr])
def test_prompts_end_without_the_block_of_the_base(kind: type[Sft] | type[Valr], tmp_path: Path) -> None:
    """Training lays a sample out without it, so no question may be asked with it."""
    processor = load_processor(stock_folder())
    Mull.load(stock_folder(), processor, LATENT).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert base_template(processor) != processor.chat_template
    processor = load_processor(str(tmp_path))
    model = kind.load(str(tmp_path), processor, LATENT)
    asked = processor.apply_chat_template(chat("Where?"), add_generation_prompt=True, tokenize=False)
    assert "abs_token" not in asked and asked.endswith("assistant\n")
    assert kind is Valr or not hasattr(model.config, "slot_token_ids")
