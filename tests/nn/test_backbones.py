import enum
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from libraries import ResNet50_Weights, ViT_Weights
from vireid.nn import TwoStream
from vireid.nn._maps import widen
from vireid.nn.backbones import backbone, resnet50


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
def test_shape_and_children(source, whole, last_stride, height, width):
    net = resnet50(source=source, last_stride=last_stride)
    assert net.training
    assert net.out_channels == (channels := whole.fc.in_features)
    assert net.shared_from == "layer1"
    assert [name for name, _ in net.named_children()] == [
        *("conv1", "bn1", "relu", "maxpool"),
        *("layer1", "layer2", "layer3", "layer4"),
    ]
    with torch.no_grad():
        assert net.eval()(torch.randn(2, 3, 96, 48)).shape == (2, channels, height, width)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    fresh = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.num_batches_tracked == 0 and not m.running_mean.any() for m in fresh)  # the trial left no trace


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
    assert wide.shape == (1, whole.fc.in_features, 4, 2)
    assert wide.isfinite().all()


def test_last_stride_changes_only_the_stride_of_layer4(source, whole, tmp_path):
    """Layer4's first block, stride 2, takes every second position of the same block with stride 1."""
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    one, two = (resnet50(source=source, weights=tmp_path / "w.pth", last_stride=s).eval() for s in (1, 2))
    x = torch.randn(1, whole.fc.in_features // 2, 6, 4)
    with torch.no_grad():
        assert_close(one.layer4[0](x)[..., ::2, ::2], two.layer4[0](x))


def test_both_sources_are_the_same_function(whole, source, tmp_path):
    other = "timm" if source == "torchvision" else "torchvision"
    pytest.importorskip(other)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    images = torch.randn(1, 3, 64, 32)
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
    width = len(state["conv1.weight"])
    state["conv1.weight"] = torch.zeros(width, 1, 7, 7)
    path = tmp_path / "wrong.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match="does not fit resnet50") as error:
        resnet50(source=source, weights=path)
    text = str(error.value)
    assert str(path) in text
    assert 'Missing key(s) in state_dict: "layer3.0.conv1.weight"' in text
    assert 'Unexpected key(s) in state_dict: "head.weight"' in text
    assert "size mismatch for conv1.weight" in text
    assert all(f"torch.Size([{width}, {channels}, 7, 7])" in text for channels in (1, 3))
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"does not fit resnet50: .*\n.*Missing key"):
        resnet50(source=source, weights=path)


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
    with pytest.raises(ImportError, match=rf"{package}/resnet50 needs {package}: pip install 'vireid\[backbones\]'"):
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

        monkeypatch.setattr(models.get_model_weights("resnet50"), "get_state_dict", get_state_dict)
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


@pytest.mark.parametrize(
    ("name", "weights", "chosen"),
    [
        ("resnet50", "imagenet", ResNet50_Weights.IMAGENET1K_V1),
        ("resnet50", "DEFAULT", ResNet50_Weights.IMAGENET1K_V2),
        ("resnet50", "IMAGENET1K_V1", ResNet50_Weights.IMAGENET1K_V1),
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V2", ResNet50_Weights.IMAGENET1K_V2),
        ("resnet50", ResNet50_Weights.DEFAULT, ResNet50_Weights.IMAGENET1K_V2),
        ("vit_b_16", "imagenet", ViT_Weights.SWAG),  # there is no IMAGENET1K_V1
    ],
    ids=str,
)
def test_weights_of_torchvision_are_taken_by_name_or_member(standins, monkeypatch, name, weights, chosen):
    import torchvision

    whole = torchvision.models.get_model(name, weights=None)
    asked = []

    def get_state_dict(self, **options):
        asked.append(self)
        return whole.state_dict()

    monkeypatch.setattr(type(chosen), "get_state_dict", get_state_dict)
    net = backbone(name, weights=weights)
    assert asked == [chosen]
    assert_close(next(iter(net.state_dict().values())), next(iter(whole.state_dict().values())))


ResNet18_Weights = enum.Enum("ResNet18_Weights", "DEFAULT")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"weights": ResNet18_Weights.DEFAULT}, ValueError, "one of 'imagenet', .* got 'ResNet18_Weights.DEFAULT'"),
        ({"weights": "ResNet50_Weights.IMAGENET22K"}, ValueError, "one of 'imagenet', 'IMAGENET1K_V1', .*IMAGENET22K'"),
        ({"weights": "DEFAULT", "source": "timm"}, ValueError, "a path for a network of timm, got 'DEFAULT'"),
        ({"weights": ResNet50_Weights.DEFAULT, "source": "timm"}, ValueError, "of timm, got 'ResNet50_W.*: a tag"),
        ({"weights": True}, TypeError, "weights must be None, a name, a path or .* torchvision's .*, got True"),
        ({"weights": {}}, TypeError, "weights must be None, a name, a path or .* torchvision's .*, got {}"),
    ],
)
def test_other_weights_are_named(standins, options, error, text):
    with pytest.raises(error, match=text):
        resnet50(**options)


