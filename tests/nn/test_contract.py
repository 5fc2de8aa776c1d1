"""Contract of every layer: order, precision, gradients, bad input, state, export."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vireid.nn import (
    GFT,
    H2FT,
    BNNeck,
    DualBNNeck,
    FeatureTransfer,
    GeM,
    H2FTOutput,
    MessageFusionAttention,
    NonLocal,
    PrototypePooling,
    SharedFeatureTransfer,
    SkeletonAggregation,
    SmallBackbone,
    TwoStream,
    keypoint_pooling,
    skeleton_adjacency,
)

CHAIN = skeleton_adjacency([(0, 1), (1, 2)], 3)  # four nodes, the last one global
HALF = [torch.bfloat16, torch.float16]


class KeypointPooling(nn.Module):
    def forward(self, feature_map: Tensor, heatmaps: Tensor) -> Tensor:
        return keypoint_pooling(feature_map, heatmaps)


def fusion(**options) -> MessageFusionAttention:
    """A third of the channels is replaced, and no γ is near the threshold."""
    layer = MessageFusionAttention(8, adjacency=CHAIN, **options)
    with torch.no_grad():
        layer.norm.weight[::3] = 0.001
    return layer


def two_stream() -> TwoStream:
    def stem() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ELU())

    return TwoStream(stem(), nn.Sequential(nn.Conv2d(4, 5, 2), nn.BatchNorm2d(5)), infrared_stem=stem())


def modality(images: int) -> Tensor:
    return torch.arange(images) % 2


def directions(images: int) -> Tensor:
    """Directions in a plane, each seen by both modalities: no neighbor depends on the last bit."""
    if images > 8:
        return torch.randn(images, 8).double()
    angle = torch.tensor([0.0, 20, 55, 105]).deg2rad().repeat_interleave(2) + 0.05 * modality(8)
    plane = torch.linalg.qr(torch.randn(8, 2).double()).Q
    return 2 * torch.stack([angle.cos(), angle.sin()], 1).double()[:images] @ plane.T


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]  # of any number of images, in float64
    checked: dict[str, str]  # arguments, and the kind that is asked of each
    shown: str  # by print
    alone: bool = True  # in evaluation mode, the output for an image depends on that image only
    exports: bool = True  # and compiles as one graph
    waits: bool = False  # for a GPU


def transfer(make: Callable[[], nn.Module], shown: str, **options: bool) -> Case:
    checked = {"x": "float", "modality": "integer"}
    return Case(make, lambda n: (directions(n), modality(n)), checked, shown, alone=False, **options)


CASES = {
    "BNNeck": Case(
        lambda: BNNeck(6), lambda n: (torch.randn(n, 6).double() + 1,), {"x": "float"}, "6, eps=1e-05, momentum=0.1"
    ),
    "DualBNNeck": Case(
        lambda: DualBNNeck(6),
        lambda n: (torch.randn(n, 6).double() + 3 * modality(n)[:, None], modality(n)),
        {"x": "float", "modality": "integer"},
        "DualBNNeck(6, eps=1e-05, momentum=0.1)",
    ),
    "H2FT": transfer(lambda: H2FT(8, k=2), "dim=8, k=2, tau_hom=0.4, tau_het=0.2"),
    "GFT": transfer(lambda: GFT(8, k=2), "dim=8, k=2, tau=0.2, unbalanced=False"),
    "GFT of features": transfer(lambda: GFT(8, k=2, transferred="features"), "transferred='features'"),
    "GFT on groups": transfer(lambda: GFT(8, k=2, unbalanced=True), "tau=0.2, unbalanced=True", waits=True),
    "SharedFeatureTransfer": transfer(lambda: SharedFeatureTransfer(8, k=2), "dim=8, k=2, activation='none'"),
    "PrototypePooling": Case(
        lambda: PrototypePooling(5, parts=3, size=[4, 3]),
        lambda n: (torch.randn(n, 5, 3, 2).double(),),
        {"feature_map": "float"},
        "PrototypePooling(5, parts=3, size=(4, 3), position_in_values=False)",
    ),
    "GeM": Case(
        lambda: GeM(grid=(3, 2)),
        lambda n: (torch.rand(n, 5, 7, 4).double() + 0.1,),
        {"feature_map": "float"},
        "GeM(p=3, trainable=True, grid=(3, 2))",
    ),
    "NonLocal": Case(
        lambda: NonLocal(5),
        lambda n: (torch.randn(n, 5, 3, 2).double(),),
        {"feature_map": "float"},
        "(theta): Conv2d(5, 2, kernel_size=(1, 1), stride=(1, 1))",
    ),
    "keypoint_pooling": Case(
        KeypointPooling,
        lambda n: (torch.randn(n, 5, 3, 2).double(), torch.rand(n, 3, 7, 4).double()),
        {"feature_map": "float", "heatmaps": "any"},
        "",
    ),
    "MessageFusionAttention": Case(
        fusion,
        lambda n: (torch.randn(n, 4, 8).double(), torch.rand(n, 4) > 0.3),
        {"nodes": "float", "mask": "bool"},
        "8, heads=4, nodes=4, threshold=0.02, head_dim=2, magnitude=True",
    ),
    "MessageFusionAttention, wide heads": Case(
        lambda: fusion(head_dim=8, magnitude=False),
        lambda n: (torch.randn(n, 4, 8).double(), torch.rand(n, 4) > 0.3),
        {"nodes": "float", "mask": "bool"},
        "8, heads=4, nodes=4, threshold=0.02, head_dim=8, magnitude=False",
    ),
    "SkeletonAggregation": Case(
        lambda: SkeletonAggregation(6, 4),
        lambda n: (torch.randn(n, 6).double(), torch.randn(n, 4, 6).double()),
        {"pooled": "float", "nodes": "float"},
        "6, nodes=4",
    ),
    "TwoStream": Case(
        two_stream,
        lambda n: (torch.rand(n, 3, 6, 5).double(), modality(n)),
        {"images": "", "modality": "integer"},
        "(stems): ModuleList",
        exports=False,
        waits=True,
    ),
    "SmallBackbone": Case(
        lambda: SmallBackbone(directions=4, grid=(3, 2), width=3, depth=1),
        lambda n: (torch.rand(n, 3, 16, 9).double(),),
        {"images": ""},
        "(refinements): Sequential",
    ),
    "TwoStream, one stream": Case(
        lambda: two_stream().stream(1),
        lambda n: (torch.rand(n, 3, 6, 5).double(),),
        {"images": ""},
        "(0): Sequential",
    ),
}


def those(holds: Callable[[Case], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if holds(case)])


each = those(lambda case: True)
both_modes = pytest.mark.parametrize("training", [True, False])


def layer_of(case: Case, training: bool = False, device: torch.device | str = "cpu") -> nn.Module:
    """A layer in float64 that has seen a batch, with parameters other than the initial ones."""
    layer = case.make().double().train()
    layer(*case.inputs(8))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer.train(training).to(device)


def rows(out: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs that hold one row per image."""
    if isinstance(out, H2FTOutput):  # GFT's groups have several gallery rows per image
        return [out.query, out.values, *([out.gallery] if len(out.gallery) == len(out.query) else [])]
    return [out] if isinstance(out, Tensor) else list(out)


