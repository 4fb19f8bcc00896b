import pytest
import torch
import torch.nn.functional as F

from medgen.families.spade.label_maps import LabelMapVAE


def vae(**changes):
    torch.manual_seed(0)
    return LabelMapVAE(**({"num_classes": 3, "image_size": (16, 24), "width": 4, "code_dim": 5} | changes))


@pytest.mark.parametrize(
    ("size", "inner"), [((16, 24), (4, 6)), ((128, 128), (4, 4)), ((20, 12), (10, 6)), ((7, 9), (7, 9))]
)
def test_maps_become_codes_and_maps_again(size, inner):
    network = vae(image_size=size)
    masks = torch.randint(3, (2, *size))
    mean, log_variance = network.encode(masks)
    assert mean.shape == log_variance.shape == (2, 5)
    assert network.inner[1:] == inner
    assert network.decode(mean).shape == (2, 3, *size)
    drawn = network.draw(mean)
    assert (drawn.shape, drawn.dtype) == ((2, *size), torch.int64)


def test_what_is_drawn_is_the_likeliest_class():
    network, codes = vae(), torch.randn(2, 5)
    assert torch.equal(network.draw(codes), network.decode(codes).argmax(1))


@pytest.mark.slow
def test_two_maps_can_be_learned():
    network = vae()
    masks = torch.zeros(2, 16, 24, dtype=torch.int64)
    masks[0, :8], masks[1, :, 12:] = 1, 2
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        loss = F.cross_entropy(network.decode(network.encode(masks)[0]), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network.draw(network.encode(masks)[0]) == masks).float().mean() > 0.97


@pytest.mark.parametrize("changes", [{"num_classes": 1}, {"width": 0}, {"code_dim": 0}])
def test_sizes_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} of the label maps is"):
        vae(**changes)
