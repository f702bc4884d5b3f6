"""What a training step of AMVL takes: on a shared prefix as it is run, by three whole passes, and as fine-tuning."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.cost import Cost, RowsOfStep
from amvl_core.rows.flops import row_flops, rows_flops, sft_rows
from amvl_core.rows.spans import Piece, Rows, Span


class AmvlCost(Cost):
    """AMVL with `draws` draws of Z for each sample."""

    def __init__(self, latent: LatentConfig, draws: int = 1) -> None:
        self.latent, self.draws = latent, draws

    def ways(self, x: int, y: int) -> dict[str, RowsOfStep]:
        """Fine-tuning has neither block nor draws."""
        k, draws = self.latent.num_slots, self.draws
        whole = (x + k, x + y + k, *[x + k + 1 + y] * draws)
        return {
            "shared_prefix": RowsOfStep(shared_prefix_rows(x, y, k, draws), draws, cut=True),
            "three_pass": RowsOfStep([[Span(length, read=length)] for length in whole], draws),
            "sft": RowsOfStep(sft_rows(x, y)),
        }

    def prefill_flops(self, config: Any, x: int) -> float:
        """x, the start marker and the slots, which alone are read; then Z and the end marker take the slots' place."""
        k, prompt = self.latent.num_slots, (Piece(row=0, span=0, start=0, stop=x + 1),)
        reading, decoding = Span(x + 1 + k, read=k), Span(k + 1, read=k + 1, context=prompt)
        return row_flops(config, [reading]) + rows_flops(config, [[decoding]], 1)

    def parts(self, size: int) -> dict[str, int]:
        """The variational heads and the injector."""
        latent = self.latent
        return {"heads": (1 + latent.separate_heads) * _head(latent, size), "injector": _injector(latent, size)}


def shared_prefix_rows(x: int, y: int, k: int, draws: int = 1) -> Rows:
    """One sample as `prefix.py` lays it out: the context row and the decoder row."""
    prefix = (Piece(row=0, span=0, start=0, stop=x),)
    context = [Span(x + y + k, k), Span(k, k, prefix)]
    return [context, [Span(k + y, y, prefix)] * draws]


def _head(latent: LatentConfig, size: int) -> int:
    """One variational head (`heads.py`): norm, trunk, output."""
    hidden = latent.head_hidden
    width = size if latent.head == "linear" else hidden
    trunk = {"linear": 0, "mlp": (size + 1) * hidden, "native": 2 * size * hidden}
    extra = {"deeper": size + 3 * size * hidden + 2 * size * hidden}
    return size + {**trunk, **extra}[latent.head] + (width + 1) * 2 * latent.dim


def _injector(latent: LatentConfig, size: int) -> int:
    """One or two layers, and the scale."""
    return (latent.dim + 1) * size + ((size + 1) * size if latent.injector == "mlp" else 0) + 1
