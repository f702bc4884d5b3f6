"""Where a model that answers lies; what it says is held to the stock library in `tests/numerics`."""

import pytest
import torch

from amvl_core.contracts.config import ClusterConfig
from amvl_core.contracts.errors import ClusterError
from amvl_core.eval.predict import Answerer
from tests.tiny import stock_folder


def test_fewer_gpus_than_asked_for_are_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ClusterError, match="on 3 GPUs, and there are 2; set their number lower"):
        Answerer.from_pretrained("no/such/folder", gpus=3)


def test_workers_on_cpus_leave_a_machine_s_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = ClusterConfig(device="cpu", num_workers=1, evaluation_gpus=3).gpus_of_a_model
    assert Answerer.from_pretrained(stock_folder(), gpus=gpus).model.device.type == "cpu"
