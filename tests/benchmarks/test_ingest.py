import numpy as np
import pytest

from amvl_core.backbones.processor import load_processor
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.presets import demo
from amvl_core.methods.method import Clock
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from benchmarks.ingest import Counter, waits_and_seconds
from tests.tiny import LATENT, SAMPLES, amvl_model, batch, stock_folder


def test_seconds_are_those_of_the_tokens_of_all_ranks() -> None:
    """Two steps of one and two micro-batches in two processes, at 100 and 50 tokens a second."""
    steps = [
        {"data_wait": 0.5, "tokens_per_s": 100.0, "micro": 1},
        {"data_wait": 0.25, "tokens_per_s": 50.0, "micro": 3},
    ]
    waits, seconds = waits_and_seconds(steps, np.array([[100, 60, 40], [200, 30, 20]]))
    assert waits.tolist() == [0.5, 0.25] and seconds.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("latent", [False, True])
def test_what_belongs_to_no_sample_is_counted(latent: bool) -> None:
    """A batch without pictures shows the vision encoder a blank one, of four patches."""
    if latent:
        model, processor = amvl_model()
        method = Amvl(model, demo().stages["amvl"].method)
    else:
        processor = load_processor(stock_folder())
        method = Sft(Sft.load(stock_folder(), processor, LATENT), SftMethod())
    counter = Counter()
    hook = counter.watch()
    try:
        for samples in (SAMPLES, SAMPLES[2:3]):
            data = batch(processor, LATENT if latent else None, samples)
            method(data, Clock(0, 0, data.num_label_tokens, len(samples)))
    finally:
        hook.remove()
    assert counter.rows == counter.needed > 50
    assert counter.patches - counter.shown == 4
