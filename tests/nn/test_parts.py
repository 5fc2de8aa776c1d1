import copy
import math
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from vireid.nn.parts import PrototypePooling

EXACT = {"rtol": 0, "atol": 1e-10}
SIZES = [(4, 3), (1, 1), (2, 5), (9, 4)]  # the first is the size that the embedding is made for


def pooling(**options) -> PrototypePooling:
    """Weights far from their start: the position matters as much as the features."""
    module = PrototypePooling(5, parts=3, size=(4, 3), **options).double()
    with torch.no_grad():
        module.prototypes.normal_()
        module.position.normal_()
    return module


def loop(module: PrototypePooling, feature_map: Tensor, *, position_in_values: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 1-2, pixel by pixel: logits, attention, parts."""
    images, _, h, w = feature_map.shape
    embedding = module.position
    if embedding.shape[1:] != (h, w):
        embedding = F.interpolate(embedding[None], (h, w), mode="bicubic", align_corners=False)[0]
    logits, attention, parts = [], [], []
    for b in range(images):
        for prototype in module.prototypes:
            row, total = [], 0
            for y in range(h):
                for x in range(w):
                    pixel, place = feature_map[b, :, y, x], embedding[:, y, x]
                    row.append((prototype * (pixel + place)).sum())
                    seen = 1 / (1 + torch.exp(-row[-1]))
                    attention.append(seen)
                    total = total + seen * (pixel + place if position_in_values else pixel)
            logits += row
            parts.append(total / (h * w))
    shape = (images, len(module.prototypes), h * w)
    return torch.stack(logits).view(shape), torch.stack(attention).view(shape), torch.stack(parts).view(*shape[:2], -1)


@pytest.mark.parametrize("position_in_values", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_equals_the_loop_and_so_do_its_gradients(size, position_in_values, layout, device):
    ours = pooling(position_in_values=position_in_values)
    other, ours = copy.deepcopy(ours), ours.to(device)
    feature_map = torch.randn(2, 5, *size).double()
    x, z = feature_map.to(device, memory_format=layout).requires_grad_(), feature_map.requires_grad_()
    parts, attention = ours(x)
    logits = ours.similarity(x)
    assert parts.shape == (2, 3, 5)
    assert attention.shape == logits.shape == (2, 3, size[0] * size[1])
    expected = loop(other, z, position_in_values=position_in_values)
    for out, one in zip((logits, attention, parts), expected, strict=True):
        assert_close(out.cpu(), one, **EXACT)
    weights = [torch.randn(one.shape).double() for one in expected]
    torch.autograd.backward((logits, attention, parts), [weight.to(device) for weight in weights])
    torch.autograd.backward(expected, weights)
    assert_close(x.grad.cpu(), z.grad, **EXACT)
    assert_close(ours.prototypes.grad.cpu(), other.prototypes.grad, **EXACT)
    assert_close(ours.position.grad.cpu(), other.position.grad, **EXACT)


@pytest.mark.parametrize("position_in_values", [False, True])
def test_a_resized_position_is_read_as_the_resized_one(position_in_values):
    """The embedding is resized, though the layer resizes products with it."""
    ours, plain = (pooling(position_in_values=position_in_values) for _ in range(2))
    plain.prototypes = ours.prototypes
    resized = F.interpolate(ours.position.detach()[None], (6, 5), mode="bicubic", align_corners=False)[0]
    plain.position = torch.nn.Parameter(resized)
    x = torch.randn(3, 5, 6, 5).double()
    for a, b in zip(ours(x), plain(x), strict=True):
        assert_close(a, b, **EXACT)


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


@pytest.mark.parametrize("size", [(4, 3), (2, 2)])
@pytest.mark.parametrize("position_in_values", [False, True])
def test_gradcheck(size, position_in_values):
    module = pooling(position_in_values=position_in_values)

    def call(x: Tensor, prototypes: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        weights = {"prototypes": prototypes, "position": position}
        return torch.func.functional_call(module, weights, (x,))

    x = torch.randn(2, 5, *size).double().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, module.prototypes, module.position))


def test_input_is_not_modified_and_no_image_is_an_empty_batch(device):
    module, x = PrototypePooling(5, size=(4, 3)).to(device), torch.randn(2, 5, 4, 3, device=device)
    before, attention = x.clone(), torch.rand(2, 7, 12, device=device)
    seen = attention.clone()
    module(x)
    module.aggregate(x, attention)
    assert torch.equal(x, before)
    assert torch.equal(attention, seen)
    parts, attention = module(x[:0])
    assert parts.shape == (0, 7, 5)
    assert attention.shape == (0, 7, 12)


def test_one_image_does_not_depend_on_the_others(device):
    module, x = pooling().to(device), torch.randn(4, 5, 2, 2, device=device).double()
    assert_close(module(x)[0][2:3], module(x[2:3])[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(18, 9), (24, 8)])
def test_half_precision_is_close(size, dtype, device):
    module = PrototypePooling(64, position_in_values=True).to(device)
    x = torch.randn(2, 64, *size, device=device)
    expected = module(x)
    with torch.autocast(device.type, dtype=dtype):
        out = module(x)
    step = torch.finfo(dtype).eps
    for a, b in zip(out, expected, strict=True):
        assert a.dtype == dtype
        assert_close(a.float(), b, rtol=0, atol=2 * step)
    half = module.to(dtype)(x.to(dtype))
    for a, b in zip(half, expected, strict=True):
        assert_close(a.float(), b, rtol=0, atol=2 * step)


def test_a_mean_that_half_precision_holds_of_a_sum_that_it_does_not(device):
    """162 pixels of 1,000, all fully attended: the sum, 162,000, is beyond float16, the mean is not."""
    module = PrototypePooling(4).to(device)
    x, attention = torch.full((1, 4, 18, 9), 1000.0, device=device), torch.ones(1, 7, 162, device=device)
    with torch.autocast(device.type, dtype=torch.float16):
        assert_close(
            module.aggregate(x, attention).float(), torch.full((1, 7, 4), 1000.0, device=device), rtol=2e-3, atol=0
        )


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
    module = PrototypePooling(2048)
    logits = module.similarity(torch.randn(8, 2048, 18, 9))
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


def test_state_dict_round_trip():
    module, again = PrototypePooling(5, size=(4, 3)), PrototypePooling(5, size=(4, 3))
    assert sorted(module.state_dict()) == ["position", "prototypes"]
    again.load_state_dict(module.state_dict())
    x = torch.randn(2, 5, 6, 6)
    for a, b in zip(module(x), again(x), strict=True):
        assert torch.equal(a, b)


def test_its_picture_in_print():
    text = repr(PrototypePooling(5, size=[4, 3]))
    assert text == "PrototypePooling(5, parts=7, size=(4, 3), position_in_values=False)"


def test_bad_input():
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        PrototypePooling(0)
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        PrototypePooling(5, parts=0)
    with pytest.raises(ValueError, match=r"size must be \(H, W\), got 18"):
        PrototypePooling(5, size=18)
    with pytest.raises(ValueError, match=r"size must be \(H, W\), got \(18, 9, 2\)"):
        PrototypePooling(5, size=(18, 9, 2))
    with pytest.raises(ValueError, match=r"size\[1\] must be at least 1, got 0"):
        PrototypePooling(5, size=(18, 0))
    with pytest.raises(TypeError, match=r"size\[1\] must be an integer, got 9\.5"):
        PrototypePooling(5, size=(18, 9.5))
    module = PrototypePooling(5, parts=3, size=(4, 3))
    x = torch.randn(2, 5, 4, 3)
    for call in (module, module.similarity, lambda x: module.aggregate(x, torch.ones(2, 3, 12))):
        for wrong in (x[:, :4], x[0], x[None], x[:, :, :0]):
            got = str(tuple(wrong.shape)).replace("(", r"\(").replace(")", r"\)")
            with pytest.raises(ValueError, match=rf"feature_map must have shape \(B, 5, h, w\).*, got {got}"):
                call(wrong)
        with pytest.raises(TypeError, match=r"feature_map must be floating point, got torch\.int64"):
            call(x.long())
        with pytest.raises(TypeError, match=r"feature_map must be a torch\.Tensor, got list"):
            call(x.tolist())
    with pytest.raises(ValueError, match=r"attention must have shape \(B, p, h·w\) = \(2, 3, 12\), got \(2, 3, 11\)"):
        module.aggregate(x, torch.ones(2, 3, 11))
    with pytest.raises(ValueError, match=r"attention must .*got \(1, 3, 12\)"):
        module.aggregate(x, torch.ones(1, 3, 12))


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(4, 3), (5, 2)])
def test_export_with_any_batch(size):
    module = pooling().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.randn(2, 5, *size).double(),), dynamic_shapes=({0: batch},))
    for images in (1, 2, 7):
        x = torch.randn(images, 5, *size).double()
        for a, b in zip(program.module()(x), module(x), strict=True):
            assert_close(a, b, **EXACT)


@pytest.mark.parametrize("position_in_values", [False, True])
@pytest.mark.parametrize("size", [(4, 2), (5, 3)])
def test_pool_is_similarity_aggregate_and_mean(size, position_in_values):
    layer = PrototypePooling(6, parts=3, size=(4, 2), position_in_values=position_in_values).double()
    x = torch.randn(2, 6, *size, dtype=torch.double, requires_grad=True)
    similarity = layer.similarity(x)
    parts = torch.cat([layer.aggregate(x, similarity.sigmoid()), x.mean((2, 3))[:, None]], 1)
    pooled = layer.pool(x)
    assert_close(pooled, (similarity, parts))
    weights = [torch.randn_like(result) for result in pooled]
    learned = [x, *layer.parameters()]
    found = torch.autograd.grad(pooled, learned, weights)
    assert_close(found, torch.autograd.grad((similarity, parts), learned, weights))
    assert torch.autograd.gradcheck(layer.pool, (x,))


def test_pool_adds_up_more_than_half_precision_holds():
    layer = PrototypePooling(4, parts=2, size=(18, 9))
    nn.init.zeros_(layer.prototypes)  # attention 1/2 everywhere
    with torch.autocast("cpu", torch.float16):
        _, pooled = layer.pool(torch.full((1, 4, 18, 9), 1000.0))
    assert pooled.dtype == torch.float16
    assert_close(pooled[0, :, 0].float(), torch.tensor([500.0, 500.0, 1000.0]))


def test_float64_stays_float64_under_autocast():
    layer = PrototypePooling(4, parts=2, size=(3, 2)).double()
    x = torch.randn(2, 4, 3, 2, dtype=torch.double)
    expected = layer.pool(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(layer.pool(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_map_of_another_type_is_computed_in_its_own(dtype):
    layer = PrototypePooling(8, parts=3, size=(4, 3), position_in_values=True)
    x = torch.randn(2, 8, 5, 3).to(dtype)
    similarity, pooled = layer.pool(x)
    assert similarity.dtype == pooled.dtype == dtype
    assert_close(layer.similarity(x), similarity)
    parts = layer.aggregate(x, similarity.float().sigmoid())
    assert_close(parts, pooled[:, :-1], rtol=1e-2, atol=1e-2)


def test_backward_inside_autocast_is_that_of_the_forward():
    layer = PrototypePooling(8, parts=3, size=(4, 3))
    x = torch.randn(2, 8, 4, 3, requires_grad=True)
    weight = torch.randn(2, 4, 8)
    expected = torch.autograd.grad((layer.pool(x)[1] * weight).sum(), x)
    loss = (layer.pool(x)[1] * weight).sum()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(torch.autograd.grad(loss, x), expected, rtol=1e-6, atol=1e-7)


def test_pool_has_a_second_derivative():
    layer = PrototypePooling(3, parts=2, size=(2, 2), position_in_values=True).double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True)

    def call(x: Tensor, prototypes: Tensor, position: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"prototypes": prototypes, "position": position}, (x,))

    assert torch.autograd.gradgradcheck(call, (x, *layer.parameters()))
