import pytest
import torch

from amvl_core.methods.amvl.heads import LatentInjector, VariationalHead


@pytest.mark.parametrize("kind", ["linear", "mlp", "native", "deeper"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_stay_finite_and_bounded_on_extreme_hidden_states(kind: str, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = VariationalHead(kind, 16, 32, 8, -8.0, 4.0).to(dtype)
    hidden = (scale * torch.randn(2, 3, 16)).to(dtype).requires_grad_()
    out = head(hidden)
    assert out.mean.shape == out.logvar.shape == (2, 3, 8)
    assert torch.isfinite(out.mean).all()
    assert ((out.logvar >= -8) & (out.logvar <= 4)).all()
    (out.mean.sum() + out.logvar.sum()).backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_injector_starts_at_the_scale_of_the_embeddings(kind: str) -> None:
    torch.manual_seed(0)
    injector = LatentInjector(kind, 8, 64)
    injector.calibrate(0.03, 8)
    latents = torch.randn(4096, 8, generator=torch.Generator().manual_seed(1))
    rms = injector(latents).square().mean().sqrt().item()
    assert rms == pytest.approx(0.03, rel=0.05)
