import pytest
import torch
from torch import nn

from medgen.nn.batch_norm import SynchronisedBatchNorm2d

IMAGES = 2 + 3 * torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0))
SHARES = (slice(0, 4), slice(4, 6))  # of two processes, which need not be equal


def layer(**options):
    torch.manual_seed(0)
    norm = SynchronisedBatchNorm2d(4, **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def passed(norm, images):
    """Output, gradient of the input, gradients of the parameters, and the state after two passes."""
    images = images.clone().requires_grad_()
    norm(images.detach() / 2)
    out = norm(images)
    (out.sigmoid() * images.detach()).sum().backward()
    return {"out": out.detach(), "input": images.grad} | {
        **{f"{name} gradient": parameter.grad for name, parameter in norm.named_parameters()},
        **norm.state_dict(),
    }


def test_one_process_normalises_as_torch_does():
    ours, theirs = layer(), nn.BatchNorm2d(4)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(passed(ours, IMAGES), passed(theirs, IMAGES), rtol=0, atol=0)
    assert torch.equal(ours.eval()(IMAGES), theirs.eval()(IMAGES))


@pytest.mark.parametrize("affine", [False, True])
def test_a_single_value_per_channel_is_refused_in_training_and_taken_in_evaluation(affine):
    norm, pixel = layer(affine=affine), torch.randn(1, 4, 1, 1)
    with pytest.raises(ValueError, match="raise batch_size to at least 2, or use another norm"):
        norm(pixel)
    norm(torch.cat([pixel, -pixel]))
    norm.eval()(pixel)


CASES = ({}, {"affine": False}, {"momentum": None}, {"track_running_stats": False})


def _normalise_in_a_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = [passed(layer(**options), IMAGES[SHARES[rank]]) for options in CASES]
    with torch.autocast("cpu", torch.bfloat16):
        half = layer()(IMAGES[SHARES[rank]].bfloat16())
    torch.save({"found": found, "half": half.detach()}, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes found with its share of the batch."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_normalise_in_a_process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.ddp
@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_two_processes_give_outputs_gradients_and_statistics_of_one_with_the_whole_batch(two_processes, case):
    ours, theirs = (found["found"][case] for found in two_processes)
    alone = passed(layer(**CASES[case]), IMAGES)
    for name, expected in alone.items():
        if name in ("out", "input"):
            found = torch.cat([ours[name], theirs[name]])
        elif name.endswith("gradient"):
            found = ours[name] + theirs[name]  # whose mean is what distributed training steps along
        else:
            found = ours[name]
            assert torch.equal(found, theirs[name]), name
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.ddp
def test_half_precision_only_rounds_what_goes_in_and_out(two_processes):
    half = torch.cat([found["half"] for found in two_processes])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer()(IMAGES).detach(), rtol=0.02, atol=0.05)
