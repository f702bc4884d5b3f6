import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from amvl_core.methods.amvl.method import Amvl
from benchmarks import local, loss_compare
from benchmarks.loss_compare import CURVE, STAGE_CURVE, TOLERANCE, Curve


def test_the_loss_has_not_moved(capsys: pytest.CaptureFixture[str]) -> None:
    """If it has to: `python -m benchmarks.loss_compare --update`, and say why in the commit."""
    assert loss_compare.main([]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["steps"], printed["stage_steps"]) == (50, 12)
    assert printed["stage_max_abs_diff"] <= printed["max_abs_diff"] < TOLERANCE


def test_it_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of the reverse KL that is off by a tenth."""
    weights = Amvl.weights
    monkeypatch.setattr(Amvl, "weights", lambda self, step: (weights(self, step)[0], 1.1 * weights(self, step)[1]))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert loss_compare.max_abs_diff(loss_compare.run(), loss_compare.golden(CURVE)) > 5e-3
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def late_schedule(rank: int, *arguments: Any) -> None:
    """A worker whose learning rate is that of the step before."""
    from amvl_core.train import loop

    right = loop.cosine_with_warmup
    loop.cosine_with_warmup = lambda step, *rest: right(max(0, step - 1), *rest)
    local.stage(rank, *arguments)


def test_a_change_of_the_loop_would_be_seen() -> None:
    assert loss_compare.max_abs_diff(loss_compare.run_stage(late_schedule), loss_compare.golden(STAGE_CURVE)) > 5e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_far_wherever_it_stands(value: float) -> None:
    good: Curve = [{"loss": 2.0, "ntp": 1.0} for _ in range(3)]
    for step in range(3):
        for name in ("loss", "ntp"):
            bad = [dict(terms) for terms in good]
            bad[step][name] = value
            for curve, other in ((bad, good), (good, bad), (bad, bad)):
                assert loss_compare.max_abs_diff(curve, other) == math.inf
            del bad[step][name]  # as the loop's log does with it
            assert loss_compare.max_abs_diff(bad, good) == loss_compare.max_abs_diff(good, bad) == math.inf
    assert loss_compare.max_abs_diff(good, [{"loss": 2.0, "ntp": 1.25}, *good[1:]]) == 0.25


@pytest.mark.parametrize("moved", ["CURVE", "STAGE_CURVE"])
@pytest.mark.parametrize(("by", "status"), [(0.5 * TOLERANCE, 0), (2 * TOLERANCE, 1), (math.nan, 1)])
def test_either_curve_that_moved_is_a_failure_until_it_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moved: str, by: float, status: int
) -> None:
    for name in ("CURVE", "STAGE_CURVE"):
        file = tmp_path / name
        file.write_text(json.dumps([{"loss": 0.0}]))
        monkeypatch.setattr(loss_compare, name, file)
    monkeypatch.setattr(loss_compare, "run", lambda: [{"loss": by if moved == "CURVE" else 0.0}])
    monkeypatch.setattr(loss_compare, "run_stage", lambda: [{"loss": by if moved == "STAGE_CURVE" else 0.0}])
    assert loss_compare.main([]) == status
    assert loss_compare.main(["--update"]) == math.isnan(by)
    assert loss_compare.main([]) == math.isnan(by)
