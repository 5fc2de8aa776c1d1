import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vireid.nn import GeM


@pytest.mark.parametrize("p", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("grid", [(1, 1), (6, 1), (4, 3)])
def test_it_is_the_generalized_mean_of_each_cell(p, grid):
    x = torch.randn(2, 3, 15, 7).double()
    expected = F.adaptive_avg_pool2d(x.clamp_min(1e-6).pow(p), grid).pow(1 / p)
    assert_close(GeM(p, grid=grid).double()(x), expected.flatten(1), rtol=1e-9, atol=1e-12)


def test_by_hand_and_its_limits():
    x = torch.tensor([3.0, 4.0, 0.0, -5.0]).view(1, 1, 2, 2)
    assert_close(GeM(2.0)(x), torch.tensor([[2.5]]))  # the root of (9 + 16) / 4
    assert_close(GeM(1.0)(x), torch.tensor([[7 / 4]]))
    assert_close(GeM(1e4)(x), torch.tensor([[4.0]]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_power_overflows_or_vanishes(scale):
    """In float32 1e30 ** 10 is infinite."""
    x = (torch.rand(2, 3, 6, 2) * scale).requires_grad_()
    layer = GeM(10.0, grid=(6, 1), eps=1e-36)
    out = layer(x)
    assert_close(out, scale * GeM(10.0, grid=(6, 1))(x.detach() / scale), rtol=1e-3, atol=0)
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert layer.p.grad.isfinite()
    assert x.grad.sum() > 1


def test_p_is_trained_or_kept_and_never_below_1():
    assert [GeM(trainable=flag).p.requires_grad for flag in (True, False)] == [True, False]
    layer, x = GeM(), torch.rand(2, 3, 4, 4)
    torch.nn.init.constant_(layer.p, -2.0)
    assert_close(layer(x), x.mean((2, 3)))


@pytest.mark.parametrize("p", [0, 0.5, math.inf, math.nan, "3", True])
def test_a_bad_p_is_named(p):
    with pytest.raises((ValueError, TypeError), match=r"p must be (at least 1|a number)"):
        GeM(p)
