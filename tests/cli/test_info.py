"""`vireid info`: what it says of each kind of file."""

import json

import numpy as np
import torch

from vireid.data import save_features
from vireid.neighbors import NeighborGraph
from vireid.rerank import AIM


def lookup(out):
    return {name: value.strip() for name, _, value in (line.partition("  ") for line in out.splitlines())}


def test_feature_files(run, file, tmp_path):
    found = lookup(run("info", file)[0])
    assert found["features"] == "360 x 16, float32"
    assert found["modality"] == "240 visible, 120 infrared"
    assert found["identities"] == "6"
    assert found["cameras"] == "1 (60), 2 (60), 3 (60), 4 (60), 5 (60), 6 (60)"
    assert found["names"].startswith("cam")
    path, ones = tmp_path / "a.safetensors", np.ones(3, int)
    save_features(path, torch.zeros(3, 2), ones, ones, ones, image_numbers=np.arange(3), metadata={"model": "CIFT"})
    found = lookup(run("info", path)[0])
    assert (found["image numbers"], found["names"], found["model"]) == ("0 to 2", "none", "CIFT")


def test_checkpoints(run, saved):
    found = lookup(run("info", saved["cells"])[0])
    assert found["method"] == "g2da"
    assert found["epoch"] == "1 of 20"
    assert found["trained on"] == "regdb, trial 1: 20 images of 5 identities"
    assert "part_grid=(3, 2)" in found["settings"]
    assert "size=(32, 16), epochs=20" in found["recipe"]
    count = sum(x.numel() for x in torch.load(saved["cells"])["model"].values())
    assert found["model"].startswith(f"{count:,} numbers in ")


def test_reports(run, file, tmp_path):
    out, _ = run("evaluate", file, "--protocol", "regdb", "--json", tmp_path / "r.json")
    assert out.startswith(run("info", tmp_path / "r.json")[0])


def test_rerankers_and_graphs(run, tmp_path):
    x = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    AIM(k1=3, k2=2).fit(x).save(tmp_path / "aim.npz")
    found = lookup(run("info", tmp_path / "aim.npz")[0])
    assert found["file"] == "vireid AIM, version 1"
    assert found["settings"] == "k1=3, k2=2, variant=paper"
    assert found["features"] == "(9, 4), float32"
    NeighborGraph.build(x, 3).save(tmp_path / "graph.npz")
    found = lookup(run("info", tmp_path / "graph.npz")[0])
    assert found["file"].startswith("vireid ")
    assert found["indices"].startswith("(9, 3), ")


def test_other_files_are_named(run, error, wrong, file, tmp_path):
    assert "must end in .pt or .npz or .safetensors or .json" in wrong("info", __file__)
    for name in ("a.pt", "a.npz", "a.json"):
        (tmp_path / name).write_bytes(b"no")
        assert name in error("info", tmp_path / name)
    damaged = bytearray(file.read_bytes())
    damaged[damaged.rindex(b"PK\x01\x02")] = 0  # in zip's list of files
    (tmp_path / "c.npz").write_bytes(damaged)
    assert "c.npz: is no .npz file, or cut short" in error("info", tmp_path / "c.npz")
    np.savez(tmp_path / "b.npz", header=np.frombuffer(json.dumps({"kind": "x"}).encode(), dtype=np.uint8))
    assert "is no whole file of this library" in error("info", tmp_path / "b.npz")
