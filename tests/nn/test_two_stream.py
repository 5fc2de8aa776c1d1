import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vireid.models import Baseline, feature_size
from vireid.nn import SmallBackbone, resnet50
from vireid.nn.two_stream import TwoStream

MIXED = [0, 1, 1, 0, 1, 0, 0]


def stem() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())


def two_streams() -> TwoStream:
    """A network of two different stems that has seen batches."""
    net = TwoStream(stem(), nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)), infrared_stem=stem()).double().train()
    net(torch.rand(7, 3, 9, 8).double(), torch.tensor(MIXED))
    return net


def one_by_one(net: TwoStream, images: Tensor, kinds: list[int]) -> Tensor:
    """Every image's map in evaluation mode, image by image."""
    return torch.cat([net.trunk(net.stems[m](images[i : i + 1])) for i, m in enumerate(kinds)])


@pytest.mark.parametrize("kinds", [MIXED, [0, 0, 1], [1, 1, 0], [0, 0], [1, 1], [0], [1]], ids=str)
def test_each_image_passes_the_stem_of_its_modality(kinds, device):
    net = two_streams().eval().to(device)
    images = torch.rand(len(kinds), 3, 9, 8, device=device).double()
    before = images.clone()
    expected = one_by_one(net, images, kinds)
    assert_close(net(images, torch.tensor(kinds, device=device)), expected, rtol=0, atol=1e-12)
    assert_close(net(images, torch.tensor(kinds)), expected, rtol=0, atol=1e-12)  # may stay in main memory
    assert torch.equal(images, before)
    assert (net.stems[0](images) - net.stems[1](images)).abs().max() > 1e-3


@pytest.mark.parametrize("kinds", [MIXED, [0, 0, 0], [1, 1], [1, 0], [1]], ids=str)
def test_in_training_a_stem_sees_its_own_modality_only(kinds, device):
    net, images = two_streams().to(device), torch.rand(len(kinds), 3, 9, 8, device=device).double()
    expected, modality = copy.deepcopy(net), torch.tensor(kinds, device=device)
    maps = torch.empty(len(kinds), 4, 5, 4, device=device).double()
    for m in range(2):
        if m in kinds:
            maps[modality == m] = expected.stems[m](images[modality == m])
    wanted = expected.trunk(maps)
    ours, grad = net(images, modality), torch.randn_like(wanted)
    assert_close(ours, wanted, rtol=0, atol=1e-12)
    ours.backward(grad)
    wanted.backward(grad)
    assert_close(net.state_dict(), expected.state_dict(), rtol=0, atol=1e-12)  # running statistics
    for (name, p), q in zip(net.named_parameters(), expected.parameters(), strict=True):
        there = name.startswith("trunk") or int(name.split(".")[1]) in kinds
        assert (p.grad is not None) == (q.grad is not None) == there, name
        if there:
            assert_close(p.grad, q.grad, rtol=0, atol=1e-9)


def test_the_infrared_stem_is_a_copy_with_weights_of_its_own():
    first = stem()
    net = TwoStream(first, nn.Identity())
    assert net.stems[0] is first
    assert_close(net.stems[1].state_dict(), first.state_dict(), rtol=0, atol=0)
    assert not {p.data_ptr() for p in net.stems[0].parameters()} & {p.data_ptr() for p in net.stems[1].parameters()}
    with pytest.raises(ValueError, match="infrared_stem must be another module than stem, got the same"):
        TwoStream(first, nn.Identity(), infrared_stem=first)


def test_out_channels_and_grid_are_those_of_the_map():
    trunk = nn.Conv2d(4, 5, 3)
    assert TwoStream(stem(), trunk).out_channels == 5  # a convolution says so itself
    assert TwoStream(stem(), nn.Sequential(trunk)).out_channels is None
    net = TwoStream(stem(), nn.Sequential(trunk), out_channels=5, grid=(2, 1))
    assert (net.out_channels, net.grid) == (5, (2, 1))
    assert TwoStream(stem(), trunk).grid == (1, 1)


def test_the_memory_format_is_kept(device):
    net = two_streams().float().to(device).eval()
    images, modality = torch.rand(7, 3, 9, 8, device=device), torch.tensor(MIXED, device=device, dtype=torch.uint8)
    expected = net(images, modality)
    net.to(memory_format=torch.channels_last)
    seen = []
    net.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert_close(net(images.to(memory_format=torch.channels_last), modality), expected)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_bad_input():
    net, images = two_streams(), torch.rand(3, 3, 9, 8).double()
    with pytest.raises(ValueError, match=r"modality must be 0 .* or 1 .*, got -1; .*vireid\.modality"):
        net(images, torch.tensor([2, 0, -1]))
    for trunk, settings, error, text in (
        (lambda x: x, {}, TypeError, r"trunk must be a torch\.nn\.Module, got function"),
        (nn.Identity(), {"grid": "ab"}, ValueError, r"grid must be \(H, W\), got 'ab'"),
        (nn.Identity(), {"out_channels": -1.5}, TypeError, "out_channels must be an integer, got -1.5"),
        (nn.Identity(), {"out_channels": 0}, ValueError, "out_channels must be at least 1, got 0"),
    ):
        with pytest.raises(error, match=text):
            TwoStream(stem(), trunk, **settings)
    with pytest.raises(ValueError, match="modality must be at most 1, got 2"):
        net.stream(2)
    assert net.stream(np.int64(1))[0] is net.stems[1]
    for wrong in (images.int(), images.bool()):
        with pytest.raises(TypeError, match="images must be floating point"):
            net(wrong, torch.tensor([0, 1, 1]))
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got float"):
        TwoStream.from_resnet(0.0)


