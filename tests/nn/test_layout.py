"""The memory layout of training."""

import pytest
import torch

from medgen.nn.layout import training_layout


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", "AVX2", torch.contiguous_format),
        ("cpu", "AVX512", torch.channels_last),
        ("cpu", "DEFAULT", torch.channels_last),
        ("cuda", "AVX2", torch.channels_last),
    ],
)
def test_only_processors_with_avx2_and_nothing_newer_leave_channels_last(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: str, expected: torch.memory_format
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert training_layout(torch.device(device)) is expected
