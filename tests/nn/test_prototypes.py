import copy
import math
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from reference import saai as ref
from vireid.nn import PrototypePooling

EXACT = {"rtol": 0, "atol": 1e-10}
SIZES = [(4, 3), (1, 1), (2, 5)]  # the first is the size of the embedding


def pooling(**options) -> PrototypePooling:
    """Weights far from the initial ones: the position matters as much as the features."""
    module = PrototypePooling(5, parts=3, size=(4, 3), **options).double()
    with torch.no_grad():
        module.prototypes.normal_()
        module.position.normal_()
    return module


@pytest.mark.parametrize("position_in_values", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_equals_the_loop_and_so_do_its_gradients(size, position_in_values, layout, device):
    ours = pooling(position_in_values=position_in_values)
    other, ours = copy.deepcopy(ours), ours.to(device)
    feature_map = torch.randn(2, 5, *size).double()
    x, z = feature_map.to(device, memory_format=layout).requires_grad_(), feature_map.requires_grad_()
    parts, attention = ours(x)
    logits, pooled = ours.pool(x)
    assert torch.equal(pooled[:, :-1], parts)
    embedding = other.position
    if size != (4, 3):
        embedding = F.interpolate(embedding[None], size, mode="bicubic", align_corners=False)[0]
    expected = *ref.prototype_pooling(z, other.prototypes, embedding, position_in_values), z.mean((2, 3))
    for out, one in zip((logits, attention, parts, pooled[:, -1]), expected, strict=True):
        assert_close(out.cpu(), one, **EXACT)
    weights = [torch.randn(one.shape).double() for one in expected]
    torch.autograd.backward((logits, attention, parts, pooled[:, -1]), [weight.to(device) for weight in weights])
    torch.autograd.backward(expected, weights)
    assert_close(x.grad.cpu(), z.grad, **EXACT)
    assert_close(ours.prototypes.grad.cpu(), other.prototypes.grad, **EXACT)
    assert_close(ours.position.grad.cpu(), other.position.grad, **EXACT)


def test_by_hand():
    """One channel, two pixels, one prototype: sigmoid(2·1 + 2·0.5) and sigmoid(2·0 - 2·1)."""
    module = PrototypePooling(1, parts=1, size=(1, 2))
    with torch.no_grad():
        module.prototypes.fill_(2)
        module.position.copy_(torch.tensor([[[0.5, -1.0]]]))
    parts, attention = module(torch.tensor([[[[1.0, 0.0]]]]))
    first, second = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(2))
    assert_close(attention, torch.tensor([[[first, second]]]))
    assert_close(parts, torch.tensor([[[first / 2]]]))
    module.position_in_values = True
    assert_close(module(torch.tensor([[[[1.0, 0.0]]]]))[0], torch.tensor([[[(first * 1.5 - second) / 2]]]))


@pytest.mark.parametrize("size", [(2, 2), (1, 2)])
@pytest.mark.parametrize("position_in_values", [False, True])
def test_first_and_second_derivatives(size, position_in_values):
    module = PrototypePooling(3, parts=2, size=(2, 2), position_in_values=position_in_values).double()

    def call(x: Tensor, prototypes: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        weights = {"prototypes": prototypes, "position": position}
        parts, attention = torch.func.functional_call(module, weights, (x,))
        return parts, attention, module.pool(x)[1][:, -1]

    inputs = torch.randn(1, 3, *size).double().requires_grad_(), module.prototypes, module.position
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(lambda *inputs: call(*inputs)[0], inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(18, 9), (24, 8)])
def test_half_precision_is_close(size, dtype, device):
    module = PrototypePooling(64, position_in_values=True).to(device)
    x = torch.randn(2, 64, *size, device=device)
    expected = module(x)
    with torch.autocast(device.type, dtype=dtype):
        out = module(x)
        double = copy.deepcopy(module).double()(x.double())
    close = {"rtol": 0, "atol": 2 * torch.finfo(dtype).eps}
    for a, b, c in zip(out, expected, double, strict=True):
        assert a.dtype == dtype
        assert_close(a.float(), b, **close)
        assert_close(c.float(), b)  # float64 stays float64
    for a, b in zip(module(x.to(dtype)), expected, strict=True):  # a map of another dtype keeps it
        assert a.dtype == dtype
        assert_close(a.float(), b, **close)
    for a, b in zip(module.to(dtype)(x.to(dtype)), expected, strict=True):
        assert_close(a.float(), b, **close)