# -- Names of networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "children"),
    [
        ("vit_b_16", "features"),
        ("resnet50.a1_in1k", "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4"),  # timm's, by its tag
        ("vit_small", "renormalize features"),
        ("timm/vit_small", "renormalize features"),
        ("torchvision/densenet121", "features relu"),
        ("timm/resnet50", "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4"),
    ],
)
def test_a_name_is_torchvisions_else_timms(standins, name, children):
    assert [child for child, _ in backbone(name).named_children()] == children.split()


def test_a_library_that_is_not_needed_may_be_absent(standins, hidden):
    hidden("torchvision")
    assert "renormalize" in dict(backbone("vit_small").named_children())
    with pytest.raises(ImportError, match=r"vit_b_16 needs torchvision or timm: pip install 'vireid\[backbones\]'"):
        backbone("vit_b_16")
    hidden("timm")
    with pytest.raises(ImportError, match="vit_small needs torchvision or timm"):
        backbone("vit_small")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("resnet5O", ValueError, "name must be a network of torchvision or timm, got 'resnet5O'"),
        ("torchvision/vit_small", ValueError, "name must be a network of torchvision, got 'vit_small'"),
        ("keras/resnet50", ValueError, "before / must be one of '', 'torchvision', 'timm', got 'keras'"),
        (50, TypeError, "name must be a str, got 50"),
        ("torchvision/no_map", ValueError, "name must be a network that makes a map of an image, got 'torchvision/no_"),
        ("timm/no_map", ValueError, "name must be a network that makes a map of an image, got 'timm/no_map'"),
    ],
)
def test_other_networks_are_named(standins, name, error, text):
    with pytest.raises(error, match=text):
        backbone(name)


# -- Kinds of networks -------------------------------------------------------------------------------------------------


def state_of(net, path):
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny", "swin_t"])
def test_the_map_is_the_librarys_own(standins, name, tmp_path):
    import torchvision

    whole = torchvision.models.get_model(name, weights=None).eval()
    state = state_of(whole, tmp_path / "w.pth")
    head = next(m for m in (getattr(whole, n, None) for n in ("classifier", "head")) if m)
    net = backbone(name, weights=state, last_stride=2).eval()
    images = torch.rand(2, 3, 64, 96)
    assert_close(head(net(images).mean((2, 3))), whole(images))
    assert net(images).shape == (2, net.out_channels, 2, 3)
    if name == "densenet121":  # keys of torchvision's old files
        old = {
            key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): x for key, x in whole.state_dict().items()
        }
        torch.save(old, tmp_path / "old.pth")
        assert_close(backbone(name, weights=tmp_path / "old.pth").state_dict(), net.state_dict())


@pytest.mark.parametrize(
    ("name", "at"), [("resnet50", "layer1"), ("densenet121", "features.denseblock1"), ("convnext_tiny", "features.1")]
)
def test_it_is_split_behind_its_first_convolution(standins, name, at):
    net = backbone(name).eval()
    assert net.shared_from == at
    two = TwoStream.from_sequential(net, shared_from=net.shared_from).eval()
    images = torch.rand(2, 3, 64, 32)
    assert_close(two(images, torch.tensor([1, 0])), net(images))
    assert two.out_channels == net.out_channels
    keys = [*two.stems[0].state_dict(), *two.trunk.state_dict()]
    assert keys == list(net.state_dict())  # the library's, without a change
    assert sum(any(p.ndim > 1 for p in layer.parameters()) for layer in two.stems[1].modules()) >= 1


def test_tokens_are_a_map_and_the_position_embedding_fits_any_image(standins, tmp_path):
    import torchvision

    whole = torchvision.models.get_model("vit_b_16", weights=None).eval()
    net = backbone("vit_b_16", weights=state_of(whole, tmp_path / "w.pth")).eval()
    assert (net.out_channels, net.shared_from) == (6, None)
    images = torch.rand(2, 3, 64, 64)
    assert_close(net(images), whole.tokens(images)[:, 1:].mT.unflatten(2, (4, 4)))
    wide = torch.rand(1, 3, 32, 90)
    grid = whole.encoder.pos_embedding[:, 1:].mT.unflatten(2, (4, 4))
    grid = F.interpolate(grid, (2, 6), mode="bicubic", antialias=True).flatten(2).mT
    whole.encoder.pos_embedding = nn.Parameter(torch.cat([whole.encoder.pos_embedding[:, :1], grid], 1))
    patches = whole.conv_proj(F.pad(wide, (0, 6))).flatten(2).mT
    tokens = torch.cat([whole.class_token, patches], 1) + whole.encoder.pos_embedding
    expected = whole.encoder.ln(whole.encoder.layers(tokens))[:, 1:]
    assert_close(net(wide), expected.mT.unflatten(2, (2, 6)))


