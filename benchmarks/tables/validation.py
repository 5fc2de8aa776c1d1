"""Parameters of re-rankers chosen on training identities only: a split of them, and the best entry of a grid."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.speed.measure import write_text
from benchmarks.tables.data import Data, evaluate
from benchmarks.tables.runs import Run, draw
from vireid.data import SYSUMM01Dataset

SHARE = 0.5  # of the training identities, to train the choosers on


def write_validation_split(data: Data, folder: Path, trials: Sequence[int], share: float) -> tuple[Data, int]:
    """Make ``folder`` a data set in the layout of ``data`` out of its training lists; the test lists are not read.

    Of the training identities, in ascending order, the first ``share`` are for training and the others for testing; of
    RegDB in each of the ``trials``. In order, because neighboring numbers may show one scene: so few scenes are on
    both sides. The galleries of SYSU-MM01's validation are drawn as AGW's code does (our choice).

    Returns:
        The data, and the number of identities that validate, of the last trial.

    Raises:
        FileNotFoundError: if a list is missing.
        ValueError: if one side would be empty, or ``folder`` holds another split: models were trained on it.
    """
    sysu = data.dataset == "sysu"
    draw(data)
    (folder / ("exp" if sysu else "idx")).mkdir(parents=True, exist_ok=True)
    for kind in [f"cam{camera}" for camera in range(1, 7)] if sysu else ["Visible", "Thermal"]:
        link = folder / kind
        if not link.exists():
            link.symlink_to((data.root / kind).resolve(), target_is_directory=True)
    keypoints = data.root / "keypoints.npz" if data.dataset == "synthetic" else data.keypoints
    if sysu:
        return Data("sysu", folder, keypoints, "agw"), _split_sysu(data.root, folder, share)
    left = _split_regdb(data.root, folder, [1] if data.seeded else trials, share)
    return Data("regdb", folder, keypoints, seeded=data.seeded), left


def _split_regdb(root: Path, folder: Path, trials: Sequence[int], share: float) -> int:
    left = 0
    for trial in trials:
        for kind in ("visible", "thermal"):
            lines = (root / "idx" / f"train_{kind}_{trial}.txt").read_text(encoding="utf-8").splitlines()
            numbers = [int(Path(line.split()[0]).parent.name) for line in lines if line.strip()]
            first, second = _halves(numbers, share)
            left = len(second)
            for split, chosen in (("train", first), ("test", second)):
                kept = [line for line, n in zip(lines, numbers, strict=True) if n in chosen]
                _write(folder / "idx" / f"{split}_{kind}_{trial}.txt", "\n".join(kept) + "\n")
    return left


def _split_sysu(root: Path, folder: Path, share: float) -> int:
    first, second = _halves(SYSUMM01Dataset(root, "trainval").ids.tolist(), share)
    # The reader asks for both lists of training identities and joins them.
    for name, ids in {"train": first[:-1], "val": first[-1:], "test": second}.items():
        _write(folder / "exp" / f"{name}_id.txt", ",".join(map(str, ids)) + "\n")
    return len(second)


def _halves(ids: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    people = sorted(set(ids))
    count = round(share * len(people))
    if not 0 < count < len(people):
        raise ValueError(f"share must leave identities on both sides, got {share} of {len(people)}")
    return people[:count], people[count:]


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path} is of another --root or --share; name another --output")
    write_text(path, text)


def mean_map(trials: Sequence[Mapping[str, Mapping[str, float]]]) -> float:
    """Return the mean mAP over columns and trials."""
    return statistics.fmean(column["mAP"] for trial in trials for column in trial.values())


def choose(method: Any, validation: Sequence[Run], columns: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entry of the grid with the best `mean_map` on the validation identities, the first of equals.

    Args:
        method: with "name", "function" and "grid".
        validation: runs on the validation split.
        columns: those that count. Default: all.
    """
    found = []
    for parameters in tqdm(method.grid, desc=f"{method.name}: validation", leave=False):
        rerank = partial(method.function, **parameters)
        reached = []
        for run in validation:
            known = run.data.columns
            reached.append(evaluate(run.features, rerank, {column: known[column] for column in columns or known}))
        found.append(mean_map(reached))
    entry: dict[str, Any] = method.grid[found.index(max(found))]
    return entry
