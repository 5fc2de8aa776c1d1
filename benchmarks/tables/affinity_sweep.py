"""Simulate CIFT's Fig. 3: the quality of transferred features over the qualities of features and affinity.

python -m benchmarks.tables.affinity_sweep --figure fig3.png --output fig3.csv
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.measure import write_table
from vireid._checks import check_count, check_positive
from vireid.metrics import affinity_quality, feature_margin
from vireid.plots._drawing import finish, new_figure, to_array, to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AffinitySweep:
    """Mean quality of random features, affinities and transferred features; rows: feature setting, columns: affinity.

    Attributes:
        feature: (S, T) Q_X, margin of the input features.
        affinity: (S, T) Q_A, share of affinity rows that put every positive before every negative.
        transferred: (S, T) Q_Y, margin of Y = A X.
    """

    feature: Tensor
    affinity: Tensor
    transferred: Tensor


def feature_affinity_sweep(
    *,
    identities: int = 8,
    per_identity: int = 8,
    dim: int = 32,
    steps: int = 12,
    repeats: int = 100,
    affinity_signal: float = 6.0,
    generator: torch.Generator | None = None,
) -> AffinitySweep:
    """Compute the quality Q_Y of transferred features over the qualities Q_X and Q_A of what goes in (CIFT, Fig. 3).

    The supplement (section 1) averages 100 draws of {X, A, Y} and leaves open how their quality is controlled. Our
    choice: x_i = sqrt(1 - t²) c + t n of its identity's center c and its own noise n, both random directions, scaled to
    length 1, t falling from 1 to 0, so that Q_X rises evenly; A is the softmax of each row of s [y_i = y_j] + N(0, 1),
    s rising from 0 to ``affinity_signal``, independent of X; Y = A X, rows scaled to length 1.

    Args:
        identities: identities C in a draw.
        per_identity: images of each; N = C times this.
        dim: size d of a feature.
        steps: settings of either quality; S = T = ``steps``.
        repeats: draws averaged, 100 in the paper.
        affinity_signal: how far positives stand above negatives at the best setting, in standard deviations.
        generator: source of the draws, on the CPU; torch's own when None.

    Returns:
        The three qualities (S, T), float64, worst setting first.

    Raises:
        ValueError: if ``identities``, ``per_identity`` or ``steps`` is below 2, or another number not above 0.
    """
    for name, count in (("identities", identities), ("per_identity", per_identity), ("steps", steps)):
        check_count(name, count, minimum=2)
    check_count("dim", dim)
    check_count("repeats", repeats)
    check_positive("affinity_signal", affinity_signal)
    labels = torch.arange(identities).repeat_interleave(per_identity)
    same = (labels[:, None] == labels).float()
    noise = torch.linspace(1, 0, steps)[:, None, None]
    signal = torch.linspace(0, affinity_signal, steps)[:, None, None]
    total = torch.zeros(3, steps, steps, dtype=torch.float64)
    for _ in range(repeats):
        centers = F.normalize(torch.randn(identities, dim, generator=generator))[labels]
        own = F.normalize(torch.randn(len(labels), dim, generator=generator))
        x = F.normalize((1 - noise.square()).sqrt() * centers + noise * own, dim=2)
        a = (signal * same + torch.randn(len(labels), len(labels), generator=generator)).softmax(2)
        y = F.normalize(a @ x[:, None], dim=3)
        total[0] += torch.tensor([float(feature_margin(row, labels)) for row in x])[:, None]
        total[1] += torch.tensor([float(affinity_quality(row, labels)) for row in a])
        total[2] += torch.tensor([[float(feature_margin(cell, labels)) for cell in row] for row in y])
    return AffinitySweep(*(total / repeats))


def affinity_quality_surface(sweep: AffinitySweep, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Draw Q_Y over (Q_X, Q_A), from above with contours and as a surface (CIFT, Fig. 3 a and b).

    Args:
        sweep: of `feature_affinity_sweep`.
        path: where to write the figure as well.

    Raises:
        ValueError: if the three parts are not of one shape (S, T) with S, T >= 2.
        ImportError: if matplotlib is not installed.
    """
    y = to_numpy("sweep.transferred", sweep.transferred)
    if y.ndim != 2 or min(y.shape) < 2:
        raise ValueError(f"sweep.transferred must have shape (S, T) with S, T >= 2, got {y.shape}")
    x = to_array("sweep.feature", sweep.feature, "S T", S=y.shape[0], T=y.shape[1])
    a = to_array("sweep.affinity", sweep.affinity, "S T", S=y.shape[0], T=y.shape[1])
    figure = new_figure(7.4, 3.3, layout=None)
    flat = figure.add_axes((0.075, 0.155, 0.40, 0.75))
    bar = figure.add_axes((0.495, 0.155, 0.018, 0.75))
    solid: Any = figure.add_axes((0.60, 0.05, 0.38, 0.85), projection="3d")
    colors: dict[str, Any] = {"cmap": "viridis", "vmin": y.min(), "vmax": y.max()}
    picture = flat.contourf(x, a, y, levels=40, **colors)
    lines = flat.contour(x, a, y, levels=6, colors="white", linewidths=0.8)
    flat.set(xlabel="$Q_X$, input features", ylabel="$Q_A$, affinity", title="(a)")
    figure.colorbar(picture, cax=bar, ticks=lines.levels).add_lines(lines)
    bar.set_title("$Q_Y$", fontsize=10)
    solid.plot_surface(x, a, y, rstride=1, cstride=1, linewidth=0.2, edgecolor="white", **colors)
    solid.set(xlabel="$Q_X$", ylabel="$Q_A$")
    figure.text(0.79, 0.93, "(b)", ha="center", fontsize=12)
    for axis in (solid.xaxis, solid.yaxis, solid.zaxis):
        axis.get_major_locator().set_params(nbins=4)
    solid.tick_params(labelsize=8, pad=0)
    solid.view_init(elev=28, azim=-125)
    return finish(figure, path)


def main(given: Sequence[str] | None = None) -> None:
    """Draw the triplets; write the figure, and the three qualities of each pair of settings as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="settings of either quality")
    parser.add_argument("--repeats", type=int, default=100, help="draws averaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="picture to draw, such as fig3.png")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    arguments = parser.parse_args(given)
    generator = torch.Generator().manual_seed(arguments.seed)
    sweep = feature_affinity_sweep(steps=arguments.steps, repeats=arguments.repeats, generator=generator)
    parts = (sweep.feature, sweep.affinity, sweep.transferred)
    rows = [{"Q_X": x, "Q_A": a, "Q_Y": y} for x, a, y in torch.stack([p.flatten() for p in parts], 1).tolist()]
    print(f"Q_X {rows[0]['Q_X']:.3f} to {rows[-1]['Q_X']:.3f}, Q_A {rows[0]['Q_A']:.3f} to {rows[-1]['Q_A']:.3f}: ")
    print(f"Q_Y {rows[0]['Q_Y']:.3f} to {rows[-1]['Q_Y']:.3f}, worst to best setting of both")
    if arguments.output:
        write_table(arguments.output, rows, {})
    if arguments.figure:
        affinity_quality_surface(sweep, arguments.figure)


if __name__ == "__main__":
    main()
