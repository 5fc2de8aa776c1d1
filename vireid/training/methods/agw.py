"""AGW, HC and HCT, the other backbones of CIFT's Table 2, from plain settings."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vireid import models
from vireid._checks import check_flag, check_option
from vireid.losses import CRILoss
from vireid.nn import GFT, FeatureTransfer, SharedFeatureTransfer, TwoStream, insert_non_local
from vireid.training.methods._settings import AlignedSettings, Built, build_backbone, in_two_streams

AGW_ROWS = {
    "agw": "AGW: non-local blocks, GeM, cross-entropy and weighted regularized triplets",
    "hc": "HC: separate streams, 6 stripes, cross-entropy and hetero-center loss of each",
    "hct": "HCT: 6 stripes by GeM, cross-entropy and hetero-center triplets of each and of all",
}

_LOSSES: dict[str, dict[str, Any]] = {
    "agw": {},
    "hc": {"triplet": 0.0, "hetero_center": 0.5, "metric_features": "neck"},
    "hct": {"triplet": 0.0, "hetero_center_triplet": 1.0, "metric_features": "neck"},
}


@dataclass(frozen=True, kw_only=True)
class AGWSettings(AlignedSettings):
    """Settings of AGW, HC and HCT.

    Attributes:
        ablation: a key of `AGW_ROWS`.
        transfer: transfer on top: "none"; "h2ft" with CRI, which is CIFT; "gft"; or "shared", that of cm-SSFT.
        two_stream: whether each modality has first layers of its own: the stem in AGW, layer1 too in HCT, all in HC.
        non_local: whether non-local blocks stand behind the last blocks of layer2 and layer3. Default: in AGW.
        p: of GeM, where the row has it. Default: 3, learned in AGW; HCT's code has 3 for SYSU-MM01 and 10 for RegDB.
        stripes: number of horizontal stripes. Default: 1 in AGW, 6 in the others.
        part_dim: size of a stripe's feature. Default: 512 in HC, 256 in HCT; a backbone that stacks its cells keeps
            them as they are.
        stripe_weight: of HCT's triplets of the stripes beside those of all; its code has 1 for SYSU-MM01, 2 for RegDB.
        label_smoothing: of the cross-entropy.
    """

    ablation: str = "agw"
    transfer: Literal["none", "h2ft", "gft", "shared"] = "none"
    two_stream: bool = True
    non_local: bool | None = None
    p: float = 3.0
    stripes: int | None = None
    part_dim: int | None = None
    stripe_weight: float = 1.0
    label_smoothing: float = 0.0

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion for images of ``size`` (H, W)."""
        check_option("ablation", self.ablation, AGW_ROWS)
        network, layout, losses = self._network(size), self._layout(), _LOSSES[self.ablation]
        dim = models.AGW(network, num_classes, **layout).dim
        layer, cri = self._transfer(dim)
        model = models.AGW(network, num_classes, transfer=layer, **layout)
        criterion = models.AGWCriterion(
            model, stripe_weight=self.stripe_weight, label_smoothing=self.label_smoothing, cri=cri, **losses
        )
        return model, self.aligned(criterion)

    def _network(self, size: tuple[int, int]) -> nn.Module:
        """Return the backbone with its non-local blocks, in two streams."""
        network = build_backbone(self.backbone, self.weights, self.last_stride)
        stages = {"layer2": 2, "layer3": 3} if hasattr(network, "layer3") else {"refinements": 1}
        wanted = self.ablation == "agw" and hasattr(network, next(iter(stages)))
        if wanted if self.non_local is None else check_flag("non_local", self.non_local):
            insert_non_local(network, stages, size=size)
        if not check_flag("two_stream", self.two_stream):
            return network
        if self.ablation == "hc":
            grid, channels = getattr(network, "grid", None), getattr(network, "out_channels", None)
            return TwoStream(network, nn.Identity(), out_channels=channels, grid=grid)
        later = self.ablation == "hct" and hasattr(network, "layer2")
        return in_two_streams(network, "layer2" if later else None)

    def _layout(self) -> dict[str, Any]:
        """Return the settings of the model's head, those of the row unless they are given."""
        row, stacked = self.ablation, self.backbone == "small"  # whose cells are pixels of its map
        part_dim = self.part_dim
        if part_dim is None and not stacked:
            part_dim = {"hc": 512, "hct": 256}.get(row)
        stripes = (1 if row == "agw" else 6) if self.stripes is None else self.stripes
        return {
            "pooling": "avg" if row == "hc" or stacked else "gem",
            "p": self.p,
            "trainable_p": row == "agw",
            "stripes": stripes,
            "part_dim": part_dim,
            "relu": row == "hct" and part_dim is not None,
        }

    def _transfer(self, dim: int) -> tuple[FeatureTransfer | None, CRILoss | None]:
        """Return the transfer for features of size ``dim``, and the loss of its intervention."""
        check_option("transfer", self.transfer, ("none", "h2ft", "gft", "shared"))
        if self.transfer == "h2ft":
            return self.transfer_of(dim)
        if self.transfer == "shared":
            return SharedFeatureTransfer(dim, k=self.k), None
        return (GFT(dim, k=self.k, tau=self.tau_het) if self.transfer == "gft" else None), None
