"""The adapter to ViTPose: a stand-in with its interface where it is not installed, the real class where it is."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from standins import StandIn, bytes_of, tiny
from vireid.data import SYSUMM01Dataset
from vireid.data.keypoints import heatmap_path, load_heatmaps
from vireid.data.pose import _fingerprint, _to_network, cache_heatmaps, estimate_heatmaps
from vireid.data.transforms import IMAGENET_STD, normalize
from vireid.nn.skeleton import PERSON_13

LEFT_HIP = 11  # COCO's


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> SYSUMM01Dataset:
    shutil.copytree(drawn, tmp_path / "set")
    return SYSUMM01Dataset(tmp_path / "set", "all", size=(32, 16))


# From image to heatmap


@pytest.mark.parametrize("shape", [(48, 24), (20, 50), (64, 48), (1, 1)])
def test_a_slope_keeps_its_place(shape, device):
    """Brightness that rises evenly is the same after both interpolations, so where it lands shows the geometry."""
    height, width = shape
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    plane = 0.2 + 0.3 * rows / height + 0.4 * columns / width  # in pixels from the edges
    images = plane.expand(2, 3, height, width).to(device)
    size = (12, 8)
    maps = estimate_heatmaps(images, model=StandIn((96, 72)).to(device), size=size)
    assert (maps.shape, maps.dtype, maps.device) == ((2, 13, *size), torch.float32, images.device)
    expected = 0.2 + 0.3 * (torch.arange(12)[:, None] + 0.5) / 12 + 0.4 * (torch.arange(8) + 0.5) / 8
    # Near its edges the image blends with the black around it: over a pixel, and over one of the network's.
    seen = 1.25 * max(height, width * 96 / 72)
    border = 1 + seen / 95
    inner_y = ((torch.arange(12) + 0.5) / 12 * height - height / 2).abs() < height / 2 - border
    inner_x = ((torch.arange(8) + 0.5) / 8 * width - width / 2).abs() < width / 2 - border
    inner = inner_y[:, None] & inner_x
    assert inner.any() == (min(shape) > 1)
    for k in range(13):
        share = (5 if k == 0 else k + 5) / 17  # the head: the highest of the first five
        torch.testing.assert_close(
            maps[0, k].cpu()[inner], (expected * share)[inner], atol=1e-4, rtol=0, msg=PERSON_13.names[k]
        )
    assert torch.equal(maps[0], maps[1])


def test_the_network_sees_the_image_with_a_margin():
    """A white image of 2 : 1 in a frame of 4 : 3 with a quarter added: shares by hand, black around."""
    seen = _to_network(torch.full((1, 3, 80, 40), 255, dtype=torch.uint8), (101, 76), 1.25)
    assert seen.shape == (1, 3, 101, 76)
    white = seen[0, 0] > 0.5
    assert white.any(1).sum() == pytest.approx(100 / 1.25, abs=1.5)
    assert white.any(0).sum() == pytest.approx(75 / 1.25 * (40 / 60), abs=1.5)
    assert seen[0, :, 0].max() == seen[0, :, :, 0].max() == 0
    wide = _to_network(torch.ones(1, 3, 30, 90), (101, 76), 1.0)
    assert (wide[0, 0, 50] > 0.5).sum() >= 75  # the width decides
    assert (wide[0, 0, :, 38] > 0.5).sum() == pytest.approx(100 * 30 / 120, abs=1.5)


def test_batch_size_modes_gradients_and_inputs(device):
    images = torch.randint(256, (7, 3, 20, 10), dtype=torch.uint8, device=device)
    before = images.clone()
    model = StandIn().to(device)
    model.train()
    model.drop.eval()
    whole = estimate_heatmaps(images, model=model, size=(6, 3))
    parts = estimate_heatmaps(images, model=model, size=(6, 3), batch=3)
    assert model.batches == [7, 3, 3, 1]
    torch.testing.assert_close(whole, parts)
    assert (model.training, model.drop.training) == (True, False)
    assert not whole.requires_grad
    (whole * torch.ones(1, device=device, requires_grad=True)).sum().backward()  # of use in training
    assert torch.equal(images, before)
    torch.testing.assert_close(estimate_heatmaps(images.float() / 255, model=model, size=(6, 3)), whole)
    assert estimate_heatmaps(images[:0], model=model, size=(6, 3)).shape == (0, 13, 6, 3)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_a_mixture_of_experts_and_half_precision():
    images = torch.rand(3, 3, 20, 10)
    whole = estimate_heatmaps(images, model=StandIn())
    torch.testing.assert_close(estimate_heatmaps(images, model=StandIn(experts=6)), whole)
    half = estimate_heatmaps(images, model=StandIn().to(torch.bfloat16))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"images": torch.zeros(3, 4, 4)}, ValueError, "images must have shape (B, 3, H, W), got (3, 4, 4)"),
        ({"margin": 0.5}, ValueError, "margin must be at least 1 and at most 1e6, got 0.5"),
        ({"model": nn.Linear(2, 2)}, TypeError, "model must be a name or a VitPoseForPoseEstimation, got Linear"),
        ({"model": StandIn(keypoints=14)}, ValueError, "(B, 17, H, W)"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    arguments: dict[str, Any] = {"images": torch.zeros(1, 3, 8, 4), "model": StandIn()} | change
    with pytest.raises(error, match=re.escape(text)):
        estimate_heatmaps(arguments.pop("images"), **arguments)


# A data set's heatmaps on disk


def test_a_data_set_is_estimated_once(data, tmp_path, capsys):
    model = StandIn()
    folder = cache_heatmaps(data, model=model, size=(8, 4), batch=10)
    assert folder == tmp_path.resolve() / "set-heatmaps"
    assert model.batches == [10, 10, 4]
    assert "24/24" in capsys.readouterr().err
    images = torch.stack([sample.image for sample in data])  # the size of the files
    expected = estimate_heatmaps(images, model=model, size=(8, 4))
    with_heatmaps = SYSUMM01Dataset(data.root, "all", keypoints=folder)
    found = torch.stack([sample.keypoints for sample in with_heatmaps])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)  # half precision
    assert found.flatten(1).std(0).max() > 0.01

    before = bytes_of(folder)
    assert len(before) == 24
    model.batches.clear()
    assert cache_heatmaps(data, folder, model=model, size=(8, 4), progress=False) == folder
    assert model.batches == []
    assert bytes_of(folder) == before
    assert capsys.readouterr().err == ""


def test_only_what_changed_is_estimated_again(data, tmp_path):
    model, folder = StandIn(), tmp_path / "maps"

    def estimated(**change: Any) -> int:
        model.batches.clear()
        cache_heatmaps(data, folder, **({"model": model, "size": (8, 4), "progress": False} | change))
        return sum(model.batches)

    assert estimated() == 24
    assert estimated(batch=5) == 0
    Image.new("RGB", (16, 32), (9, 9, 9)).save(data.paths[3])
    assert estimated() == 1
    for path, damage in zip(data.paths[:3], (b"", b"PK", None), strict=True):
        file = heatmap_path(folder, path, data.root)
        file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    assert estimated() == 3
    assert estimated(size=(4, 8)) == 24
    assert estimated(size=(4, 8), margin=1.5) == 24
    with torch.no_grad():
        model.weight[0] += 0.5
    assert estimated(size=(4, 8), margin=np.float64(1.5)) == 24
    assert estimated(size=(np.int64(4), 8), margin=1.5) == 0
    model.config.backbone_config.num_attention_heads = 2  # not part of the weights
    assert estimated(size=(4, 8), margin=1.5) == 24
    assert load_heatmaps(folder, data.paths[3], root=data.root).shape == (13, 4, 8)
    other = SYSUMM01Dataset(data.root, "all", modality=1)
    assert cache_heatmaps(other, folder, model=model, size=(4, 8), margin=1.5, progress=False) == folder
    assert sum(model.batches) == 24


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_goes_on(error, data, tmp_path, monkeypatch):
    model, folder, forward = StandIn(), tmp_path / "maps", StandIn.forward

    def failing(self: StandIn, **inputs: Any) -> Any:
        if len(self.batches) == 2:
            raise error("stop")
        return forward(self, **inputs)

    monkeypatch.setattr(StandIn, "forward", failing)
    with pytest.raises(error, match="stop"):
        cache_heatmaps(data, folder, model=model, batch=5, progress=False)
    done = bytes_of(folder)
    assert len(done) == 10
    assert all(name.endswith(".jpg.npz") and not Path(name).name.startswith(".") for name in done)
    assert not model.drop.training or model.training  # the mode is put back
    monkeypatch.setattr(StandIn, "forward", forward)
    model.batches.clear()
    cache_heatmaps(data, folder, model=model, batch=5, progress=False)
    assert sum(model.batches) == 14
    after = bytes_of(folder)
    assert len(after) == 24
    assert all(after[name] == content for name, content in done.items())


def test_images_of_any_size_and_kind(tmp_path):
    root, rng = tmp_path / "set", np.random.default_rng(0)
    (root / "in" / "side").mkdir(parents=True)
    shapes = {"a.png": (40, 20, 3), "in/b.jpg": (7, 30, 3), "in/side/c.bmp": (90, 31), "d.png": (1, 1, 3)}
    for name, shape in shapes.items():
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(root / name)
    model = StandIn()
    paths = [str(root / name) for name in shapes]
    folder = cache_heatmaps([*paths, paths[0]], root=root, model=model, progress=False)
    assert model.batches == [4]
    assert sorted(bytes_of(folder)) == sorted(f"{name}.npz" for name in shapes)
    for name in shapes:
        with Image.open(root / name) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        expected = estimate_heatmaps(pixels, model=model)
        found = load_heatmaps(folder, root / name, root=root)
        torch.testing.assert_close(torch.from_numpy(found).float(), expected[0], atol=1e-3, rtol=0)
    assert cache_heatmaps([], tmp_path / "none", root=root, model=model, progress=False).is_dir()


def test_faults_of_a_data_set_are_named(data, tmp_path):
    arguments: dict[str, Any] = {"model": StandIn(), "progress": False}
    folder = tmp_path / "maps"
    with pytest.raises(TypeError, match="images must be a dataset or a list of paths, got str"):
        cache_heatmaps("set", folder, **arguments)
    with pytest.raises(TypeError, match="images must be a dataset or a list of paths, got Tensor"):
        cache_heatmaps(torch.zeros(1, 3, 4, 4), folder, **arguments)
    with pytest.raises(ValueError, match="root must be the data set's folder"):
        cache_heatmaps(data.paths, folder, **arguments)
    with pytest.raises(ValueError, match="image must lie below root"):
        cache_heatmaps(data, folder, root=tmp_path / "other", **arguments)
    with pytest.raises(ValueError, match="folder must be another one than the data set's"):
        cache_heatmaps(data, data.root, **arguments)
    gone = data.paths[4]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 24 images do not exist, first {re.escape(str(gone))}"):
        cache_heatmaps(data, folder, **arguments)
    assert not folder.exists()
    gone.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"cannot read image {re.escape(str(gone))}"):
        cache_heatmaps(data, folder, batch=2, **arguments)
    assert len(bytes_of(folder)) == 4  # what came before it is kept
    folder = tmp_path / "file"
    folder.write_text("text")
    with pytest.raises(OSError, match="file"):
        cache_heatmaps(data, folder, **arguments)


@pytest.mark.parametrize(("module", "text"), [("transformers", "needs transformers"), ("tqdm", "needs tqdm")])
def test_the_missing_extra_is_named(module, text, data, tmp_path, hidden):
    hidden(module)
    with pytest.raises(ImportError, match=rf"{text}: pip install 'vireid\[pose\]'"):
        cache_heatmaps(data, tmp_path / "maps", model="usyd-community/vitpose-base-simple")
    assert not (tmp_path / "maps").exists()


# The real class, with random weights


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", minversion="4.48")


def processor(transformers: Any) -> Any:
    """The model's own preparation of images, without torchvision."""
    kind = getattr(transformers, "VitPoseImageProcessorPil", transformers.VitPoseImageProcessor)
    return kind(size={"height": 64, "width": 48})


