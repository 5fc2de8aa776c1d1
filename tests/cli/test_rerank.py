"""`vireid rerank`: the nearest images of the library's own calls, as .npz and as .csv."""

import csv

import numpy as np
import pytest
import torch

from vireid import rerank as rerankers
from vireid.data.features import load_features


def test_the_nearest_are_written(reranking, run, file, tmp_path):
    f, (method, settings, options) = load_features(file), reranking
    x, modality = torch.from_numpy(f.features), torch.from_numpy(f.modality)
    for query in ("infrared", "visible"):
        asked = 1 if query == "infrared" else 0
        rows, others = (modality == asked).nonzero().flatten(), (modality != asked).nonzero().flatten()
        if method == "none":
            distance = 1 - torch.nn.functional.cosine_similarity(x[rows][:, None], x[others][None], dim=2)
        else:
            distance = getattr(rerankers, method)(x[rows], x[others], **settings)
        arguments = ["--rerank", method, *options, "--query", query, "--top", 7, "--output", tmp_path / "a.npz"]
        out, err = run("rerank", file, *arguments)
        assert err == ""
        assert out.startswith(method)
        assert f"{len(rows)} queries, 7 of {len(others)} gallery images each" in out
        with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
            np.testing.assert_array_equal(found["query"], rows)
            np.testing.assert_allclose(found["distances"], distance.sort(dim=1).values[:, :7], atol=2e-6)
            assert found["indices"].shape == (len(rows), 7)
            # The distance of the images named, looked up in the dense matrix: whatever the order of near ties.
            place = torch.full((len(x),), -1)
            place[others] = torch.arange(len(others))
            named = distance.gather(1, place[torch.from_numpy(found["indices"])])
            np.testing.assert_allclose(found["distances"], named, atol=2e-6)
            assert found["names"].tolist() == f.names


def test_queries_may_come_in_blocks(run, file, tmp_path, monkeypatch):
    base = ["rerank", file, "--rerank", "aim", "--k1", 4, "--k2", 2, "--output"]
    run(*base, tmp_path / "a.npz")
    monkeypatch.setattr("vireid.cli.rerankers._BLOCK", 7)
    run(*base, tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert set(a.files) == {"query", "indices", "distances", "names"}
        for name in ("query", "indices", "names"):
            np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_allclose(a["distances"], b["distances"], atol=1e-6)  # a product's rounding


def test_all_of_the_gallery(run, file, tmp_path):
    f, path = load_features(file), tmp_path / "a.npz"
    out, _ = run("rerank", file, "--rerank", "aim", "--k1", "all", "--k2", 2, "--output", path)
    assert out.startswith("aim (k1=all, k2=2, variant=paper): ")
    distance = rerankers.aim(f.features[f.modality == 1], f.features[f.modality == 0], k1=None, k2=2)
    with np.load(path) as found:
        np.testing.assert_allclose(found["distances"], np.sort(distance)[:, :100], rtol=1e-3, atol=1e-4)


def test_csv_holds_the_same(run, file, changed, tmp_path):
    base = ["--rerank", "query_expansion", "--n", 3, "--query", "visible", "--top", 4, "--output"]
    run("rerank", file, *base, tmp_path / "a.npz")
    run("rerank", file, *base, tmp_path / "a.csv")
    names = load_features(file).names
    with np.load(tmp_path / "a.npz") as found, open(tmp_path / "a.csv", newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
        assert [int(line["gallery"]) for line in lines] == found["indices"].flatten().tolist()
        assert [int(line["query"]) for line in lines] == np.repeat(found["query"], 4).tolist()
        assert [int(line["rank"]) for line in lines] == [1, 2, 3, 4] * len(found["query"])
        np.testing.assert_allclose([float(x["distance"]) for x in lines], found["distances"].flatten(), rtol=1e-4)
    for line in lines:
        assert (line["query_name"], line["gallery_name"]) == (names[int(line["query"])], names[int(line["gallery"])])
    run("rerank", changed(names=None), *base, tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text().splitlines()[0] == "query,rank,gallery,distance"


def test_top_beyond_the_gallery_means_all(run, file, tmp_path):
    visible = np.flatnonzero(load_features(file).modality == 0)
    for method in ("none", "query_expansion", "gnn"):
        run("rerank", file, "--rerank", method, "--top", 10**6, "--output", tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz") as found:
            assert (np.sort(found["indices"], axis=1) == visible).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--output", "a.npz"], "Missing option '--rerank'"),
        (["--rerank", "aim", "--k1", 4, "--k2", 1], "Missing option '--output'"),
        (["--rerank", "aim", "--output", "a.npz"], "--rerank aim needs --k1, --k2. See vireid evaluate --help"),
        (["--rerank", "gnn", "--n", 4, "--output", "a.npz"], "--n does not go with --rerank gnn"),
        (["--rerank", "gnn", "--output", "a.txt"], "'a.txt' must end in .npz or .csv."),
        (["--rerank", "gnn", "--output", "none/a.npz"], "must be in an existing folder."),
        (["--rerank", "gnn", "--output", "a.npz", "--top", 0], "Invalid value for '--top'"),
        (["--rerank", "gnn", "--output", "a.npz", "--query", "both"], "Invalid value for '--query'"),
    ],
)
def test_wrong_options(options, text, wrong, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text in wrong("rerank", file, *options)
    assert not list(tmp_path.iterdir())


def test_the_feature_file_is_not_overwritten(changed, wrong):
    path = changed()
    before = path.read_bytes()
    assert "is the feature file: name another output." in wrong("rerank", path, "--rerank", "none", "--output", path)
    assert path.read_bytes() == before


def test_both_modalities_are_needed(changed, error, tmp_path):
    path = changed(modality=np.ones(360, int))
    text = error("rerank", path, "--rerank", "none", "--output", tmp_path / "b.npz")
    assert "modality must hold both, got 0 visible (0) and 360 infrared (1) images" in text
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (MemoryError(), "Error: out of memory\n"),
        (RuntimeError("[enforce fail]\n DefaultCPUAllocator: can't allocate memory: 8 bytes"), "can't allocate memory"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
@pytest.mark.parametrize("name", ["a.npz", "a.csv"])
def test_full_memory_and_disks_are_one_line(raised, text, name, error, file, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(np, "savez", fails)
    monkeypatch.setattr("csv.writer", fails)
    assert text in error("rerank", file, "--rerank", "none", "--output", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_mistake_of_ours_is_not_hidden(run, file, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("vireid.cli.rerankers.Reranking.nearest", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        run("rerank", file, "--rerank", "none", "--output", tmp_path / "a.npz")
