import enum
import importlib.util
import sys
from collections import OrderedDict
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vireid.nn.resnet import resnet50


@pytest.fixture(scope="module")
def whole(library_net):
    """The library's own network, classifier included, with running statistics other than the initial ones."""
    torch.manual_seed(0)
    net = library_net("resnet50")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.2, 0.6)
    return net.eval()


@pytest.mark.parametrize(("last_stride", "height", "width"), [(1, 6, 3), (2, 3, 2)])
def test_shape_and_children(source, last_stride, height, width):
    net = resnet50(source=source, last_stride=last_stride).eval()
    assert net.out_channels == 2048
    assert [name for name, _ in net.named_children()] == [
        *("conv1", "bn1", "relu", "maxpool"),
        *("layer1", "layer2", "layer3", "layer4"),
    ]
    with torch.no_grad():
        assert net(torch.randn(2, 3, 96, 48)).shape == (2, 2048, height, width)


def forward_by_hand(net, x):
    """Features before pooling, from the library's own stages."""
    relu = net.relu if hasattr(net, "relu") else net.act1
    x = net.maxpool(relu(net.bn1(net.conv1(x))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_give_the_librarys_own_features(source, whole, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(whole.state_dict(), path)
    images = torch.randn(1, 3, 64, 32)
    net = resnet50(source=source, weights=path, last_stride=2).eval()
    with torch.no_grad():
        assert_close(net(images), forward_by_hand(whole, images))
        wide = resnet50(source=source, weights=str(path)).eval()(images)
    assert wide.shape == (1, 2048, 4, 2)
    assert wide.isfinite().all()


def test_last_stride_changes_only_the_stride_of_layer4(source, whole, tmp_path):
    """Layer4's first block, stride 2, takes every second position of the same block with stride 1."""
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    one, two = (resnet50(source=source, weights=tmp_path / "w.pth", last_stride=s).eval() for s in (1, 2))
    x = torch.randn(1, 1024, 6, 4)
    with torch.no_grad():
        assert_close(one.layer4[0](x)[..., ::2, ::2], two.layer4[0](x))


def test_both_sources_are_the_same_function(whole, source, tmp_path):
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision and timm")
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    images = torch.randn(1, 3, 64, 32)
    other = "timm" if source == "torchvision" else "torchvision"
    with torch.no_grad():
        maps = [resnet50(source=name, weights=tmp_path / "w.pth").eval()(images) for name in (source, other)]
    assert_close(*maps)


def test_own_state_dict_and_old_files_without_counters_load(source, tmp_path):
    net = resnet50(source=source)
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    again = resnet50(source=source, weights=tmp_path / "old.pth").state_dict()
    for key, value in net.state_dict().items():
        assert torch.equal(again[key], value), key


def test_a_file_that_does_not_fit_is_named_key_by_key(source, whole, tmp_path):
    state = whole.state_dict()
    del state["layer3.0.conv1.weight"]
    state["head.weight"] = torch.zeros(2)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    path = tmp_path / "wrong.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match="does not fit ResNet-50") as error:
        resnet50(source=source, weights=path)
    text = str(error.value)
    assert str(path) in text
    assert 'Missing key(s) in state_dict: "layer3.0.conv1.weight"' in text
    assert 'Unexpected key(s) in state_dict: "head.weight"' in text
    assert "size mismatch for conv1.weight" in text
    assert all(f"torch.Size([64, {channels}, 7, 7])" in text for channels in (1, 3))


class Payload:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", ["pickle", "text", "empty", "list", "nested"])
def test_other_files_are_refused_and_never_run(content, tmp_path, capsys):
    path = tmp_path / "file.pth"
    match content:
        case "pickle":
            torch.save(Payload(), path)
        case "text":
            path.write_text("not weights")
        case "empty":
            path.touch()
        case "list":
            torch.save([torch.zeros(1)], path)
        case "nested":
            torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"weights: .*file\.pth"):
        resnet50(weights=path)
    assert "unpickled" not in capsys.readouterr().out


def test_a_broken_safetensors_file_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"file\.safetensors is not a safetensors file"):
        resnet50(weights=path)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="source must be one of 'torchvision', 'timm', got 'keras'"):
        resnet50(source="keras")
    with pytest.raises(ValueError, match="last_stride must be one of 1, 2, got 3"):
        resnet50(last_stride=3)
    with pytest.raises(FileNotFoundError, match=r"'imagenet' or the path of a state dict, found no file imagnet"):
        resnet50(weights="imagnet")


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_library_names_the_extra(package, hidden):
    hidden(package)
    with pytest.raises(ImportError, match=rf"{package}: pip install 'vireid\[backbones\]'"):
        resnet50(source=package)


