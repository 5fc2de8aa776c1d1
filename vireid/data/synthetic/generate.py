"""A data set of drawn pedestrians in visible and in thermal light, for trials, tests and teaching offline.

An identity is a body, an outfit and what it carries. Its shapes are shared by both modalities; color exists in the
visible images only, warmth in the thermal ones only (dark cloth is somewhat warmer: the one tie between them). Each
image is a walking skeleton of 13 joints, clothed, seen by one of six cameras in front of a drawn background. Everything
here is our own design and follows no paper.
"""

import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vireid._checks import check_count, check_option, check_path, check_size, extra
from vireid._files import claimed
from vireid.data.keypoints import save_keypoints
from vireid.data.synthetic._pedestrian import Person
from vireid.data.synthetic._rendering import Camera, render

_MANIFEST = "synthetic.json"
_VERSION = 1  # raise it whenever the same arguments would draw other pictures
_TRIALS = 10
_MOST = 9999  # SYSU-MM01 names identities and images by four digits
_INFRARED_CAMERAS = (3, 6)


def generate_synthetic(
    root: str | os.PathLike[str],
    *,
    layout: str = "sysu",
    identities: int = 96,
    images_per_camera: int | None = None,
    size: tuple[int, int] = (128, 64),
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Draw a visible-thermal person data set and write it in a published layout, the same bytes for the same arguments.

    Half of the identities are for training and half for testing. An identity is a build, an outfit, its pattern and
    colors, hair or hat, and bag; no single one of these identifies a person. Shapes show in both modalities, color
    only in the visible one; warmth follows from skin, thickness and, as in sunlight, from the cloth's darkness. It is a
    stand-in for exercising code: results on it say nothing about real pedestrians. Another version of NumPy, Pillow or
    libjpeg may change a few pixels.

    ``layout="sysu"`` (SYSU-MM01) writes ``cam1`` to ``cam6`` with ``<4-digit identity>/<4-digit number>.jpg`` (cameras
    1, 2, 4, 5 visible; 3, 6 infrared), ``exp/{train,val,test,available}_id.txt`` and the gallery permutations of ten
    trials, ``exp/rand_perm_cam.mat``. Every camera sees every identity. ``layout="regdb"`` (RegDB) writes ``Visible``
    and ``Thermal`` with one folder per identity and ``idx/{train,test}_{visible,thermal}_<trial>.txt`` for ten trials.
    In both, infrared images are thermal pictures (those of SYSU-MM01 itself are near infrared), stored with three equal
    channels; camera 6 shows warm as dark.

    Both come with the true key points of every image, the 13 of `vireid.nn.PERSON_13`: ``keypoints.npz``, for
    `vireid.data.keypoints.load_keypoints` or a dataset's argument ``keypoints``. One counts as visible unless it is
    outside the image or behind an obstacle; behind the person's own body it is visible.

    Args:
        root: folder to make, with its parents. It appears in one step at the end, so an interrupted run leaves nothing
            behind, and a killed one only what the next one removes. If it holds the data set of the same arguments
            already, nothing is done; processes may draw one data set at once.
        layout: "sysu" or "regdb".
        identities: people drawn, 4 to 9999.
        images_per_camera: images of a person by each camera, at most 9999; RegDB has one camera for each modality.
            Default: 4 for "sysu" (2,304 images in all), 10 for "regdb" (1,920 images).
        size: (height, width) in pixels, at least 32 × 16.
        seed: of pictures and splits. A person's k-th image by a camera depends only on it and ``size``.
        progress: show a progress bar (tqdm).

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: if ``root`` exists and is neither an empty folder nor the data set of these arguments.
        OSError: if it cannot be written.
        ImportError: if Pillow, or with ``progress`` tqdm, is missing; both come with ``vireid[train]``.
        TypeError: if a count, a size or the seed is not an integer.
        ValueError: if one is too small or too large, or ``layout`` is unknown.
    """
    check_option("layout", layout, ("sysu", "regdb"))
    if images_per_camera is None:
        images_per_camera = 4 if layout == "sysu" else 10
    identities = check_count("identities", identities, minimum=4, maximum=_MOST)
    images_per_camera = check_count("images_per_camera", images_per_camera, maximum=_MOST)
    size, seed = check_size("size", size, minimum=(32, 16)), check_count("seed", seed, minimum=0)
    with extra("train", "generate_synthetic needs Pillow, and tqdm to show its progress"):
        import PIL  # noqa: F401

        if progress:
            from tqdm import tqdm

    root = check_path("root", root)
    manifest = {"version": _VERSION, "layout": layout, "identities": identities, "images_per_camera": images_per_camera}
    manifest |= {"size": list(size), "seed": seed}
    if _is_finished(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(root) as work:
        people: Iterable[int] = range(1, identities + 1)
        if progress:
            people = tqdm(people, desc="drawing", unit="person")
        joints: dict[str, np.ndarray] = {}
        for identity in people:
            for shot in _shots(layout, identity, images_per_camera):
                joints[shot.path] = _write_image(work, shot, size, seed)
        sizes = np.tile(size, (len(joints), 1))
        save_keypoints(work / "keypoints.npz", list(joints), np.stack(list(joints.values())), sizes)
        write_split = _write_sysu_split if layout == "sysu" else _write_regdb_split
        write_split(work, identities, images_per_camera, seed)
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        try:
            with suppress(FileNotFoundError):
                root.rmdir()
            os.replace(work, root)
        except OSError:  # another process may have been faster
            if not _is_finished(root, manifest):
                raise
    return root


@contextmanager
def _temporary_folder(root: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``root``, which goes at the end; what killed processes left goes first.

    A folder has the name of a lock that is taken before it is made and freed after it is gone: without, it was left.
    """
    with claimed(root, 0o600) as lock:
        folder = lock.with_suffix(".folder")
        try:
            for left in root.parent.glob(f"{Path(lock.stem).stem}.*.folder"):
                if not left.with_suffix(lock.suffix).exists():
                    shutil.rmtree(left, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)


def _is_finished(root: Path, manifest: dict[str, Any]) -> bool:
    """Return whether ``root`` holds what ``manifest`` describes; raise if anything else is there."""
    if not root.exists() and not root.is_symlink():
        return False
    if not root.is_dir():
        raise FileExistsError(f"root must be a new folder, and {root} is something else")
    try:
        found = json.loads((root / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == manifest:
        return True
    if isinstance(found, dict):
        differs = [f"{k}={found.get(k)!r}, asked for {v!r}" for k, v in manifest.items() if found.get(k) != v]
        raise FileExistsError(f"root {root} holds a synthetic data set made with {'; '.join(differs)}")
    if any(root.iterdir()):
        raise FileExistsError(f"root must be a new or empty folder, and {root} holds something else")
    return False


def _rng(seed: int, *key: int) -> np.random.Generator:
    """Return a generator of its own for each drawn thing, which thus does not depend on the number of others."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


class _Shot(NamedTuple):
    """One image: identity, camera, number among theirs, and path below the data set's folder."""

    identity: int
    camera: int
    number: int
    path: str

    @property
    def infrared(self) -> bool:
        return self.camera in _INFRARED_CAMERAS


def _shots(layout: str, identity: int, count: int) -> Iterator[_Shot]:
    """Yield all images of one identity."""
    for camera in range(1, 7) if layout == "sysu" else (1, 3):
        infrared = camera in _INFRARED_CAMERAS
        for number in range(1, count + 1):
            if layout == "sysu":
                path = f"cam{camera}/{identity:04d}/{number:04d}.jpg"
            else:
                folder, letter = ("Thermal", "t") if infrared else ("Visible", "v")
                path = f"{folder}/{identity}/drawn_{letter}_{number:05d}_{identity}.jpg"
            yield _Shot(identity, camera, number, path)


def _write_image(work: Path, shot: _Shot, size: tuple[int, int], seed: int) -> np.ndarray:
    """Draw and write one image, and return its joints (13, 3)."""
    person = Person.draw(_rng(seed, 0, shot.identity))
    view = Camera.draw(_rng(seed, 1, shot.camera), inverted=shot.camera == 6)
    image, joints = render(person, view, size, shot.infrared, _rng(seed, 2, shot.identity, shot.camera, shot.number))
    (work / shot.path).parent.mkdir(parents=True, exist_ok=True)
    image.save(work / shot.path, format="JPEG", quality=92, subsampling=0)
    return joints


def _write_sysu_split(root: Path, identities: int, count: int, seed: int) -> None:
    """Write the identity lists and the gallery permutations of SYSU-MM01's ``exp`` folder."""
    from scipy.io import savemat

    folder = root / "exp"
    folder.mkdir()
    order = _rng(seed, 3).permutation(identities) + 1
    test, rest = order[: identities // 2], order[identities // 2 :]
    val, train = rest[: max(1, len(rest) // 4)], rest[max(1, len(rest) // 4) :]
    for name, ids in {"train": train, "val": val, "test": test, "available": order}.items():
        (folder / f"{name}_id.txt").write_text(",".join(map(str, sorted(ids.tolist()))) + "\n", encoding="ascii")
    # The official nesting: a 6 × 1 cell array of cameras, each an identities × 1 cell array of trials × images.
    cameras = np.empty((6, 1), dtype=object)
    for camera in range(6):
        cells = np.empty((identities, 1), dtype=object)
        for i in range(identities):
            rng = _rng(seed, 4, camera + 1, i + 1)
            trials = np.stack([rng.permutation(count) + 1 for _ in range(_TRIALS)])
            cells[i, 0] = trials.astype(np.uint8 if count < 256 else np.uint16)
        cameras[camera, 0] = cells
    buffer = io.BytesIO()
    savemat(buffer, {"rand_perm_cam": cameras}, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, written by vireid".ljust(116)  # SciPy's own holds the time of writing
    (folder / "rand_perm_cam.mat").write_bytes(header + buffer.getvalue()[116:])


def _write_regdb_split(root: Path, identities: int, count: int, seed: int) -> None:
    """Write RegDB's ``idx`` folder: in each trial another half of the identities is for testing."""
    folder = root / "idx"
    folder.mkdir()
    for trial in range(1, _TRIALS + 1):
        order = _rng(seed, 3, trial).permutation(identities) + 1
        for part, ids in (("test", order[: identities // 2]), ("train", order[identities // 2 :])):
            lines: dict[bool, list[str]] = {False: [], True: []}
            for label, identity in enumerate(sorted(ids.tolist())):
                for shot in _shots("regdb", identity, count):
                    lines[shot.infrared].append(f"{shot.path} {label}\n")
            for modality, infrared in (("visible", False), ("thermal", True)):
                (folder / f"{part}_{modality}_{trial}.txt").write_text("".join(lines[infrared]), encoding="ascii")
