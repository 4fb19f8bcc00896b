"""The sinusoidal embedding of time against the official one."""

import pytest
import torch

from medgen.nn.embedding import sinusoidal_embedding
from tests.parity.conftest import Case, cases


@pytest.mark.parametrize("case", cases("medfusion_time_embedding"))
def test_sines_and_cosines_equal_the_official_ones(case: Case):
    names = {"downscale_freq_shift": "shift", "flip_sin_to_cos": "cosine_first"}
    for i, kwargs in enumerate(case.meta["constructor"]["kwargs_list"]):
        options = {names.get(name, name): value for name, value in kwargs.items() if name != "emb_dim"}
        expected = case.outputs[f"emb_{i}"]
        actual = sinusoidal_embedding(case.inputs["t"], kwargs.get("emb_dim", 16), **options)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)  # angles of 1000 in float32
