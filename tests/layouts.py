"""Tiny data sets in the published layouts, one color per image."""

from pathlib import Path

from PIL import Image

# camera -> identity -> image numbers: gaps in the numbers, identities missing in cameras, one seen by only one camera
SYSU = {
    1: {2: [1, 3], 5: [2], 9: [1], 12: [4]},
    2: {2: [2], 9: [7, 8]},
    3: {2: [1], 5: [1, 20], 12: [1]},
    4: {7: [1]},
    5: {},
    6: {9: [5], 12: [2]},
}
# identity -> camera -> frames, of the test; 12 was seen by only one camera, in one modality
LLCM_TEST = {
    "test_vis": {3: {1: [30, 4], 2: [7]}, 5: {2: [1, 2, 3], 9: [8]}, 12: {}},
    "test_nir": {3: {1: [5], 4: [6, 9, 2]}, 5: {2: [1]}, 12: {8: [1]}},
}
LLCM_TRAIN = {"vis": [(7, 1, 20), (7, 1, 3), (2, 9, 1)], "nir": [(2, 4, 8), (7, 5, 6), (7, 3, 1)]}


def save(path: Path, color: tuple[int, int, int] = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 8), color).save(path)


def write_sysu(root: Path) -> None:
    for camera, identities in SYSU.items():
        (root / f"cam{camera}").mkdir(parents=True)
        for identity, numbers in identities.items():
            for number in numbers:
                color = (camera * 30, identity * 10, number)
                save(root / f"cam{camera}" / f"{identity:04d}" / f"{number:04d}.jpg", color)
    (root / "exp").mkdir()
    for part, text in {"train": "12,2\n", "val": "9", "test": "5, 7\r\n"}.items():
        (root / "exp" / f"{part}_id.txt").write_text(text)


def write_regdb(root: Path) -> None:
    """Labels follow the lists, not the identities: 30 -> 0, 4 -> 1 in training; 11 -> 0 in the test."""
    (root / "idx").mkdir(parents=True)
    for part, identities in (("train", [30, 4]), ("test", [11])):
        for kind, letter in (("Visible", "v"), ("Thermal", "t")):
            lines = []
            for label, identity in enumerate(identities):
                for number in (3, 1):
                    name = f"{kind}/{identity}/male {letter}_{number:05d}_{identity}.bmp"
                    save(root / name, (identity, number, 0))
                    lines.append(f"{name} {label}\n")
            for trial in (1, 10):
                (root / "idx" / f"{part}_{kind.lower()}_{trial}.txt").write_text("".join(lines))


def llcm_name(identity: int, camera: int, frame: int, kind: str) -> str:
    return f"{identity:04d}_c{camera:02d}_s100_f{frame:03d}_{kind}.jpg"


def write_llcm(root: Path) -> None:
    (root / "idx").mkdir(parents=True)
    for kind, images in LLCM_TRAIN.items():
        lines = []
        for identity, camera, frame in images:
            name = f"{kind}/{identity:04d}/{llcm_name(identity, camera, frame, kind)}"
            save(root / name, (identity, camera, frame))
            lines.append(f"{name} {int(identity == 7)}\n")
        (root / "idx" / f"train_{kind}.txt").write_text("".join(lines))
    for folder, people in LLCM_TEST.items():
        for identity, cameras in people.items():
            for camera, frames in cameras.items():
                for frame in frames:
                    name = llcm_name(identity, camera, frame, folder[-3:])
                    save(root / folder / f"cam{camera}" / f"{identity:04d}" / name, (identity, camera, frame))
    (root / "idx" / "test_id.txt").write_text("12,3,5\n")
