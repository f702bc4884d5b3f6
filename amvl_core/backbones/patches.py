"""The patch embedding of a vision encoder as one matrix product.

The stock encoders give each patch to a convolution whose kernel is the whole patch. That is a matrix product, and
libraries of convolutions may have no fast way for it: on GPUs it was seen to take seconds a call in bf16
(transformers issue 45750). transformers can replace the module (`fusion_config`), which renames its weight. Here the
weight keeps its name and shape, so checkpoints are the stock model's.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PatchProjection(nn.Conv3d):
    """A convolution that multiplies matrices where its input is one kernel large."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, channels, time, height, width] -> [N, D, 1, 1, 1], the same sums as the convolution's."""
        if input.shape[2:] != self.kernel_size:
            return super().forward(input)
        projected_ND = functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return projected_ND[..., None, None, None]


def project_patches(vision: nn.Module) -> None:
    """Makes the convolution that embeds the patches of `vision` a `PatchProjection`; all else stays as it is."""
    for module in vision.modules():
        if type(module) is nn.Conv3d and (module.padding, module.dilation, module.groups) == ((0,) * 3, (1,) * 3, 1):
            module.__class__ = PatchProjection
