"""The order in which numbers of feature maps lie in memory."""

from __future__ import annotations

import torch


def training_layout(device: torch.device) -> torch.memory_format:
    """The layout in which wide convolutions and their gradients are fastest.

    Channels last, but on processors that have AVX2 and nothing newer: there oneDNN has no fast kernel for gradients of
    weights in it, and they take twice as long.
    """
    slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if slow else torch.channels_last