def test_backward_inside_autocast_is_that_of_the_forward():
    layer, weight = PrototypePooling(8, parts=3, size=(4, 3)), torch.randn(2, 4, 8)
    x = torch.randn(2, 8, 4, 3, requires_grad=True)
    expected = torch.autograd.grad((layer.pool(x)[1] * weight).sum(), x)
    loss = (layer.pool(x)[1] * weight).sum()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(torch.autograd.grad(loss, x), expected, rtol=1e-6, atol=1e-7)


def test_pool_adds_up_more_than_half_precision_holds(device):
    layer = PrototypePooling(4, parts=2, size=(18, 9)).to(device)
    nn.init.zeros_(layer.prototypes)  # attention 1/2 everywhere
    with torch.autocast(device.type, torch.float16):
        _, pooled = layer.pool(torch.full((1, 4, 18, 9), 1000.0, device=device))
    assert pooled.dtype == torch.float16
    assert_close(pooled[0, :, 0].float().cpu(), torch.tensor([500.0, 500.0, 1000.0]))


def test_extreme_logits_give_no_nan(device):
    module, x = PrototypePooling(4, parts=2, size=(2, 2)).to(device), torch.full((1, 4, 2, 2), 1e4, device=device)
    with torch.no_grad():
        module.prototypes[0] = 1e4
        module.prototypes[1] = -1e4
    x.requires_grad_()
    parts, attention = module(x)
    assert_close(attention, torch.tensor([[[1.0] * 4, [0.0] * 4]], device=device))
    parts.sum().backward()
    assert all(t.isfinite().all() for t in (x.grad, module.prototypes.grad, module.position.grad))


def test_it_starts_with_logits_around_1():
    module = PrototypePooling(512)
    logits, _ = module.pool(torch.randn(8, 512, 18, 9))
    assert 0.8 < logits.std() < 1.25
    assert module.position.abs().max() < 0.15
    assert module.position.std() > 0.01


def test_it_learns_where_a_pattern_and_where_a_place_is(device):
    """Two prototypes learn to attend to a channel and to a row of the map."""
    module = PrototypePooling(4, parts=2, size=(4, 2)).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.3)
    x = torch.randn(32, 4, 4, 2, device=device)
    pattern = (x[:, 1] > 0).flatten(1).float()
    place = torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0], device=device).expand(32, -1)
    for _ in range(40):
        loss = F.binary_cross_entropy(module(x)[1], torch.stack([pattern, place], 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (module(x)[1] > 0.5).float() == torch.stack([pattern, place], 1)
    assert (right.float().mean((0, 2)) > 0.95).all()


def test_a_map_without_a_pixel_is_named():
    with pytest.raises(ValueError, match=r"must have shape \(B, 5, h, w\) with at least one pixel, got \(2, 5, 0, 3\)"):
        PrototypePooling(5).pool(torch.randn(2, 5, 0, 3))


# -- compilers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), reason="compile: there is no C++ compiler"
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("size", [(4, 3), (5, 2)])
def test_compile(size, device):
    ours = pooling(position_in_values=True).to(device)
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, dynamic=False)
    x = torch.randn(2, 5, *size, device=device).double()
    weights = torch.randn(2, 3, 5, device=device).double()
    (ours(x)[0] * weights).sum().backward()
    out = compiled(x)
    for a, b in zip(out, ours(x), strict=True):
        assert_close(a, b, **EXACT)
    (out[0] * weights).sum().backward()
    for a, b in zip(compiled.parameters(), ours.parameters(), strict=True):
        assert_close(a.grad, b.grad, **EXACT)
