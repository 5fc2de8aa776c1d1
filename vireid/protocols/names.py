"""Names of the directions and of the data sets, and the protocols of each. Importing them loads no PyTorch."""

import os
import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from vireid.protocols import LLCM, SYSUMM01, RegDB

__all__ = ["DATASETS", "DIRECTIONS", "DatasetName", "Direction", "dataset_name"]

Direction: TypeAlias = Literal["visible_to_infrared", "infrared_to_visible"]
"""Query to gallery."""

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

DatasetName: TypeAlias = Literal["sysu", "regdb", "llcm", "synthetic"]

DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)


def dataset_name(name: str) -> DatasetName:
    """Return the standard name of a data set; case, spaces, hyphens and underscores do not count.

    Raises:
        ValueError: for a name of no data set.
        TypeError: for anything but a str.

    Example:
        >>> dataset_name("SYSU-MM01"), dataset_name("sysu"), dataset_name("RegDB")
        ('sysu', 'sysu', 'regdb')
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}")
    plain = re.sub(r"[-_\s]", "", name).lower()
    plain = "sysu" if plain == "sysumm01" else plain
    if plain not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(map(repr, DATASETS))}, in any spelling, got {name!r}")
    return plain


def protocols_of(
    dataset: str, permutations: str | os.PathLike[str] | None, *, direction: str = "both", **sysu: Any
) -> "list[SYSUMM01 | RegDB | LLCM]":
    """Return the protocols of a data set, one per direction.

    The settings are SYSU-MM01's, ``permutations`` only for official sampling.
    """
    from vireid.protocols import LLCM, SYSUMM01, RegDB

    if dataset == "sysu":
        official = sysu.get("sampling", "official") == "official"
        return [SYSUMM01(**sysu, permutations=permutations if official else None)]
    ways: Any = DIRECTIONS if direction == "both" else [direction]
    return [(LLCM if dataset == "llcm" else RegDB)(way) for way in ways]
