"""Reader of LLCM."""

import re
from itertools import groupby
from pathlib import Path

from vireid import INFRARED, VISIBLE
from vireid.data._layouts import image_files, numbered_folders, read_identities, read_index
from vireid.data.dataset import ImageDataset, Record


class LLCMDataset(ImageDataset):
    """LLCM (Zhang and Wang, CVPR 2023) in its published layout, with the arguments and attributes of `ImageDataset`.

    ``root`` holds

    - ``vis/<identity>/`` and ``nir/<identity>/`` with images named ``<identity>_c<camera>_….jpg``, and the lists
      ``idx/train_vis.txt`` and ``idx/train_nir.txt`` of those to train on, with a line ``path label`` per image; the
      path is relative to ``root``;
    - ``test_vis/cam<camera>/<identity>/`` and ``test_nir/cam<camera>/<identity>/`` with the test images, and
      ``idx/test_id.txt``, one line of comma-separated identities. Not every camera saw every identity. Infrared
      images are read from cameras 1, 2, 4 … 9, those of the authors' evaluation.

    Splits are "train", "test" and "all", both together. Officially 713 identities train (16,946 visible, 13,975
    infrared images) and 351 test (8,680 and 7,166). The training lists' own labels are checked (one label per
    identity, the same in both) and replaced by the order of the identities. No identity may be in both parts.

    Images are in the order of the lists in training, and by identity, camera, name in the test, visible ones first.
    ``image_numbers`` are the ranks of the files' names within identity, camera and modality. Images of the test whose
    name holds a space or a parenthesis, as file managers name copies, are passed over like files that are no images.
    """

    name = "llcm"
    splits = ("train", "test", "all")

    def _records(self, split: str, passed: list[Path]) -> list[Record]:
        train = [] if split == "test" else _train(self.root)
        test = [] if split == "train" else _test(self.root, passed)
        if both := sorted({record.identity for record in train} & {record.identity for record in test}):
            raise ValueError(f"{self.root / 'idx'}: {len(both)} identities both train and test, first {both[0]:04d}")
        return sorted(train + test, key=lambda record: record.modality)


def _train(root: Path) -> list[Record]:
    records: list[Record] = []
    labels: dict[int, int] = {}
    for folder, kind in (("vis", VISIBLE), ("nir", INFRARED)):
        index = root / "idx" / f"train_{folder}.txt"
        unnumbered: list[Record] = []
        for path, identity in read_index(index, root, folder, labels):
            match = re.fullmatch(r"[0-9]+_c0*([1-9])_.+", path.name)
            if match is None:
                raise ValueError(f"{index}: expected a file named <identity>_c<camera 1 … 9>_…, got {path.name!r}")
            unnumbered.append(Record(path, identity, kind, int(match[1]), 0))
        if len({record.path for record in unnumbered}) < len(unnumbered):
            raise ValueError(f"{index} lists a file twice")
        ordered = sorted(unnumbered, key=lambda x: (x.identity, x.camera, x.path.name))
        groups = groupby(ordered, key=lambda x: (x.identity, x.camera))
        numbers = {record.path: number for _, group in groups for number, record in enumerate(group, 1)}
        records += [record._replace(number=numbers[record.path]) for record in unnumbered]
    return records


def _test(root: Path, passed: list[Path]) -> list[Record]:
    listed = read_identities(root / "idx" / "test_id.txt")
    records = []
    for folder, kind in (("test_vis", VISIBLE), ("test_nir", INFRARED)):
        for camera, place in numbered_folders(root / folder, passed, "cam([1-9])", "cam1 … cam9"):
            if kind == INFRARED and camera == 3:
                continue
            for identity, folder_of_images in numbered_folders(place, passed):
                if identity in listed:
                    found = image_files(folder_of_images, passed)
                    # "x (1).jpg", "x - Copy.jpg": the published names hold no such characters.
                    passed += (copies := [path for path in found if re.search(r"[\s(]", path.name)])
                    images = [path for path in found if path not in copies]
                    records += [Record(path, identity, kind, camera, number) for number, path in enumerate(images, 1)]
    if missing := sorted(listed - {record.identity for record in records}):
        raise ValueError(f"{root} holds no test image of {len(missing)} listed identities, first {missing[0]:04d}")
    return sorted(records, key=lambda record: (record.modality, record.identity, record.camera, record.number))
