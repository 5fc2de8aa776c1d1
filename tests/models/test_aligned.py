"""G2DA's alignment added to any criterion: the nodes recomputed pixel by pixel."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vireid.losses import graph_ot_loss
from vireid.models import AlignedCriterion, BaselineOutput
from vireid.nn import part_grid


class One(nn.Module):
    """A criterion whose loss is 1, whatever the output."""

    def __init__(self, name: str = "ce") -> None:
        super().__init__()
        self.name = name

    def forward(self, output: BaselineOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        return {self.name: torch.tensor(1.0), "total": torch.tensor(1.0)}


def test_the_aligned_nodes_are_means_of_the_map_in_the_parts_and_as_a_whole():
    maps, labels, modality = torch.rand(6, 5, 4, 6), torch.arange(6) % 2, torch.arange(6) // 3
    criterion = AlignedCriterion(One(), weight=2, grid=(2, 3))
    losses = criterion(BaselineOutput(maps[:, 0, 0], maps[:, 0, 0], maps), labels, modality)
    windows, _ = part_grid(2, 3)
    small = nn.functional.adaptive_avg_pool2d(windows, (4, 6))  # 16 x 24 pixels
    nodes = [
        [sum(maps[b, :, y, x] * w[y, x] for y in range(4) for x in range(6)) / 24 for w in small] for b in range(6)
    ]
    whole = [maps[b].mean((1, 2)) for b in range(6)]
    graphs = torch.stack([torch.stack([*own, last]) for own, last in zip(nodes, whole, strict=True)])
    assert losses.keys() == {"ce", "transport", "total"}
    assert_close(losses["transport"], 2 * graph_ot_loss(graphs, labels, modality))
    assert_close(losses["total"], 1 + losses["transport"])
    again = AlignedCriterion(One("transport"), weight=2, grid=(2, 3))
    both = again(BaselineOutput(maps[:, 0, 0], maps[:, 0, 0], maps), labels, modality)
    assert both == {"transport": losses["total"], "total": losses["total"]}  # its own and ours
    assert not criterion.state_dict()  # the grid is a setting
    assert "weight=2" in repr(criterion)


def test_an_output_without_a_map_is_named():
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="output must have a feature_map, got None"):
        AlignedCriterion(One())(BaselineOutput(x, x), torch.tensor([0, 0]), torch.tensor([0, 1]))