class Own(nn.Module):
    """A network that wants the modality and is no TwoStream."""

    takes_modality, out_channels, grid = True, 4, (2, 1)

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList([stem(), stem()])

    def forward(self, images: Tensor, modality: Tensor) -> Tensor:
        return torch.stack([self.stems[int(m)](x[None])[0] for x, m in zip(images, modality, strict=True)])


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda net: net, id="plain"),
        pytest.param(nn.DataParallel, id="parallel"),
        pytest.param(lambda net: torch.compile(net, backend="eager"), id="compiled", marks=pytest.mark.slow),
    ],
)
def test_a_model_asks_a_backbone_whether_it_takes_the_modality(wrap):
    images, modality = torch.rand(3, 3, 16, 16), torch.tensor([1, 0, 1])
    nets = [
        TwoStream(stem(), nn.Identity(), infrared_stem=stem(), out_channels=4, grid=(2, 1)),
        TwoStream.from_sequential(small := SmallBackbone(depth=1), shared_from=small.shared_from),
        Own(),
    ]
    for net in nets:
        wrapped = wrap(net.eval())
        assert feature_size(wrapped) == feature_size(net) == net.out_channels * net.grid[0] * net.grid[1]
        assert_close(Baseline(wrapped, 2).eval()(images, modality).feature_map, net(images, modality))
    assert not torch.equal(nets[2](images, modality), nets[2](images, 1 - modality))


@pytest.mark.filterwarnings("ignore")
def test_one_stream_exports_with_any_batch():
    net, batch = two_streams().eval(), torch.export.Dim("batch")
    images = torch.rand(4, 3, 9, 8).double()
    for m in range(2):
        exported = torch.export.export(net.stream(m), (images[:3],), dynamic_shapes=({0: batch},)).module()
        assert_close(exported(images), net(images, torch.full((4,), m)))


# -- Cutting networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_from", ["norm", "refinements"])
def test_the_small_backbone_in_two_streams(shared_from):
    small = SmallBackbone(depth=1).double()
    whole = copy.deepcopy(small)
    net = TwoStream.from_sequential(small, shared_from=shared_from)
    assert (net.out_channels, net.grid) == (9, (15, 7))
    images, modality = torch.rand(6, 3, 64, 32).double(), torch.tensor([1, 0, 0, 1, 1, 1])
    net.train()(images, modality)
    whole.train()(images)
    assert_close(net.trunk.refinements[0].branch[1].num_batches_tracked, torch.tensor(1))
    if shared_from == "norm":  # what is in the stem has no weights
        assert_close(net.eval()(images, modality), whole.eval()(images))
    else:
        cells = small.cells(images)
        assert_close(net.stems[0].norm.running_mean, 0.1 * cells[1:3].mean((0, 2, 3)))
        assert_close(net.stems[1].norm.running_mean, 0.1 * cells[[0, 3, 4, 5]].mean((0, 2, 3)))
    copy.deepcopy(net).load_state_dict(net.state_dict())


def test_a_cut_inside_a_child():
    inner = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), c=nn.Conv2d(4, 5, 1)))
    whole = nn.Sequential(OrderedDict(x=nn.Identity(), y=inner, z=nn.BatchNorm2d(5))).double().eval()
    for at, stem, trunk in (("y.b", "y.a", "y.b y.c z"), ("y.c", "y.a y.b", "y.c z"), ("z", "y.a y.b y.c", "z")):
        net = TwoStream.from_sequential(whole, shared_from=at).eval()
        for part, names in ((net.stems[0], stem), (net.trunk, trunk)):
            assert list(dict.fromkeys(key.rpartition(".")[0] for key in part.state_dict())) == names.split()
        images = torch.rand(2, 3, 5, 5).double()
        assert_close(net(images, torch.tensor([1, 0])), whole(images))
    with pytest.raises(ValueError, match="shared_from must be one of 'b', 'c', got 'a'"):
        TwoStream.from_sequential(whole, shared_from="y.a")
    with pytest.raises(ValueError, match=r"inside 'z', which is no torch\.nn\.Sequential"):
        TwoStream.from_sequential(whole, shared_from="z.a")