def test_the_real_model(transformers, data, tmp_path):
    model = tiny(transformers)
    folder = cache_heatmaps(data, tmp_path / "maps", model=model, batch=7, progress=False)
    images = torch.stack([sample.image for sample in data])
    expected = estimate_heatmaps(images, model=model)
    found = torch.stack([s.keypoints for s in SYSUMM01Dataset(data.root, "all", keypoints=folder)])
    assert found.shape == (24, 13, 64, 32)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    before = bytes_of(folder)
    cache_heatmaps(data, folder, model=tiny(transformers), progress=False)  # the same weights in another object
    assert bytes_of(folder) == before
    cache_heatmaps(data, folder, model=tiny(transformers, seed=1), progress=False)
    assert all(bytes_of(folder)[name] != content for name, content in before.items())


def test_a_saved_model_is_loaded_by_name(transformers, tmp_path):
    model = tiny(transformers)
    model.save_pretrained(tmp_path / "model")
    images = torch.rand(2, 3, 32, 16)
    torch.testing.assert_close(
        estimate_heatmaps(images, model=str(tmp_path / "model"), device="cpu"), estimate_heatmaps(images, model=model)
    )
    os.rename(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "other")
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):  # pickled weights are not read
        estimate_heatmaps(images, model=str(tmp_path / "model"))


