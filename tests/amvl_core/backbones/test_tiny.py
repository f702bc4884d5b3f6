from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.backbones.tiny import save_tiny_base
from tests.tiny import TINY


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_start_at_one_scale(tied: bool, tmp_path: Path) -> None:
    """Worst of ten seeds: 2 % off, tied or not."""
    save_tiny_base(TINY.model_copy(update={"tie_word_embeddings": tied}), tmp_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    tokens = torch.arange(256)[None]
    with torch.no_grad():
        assert model(input_ids=tokens).logits.std() == pytest.approx(1, abs=0.05)
