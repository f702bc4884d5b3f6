"""What `python -m benchmarks.gpu` refuses; `test_commands.py` runs it without a GPU."""

import pytest
import torch

from benchmarks import gpu


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "there is no GPU here; --device cpu --size tiny is a dry run"),
        (["--device", "cpu"], "the 7B shape takes a GPU; add --size tiny"),
    ],
)
def test_it_refuses_what_this_machine_cannot_show(options, said, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", *options])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit):
        gpu.main()
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_smaller_gpu_gets_fewer_layers(monkeypatch) -> None:
    size, gib = gpu.SIZES["7b"], 2**30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {}
    for memory in (141, 80, 40, 24):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda memory=memory: (0, memory * gib))
        found[memory] = gpu.fitting_layers(size)
    assert found[141] == found[80] == 28 > found[40] > found[24] > 2