def test_timms_transformer_without_its_prefix_and_classifier(standins, tmp_path):
    import timm

    whole = timm.create_model("vit_small", dynamic_img_size=True, dynamic_img_pad=True).eval()
    net = backbone("vit_small", weights=state_of(whole, tmp_path / "w.pth"))
    images = torch.rand(2, 3, 40, 90)
    rgb = (
        images * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    expected = whole.forward_features((rgb - 0.5) / 0.5)[:, 2:]
    maps = net(images)
    assert_close(maps, expected.mT.unflatten(2, (3, 6)))
    maps.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not [key for key in net.state_dict() if "head" in key or "fc_norm" in key or "renormalize" in key]


def test_timms_channels_come_first(standins):
    net = backbone("swin_tiny", last_stride=2)
    assert net(torch.rand(2, 3, 64, 96)).shape == (2, 6, 2, 3)
    assert net.shared_from == "layers"


def test_a_network_of_one_size_is_tried_with_it(standins):
    net = backbone("fixed")
    assert net(torch.rand(1, 3, 96, 96)).shape == (1, 4, 6, 6)
    with pytest.raises(AssertionError, match="doesn't match model"):  # the library's own words
        net(torch.rand(1, 3, 64, 64))


# -- The last stride -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "convnext_tiny"])
def test_the_last_halving_is_left_out(standins, name):
    torch.manual_seed(0)
    one = backbone(name).eval()
    torch.manual_seed(0)
    two = backbone(name, last_stride=2).eval()
    assert_close(one.state_dict(), two.state_dict())
    images = torch.rand(1, 3, 96, 64)
    assert two(images).shape[2:] == (3, 2)
    assert one(images).shape[2:] == (6, 4)
    if name == "convnext_tiny":  # one convolution: each second position is one of stride 2
        assert_close(one(images)[..., ::2, ::2], two(images))


@pytest.mark.parametrize("layer", [nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 5, 2, 2), nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_layers_that_halve(layer):
    net = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.Sequential(layer), nn.ReLU())
    images = torch.randn(1, 3, 16, 24)
    before = net(images)
    widen(net, images)
    assert net(images).shape == (1, 4, 8, 12)
    if getattr(layer, "kernel_size", 2) in (3, (5, 5)):
        assert_close(net(images)[..., ::2, ::2], before)
    else:
        assert isinstance(net[1][0], nn.Identity)
    assert net[0].stride == (2, 2)


@pytest.mark.parametrize("name", ["swin_t", "swin_tiny"])
def test_a_network_without_a_stride_to_set_is_named(standins, name):
    with pytest.raises(ValueError, match="last_stride=1 needs a last stage whose stride is that of conv"):
        backbone(name)
    assert backbone(name, last_stride=2).out_channels == 6


def test_a_map_of_a_sixteenth_is_left_as_it_is(standins):
    for name in ("vit_b_16", "vit_small"):
        images = torch.rand(1, 3, 64, 32)
        assert backbone(name)(images).shape == backbone(name, last_stride=2)(images).shape == (1, 6, 4, 2)


# -- The libraries themselves ------------------------------------------------------------------------------------------

REAL = {
    "torchvision": "resnet18 densenet121 efficientnet_b0 mobilenet_v3_large regnet_y_400mf shufflenet_v2_x1_0",
    "timm": "resnet18 efficientnet_b0 mobilenetv3_large_100 regnety_002 vit_tiny_patch16_224 "
    "deit_tiny_distilled_patch16_224 xcit_nano_12_p16_224",
}


@pytest.mark.slow
def test_networks_of_the_libraries(source, monkeypatch):
    library = __import__(source)
    if not getattr(library, "__version__", None):
        pytest.skip("a stand-in")
    for name in REAL[source].split():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = backbone(f"{source}/{name}")
        images = torch.randn(2, 3, 96, 64)
        maps = net(images)
        assert maps.shape == (2, net.out_channels, 6, 4), name
        maps.square().mean().backward()
        assert all(p.grad is not None for p in net.parameters()), name
        if net.shared_from is not None:
            two = TwoStream.from_sequential(net, shared_from=net.shared_from).eval()
            assert_close(two(images, torch.tensor([0, 1])), net.eval()(images), rtol=1e-3, atol=1e-3)
