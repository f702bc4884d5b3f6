"""What the server that forks the workers has loaded before the first of them: each would load it again."""

from __future__ import annotations

import gc

from PIL import Image
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from amvl_core.backbones import qwen2_5_vl  # noqa: F401
from amvl_core.contracts.presets import PRESETS

for preset in ("demo", "valr-demo"):
    for stage in PRESETS[preset]().stages.values():
        stage.method.implementation()
Image.preinit()
get_checkpoint_conversion_mapping("qwen2_5_vl")  # a thousand patterns: it makes those of all models at once
gc.collect()
gc.freeze()  # what is loaded stays: a collection in a worker need not look at it
