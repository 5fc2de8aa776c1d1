"""The data set of a table: its protocols' columns, and the evaluation of features by them."""

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.tables.records import Values
from vireid.protocols import DIRECTIONS, SYSUMM01, RegDB
from vireid.rerank import AIM_SETTINGS

METRICS = ("rank1", "mAP")
GALLERIES = {"official": 10, "agw": 1}  # drawn on SYSU-MM01, by sampling
Columns = Mapping[str, RegDB | SYSUMM01]
"""Protocols by the name of their column."""
REGDB: Columns = {direction: RegDB(direction) for direction in DIRECTIONS}


class Features(NamedTuple):
    """Features of all images of a split, and what the protocols ask of them."""

    features: Tensor
    ids: Tensor
    modality: Tensor
    cameras: Tensor | None = None
    image_numbers: Tensor | None = None

    def split(self, protocol: RegDB | SYSUMM01, trial: int = 0) -> tuple[Tensor, Tensor]:
        """Return the rows of the queries and of a trial's gallery."""
        _, *about = self
        return protocol.query(self.modality, self.cameras), protocol.gallery(trial, *about)


@dataclass(frozen=True)
class Data:
    """The images of a table's runs, and the columns that one training gives.

    Attributes:
        dataset: "regdb", "sysu" or "synthetic", which is in RegDB's layout.
        root: its folder.
        keypoints: of its images, for G2DA; None: the parts of a 4 x 3 grid, of the synthetic data their own.
        sampling: of SYSU-MM01's ten galleries; "agw" for one where there are no official ones.
        seeded: whether the runs of a row differ by the training's seed, not by RegDB's split. Default: except on RegDB.
    """

    dataset: str
    root: Path
    keypoints: Path | None = None
    sampling: typing.Literal["official", "agw"] = "official"
    seeded: bool | None = None

    def __post_init__(self) -> None:
        if self.seeded is None:
            object.__setattr__(self, "seeded", self.dataset != "regdb")

    @cached_property
    def columns(self) -> Columns:
        """Both directions, or SYSU-MM01's four settings."""
        if self.dataset != "sysu":
            return REGDB
        trials = GALLERIES[self.sampling]
        permutations = self.root / "exp" / "rand_perm_cam.mat" if self.sampling == "official" else None
        return {
            f"{mode} {name}-shot": SYSUMM01(mode, shots, self.sampling, permutations=permutations, trials=trials)
            for mode in typing.get_args(typing.Literal["all", "indoor"])
            for name, shots in (("single", 1), ("multi", 10))
        }

    def keypoints_of(self, settings: Mapping[str, Any]) -> Path | None:
        """Return the key points for a method with these settings; None if it needs none."""
        if "threshold" not in settings or settings.get("part_grid"):
            return None
        return self.keypoints or self.root / "keypoints.npz"


def evaluate(data: Features, rerank: Any = None, columns: Columns = REGDB, metrics: Sequence[str] = METRICS) -> Values:
    """Return column -> metric -> percent.

    Args:
        data: features of the test split.
        rerank: (query, gallery) -> distance, or one for each column by its name; None ranks by the cosine.
        columns: protocols by name.
        metrics: those that are wanted.
    """
    found = {}
    for column, protocol in columns.items():
        ranked = rerank[column] if isinstance(rerank, Mapping) else rerank
        mean = protocol.evaluate(*data, rerank=ranked).rows[0].mean
        found[column] = {metric: mean[metric] for metric in metrics}
    return found


def aim_of(columns: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return the paper's k1 and k2 of each column: RegDB 8 and 2, SYSU-MM01 4 and 1, multi-shot 20 and 6."""
    names = {column: f"sysu_{column.split()[-1].replace('-', '_')}" for column in columns}
    return {column: AIM_SETTINGS["regdb" if column in DIRECTIONS else name] for column, name in names.items()}