def floating(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [x for x in tensors if x.is_floating_point()]


def cast(inputs: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """New leaves of another type; integers and masks keep theirs."""
    moved = (x.to(device, dtype if x.is_floating_point() else x.dtype).detach() for x in inputs)
    return tuple(x.requires_grad_(x.is_floating_point()) for x in moved)


@each
@both_modes
def test_order_is_irrelevant_and_inputs_stay(case, training, device):
    layer, inputs = layer_of(case, training, device), cast(case.inputs(7), torch.float64, device)
    before, order = copy.deepcopy([x.detach() for x in inputs]), torch.randperm(7)
    out, moved = rows(layer(*inputs)), rows(layer(*(x[order.to(x.device)] for x in inputs)))
    for a, b in zip(out, moved, strict=True):
        assert_close(b, a[order.to(a.device)], rtol=0, atol=1e-9)
    sum(a.square().sum() for a in out).backward()
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@each
def test_an_image_depends_on_itself_only_and_a_batch_may_be_empty(case):
    layer, inputs = layer_of(case), case.inputs(5)
    out, one = rows(layer(*inputs)), rows(layer(*(x[2:3] for x in inputs)))
    for a, b in zip(out, one, strict=True):
        assert not case.alone or torch.allclose(a[2:3], b, rtol=0, atol=1e-12)
    for training in (True, False):
        if not (training and "SmallBackbone" in repr(layer)):  # PyTorch's own batch norm asks for two values
            empty = rows(layer.train(training)(*(x[:0] for x in inputs)))
            assert [x.shape for x in empty[: len(out)]] == [(0, *x.shape[1:]) for x in out]
    assert all(torch.isfinite(t).all() for t in layer.state_dict().values())


@each
@both_modes
def test_gradcheck(case, training):
    layer, inputs = layer_of(case, training), cast(case.inputs(4), torch.float64)
    learned = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    buffers = dict(layer.named_buffers())

    def call(*values: Tensor) -> list[Tensor]:
        state = {name: b.clone() for name, b in buffers.items()} | dict(
            zip(learned, values[len(inputs) :], strict=True)
        )
        return rows(torch.func.functional_call(layer, state, values[: len(inputs)]))

    assert torch.autograd.gradcheck(call, (*inputs, *learned.values()), fast_mode=True)


@each
@both_modes
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e6])
def test_gradients_are_finite(case, training, scale, device):
    """Of zero rows, of one image over and over, of tiny and of large ones, and of a single image."""
    for images in (1, 6):
        inputs = cast(tuple(x[:1].expand(images, *x.shape[1:]) for x in case.inputs(1)), torch.float32)
        inputs = cast(tuple(x * scale if x.is_floating_point() else x for x in inputs), torch.float32, device)
        layer = layer_of(case, training and images > 1, device).float()
        out = rows(layer(*inputs))
        sum(a.mean() for a in out).backward()
        found = [*out, *(x.grad for x in floating(inputs)), *(p.grad for p in layer.parameters())]
        assert all(torch.isfinite(t).all() for t in found if t is not None)