def test_settings_beside_the_weights_change_the_fingerprint(transformers, tmp_path):
    """The same weights under another setting are another source; the same model saved and loaded is not."""
    model = tiny(transformers)
    own, backbone = _fingerprint(model), model.config.backbone_config
    model.save_pretrained(tmp_path)
    assert _fingerprint(transformers.VitPoseForPoseEstimation.from_pretrained(tmp_path)) == own
    for name, value in (("layer_norm_eps", 0.1), ("hidden_act", "relu")):
        before = getattr(backbone, name)
        setattr(backbone, name, value)
        assert _fingerprint(model) != own, name
        setattr(backbone, name, before)
    assert _fingerprint(model) == own


def test_a_folder_that_holds_half_a_model_is_named(transformers, tmp_path):
    """transformers itself goes on with random numbers in place of what is missing."""
    images, model = torch.rand(1, 3, 32, 16), tiny(transformers)
    for name in ("less", "cut"):
        model.save_pretrained(tmp_path / name)
    weights = {key: x for key, x in model.state_dict().items() if not key.startswith("head.")}
    model.save_pretrained(tmp_path / "less", state_dict=weights)
    with pytest.raises(ValueError, match=r"must hold all weights .*less' lacks \d of them, first head\.conv\.bias"):
        estimate_heatmaps(images, model=str(tmp_path / "less"))
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"model must be a VitPoseForPoseEstimation, cannot load '.*cut'"):
        estimate_heatmaps(images, model=str(tmp_path / "cut"))
    with pytest.raises(OSError, match=r"model must be a folder with a config.json .*, got '\./nothing'"):
        estimate_heatmaps(images, model="./nothing")


