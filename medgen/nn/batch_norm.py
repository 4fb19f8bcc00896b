"""Batch normalisation synchronised over processes, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose training statistics, in float32, cover all processes.

    Unlike ``torch.nn.SyncBatchNorm`` it also runs on CPUs. The state dict is that of `torch.nn.BatchNorm2d`.

    Source: Ioffe and Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal
    covariate shift", algorithm 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) by channel.

        Raises:
            ValueError: If a training batch has a single value per channel.
        """
        if not self.training:
            return super().forward(x)
        if _processes() > 1:
            return self._normalise_with_others(x)
        if x.numel() <= x.shape[1]:
            raise ValueError(
                f"a training batch of shape {tuple(x.shape)} has one value per channel, which batch normalisation "
                "makes 0; raise batch_size to at least 2, or use another norm, such as 'group'"
            )
        return super().forward(x)

    def _normalise_with_others(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        values = x.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        totals = all_reduce(torch.cat([values.sum((0, 2, 3)), count]))
        mean, count = totals[:-1] / totals[-1], totals[-1].detach()
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        out = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            out = torch.addcmul(self.bias[:, None, None], out, self.weight[:, None, None])
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        return out.to(x.dtype)  # type: ignore[no-any-return]  # all_reduce has no types

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
