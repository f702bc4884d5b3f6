import numpy as np
import pytest

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.config import override
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.presets import demo
from amvl_core.methods.method import Clock
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from benchmarks.ingest import Counter, measure, waits_and_seconds
from tests.shards import row, write
from tests.tiny import LATENT, SAMPLES, TINY, amvl_model, batch, stock_folder


def test_both_stages_run_and_are_measured(tmp_path) -> None:
    """The demo's stages on the smallest model, two processes each with a loader process."""
    changes = {
        "model": {"tiny": TINY.model_dump()},
        "latent": LATENT.model_dump(),
        "stages": {stage: {"steps": 3, "global_batch": 8, "micro_tokens": 512} for stage in demo().stages},
        "trainer": {"log_every": 1, "checkpoint_every": 1000},
    }
    record = write(str(tmp_path / "data"), [[row(number) for number in range(70)]])
    found = measure(override(demo(), changes), record, str(tmp_path))
    assert 0 <= found["data_wait_share"] < 1
    assert found["padding_waste"] == 0
    assert 1 <= found["rank_imbalance"] < 1.1
    # Two loader processes, each of which reads all of a dataset this small: 64 of its rows are asked for.
    assert found["bytes_read_per_sample"] == pytest.approx(2 * found["bytes_stored_per_sample"] * 70 / 64, rel=0.01)


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