def test_real_mixture_of_experts(transformers):
    model = tiny(transformers, num_experts=3, part_features=4)
    assert estimate_heatmaps(torch.rand(2, 3, 32, 16), model=model).shape == (2, 13, 64, 32)


@pytest.mark.parametrize("shape", [(80, 40), (50, 60), (33, 90)])
def test_images_are_prepared_as_by_the_processor_of_the_model(transformers, shape):
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(rows / 7)[..., None] * np.cos(columns[..., None] / np.array([5, 6, 8]))
    image = waves.astype(np.uint8)
    boxes = [[[0.0, 0.0, float(width), float(height)]]]
    theirs = processor(transformers)(Image.fromarray(image), boxes=boxes, return_tensors="pt")["pixel_values"]
    ours = normalize(_to_network(torch.from_numpy(image).permute(2, 0, 1)[None], (64, 48), 1.25))
    assert ours.shape == theirs.shape
    difference = ((ours - theirs).abs() * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).amax(1)[0]
    # They differ by rounding to whole numbers, and by how the image blends with the black around it.
    assert (difference < 1.5).float().mean() > 0.9
    inside = (ours[0] > normalize(torch.zeros(1, 3, 1, 1))[0] + 0.05).all(0)
    inner = torch.nn.functional.max_pool2d((~inside)[None].float(), 3, 1, 1)[0] == 0
    assert inner.sum() > 300
    assert difference[inner].max() < 1.5


@pytest.mark.parametrize("shape", [(80, 40), (50, 60)])
def test_heatmaps_lie_where_the_processor_of_the_model_puts_the_key_points(transformers, shape, monkeypatch):
    """One peak at a known cell of the network's heatmap: its place in the image, by their code and by ours."""
    height, width = shape
    for row, column in ((25.0, 20.0), (30.0, 25.0), (40.0, 18.0)):
        y, x = torch.arange(64)[:, None] - row, torch.arange(48) - column
        peaks = torch.exp(-(y**2 + x**2) / (2 * 2.0**2)).expand(1, 17, 64, 48).contiguous()
        outputs = SimpleNamespace(heatmaps=peaks)
        boxes = [[[0.0, 0.0, float(width), float(height)]]]
        theirs = processor(transformers).post_process_pose_estimation(outputs, boxes=boxes)[0][0]["keypoints"]
        model = StandIn((64, 48))
        monkeypatch.setattr(StandIn, "forward", lambda self, outputs=outputs, **_: outputs)
        ours = estimate_heatmaps(torch.zeros(1, 3, height, width), model=model, size=(2 * height, 2 * width))[0]
        for k in (0, 7):
            heat = ours[k] * (ours[k] > 0.2)
            place_y = (heat.sum(1) @ (torch.arange(2 * height) + 0.5)) / heat.sum() / 2
            place_x = (heat.sum(0) @ (torch.arange(2 * width) + 0.5)) / heat.sum() / 2
            # They number pixels from 0; from the edges, the first one's center is 0.5.
            assert [place_x, place_y] == pytest.approx((theirs[LEFT_HIP] + 0.5).tolist(), abs=0.15)
