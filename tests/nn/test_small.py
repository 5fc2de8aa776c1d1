import pytest
import torch
from torch.testing import assert_close

from vireid.nn import SmallBackbone
from vireid.nn.small import OrientedGradients


def gradients_by_loop(image: torch.Tensor, directions: int) -> torch.Tensor:
    """(H, W) -> (n, H, W), pixel by pixel: strength over the mean strength around, shared by the two nearest bins."""
    height, width = image.shape
    reach = max(1, height // 16)

    def at(y: int, x: int) -> float:
        return float(image[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])

    strength, angle = torch.zeros(height, width), torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            dx, dy = at(y, x + 1) - at(y, x - 1), at(y + 1, x) - at(y - 1, x)
            strength[y, x] = (dx**2 + dy**2) ** 0.5
            angle[y, x] = torch.atan2(torch.tensor(dy), torch.tensor(dx))
    maps = torch.zeros(directions, height, width)
    for y in range(height):
        for x in range(width):
            rows, columns = slice(max(0, y - reach), y + reach + 1), slice(max(0, x - reach), x + reach + 1)
            relative = strength[y, x] / (strength[rows, columns].mean() + 0.04)
            position = float(angle[y, x] / torch.pi * directions) % directions
            lower = int(position) % directions
            share = position - int(position)
            maps[lower, y, x] += relative * (1 - share)
            maps[(lower + 1) % directions, y, x] += relative * share
    return maps


@pytest.mark.parametrize(("size", "directions"), [((32, 16), 9), ((10, 12), 4)])
def test_oriented_gradients_equal_the_loop(size, directions):
    image = torch.rand(3, *size)
    maps = OrientedGradients(directions)(image[None])[0]
    assert_close(maps, gradients_by_loop(image.mean(0), directions), rtol=1e-4, atol=1e-4)


def test_the_sign_of_the_contrast_does_not_matter():
    image = torch.rand(2, 3, 32, 16)
    assert_close(OrientedGradients()(image), OrientedGradients()(1 - image), rtol=1e-4, atol=1e-4)


def test_an_edge_is_in_the_bin_of_its_direction():
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16:] = 1  # the gradient points along x: bin 0; along y: a quarter turn on
    upright, level = OrientedGradients(8)(image)[0], OrientedGradients(8)(image.mT)[0]
    assert upright.sum((1, 2)).argmax() == 0
    assert level.sum((1, 2)).argmax() == 4


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (50, 31), (16, 8)])
def test_the_map_is_the_grid_for_any_size(size):
    net = SmallBackbone()
    assert net(torch.rand(2, 3, *size)).shape == (2, net.out_channels, *net.grid) == (2, 9, 15, 7)


def test_an_untrained_network_adds_nothing_to_the_cells():
    images = torch.rand(4, 3, 64, 32)
    assert_close(SmallBackbone(depth=3).eval()(images), SmallBackbone(depth=0).eval()(images))


def test_gradient_reaches_the_refinements_and_flat_images():
    net, flat = SmallBackbone(), torch.full((2, 3, 64, 32), 0.5, requires_grad=True)
    (net(flat) * torch.rand(2, 9, 15, 7)).sum().backward()
    assert torch.isfinite(flat.grad).all()
    net(torch.rand(4, 3, 64, 32)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.refinements[0].branch[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 3, 15, 32), (2, 3, 64, 7), (3, 64, 32)])
def test_too_small_or_misshapen_images(shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H > 15, W > 7\), got"):
        SmallBackbone()(torch.rand(shape))


@pytest.mark.parametrize("settings", [{"grid": (0, 7)}, {"width": 0}, {"depth": -1}, {"directions": 0}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.* must be at least"):
        SmallBackbone(**settings)