def test_missing_safetensors_names_the_extra(hidden, tmp_path):
    hidden("safetensors")
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ImportError, match=r"pip install 'vireid\[backbones\]'"):
        resnet50(weights=tmp_path / "w.safetensors")


def test_imagenet_weights_come_from_the_library_itself(monkeypatch, source, whole):
    """No network here: the library's own download is replaced, and must be what is asked."""
    asked = []
    if source == "torchvision":
        from torchvision import models

        def get_state_dict(self, **options):
            asked.append((self.name, options))
            return whole.state_dict()

        monkeypatch.setattr(models.ResNet50_Weights, "get_state_dict", get_state_dict)
    else:
        import timm

        def create_model(name, *, pretrained):
            asked.append((name, {"pretrained": pretrained}))
            return whole

        monkeypatch.setattr(timm, "create_model", create_model)
    net = resnet50(source=source, weights="imagenet", last_stride=2)
    assert_close(net.conv1.weight, whole.conv1.weight)
    expected = {
        "torchvision": ("IMAGENET1K_V1", {"progress": True, "check_hash": True, "weights_only": True}),
        "timm": ("resnet50", {"pretrained": True}),
    }
    assert asked == [expected[source]]


# -- Names of weights ------------------------------------------------------------------------------------------------


class ResNet50_Weights(enum.Enum):
    """Interface of torchvision's ResNet50_Weights; its members say what was asked."""

    IMAGENET1K_V1 = 1
    IMAGENET1K_V2 = 2
    DEFAULT = 2

    def get_state_dict(self, **options):
        return {"conv1.weight": torch.full((1, 1, 1, 1), float(self.value))}


@pytest.fixture
def torchvision_standin(monkeypatch):
    """A torchvision with a tiny network."""

    def tiny(weights):
        assert weights is None
        block = nn.Module()
        block.conv2, block.downsample = nn.Conv2d(1, 1, 1, 2, bias=False), nn.Sequential(nn.Conv2d(1, 1, 1, 2))
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        net = nn.Sequential(OrderedDict({name: nn.Identity() for name in names}))
        net.conv1, net.layer4 = nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(block)
        net.load_state_dict = lambda state: net.conv1.weight.data.copy_(state["conv1.weight"])
        return net

    module = ModuleType("torchvision")
    module.models = SimpleNamespace(resnet50=tiny, ResNet50_Weights=ResNet50_Weights)
    monkeypatch.setitem(sys.modules, "torchvision", module)


@pytest.mark.parametrize(
    ("weights", "version"),
    [
        ("imagenet", 1),
        ("DEFAULT", 2),
        ("IMAGENET1K_V1", 1),
        ("IMAGENET1K_V2", 2),
        ("ResNet50_Weights.IMAGENET1K_V1", 1),
        (ResNet50_Weights.IMAGENET1K_V1, 1),
        (ResNet50_Weights.DEFAULT, 2),
    ],
    ids=str,
)
def test_weights_of_torchvision_are_taken_by_name_or_member(torchvision_standin, weights, version):
    net = resnet50(weights=weights)
    assert net.conv1.weight.item() == version
    assert net.layer4[0].conv2.stride == (1, 1)


ResNet18_Weights = enum.Enum("ResNet18_Weights", "DEFAULT")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"weights": ResNet18_Weights.DEFAULT}, ValueError, "one of 'imagenet', .* got 'ResNet18_Weights.DEFAULT'"),
        ({"weights": "ResNet50_Weights.IMAGENET22K"}, ValueError, "one of 'imagenet', 'DEFAULT', .*IMAGENET22K'"),
        ({"weights": "DEFAULT", "source": "timm"}, ValueError, "a path for source='timm', got 'DEFAULT'"),
        (
            {"weights": ResNet50_Weights.DEFAULT, "source": "timm"},
            ValueError,
            "a path for source='timm', got 'ResNet50_W",
        ),
        ({"weights": True}, TypeError, "weights must be None, a name, a path or torchvision's .*, got True"),
        ({"weights": {}}, TypeError, "weights must be None, a name, a path or torchvision's .*, got {}"),
    ],
)
def test_other_weights_are_named(options, error, text):
    with pytest.raises(error, match=text):
        resnet50(**options)
