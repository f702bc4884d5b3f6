"""What is computed at load is the same to the last bit in processes that sum in other orders."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amvl_core.backbones.processor import load_processor
from amvl_core.methods.amvl.modeling import load_amvl
from amvl_core.methods.exact import AT_ONCE, exact_linear, exact_mean, exact_rms
from tests.tiny import LATENT, stock_folder

PROCESSES = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads, AVX2": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
    "two threads, no AVX": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
}


def digest(*tensors: torch.Tensor) -> str:
    data = b"".join(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(data).hexdigest()


def values(rows: int, columns: int) -> torch.Tensor:
    """Numbers between -2.5 and 2.5, without a kernel that differs from machine to machine."""
    whole = torch.randint(-(10**6), 10**6, (rows, columns), generator=torch.Generator().manual_seed(3))
    return (whole.double() / 400_000).float()


def found() -> dict[str, str]:
    """Digests of sums of given numbers, and of all that a load of one checkpoint gives, with a seed."""
    torch.manual_seed(1)
    processor = load_processor(stock_folder())
    model = load_amvl(stock_folder(), processor, LATENT, dtype=torch.float32)
    layer = torch.nn.Linear(300, 50)
    layer.weight.data, layer.bias.data = values(50, 300), values(1, 50)[0]
    given = values(AT_ONCE + 100, 300)
    rms = torch.tensor([exact_rms(given), exact_rms(given.bfloat16())], dtype=torch.float64)
    return {
        "sums": digest(exact_mean(given), exact_mean(given.bfloat16()), rms, exact_linear(layer, given)),
        "rows": digest(model.get_input_embeddings().weight, model.get_output_embeddings().weight),
        "model": digest(*(value for _, value in sorted(model.state_dict().items()))),
    }


def test_threads_and_kernels_do_not_change_a_bit() -> None:
    stock_folder()  # made once, here
    code = f"import json; from {__name__} import found; print(json.dumps(found()))"
    root = Path(__file__).parents[3]
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", code], cwd=root, env=os.environ | environment, stdout=subprocess.PIPE, text=True
        )
        for name, environment in PROCESSES.items()
    }
    digests = {name: json.loads(process.communicate()[0].splitlines()[-1]) for name, process in running.items()}
    expected = digests["one thread"]
    # Without AVX torch draws other fresh weights from the same seed, so all of the model cannot be the same there.
    del digests["two threads, no AVX"]["model"]
    assert {name: expected | found for name, found in digests.items()} == dict.fromkeys(PROCESSES, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_they_are_the_sums_they_stand_for(dtype: torch.dtype) -> None:
    """The grid is fine enough: measured worst cases are 6e-12, 5e-11 and 4e-7 of the result's size."""
    given, layer = values(AT_ONCE + 100, 300).to(dtype), torch.nn.Linear(300, 50).to(dtype)
    wide = given.double()
    assert float((exact_mean(given) - wide.mean(0)).abs().max()) < 1e-10
    assert exact_rms(given) == pytest.approx(float(wide.square().mean().sqrt()), rel=1e-9)
    expected = wide @ layer.weight.double().T + layer.bias.double()
    assert float((exact_linear(layer, given) - expected).abs().max() / expected.abs().max()) < 4e-6
