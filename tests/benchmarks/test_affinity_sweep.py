"""The simulation of CIFT's Fig. 3 against one draw by hand, its picture and its table."""

import csv

import pytest
import torch

from benchmarks.tables import affinity_sweep as plots
from vireid.metrics import affinity_quality, feature_margin

pytest.importorskip("matplotlib")


def draw_sweep(seed=0, repeats=5, **options):
    generator = torch.Generator().manual_seed(seed)
    return plots.feature_affinity_sweep(steps=4, repeats=repeats, generator=generator, **options)


def test_sweep_runs_from_chance_to_perfect_and_back_to_the_same_numbers():
    sweep = draw_sweep(affinity_signal=12.0)
    assert sweep.feature.shape == sweep.affinity.shape == sweep.transferred.shape == (4, 4)
    # features are the rows, affinities the columns
    assert torch.equal(sweep.feature, sweep.feature[:, :1].expand(4, 4))
    assert torch.equal(sweep.affinity, sweep.affinity[:1].expand(4, 4))
    assert abs(sweep.feature[0, 0]) < 0.02
    assert sweep.affinity[0, 0] == 0
    assert sweep.affinity[0, -1] == 1
    # every image on its identity's center: the margin is the mean distance of random directions, about sqrt(2)
    assert abs(sweep.feature[-1, 0] - 2**0.5) < 0.05
    assert abs(sweep.transferred[-1, -1] - sweep.feature[-1, -1]) < 0.02
    assert (sweep.feature.diff(dim=0) > 0).all()
    assert (sweep.affinity.diff(dim=1) >= 0).all()
    assert (sweep.transferred[:, 1:].diff(dim=1) > 0).all()
    again, other = draw_sweep(affinity_signal=12.0), draw_sweep(1, affinity_signal=12.0)
    assert torch.equal(sweep.transferred, again.transferred)
    assert not torch.equal(sweep.transferred, other.transferred)


def test_sweep_equals_one_draw_by_hand():
    """One draw of the docstring's recipe, setting by setting, row by row."""
    sweep = draw_sweep(repeats=1, identities=3, per_identity=2, dim=5, affinity_signal=4.0)
    g = torch.Generator().manual_seed(0)
    centers, own = torch.randn(3, 5, generator=g), torch.randn(6, 5, generator=g)
    noise = torch.randn(6, 6, generator=g)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for s, t in enumerate([1.0, 2 / 3, 1 / 3, 0.0]):
        rows = []
        for i in range(6):
            c = centers[labels[i]] / centers[labels[i]].norm()
            row = (1 - t * t) ** 0.5 * c + t * own[i] / own[i].norm()
            rows.append(row / row.norm())
        x = torch.stack(rows)
        assert sweep.feature[s, 0].item() == pytest.approx(feature_margin(x, labels), abs=1e-5)
        for column, signal in enumerate([0.0, 4 / 3, 8 / 3, 4.0]):
            a = torch.empty(6, 6)
            for i in range(6):
                for j in range(6):
                    a[i, j] = (signal * (labels[i] == labels[j]) + noise[i, j]).exp()
                a[i] /= a[i].sum()
            y = torch.stack([row / row.norm() for row in (sum(a[i, j] * x[j] for j in range(6)) for i in range(6))])
            assert sweep.affinity[s, column].item() == pytest.approx(affinity_quality(a, labels))
            assert sweep.transferred[s, column].item() == pytest.approx(feature_margin(y, labels), abs=1e-5)


def test_sweep_uses_torch_s_own_generator_when_none_is_given():
    torch.manual_seed(3)
    a = plots.feature_affinity_sweep(steps=2, repeats=1)
    torch.manual_seed(3)
    b = plots.feature_affinity_sweep(steps=2, repeats=1)
    assert torch.equal(a.transferred, b.transferred)


@pytest.mark.parametrize("name", ["identities", "per_identity", "steps", "dim", "repeats", "affinity_signal"])
def test_sweep_checks_its_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        plots.feature_affinity_sweep(**{name: 0})


def test_surface_has_both_views_and_its_parts_are_checked():
    sweep = draw_sweep(repeats=1)
    figure = plots.affinity_quality_surface(sweep)
    assert {axes.name for axes in figure.axes} == {"rectilinear", "3d"}
    short = plots.AffinitySweep(sweep.feature[:2], sweep.affinity, sweep.transferred)
    with pytest.raises(ValueError, match=r"sweep.feature must have shape \(4, 4\), got \(2, 4\)"):
        plots.affinity_quality_surface(short)
    line = plots.AffinitySweep(*(part[:1] for part in (sweep.feature, sweep.affinity, sweep.transferred)))
    with pytest.raises(ValueError, match=r"\(S, T\) with S, T >= 2, got \(1, 4\)"):
        plots.affinity_quality_surface(line)


def test_the_command_writes_the_table_and_the_figure(tmp_path, capsys):
    output, figure = tmp_path / "fig3.csv", tmp_path / "fig3.png"
    plots.main(["--steps", "2", "--repeats", "1", "--output", str(output), "--figure", str(figure)])
    sweep = plots.feature_affinity_sweep(steps=2, repeats=1, generator=torch.Generator().manual_seed(0))
    rows = list(csv.DictReader(line for line in output.read_text().splitlines() if not line.startswith("#")))
    assert [float(row["Q_Y"]) for row in rows] == sweep.transferred.flatten().tolist()
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "Q_Y" in capsys.readouterr().out