@each
@both_modes
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_near_double(case, training, dtype, device):
    layer = layer_of(case, training, device)
    if training and isinstance(layer, FeatureTransfer):
        layer.k = 8  # after a batch's own normalization, a choice could depend on the last bit
    inputs = cast(case.inputs(8), dtype, device)
    expected = rows(copy.deepcopy(layer)(*cast(inputs, torch.float64, device)))
    autocast, half = copy.deepcopy(layer).float(), copy.deepcopy(layer).to(dtype)
    with torch.autocast(device.type, dtype=dtype):
        outs = [rows(autocast(*cast(inputs, torch.float32, device)))]
        double = rows(copy.deepcopy(layer)(*cast(inputs, torch.float64, device)))
    assert_close(double, expected, rtol=1e-9, atol=1e-9)  # autocast leaves float64 as it is
    outs.append(rows(half(*inputs)))
    for out in outs:
        for a, b in zip(out, expected, strict=True):
            assert_close(a.double(), b, rtol=0, atol=16 * torch.finfo(dtype).eps)
    assert {a.dtype for a in outs[1]} == {dtype}  # that of the input
    sum(a.float().square().sum() for a in outs[1]).backward()
    assert all(torch.isfinite(x.grad).all() for x in floating(inputs))


@each
def test_bad_input_is_named(case):
    layer, inputs = layer_of(case), case.inputs(4)
    asked = {"float": "be floating point", "integer": "hold integers", "bool": "be bool"}

    def refused(place: int, wrong: object, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            layer(*inputs[:place], wrong, *inputs[place + 1 :])

    for place, (name, kind) in enumerate(case.checked.items()):
        x = inputs[place]
        if not kind:
            continue
        refused(place, x.numpy(), TypeError, rf"{name} must be a torch\.Tensor, got ndarray")
        refused(place, x[None], ValueError, rf"{name} must have shape \(.*\), got \(1, 4")
        if place:
            refused(place, x[:3], ValueError, rf"{name} must have shape \(4,.*\), got \(3,")
        elif x.ndim < 4 or (name == "feature_map" and len(inputs) == 1 and not isinstance(layer, GeM)):
            refused(place, x[:, :-1], ValueError, rf"{name} must have shape \(B, .*\), got \(4, ")
        if kind != "any":
            for dtype in {torch.float64, torch.int64, torch.bool, torch.complex64} - {x.dtype}:
                refused(place, x.to(dtype), TypeError, rf"{name} must {asked[kind]}, got {dtype}")


@those(lambda case: "modality" in case.checked)
def test_codes_of_other_systems_are_refused_with_the_remedy(case):
    layer, inputs = layer_of(case), case.inputs(4)
    for wrong, found in ((inputs[1] + 1, 2), (inputs[1] - 1, -1), (inputs[1] + 2**40, 2**40 + 1)):
        with pytest.raises(
            ValueError, match=rf"modality must be 0 \(visible\) or 1 \(infrared\), got {found}; .*vireid\.modality"
        ):
            layer(inputs[0], wrong)


@each
def test_state_dict_and_seed(case):
    layer, inputs = layer_of(case), case.inputs(5)
    again = case.make().double().eval()
    again.load_state_dict(layer.state_dict())
    assert_close(rows(again(*inputs)), rows(layer(*inputs)), rtol=0, atol=0)
    twice = []
    for _ in range(2):
        torch.manual_seed(3)
        twice.append(rows(case.make().double()(*inputs)))
    assert_close(*twice, rtol=0, atol=0)


@each
def test_its_settings_are_shown(case):
    assert case.shown in repr(case.make())


@those(lambda case: case.exports)
@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_export_with_any_batch(case, training):
    """H2FT and GFT also with fewer images than neighbors."""
    batch = torch.export.Dim("batch", min=2, max=512)
    layer, inputs = layer_of(case, training), case.inputs(6)
    if isinstance(layer, FeatureTransfer):
        layer.k = 4
    exported = torch.export.export(layer, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)).module()
    for images in (2, 3, 6, 17):
        inputs = case.inputs(images)
        assert_close(tuple(exported(*inputs)), tuple(copy.deepcopy(layer)(*inputs)), rtol=0, atol=1e-12)


