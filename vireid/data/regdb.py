"""Reader of RegDB."""

from pathlib import Path

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count
from vireid.data._layouts import MAX_PIXELS, read_index
from vireid.data.dataset import ImageDataset, Record


class RegDBDataset(ImageDataset):
    """RegDB (Nguyen et al., Sensors 2017) in its published layout; other arguments as in `ImageDataset`.

    ``root`` holds ``Visible/<identity>/…``, ``Thermal/<identity>/…`` and, for each of ten trials,
    ``idx/{train,test}_{visible,thermal}_<trial>.txt`` with a line ``path label`` per image; the path is relative to
    ``root``. The identity is the folder's number. The lists' own labels are checked (one label per identity, the same
    in the visible and the thermal list) and replaced by the order of the identities.

    Images are in the order of the lists, visible ones first. ``cameras`` are 1 visible, 2 thermal; ``image_numbers``
    are positions among the identity's images of this modality in its list.

    Args:
        split: "train" or "test", the lists of that name (206 identities each); "all", both together.
        trial: 1 … 10.

    Raises:
        ValueError: also if the trial is not 1 … 10.
    """

    name = "regdb"
    splits = ("train", "test", "all")

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        trial: int = 1,
        modality: int | None = None,
        size: tuple[int, int] = (288, 144),
        cache: bool = False,
        keypoints: str | Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.trial = check_count("trial", trial, maximum=10)
        super().__init__(
            root, split, modality=modality, size=size, cache=cache, keypoints=keypoints, max_pixels=max_pixels
        )

    def _records(self, split: str, passed: list[Path]) -> list[Record]:
        parts = ("train", "test") if split == "all" else (split,)
        seen: dict[Path, Path] = {}
        records: list[Record] = []
        labels: dict[str, dict[int, int]] = {}
        for folder, kind in (("Visible", VISIBLE), ("Thermal", INFRARED)):
            counts: dict[int, int] = {}
            for part in parts:
                index = self.root / "idx" / f"{part}_{folder.lower()}_{self.trial}.txt"
                of_identity: dict[int, int] = {}
                for path, identity in read_index(index, self.root, folder, of_identity):
                    if path in seen:
                        raise ValueError(f"{path} is listed twice, in {seen[path]} and {index}")
                    seen[path] = index
                    counts[identity] = counts.get(identity, 0) + 1
                    records.append(Record(path, identity, kind, kind + 1, counts[identity]))
                if kind == VISIBLE:
                    labels[part] = of_identity
                elif differing := sorted(dict(labels[part].items() ^ of_identity.items())):
                    what = f"{len(differing)} identities or their labels, first identity {differing[0]}"
                    raise ValueError(f"{index} and the visible list of this trial disagree on {what}")
        return records