def test_bad_cuts():
    with pytest.raises(ValueError, match="shared_from must be one of 'norm', 'refinements', got 'cells'"):
        TwoStream.from_sequential(SmallBackbone(), shared_from="cells")
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Sequential, got Conv2d"):
        TwoStream.from_sequential(nn.Conv2d(1, 1, 1), shared_from="norm")
    with pytest.raises(
        ValueError, match=r"net must be a ResNet with children conv1 to layer4, got one without \['conv1'"
    ):
        TwoStream.from_resnet(SmallBackbone())


def layers(net: nn.Module) -> set[str]:
    return {name.split(".")[0] for name in net.state_dict()}


@pytest.mark.parametrize("shared_from", ["layer1", "layer3"])
def test_resnet50_in_two_streams(source, shared_from):
    whole = resnet50(source=source).double()
    net = TwoStream.from_resnet(whole, shared_from=shared_from).eval()
    assert net.out_channels == whole.out_channels
    everything = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    cut = everything.index(shared_from)
    assert layers(net.stems[0]) == layers(net.stems[1]) == set(everything[:cut])
    assert layers(net.trunk) == set(everything[cut:])
    images, modality = torch.rand(3, 3, 64, 32).double(), torch.tensor([1, 0, 1])
    with torch.no_grad():
        expected = whole.eval()(images)
        assert expected.shape == (3, whole.out_channels, 4, 2)
        assert_close(net(images, modality), expected, rtol=1e-9, atol=1e-9)  # until trained, both stems are the same
        net.stems[1].conv1.weight.zero_()
        changed = net(images, modality)
    assert_close(changed[1], expected[1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(changed[0], expected[0], rtol=1e-2)


def test_the_libraries_own_resnets(library_net):
    whole = library_net("resnet50").double().eval()
    net = TwoStream.from_resnet(whole, last_stride=2).eval()
    assert net.out_channels == whole.fc.in_features
    assert layers(net.trunk) == {"layer1", "layer2", "layer3", "layer4"}
    images, modality = torch.rand(2, 3, 64, 32).double(), torch.tensor([1, 0])
    with torch.no_grad():
        maps = net(images, modality)
        assert_close(whole.fc(maps.mean((2, 3))), whole(images), rtol=1e-9, atol=1e-9)
        assert TwoStream.from_resnet(whole).eval()(images, modality).shape[2:] == (4, 2)


class Block(nn.Module):
    """Block of a ResNet: a strided convolution, and another beside it."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv, self.bn, self.stride = nn.Conv2d(4, 4, 3, stride, 1), nn.BatchNorm2d(4), stride
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.downsample(x)


class Net(nn.Module):
    """Layout of torchvision's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Sequential(Block(s), Block(1)) for s in (1, 2, 2, 2))
        self.fc = nn.Linear(4, 2)


def test_the_last_stride_is_1_and_the_network_that_was_given_keeps_its_own():
    given = Net().double()
    net, wide = TwoStream.from_resnet(given, last_stride=2), TwoStream.from_resnet(given)
    images, modality = torch.rand(4, 3, 32, 16).double(), torch.tensor([0, 1, 1, 0])
    x = torch.rand(2, 4, 6, 4).double()
    assert net.trunk.layer4 is given.layer4
    assert net(images, modality).shape == (4, 4, 2, 1)
    assert wide(images, modality).shape == (4, 4, 4, 2)
    first = [layers[0].eval()(x) for layers in (given.layer4, wide.trunk.layer4)]
    assert_close(first[1][..., ::2, ::2], first[0])
    assert wide.out_channels == 4
    for name, tensor in wide.trunk.layer4.state_dict(keep_vars=True).items():  # it is trained with the network's
        assert tensor is given.layer4.state_dict(keep_vars=True)[name]


def test_a_stride_of_another_layer_than_a_convolution_is_named():
    """Pooling on the way around a block, as in timm's ResNet-D."""
    net = Net()
    net.layer4[0].downsample.insert(0, nn.AvgPool2d(2, 2))
    with pytest.raises(
        ValueError, match=r"last_stride=1 needs strides of convolutions, got 0\.downsample\.0 in layer4"
    ):
        TwoStream.from_resnet(net)
    for wrong in (3, True):
        with pytest.raises(ValueError, match=f"last_stride must be one of 1, 2, got {wrong}"):
            TwoStream.from_resnet(net, last_stride=wrong)
    assert TwoStream.from_resnet(net, last_stride=2).trunk.layer4 is net.layer4


def test_a_bad_cut_of_a_resnet(source, library_net):
    with pytest.raises(ValueError, match=r"shared_from must be one of 'bn1', .*'layer4', got 'conv1'"):
        TwoStream.from_resnet(resnet50(source=source), shared_from="conv1")
    with pytest.raises(ValueError, match=r"shared_from must be one of .*, got 'fc'"):
        TwoStream.from_resnet(library_net("resnet50"), shared_from="fc")


@pytest.mark.gpu
def test_a_modality_in_main_memory_causes_no_wait():
    net, images = two_streams().cuda(), torch.rand(7, 3, 9, 8, device="cuda").double()
    net(images, torch.tensor(MIXED))
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(images, torch.tensor(MIXED)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
