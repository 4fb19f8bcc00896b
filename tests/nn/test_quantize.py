import copy

import pytest
import torch

from medgen.nn.quantize import MovingAverageQuantizer, VectorQuantizer, nearest_code


@pytest.fixture
def quantizer():
    """Codes at the corners of a square."""
    quantizer = VectorQuantizer(4, 2, beta=0.25)
    quantizer.codebook.data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return quantizer


def as_latent(vectors):
    """Vectors (N, D) as the pixels of one latent (1, D, N, 1)."""
    return torch.tensor(vectors).T[None, :, :, None]


def test_each_vector_takes_its_nearest_code(quantizer):
    quantized = quantizer(as_latent([[0.1, 0.2], [0.9, -3.0], [0.6, 0.7]]))
    assert quantized.indices.tolist() == [[[0], [2], [3]]]
    torch.testing.assert_close(quantized.latent, as_latent([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))


def test_ties_take_the_first_code():
    assert nearest_code(torch.tensor([[0.5]]), torch.tensor([[0.0], [1.0]])).item() == 0


def test_beta_weighs_the_commitment_term_only(quantizer):
    latent = as_latent([[0.0, 0.4]]).requires_grad_()
    quantized = quantizer(latent)
    mean_square = 0.4**2 / 2
    assert quantized.loss.item() == pytest.approx(1.25 * mean_square)
    quantized.loss.backward()
    torch.testing.assert_close(latent.grad, 0.25 * as_latent([[0.0, 0.4]]))  # 2 * 0.4 / 2 values, times beta
    torch.testing.assert_close(quantizer.codebook.grad[0], torch.tensor([0.0, -0.4]))


def test_gradients_pass_straight_through(quantizer):
    latent = as_latent([[0.3, 0.2], [0.8, 0.9]]).requires_grad_()
    weight = torch.randn_like(latent)
    (quantizer(latent).latent * weight).sum().backward()
    torch.testing.assert_close(latent.grad, weight)


def test_lookup_inverts_quantisation_of_volumes():
    quantizer = VectorQuantizer(8, 3)
    quantized = quantizer(torch.randn(2, 3, 2, 4, 5))
    assert quantized.indices.shape == (2, 2, 4, 5)
    torch.testing.assert_close(quantizer.lookup(quantized.indices), quantized.latent)


def moving(codes, **options):
    """A moving-average codebook that starts at these codes."""
    quantizer = MovingAverageQuantizer(len(codes), len(codes[0]), **options)
    quantizer.codebook.copy_(torch.tensor(codes))
    quantizer.sums.copy_(torch.tensor(codes))
    return quantizer


@pytest.mark.parametrize(
    ("eps", "expected"),
    [(0.0, [[0.1, 0.2], [2.0, 1.6]]), (0.5, [[0.1 / 0.9, 0.2 / 0.9], [1.0 / 0.6, 0.8 / 0.6]])],
)
def test_a_step_moves_codes_to_the_average_of_their_vectors(eps, expected):
    quantizer = moving([[0.0, 0.0], [1.0, 1.0]], decay=0.5, eps=eps)
    quantized = quantizer(as_latent([[0.2, 0.0], [0.0, 0.4], [1.0, 0.6]]))
    assert quantized.indices.tolist() == [[[0], [0], [1]]]
    torch.testing.assert_close(quantizer.counts, torch.tensor([1.0, 0.5]))  # half of 2 and 1, before it was 0
    torch.testing.assert_close(quantizer.sums, torch.tensor([[0.1, 0.2], [1.0, 0.8]]))
    torch.testing.assert_close(quantizer.codebook, torch.tensor(expected))  # eps: counts become 0.9 and 0.6


def test_the_codes_used_are_those_before_the_step():
    quantizer = moving([[0.0, 0.0], [1.0, 1.0]], decay=0.5)
    quantized = quantizer(as_latent([[0.2, 0.0], [0.0, 0.4], [1.0, 0.6]]))
    torch.testing.assert_close(quantized.latent, as_latent([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
    assert quantized.loss.item() == pytest.approx((0.2**2 + 0.4**2 + 0.4**2) / 6)


def test_codes_end_at_the_mean_of_the_vectors_they_stand_for():
    quantizer = moving([[-1.0, 0.0], [1.0, 0.0]], decay=0.9)
    for _ in range(300):
        quantizer(as_latent([[-3.0, 1.0], [-2.0, 0.0], [2.0, 2.0], [4.0, 0.0], [3.0, 1.0]]))
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[-2.5, 0.5], [3.0, 1.0]]), rtol=0, atol=1e-3)


def test_gradients_reach_the_latent_only_and_pass_straight_through():
    quantizer = MovingAverageQuantizer(4, 2)
    latent = as_latent([[0.3, 0.2], [0.8, 0.9]]).requires_grad_()
    weight = torch.randn_like(latent)
    (quantizer(latent).latent * weight).sum().backward()
    torch.testing.assert_close(latent.grad, weight)
    assert list(quantizer.parameters()) == []


def test_the_commitment_term_pulls_the_latent_to_its_code():
    latent = as_latent([[0.0, 0.4]]).requires_grad_()
    moving([[0.0, 0.0]])(latent).loss.backward()
    torch.testing.assert_close(latent.grad, as_latent([[0.0, 0.4]]))  # 2 * 0.4 / 2 values


def test_under_autocast_the_codebook_is_that_of_float32():
    torch.manual_seed(0)
    full = MovingAverageQuantizer(64, 8)
    full.codebook.mul_(0.1).add_(5)  # so near one another that in bf16 other codes would be nearest
    half = copy.deepcopy(full)
    latent = (5 + 0.1 * torch.randn(4, 8, 6, 6)).bfloat16()
    expected = full(latent.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = half(latent)
    assert torch.equal(quantized.indices, expected.indices)
    assert quantized.latent.dtype == half.codebook.dtype == torch.float32
    assert torch.equal(half.codebook, full.codebook)


def test_only_training_moves_the_codebook():
    quantizer = MovingAverageQuantizer(8, 2)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.eval()(torch.randn(2, 2, 3, 3))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.train()(torch.randn(2, 2, 3, 3))
    assert not any(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize(("restart_below", "restarted"), [(0.0, [False, False]), (0.25, [True, True])])
def test_unused_codes_are_put_on_vectors_of_the_batch_if_asked_for(restart_below, restarted):
    vectors = [[0.1, 0.0], [0.0, 0.2], [0.3, 0.0], [0.0, 0.4]]
    quantizer = moving([[0.0, 0.0], [50.0, 50.0], [60.0, 60.0]], decay=0.5, restart_below=restart_below)
    quantizer(as_latent(vectors))
    on_a_vector = (quantizer.codebook[:, None] == torch.tensor(vectors)).all(2).any(1)
    assert on_a_vector.tolist() == [False, *restarted]
    torch.testing.assert_close(quantizer.codebook[0], torch.tensor([0.1, 0.15]), rtol=1e-3, atol=0)  # it was in use
    assert quantizer.counts.tolist() == [2.0, restart_below, restart_below]


def test_a_restarted_code_is_used_and_stays_where_its_vectors_are():
    quantizer = moving([[0.0, 0.0], [50.0, 50.0]], decay=0.5, restart_below=0.25)
    latent = as_latent([[0.0, 0.0], [0.0, 0.0], [8.0, 8.0], [8.0, 8.0]])
    torch.manual_seed(0)
    for _ in range(20):
        quantizer(latent)
    torch.testing.assert_close(quantizer.codebook.sort(0).values, torch.tensor([[0.0, 0.0], [8.0, 8.0]]))
    assert quantizer.usage()[0] == 1


@pytest.mark.parametrize(
    ("counts", "share", "perplexity"),
    [
        ([3.0, 3.0, 3.0, 3.0], 1.0, 4.0),
        ([0.0, 7.0, 0.0, 0.0], 0.25, 1.0),
        ([2.0, 0.0, 2.0, 0.0], 0.5, 2.0),
        ([500.0, 500.0, 1.0, 0.0], 0.5, 2.016),  # hardly ever is not in use
        ([0.0, 0.0, 0.0, 0.0], 0.0, 1.0),
    ],
)
def test_usage_counts_codes_and_how_many_would_be_as_varied(counts, share, perplexity):
    quantizer = MovingAverageQuantizer(4, 2)
    quantizer.counts.copy_(torch.tensor(counts))
    assert [value.item() for value in quantizer.usage()] == pytest.approx([share, perplexity], rel=1e-3)


# Several processes

BATCHES = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))  # one of each process


def _seeded(restart_below):
    torch.manual_seed(0)
    return MovingAverageQuantizer(16, 4, decay=0.5, restart_below=restart_below)


def _three_steps(quantizer, batch):
    for step in range(3):
        quantizer(batch + step)
    return quantizer


def _move_in_a_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for restart_below in (0.0, 0.5):
        quantizer = _seeded(restart_below)
        torch.manual_seed(rank)
        torch.save(_three_steps(quantizer, BATCHES[rank]).state_dict(), folder / f"{rank}-{restart_below}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory):
    """A function from an amount of restarting to the codebooks at which two processes arrive together."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_move_in_a_process, (folder,), nprocs=2)
    return lambda restart_below: [torch.load(folder / f"{rank}-{restart_below}.pt") for rank in (0, 1)]


@pytest.mark.ddp
@pytest.mark.parametrize("restart_below", [0.0, 0.5])
def test_two_processes_have_the_same_codebook(in_two_processes, restart_below):
    ours, theirs = in_two_processes(restart_below)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.ddp
def test_two_processes_have_the_codebook_of_one_that_saw_both_batches(in_two_processes):
    alone = _three_steps(_seeded(0.0), BATCHES.flatten(0, 1)).state_dict()
    torch.testing.assert_close(in_two_processes(0.0)[0], dict(alone))
