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
from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.amvl.modeling import AMVLForConditionalGeneration, load_amvl
from amvl_core.methods.exact import AT_ONCE, exact_linear, exact_mean, exact_rms
from tests.tiny import LATENT, stock_folder

KERNELS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
    "no AVX": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
}
INJECTORS = [LATENT, LATENT.model_copy(update={"dim": 24}), LATENT.model_copy(update={"injector": "mlp"})]


def digest(*tensors: torch.Tensor) -> str:
    data = b"".join(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(data).hexdigest()


def values(rows: int, columns: int) -> torch.Tensor:
    """Numbers between -2.5 and 2.5, without a kernel that differs from machine to machine."""
    whole = torch.randint(-(10**6), 10**6, (rows, columns), generator=torch.Generator().manual_seed(3))
    return (whole.double() / 400_000).float()


def found() -> list[dict[str, str]]:
    """Digests of sums of given numbers, and of all that loads of one checkpoint give, on one, two and three threads."""
    layer = torch.nn.Linear(300, 50)
    layer.weight.data, layer.bias.data = values(50, 300), values(1, 50)[0]
    given, results = values(AT_ONCE + 100, 300), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        rms = torch.tensor([exact_rms(given), exact_rms(given.bfloat16())], dtype=torch.float64)
        models = [load(latent) for latent in INJECTORS]
        rows = [layer.weight for m in models for layer in (m.get_input_embeddings(), m.get_output_embeddings())]
        results.append(
            {
                "sums": digest(exact_mean(given), exact_mean(given.bfloat16()), rms, exact_linear(layer, given)),
                "rows": digest(*rows),
                "models": digest(*(value for model in models for _, value in sorted(model.state_dict().items()))),
            }
        )
    return results


def load(latent: LatentConfig) -> AMVLForConditionalGeneration:
    torch.manual_seed(1)
    return load_amvl(stock_folder(), load_processor(stock_folder()), latent, dtype=torch.float32)


def test_threads_and_kernels_do_not_change_a_bit() -> None:
    stock_folder()  # made once, here
    code = f"import json; from {__name__} import found; print(json.dumps(found()))"
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[3],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, environment in KERNELS.items()
    }
    results = {name: json.loads(process.communicate()[0].splitlines()[-1]) for name, process in running.items()}
    for found in results.values():
        assert found == 3 * [found[0]]
    # All of a model cannot be the same: torch draws other fresh weights from one seed where there is no AVX.
    first, second = (found[0] for found in results.values())
    assert (first["sums"], first["rows"]) == (second["sums"], second["rows"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_they_are_the_sums_they_stand_for(dtype: torch.dtype) -> None:
    """The grid is fine enough. Measured worst cases, of the result's size: 6e-15, 2e-13, 2e-6."""
    torch.manual_seed(0)
    given, layer = torch.randn(AT_ONCE + 100, 300).to(dtype), torch.nn.Linear(300, 50).to(dtype)
    wide = given.double()
    assert float((exact_mean(given) - wide.mean(0)).abs().max()) < 1e-13
    assert exact_rms(given) == pytest.approx(float(wide.square().mean().sqrt()), rel=1e-12)
    expected = wide @ layer.weight.double().T + layer.bias.double()
    error = (exact_linear(layer, given) - expected).detach().abs().max() / expected.detach().abs().max()
    assert float(error) < 4e-6
