"""Reader of SYSU-MM01."""

import re
from pathlib import Path

from vireid import INFRARED, VISIBLE
from vireid.data._layouts import image_files, numbered_folders, read_identities
from vireid.data.dataset import ImageDataset, Record


class SYSUMM01Dataset(ImageDataset):
    """SYSU-MM01 (Wu et al., ICCV 2017) in its published layout, with the arguments and attributes of `ImageDataset`.

    ``root`` holds ``cam1`` … ``cam6``, each with a folder per identity (four digits) and in it the images
    ``0001.jpg``, …. An identity need not be seen by every camera, nor the numbers be complete. Cameras 1, 2, 4, 5 are
    visible, 3 and 6 infrared. ``root/exp`` holds the lists of identities, one line of comma-separated numbers.

    | split      | identities                              | official |
    |------------|-----------------------------------------|----------|
    | "train"    | ``exp/train_id.txt``                    | 296      |
    | "val"      | ``exp/val_id.txt``, none of "train"     | 99       |
    | "trainval" | both; **what published results train on** | 395    |
    | "test"     | ``exp/test_id.txt``                     | 96       |
    | "all"      | every folder found, no list is read     | 491      |

    Images are in order of identity, camera, number. ``image_numbers`` are the numbers in the files' names.
    """

    name = "sysu"
    splits = ("train", "val", "trainval", "test", "all")

    def _records(self, split: str, passed: list[Path]) -> list[Record]:
        parts = {"trainval": ("train", "val"), "all": ()}.get(split, (split,))
        lists = [read_identities(self.root / "exp" / f"{part}_id.txt") for part in parts]
        listed = set().union(*lists)
        if len(listed) < sum(map(len, lists)):
            raise ValueError(f"{self.root / 'exp'}: train_id.txt and val_id.txt share identities")
        records = []
        for camera in range(1, 7):
            modality = INFRARED if camera in (3, 6) else VISIBLE
            for identity, folder in numbered_folders(self.root / f"cam{camera}", passed):
                if parts and identity not in listed:
                    continue
                images = image_files(folder, passed)
                if len({path.stem for path in images}) < len(images):
                    raise ValueError(f"{folder} holds two images of one number, such as 0001.jpg and 0001.JPG")
                for path in images:
                    if not re.fullmatch(r"[0-9]{4}\.jpg", path.name, re.IGNORECASE):
                        raise ValueError(f"{path} must be named by a four-digit number and .jpg")
                    records.append(Record(path, identity, modality, camera, int(path.stem)))
        if missing := sorted(listed - {record.identity for record in records}):
            raise ValueError(f"{self.root} holds no image of {len(missing)} listed identities, first {missing[0]:04d}")
        return sorted(records, key=lambda record: (record.identity, record.camera, record.number))
