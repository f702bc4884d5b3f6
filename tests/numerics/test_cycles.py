"""A training step leaves no cycle of references: Python's collector may look seldom (`infra/__init__.py`)."""

import gc
from collections.abc import Callable

import pytest

from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from tests.numerics import test_coconut
from tests.numerics.held import CLOCK, trained
from tests.tiny import amvl_model, batch


def amvl() -> Callable[[], object]:
    model, processor = amvl_model()
    ours, data = trained(Amvl(model, AmvlMethod())), batch(processor)
    return lambda: ours(data, CLOCK).backward()


def coconut() -> Callable[[], object]:
    ours, processor = test_coconut.method(replaced_steps=2, slots_per_step=2)
    data = test_coconut.batch(trained(ours), processor)
    return lambda: ours(data, CLOCK).backward()


@pytest.mark.parametrize("made", [amvl, coconut])
def test_a_step_leaves_nothing_to_the_collector(made: Callable[[], Callable[[], object]]) -> None:
    step = made()
    step()
    gc.disable()
    try:
        gc.collect()  # everything older than the next step leaves the youngest generation
        step()
        assert gc.collect(0) == 0
    finally:
        gc.enable()