COMPILED = ("H2FT", "GFT on groups", "DualBNNeck", "MessageFusionAttention", "PrototypePooling")


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(name, training, marks=[] if training and name in COMPILED else pytest.mark.slow)
        for training in (True, False)
        for name, case in CASES.items()
        if case.exports
    ],
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_layer_is_one_graph_with_the_same_gradients(name, training, pairs_of_any_number):
    torch._dynamo.reset()
    case = CASES[name]
    layer, found = layer_of(case, training), []
    for call in (copy.deepcopy(layer), torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        inputs = cast(case.inputs(6), torch.float64)
        out = rows(call(*inputs))
        sum(x.square().sum() for x in out).backward()
        gradients = [x.grad for x in (*floating(inputs), *call.parameters())]
        found.append([*out, *(x for x in gradients if x is not None), *call.buffers()])
    assert_close(*found)


@those(lambda case: not case.waits)
@both_modes
@pytest.mark.gpu
def test_nothing_waits_for_the_gpu(case, training):
    layer, inputs = layer_of(case, training, "cuda").float(), cast(case.inputs(6), torch.float32, "cuda")
    for check in (False, True):  # the first call loads kernels
        torch.cuda.set_sync_debug_mode("error" if check else "default")
        try:
            sum(a.sum() for a in rows(layer(*inputs))).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
