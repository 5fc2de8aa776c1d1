import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vireid.nn import NonLocal, SmallBackbone, TwoStream, insert_non_local


def moved(layer: NonLocal) -> NonLocal:
    nn.init.normal_(layer.norm.weight)
    return layer.double().eval()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 3)])
def test_every_pixel_takes_in_all_pixels(size):
    """Pixel by pixel; both orders of the products."""
    layer, x = moved(NonLocal(6)), torch.randn(2, 6, *size).double()
    theta, phi, g = (conv(x).flatten(2) for conv in (layer.theta, layer.phi, layer.g))
    n = theta.shape[2]
    y = torch.zeros_like(g)
    for b in range(2):
        for i in range(n):
            for j in range(n):
                y[b, :, i] += sum(theta[b, c, i] * phi[b, c, j] for c in range(3)) / n * g[b, :, j]
    assert_close(layer(x), x + layer.norm(layer.out(y.view(2, 3, *size))), rtol=1e-9, atol=1e-12)


def test_it_starts_as_the_identity():
    x = torch.randn(3, 4, 5, 2)
    assert torch.equal(NonLocal(4)(x), x)


def stages() -> nn.Sequential:
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 4, 3))
    for name, channels, depth in (("layer2", 6, 4), ("layer3", 8, 6)):
        blocks = [nn.Conv2d(channels if i else channels - 2, channels, 1) for i in range(depth)]
        net.add_module(name, nn.Sequential(*blocks))
    return net


def test_it_is_put_behind_the_last_blocks_of_a_stage():
    net, x = stages(), torch.randn(2, 3, 9, 7)
    before = net(x)
    assert insert_non_local(net, {"layer2": 2, "layer3": 3}) is net
    wrapped = {
        name: [isinstance(block, nn.Sequential) for block in getattr(net, name)] for name in ("layer2", "layer3")
    }
    assert wrapped == {"layer2": [False] * 2 + [True] * 2, "layer3": [False] * 3 + [True] * 3}
    assert [block[1].channels for block in net.layer3[3:]] == [8] * 3
    assert torch.equal(net(x), before)
    assert net.training


def test_in_two_streams_both_stems_have_their_own():
    net = TwoStream.from_sequential(stages(), shared_from="layer3")
    insert_non_local(net, {"layer2": 1, "layer3": 9})
    one, other = (stem.layer2[-1][1] for stem in net.stems)
    assert one is not other
    assert len(list(net.trunk.layer3)) == 6
    assert all(isinstance(block[1], NonLocal) for block in net.trunk.layer3)
    small = insert_non_local(TwoStream.from_sequential(SmallBackbone(), shared_from="refinements"), {"refinements": 1})
    assert small(torch.rand(2, 3, 64, 32), torch.tensor([1, 0])).shape == (2, 9, 15, 7)


def test_a_stage_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"blocks must name stages of net, each an nn\.Sequential, got 'layer9'"):
        insert_non_local(stages(), {"layer9": 1})
    with pytest.raises(TypeError, match="blocks must map names of stages to numbers of blocks, got 3"):
        insert_non_local(stages(), 3)
    with pytest.raises(ValueError, match="channels must be at least 2, got 1"):
        NonLocal(1)
