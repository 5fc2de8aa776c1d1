"""A data set of drawn pedestrians in visible and in thermal light, for trying, testing and teaching offline.

An identity is a body, an outfit and what it carries. Its shapes are shared by both modalities; colour exists in the
visible images only, warmth in the thermal ones only (dark cloth is somewhat warmer: the one tie between them). Each
image is a walking skeleton of 13 joints, clothed, seen by one of six cameras in front of a drawn background. Everything
here is our own design and follows no paper.
"""

import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vireid._checks import check_count, check_option

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

__all__ = ["generate_synthetic"]

_MANIFEST = "synthetic.json"
_VERSION = 1  # raise it whenever the same arguments would draw other pictures
_TRIALS = 10
_VISIBLE_CAMERAS, _INFRARED_CAMERAS = (1, 2, 4, 5), (3, 6)
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 92, "subsampling": 0}
_SUPERSAMPLE = 3

_JOINTS = (
    *("head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)

# What a pixel shows. A body is drawn once as a map of these labels; a modality is a table from label to light.
_SKIN, _HAIR, _HAT, _TOP, _TOP2, _INNER, _SLEEVE, _BOTTOM, _BOTTOM2, _SHOES, _BAG, _BAG2, _SCARF, _OCCLUDER = range(
    1, 15
)
_LABELS = 15

# Sleeve (0 none, 1 short, 2 long), hem (body heights below the hip), bulk (body heights), warmth of the outside.
_TOPS = {
    "tank": (0, 0.02, 0.000, 0.74),
    "tshirt": (1, 0.03, 0.002, 0.70),
    "shirt": (2, 0.03, 0.004, 0.63),
    "sweater": (2, 0.02, 0.009, 0.54),
    "jacket": (2, 0.05, 0.014, 0.44),
    "coat": (2, 0.20, 0.013, 0.40),
}
# Share of thigh and shin covered (0 to 2), legs' bulk, skirt's flare at the hem (0: legs only), warmth.
_BOTTOMS = {
    "slim": (2.0, 0.000, 0.0, 0.62),
    "trousers": (2.0, 0.006, 0.0, 0.55),
    "wide": (2.0, 0.014, 0.0, 0.50),
    "shorts": (0.85, 0.009, 0.0, 0.60),
    "skirt": (0.90, 0.0, 0.045, 0.57),
    "long skirt": (1.70, 0.0, 0.060, 0.52),
}
_HEADS = ("short hair", "long hair", "bun", "bald", "cap", "beanie", "hood")
_PATTERNS = ("plain", "hoops", "yoke", "front print", "back print", "halves", "sleeves")
_BAGS = ("none", "backpack", "handbag", "shoulder bag", "crossbody", "trolley")
_COLOURS = np.array(  # clothes are mostly dark or grey
    [
        *((25, 25, 28), (45, 47, 52), (90, 92, 95), (150, 150, 150), (225, 225, 220), (28, 36, 70), (60, 90, 150)),
        *((120, 150, 190), (150, 35, 40), (200, 70, 60), (40, 80, 50), (110, 120, 60), (95, 65, 45), (190, 165, 125)),
        *((210, 180, 60), (110, 60, 120), (220, 140, 160), (60, 140, 140)),
    ],
    dtype=np.float32,
)
_SKINS = np.array([(235, 200, 175), (215, 170, 140), (180, 130, 100), (130, 90, 65), (90, 60, 45)], dtype=np.float32)
_HAIRS = np.array([(25, 20, 20), (50, 35, 28), (95, 65, 40), (165, 130, 80), (140, 140, 140)], dtype=np.float32)


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
    colours, hair or hat, and bag; no one of these tells two people apart. Shapes show in both modalities and colour in
    the visible one only; warmth follows from skin, thickness and, as in sunlight, from how dark the cloth is. It is a
    stand-in for exercising code: results on it say nothing about real pedestrians.

    ``layout="sysu"`` (SYSU-MM01) writes ``cam1`` to ``cam6`` with ``<4-digit identity>/<4-digit number>.jpg`` (cameras
    1, 2, 4, 5 visible; 3, 6 infrared), ``exp/{train,val,test,available}_id.txt`` and the gallery permutations of ten
    trials, ``exp/rand_perm_cam.mat``. Every camera sees every identity. ``layout="regdb"`` (RegDB) writes ``Visible``
    and ``Thermal`` with one folder an identity and ``idx/{train,test}_{visible,thermal}_<trial>.txt`` for ten trials.
    In both, infrared images are thermal pictures (those of SYSU-MM01 itself are near infrared), stored with three equal
    channels; camera 6 shows warm as dark.

    Args:
        root: folder to make, with its parents. It appears in one step at the end, so an interrupted run leaves nothing
            of it. If it holds what the same arguments wrote before, nothing is done.
        layout: "sysu" or "regdb".
        identities: people drawn, at least 4.
        images_per_camera: images of a person by each camera; RegDB has one camera for each modality. Default: 4 for
            "sysu" (2,304 images in all), 10 for "regdb" (1,920 images).
        size: (height, width) in pixels, at least 32 × 16.
        seed: the pictures and splits follow from it. A person's k-th image by a camera depends on it and ``size``.
        progress: show a progress bar (tqdm).

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: if ``root`` exists and is neither an empty folder nor what these arguments write.
        ImportError: if Pillow, or with ``progress`` tqdm, is missing; both come with ``vireid[train]``.
        TypeError: if a count, a size or the seed is not an integer.
        ValueError: if one is too small or ``layout`` is unknown.
    """
    check_option("layout", layout, ("sysu", "regdb"))
    if images_per_camera is None:
        images_per_camera = 4 if layout == "sysu" else 10
    check_count("identities", identities, minimum=4)
    check_count("images_per_camera", images_per_camera)
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}")
    check_count("size[0]", size[0], minimum=32)
    check_count("size[1]", size[1], minimum=16)
    check_count("seed", seed, minimum=0)
    try:
        import PIL  # noqa: F401

        if progress:
            from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"generate_synthetic needs {error.name}: pip install 'vireid[train]'") from error

    root = Path(root)
    manifest = {"version": _VERSION, "layout": layout, "identities": identities, "images_per_camera": images_per_camera}
    manifest |= {"size": list(size), "seed": seed}
    if _is_finished(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as temporary:
        work = Path(temporary) / root.name
        work.mkdir()
        people: Iterable[int] = range(1, identities + 1)
        if progress:
            people = tqdm(people, desc="drawing", unit="person")
        for identity in people:
            _write_person(work, layout, identity, images_per_camera, size, seed)
        if layout == "sysu":
            _write_sysu_split(work / "exp", identities, images_per_camera, seed)
        else:
            _write_regdb_split(work / "idx", identities, images_per_camera, seed)
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if not _is_finished(root, manifest):  # another process may have been faster
            if root.exists():
                root.rmdir()
            os.replace(work, root)
    return root


def _is_finished(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether ``root`` holds what ``manifest`` describes; raises if anything else is there."""
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
        differs = [f"{name}={found.get(name)!r}, asked for {value!r}" for name, value in manifest.items()]
        differs = [
            text for text, (name, value) in zip(differs, manifest.items(), strict=True) if found.get(name) != value
        ]
        raise FileExistsError(f"root {root} holds a synthetic data set made with {'; '.join(differs)}")
    if any(root.iterdir()):
        raise FileExistsError(f"root must be a new or empty folder, and {root} holds something else")
    return False


def _rng(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each thing drawn, so that nothing depends on how much else was drawn before."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


def _write_person(work: Path, layout: str, identity: int, count: int, size: tuple[int, int], seed: int) -> None:
    """Draw and write all images of one identity."""
    person = _Person.draw(_rng(seed, 0, identity))
    for camera in range(1, 7) if layout == "sysu" else (1, 3):
        infrared = camera in _INFRARED_CAMERAS
        if layout == "sysu":
            folder, name = work / f"cam{camera}" / f"{identity:04d}", "{0:04d}.jpg"
        else:
            folder, name = (
                work / ("Thermal" if infrared else "Visible") / str(identity),
                _regdb_name(identity, infrared),
            )
        folder.mkdir(parents=True)
        view = _Camera.draw(_rng(seed, 1, camera), inverted=camera == 6)
        for number in range(1, count + 1):
            image, _ = _render(person, view, size, infrared, _rng(seed, 2, identity, camera, number))
            image.save(folder / name.format(number), **_JPEG)


def _regdb_name(identity: int, infrared: bool) -> str:
    return f"drawn_{'t' if infrared else 'v'}_{{0:05d}}_{identity}.jpg"


def _write_sysu_split(folder: Path, identities: int, count: int, seed: int) -> None:
    """Write the identity lists and the gallery permutations of SYSU-MM01's ``exp`` folder."""
    from scipy.io import savemat

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


def _write_regdb_split(folder: Path, identities: int, count: int, seed: int) -> None:
    """Write RegDB's ``idx`` folder: in each trial another half of the identities is for testing."""
    folder.mkdir()
    for trial in range(1, _TRIALS + 1):
        order = _rng(seed, 3, trial).permutation(identities) + 1
        halves = {"test": order[: identities // 2], "train": order[identities // 2 :]}
        for part, ids in halves.items():
            for modality, infrared in (("Visible", False), ("Thermal", True)):
                lines = [
                    f"{modality}/{identity}/{_regdb_name(identity, infrared).format(number)} {label}\n"
                    for label, identity in enumerate(sorted(ids.tolist()))
                    for number in range(1, count + 1)
                ]
                (folder / f"{part}_{modality.lower()}_{trial}.txt").write_text("".join(lines), encoding="ascii")


@dataclass(frozen=True)
class _Camera:
    """What stays the same in all images of a camera. Lengths are in image heights."""

    elevation: float  # radians above the horizon
    horizon: float
    body: float  # height of an average person
    tint: np.ndarray  # (3,)
    gain: float
    contrast: float
    blur: float
    noise: float
    scene: np.ndarray  # (4, 4): colour and temperature of sky or wall, ground, and two kinds of clutter
    inverted: bool  # thermal: warm is dark

    @staticmethod
    def draw(rng: np.random.Generator, *, inverted: bool) -> "_Camera":
        scene = np.empty((4, 4), dtype=np.float32)
        scene[:, :3] = rng.uniform(0.25, 0.75, (4, 1)) + rng.normal(0, 0.04, (4, 3))
        scene[:, 3] = rng.uniform(0.1, (0.3, 0.35, 0.4, 0.5))
        return _Camera(
            elevation=rng.uniform(0.0, 0.35),
            horizon=rng.uniform(0.35, 0.75),
            body=rng.uniform(0.82, 0.90),
            tint=rng.uniform(0.9, 1.08, 3).astype(np.float32),
            gain=rng.uniform(0.75, 1.2),
            contrast=rng.uniform(0.75, 1.15),
            blur=rng.uniform(0.2, 0.5),
            noise=rng.uniform(0.008, 0.02),
            scene=scene,
            inverted=inverted,
        )


@dataclass(frozen=True)
class _Person:
    """What makes an identity. Lengths are in body heights."""

    scale: float
    hip: float  # height of the hip
    shoulder: float  # half widths
    pelvis: float
    depth: float
    limb: float
    head: float
    top: str
    pattern: str
    open_front: bool
    bottom: str
    side_stripe: bool
    crown: str  # hair or hat
    scarf: bool
    boots: float  # share of the shin
    bag: str
    bag_side: int  # 1 left, -1 right
    bag_size: tuple[float, float]
    stripes: int
    print_box: tuple[float, float]
    visible: np.ndarray  # (labels, 3) colour in [0, 1]
    warmth: np.ndarray  # (labels,) in [0, 1]

    @staticmethod
    def draw(rng: np.random.Generator) -> "_Person":
        def pick(options: Iterable[str], weights: Sequence[float]) -> str:
            return str(rng.choice(list(options), p=np.array(weights) / sum(weights)))

        build = rng.uniform(0.75, 1.35)
        top = pick(_TOPS, (1, 4, 3, 2, 3, 2))
        bottom = pick(_BOTTOMS, (3, 4, 2, 3, 2, 1))
        pattern = pick(_PATTERNS, (2, 2, 2, 1, 1, 2, 2))
        crown = pick(_HEADS, (5, 4, 2, 1, 2, 2, 2))
        bag = pick(_BAGS, (3, 3, 2, 2, 2, 2))

        visible = _COLOURS[rng.integers(len(_COLOURS), size=_LABELS)]
        grey = _COLOURS.mean(1)
        for label, beside in (
            (_TOP2, _TOP),
            (_BOTTOM, _TOP),
            (_BOTTOM2, _BOTTOM),
            (_INNER, _TOP),
            (_BAG, _TOP),
            (_BAG2, _BAG),
        ):
            apart = _COLOURS[
                np.abs(grey - visible[beside].mean()) > 35
            ]  # an edge that warmth shows is seen in colour too
            visible[label] = apart[rng.integers(len(apart))]
        visible[_SKIN], visible[_HAIR] = _SKINS[rng.integers(len(_SKINS))], _HAIRS[rng.integers(len(_HAIRS))]
        if pattern != "sleeves":
            visible[_SLEEVE] = visible[_TOP]
        visible = np.clip(visible / 255 + rng.normal(0, 0.03, visible.shape), 0.03, 0.97).astype(np.float32)

        def contrast() -> float:  # two fabrics of one garment differ a little in warmth, either way
            return float(rng.choice((-1, 1)) * rng.uniform(0.02, 0.08))

        warmth = np.full(_LABELS, 0.3)
        warmth[_SKIN], warmth[_HAIR], warmth[_HAT] = 0.93, rng.uniform(0.45, 0.6), rng.uniform(0.35, 0.5)
        warmth[_TOP] = _TOPS[top][3] + rng.normal(0, 0.03)
        warmth[_TOP2] = warmth[_TOP] + contrast()
        warmth[_SLEEVE] = warmth[_TOP] + (contrast() if pattern == "sleeves" else 0)
        warmth[_INNER] = rng.uniform(0.66, 0.76)
        warmth[_BOTTOM] = _BOTTOMS[bottom][3] + rng.normal(0, 0.03)
        warmth[_BOTTOM2] = warmth[_BOTTOM] + contrast()
        warmth[_SHOES], warmth[_SCARF] = rng.uniform(0.3, 0.42), rng.uniform(0.42, 0.52)
        warmth[_BAG] = rng.uniform(0.18, 0.34)
        warmth[_BAG2] = warmth[_BAG] + contrast()
        cloth = [_HAT, _TOP, _TOP2, _SLEEVE, _INNER, _BOTTOM, _BOTTOM2, _SHOES, _SCARF]
        warmth[cloth] += 0.7 * (0.4 - visible[cloth].mean(1))  # dark cloth takes up more of the light
        return _Person(
            scale=rng.normal(1.0, 0.03),
            hip=rng.uniform(0.46, 0.54),
            shoulder=0.108 * build * rng.uniform(0.94, 1.06),
            pelvis=0.080 * build * rng.uniform(0.9, 1.12),
            depth=0.070 * build * rng.uniform(0.9, 1.2),
            limb=0.027 * build,
            head=rng.uniform(0.052, 0.066),
            top=top,
            pattern=pattern,
            open_front=top in ("jacket", "coat") and rng.random() < 0.5,
            bottom=bottom,
            side_stripe=_BOTTOMS[bottom][2] == 0 and rng.random() < 0.25,
            crown=crown,
            scarf=rng.random() < (0.35 if top in ("jacket", "coat") else 0.08),
            boots=float(rng.choice((0.0, 0.0, 0.35, 0.75))),
            bag=bag,
            bag_side=int(rng.choice((-1, 1))),
            bag_size=(rng.uniform(0.8, 1.25), rng.uniform(0.8, 1.25)),
            stripes=int(rng.integers(2, 6)),
            print_box=(rng.uniform(0.35, 0.8), rng.uniform(0.05, 0.14)),
            visible=visible,
            warmth=warmth.astype(np.float32),
        )


def _pose(person: _Person, rng: np.random.Generator) -> np.ndarray:
    """A moment of a walk: 13 joints (x to the left, y up, z forward) in body heights, in the order of ``_JOINTS``."""
    phase, stride = rng.uniform(0, 2 * math.pi), rng.choice((0.08, 0.35, 0.45)) * rng.uniform(0.7, 1.2)
    swing, lean = stride * rng.uniform(0.5, 1.1), rng.normal(0.03, 0.04)
    thigh = (person.hip - 0.045) / 2
    joints = np.zeros((13, 3))
    joints[0] = (0, 0.925, lean * 0.45)
    for i, side in enumerate((1, -1)):
        step = math.sin(phase) * side
        shoulder = joints[1 + i] = (side * (person.shoulder - 0.012), 0.815, lean * 0.3)
        arm, bend, out = -swing * step, rng.uniform(0.1, 0.5), rng.uniform(0.04, 0.16)
        if rng.random() < 0.12:  # a hand to the face or in a pocket
            arm, bend, out = rng.uniform(-0.2, 0.4), rng.uniform(0.8, 2.2), 0.15
        if person.bag in ("handbag", "trolley") and side == person.bag_side:
            arm, bend = arm * 0.4 - (0.35 if person.bag == "trolley" else 0), 0.1
        elbow = joints[3 + i] = shoulder + 0.175 * np.array([side * math.sin(out), -math.cos(arm), math.sin(arm)])
        bend += arm
        joints[5 + i] = elbow + 0.155 * np.array([side * 0.3 * math.sin(out), -math.cos(bend), math.sin(bend)])
        hip = joints[7 + i] = (side * person.pelvis * 0.55, person.hip, 0)
        leg = stride * step
        flex = 0.06 + stride * max(0.0, math.cos(phase) * side) * rng.uniform(0.8, 1.4)
        knee = joints[9 + i] = hip + thigh * np.array([0, -math.cos(leg), math.sin(leg)])
        joints[11 + i] = knee + thigh * np.array([0, -math.cos(leg - flex), math.sin(leg - flex)])
    joints[:, 1] += 0.045 - joints[11:, 1].min()  # the lower foot stands on the ground
    return joints


class _Painter:
    """Draws labels on the surface of a posed body as a camera sees it."""

    def __init__(
        self,
        draw: "ImageDraw.ImageDraw",
        joints: np.ndarray,
        yaw: float,
        elevation: float,
        unit: float,
        foot: np.ndarray,
    ) -> None:
        self.draw, self.yaw, self.unit, self.foot, self.joints = draw, yaw, unit, foot, joints
        self.cos, self.sin = math.cos(yaw), math.sin(yaw)
        self.tilt = math.cos(elevation), math.sin(elevation)
        self.points, self.depths = self.project(joints)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (…, 2) and nearness to the camera (…) of points (…, 3) of the body."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        across, near = x * self.cos + z * self.sin, z * self.cos - x * self.sin
        up = y * self.tilt[0] - near * self.tilt[1]
        return self.foot + self.unit * np.stack([across, -up], -1), near

    def at(self, x: float, y: float, z: float) -> np.ndarray:
        return self.project(np.array([x, y, z]))[0]

    def below(self, p: np.ndarray, drop: float) -> np.ndarray:
        """The pixel this many body heights further down."""
        return p + np.array([0.0, drop * self.unit])

    def width(self, side: float, front: float) -> float:
        """Half width seen of something with these half widths."""
        return math.hypot(side * self.cos, front * self.sin)

    def disc(self, p: np.ndarray, rx: float, label: int, ry: float | None = None) -> None:
        rx, ry = rx * self.unit, (rx if ry is None else ry) * self.unit
        self.draw.ellipse((p[0] - rx, p[1] - ry, p[0] + rx, p[1] + ry), fill=label)

    def box(self, p: np.ndarray, rx: float, ry: float, label: int) -> None:
        rx, ry = rx * self.unit, ry * self.unit
        self.draw.rounded_rectangle((p[0] - rx, p[1] - ry, p[0] + rx, p[1] + ry), radius=min(rx, ry) * 0.4, fill=label)

    def limb(self, p: np.ndarray, q: np.ndarray, rp: float, rq: float, label: int) -> None:
        """A tapered limb from p to q."""
        along = q - p
        length = math.hypot(along[0], along[1])
        if length > 0.5:
            nx, ny = -along[1] / length * self.unit, along[0] / length * self.unit
            quad = [(p[0] + nx * rp, p[1] + ny * rp), (q[0] + nx * rq, q[1] + ny * rq)]
            quad += [(q[0] - nx * rq, q[1] - ny * rq), (p[0] - nx * rp, p[1] - ny * rp)]
            self.draw.polygon(quad, fill=label)
        self.disc(p, rp, label)
        self.disc(q, rq, label)

    def wrap(
        self, profile: np.ndarray, label: int, top: float, low: float, middle: float = 0.0, half: float = math.pi
    ) -> None:
        """Paint the band of a trunk between two heights and around the direction ``middle`` (0 front, pi back).

        ``profile`` (n, 4): height ascending, half width sideways and to the front, offset to the front.
        """
        heights, side, front, offset = profile.T
        inner = heights[(heights > low) & (heights < top)]
        y = np.concatenate([[low], inner, [top]])
        a, b = np.interp(y, heights, side), np.interp(y, heights, front)
        turn = math.atan2(float(b.mean()) * self.sin, float(a.mean()) * self.cos)
        centre = (middle + turn + math.pi) % (2 * math.pi) - math.pi
        centre = 0.0 if half >= math.pi else centre
        left, right = max(-math.pi / 2, centre - half), min(math.pi / 2, centre + half)
        if right - left < 0.05:
            return
        axis = self.project(np.stack([np.zeros_like(y), y, np.interp(y, heights, offset)], -1))[0]
        radius = np.hypot(a * self.cos, b * self.sin) * self.unit
        edge = np.concatenate([axis, axis[::-1]])
        edge[:, 0] += np.concatenate([radius * math.sin(left), radius[::-1] * math.sin(right)])
        self.draw.polygon(edge.ravel().tolist(), fill=label)


def _paint_person(paint: _Painter, person: _Person) -> None:
    """Paint a clothed body, from what is far to what is near."""
    joints, p = paint.joints, paint.points
    sleeve, hem, bulk, _ = _TOPS[person.top]
    facing = paint.cos > 0
    hip, neck = joints[7:9, 1].mean(), joints[1:3, 1].mean() + 0.025
    lean = joints[1, 2]
    hem = hip - hem
    waist = hip + 0.11
    coat = 0.03 if person.top == "coat" else 0.0
    trunk = np.array(
        [
            (hip - 0.22, person.pelvis + bulk + coat, person.depth + bulk + coat, 0),
            (hip, person.pelvis + bulk, person.depth + bulk, 0),
            (waist, 0.88 * person.pelvis + bulk, 0.85 * person.depth + bulk, lean * 0.3),
            (neck - 0.10, 0.90 * person.shoulder + bulk, person.depth + bulk, lean * 0.8),
            (neck - 0.03, person.shoulder + bulk * 0.8, 0.85 * person.depth + bulk, lean),
            (neck, 0.55 * person.shoulder, 0.6 * person.depth, lean),
        ]
    )
    bag_joint = 5 if person.bag_side > 0 else 6
    bag_w, bag_h = person.bag_size

    def arm(i: int) -> None:
        shoulder, elbow, wrist = p[1 + i], p[3 + i], p[5 + i]
        r = person.limb
        paint.limb(shoulder, elbow, r * 1.05, r * 0.85, _SKIN)
        paint.limb(elbow, wrist, r * 0.85, r * 0.65, _SKIN)
        paint.disc(wrist + (wrist - elbow) * 0.12, r * 0.85, _SKIN)
        if sleeve:
            end = elbow if sleeve == 2 else shoulder + 0.72 * (elbow - shoulder)
            paint.limb(shoulder, end, r * 1.15 + bulk, r * (0.95 if sleeve == 2 else 1.15) + bulk, _SLEEVE)
        if sleeve == 2:
            paint.limb(elbow, wrist, r * 0.95 + bulk, r * 0.8 + bulk, _SLEEVE)
        if person.bag == "handbag" and bag_joint == 5 + i:
            low = paint.below(wrist, 0.10)
            paint.limb(wrist, low, 0.006, 0.006, _BAG)
            paint.box(paint.below(low, 0.03), paint.width(0.03, 0.075 * bag_w), 0.05 * bag_h, _BAG)
            paint.box(paint.below(low, 0.03), paint.width(0.031, 0.076 * bag_w), 0.012, _BAG2)
        if person.bag == "trolley" and bag_joint == 5 + i:
            foot = joints[5 + i] * (1, 0, 1) + (0, 0.13 * bag_h, -0.12)
            low = paint.at(*foot)
            paint.limb(wrist, low, 0.006, 0.006, _BAG2)
            paint.box(low, paint.width(0.07 * bag_w, 0.045), 0.13 * bag_h, _BAG)
            paint.box(paint.below(low, -0.05), paint.width(0.07 * bag_w, 0.045), 0.012, _BAG2)

    def leg(i: int) -> None:
        covered, wide, flare, _ = _BOTTOMS[person.bottom]
        hip_point, knee, ankle = p[7 + i], p[9 + i], p[11 + i]
        r = person.limb
        paint.limb(hip_point, knee, r * 1.75, r * 1.25, _SKIN)
        paint.limb(knee, ankle, r * 1.2, r * 0.75, _SKIN)
        toe = paint.at(*(joints[11 + i] + (0, -0.022, 0.075)))
        paint.limb(paint.below(ankle, 0.012), toe, 0.024, 0.016, _SHOES)
        if person.boots:
            paint.limb(ankle + person.boots * (knee - ankle), ankle, r * 1.15, r * 1.1, _SHOES)
        if flare:
            return
        end = knee if covered >= 1 else hip_point + covered * (knee - hip_point)
        paint.limb(hip_point, end, r * 1.85 + wide * 0.5, r * 1.3 + wide, _BOTTOM)
        if covered > 1:
            tucked = person.boots == 0.75 and person.bottom == "slim"
            stop = knee + (0.3 if tucked else 0.92) * (ankle - knee)
            paint.limb(knee, stop, r * 1.3 + wide, r * (1.2 if tucked else 0.95) + wide * 1.2, _BOTTOM)
        if person.side_stripe:
            out = math.sin(paint.yaw + (math.pi / 2 if i == 0 else -math.pi / 2))
            near = math.cos(paint.yaw + (math.pi / 2 if i == 0 else -math.pi / 2))
            if near > -0.3:
                shift = np.array([out * r * 1.1 * paint.unit, 0.0])
                paint.limb(hip_point + shift * 1.4, end + shift, 0.010, 0.010, _BOTTOM2)
                if covered > 1:
                    paint.limb(knee + shift, ankle + shift * 0.7, 0.010, 0.010, _BOTTOM2)

    def bag_on_body() -> None:
        if person.bag == "backpack":
            centre = paint.at(0, neck - 0.16, lean * 0.6 - person.depth - 0.045)
            paint.box(centre, paint.width(0.085 * bag_w, 0.055), 0.115 * bag_h, _BAG)
            if not facing:
                paint.box(paint.below(centre, 0.05), 0.06 * bag_w * abs(paint.cos), 0.035 * bag_h, _BAG2)
        elif person.bag in ("shoulder bag", "crossbody"):
            drop = 0.06 if person.bag == "crossbody" else 0.02
            centre = paint.at(person.bag_side * (person.pelvis + bulk + 0.02), hip - drop, 0)
            paint.box(centre, paint.width(0.028, 0.08 * bag_w), 0.065 * bag_h, _BAG)
            paint.box(paint.below(centre, -0.03), paint.width(0.028, 0.08 * bag_w), 0.014, _BAG2)

    def head() -> None:
        r, centre, y = person.head, p[0], joints[0, 1]
        rings = np.sin(np.linspace(0, np.pi, 9))
        skull = np.stack(
            [y - 1.22 * r * np.cos(np.linspace(0, np.pi, 9)), r * rings, 1.08 * r * rings, 0 * rings + joints[0, 2]], 1
        )
        paint.limb(paint.at(0, neck - 0.01, lean), centre, r * 0.5, r * 0.5, _SKIN)
        if person.crown == "long hair" and facing:
            paint.box(paint.at(0, y - r * 1.0, joints[0, 2] - 0.6 * r), r * 1.15, r * 1.7, _HAIR)
            paint.limb(paint.at(0, neck - 0.01, lean), centre, r * 0.5, r * 0.5, _SKIN)
        hood = person.crown == "hood"
        outer = _SLEEVE if hood else _SKIN if person.crown == "bald" else _HAIR
        grow = 1.28 if hood else 1.0 if person.crown == "bald" else 1.08
        paint.disc(centre, paint.width(r, 1.08 * r) * grow, outer, 1.22 * r * grow)
        if outer != _SKIN:
            paint.wrap(skull, _SKIN, y + r * 0.5, y - r * 1.22, 0.0, 0.95 if hood else 1.25)
        if person.crown == "long hair" and not facing:
            paint.box(paint.at(0, y - r * 1.1, joints[0, 2] - 0.8 * r), r * 1.15, r * 1.9, _HAIR)
        if person.crown == "bun":
            paint.disc(paint.at(0, y + r * 0.75, joints[0, 2] - 1.15 * r), r * 0.55, _HAIR)
        if person.crown in ("cap", "beanie"):
            cap = person.crown == "cap"
            skull[:, 1:3] *= 1.14
            skull[:, 0] += r * (0.12 if cap else 0.2)
            paint.wrap(skull, _HAT, y + 1.42 * r, y + r * (0.42 if cap else 0.3))
            if cap:
                brim = paint.at(0, y + 0.42 * r, joints[0, 2] + 1.75 * r)
                paint.limb(paint.at(0, y + 0.5 * r, joints[0, 2] + 0.6 * r), brim, r * 0.32, r * 0.22, _HAT)
        if person.scarf:
            paint.limb(paint.at(-0.03, neck + 0.004, lean), paint.at(0.03, neck + 0.004, lean), 0.030, 0.030, _SCARF)

    def trunk_clothes() -> None:
        covered, _, flare, _ = _BOTTOMS[person.bottom]
        if flare:
            length = (hip - 0.045) / 2 * covered
            skirt = np.array(
                [
                    (hip - length, person.pelvis + flare, person.depth + flare, 0),
                    (hip + 0.03, person.pelvis, person.depth, 0),
                ]
            )
            paint.wrap(skirt, _BOTTOM, hip + 0.03, hip - length)
            if person.pattern == "hoops" or person.stripes > 4:
                paint.wrap(skirt, _BOTTOM2, hip - length + 0.045, hip - length + 0.015)
        else:
            paint.wrap(trunk, _BOTTOM, waist, hip - 0.04)
        paint.wrap(trunk, _TOP, neck, hem)
        if person.pattern == "hoops":
            edges = np.linspace(neck - 0.05, hem + 0.01, 2 * person.stripes + 1)
            for k in range(1, 2 * person.stripes, 2):
                paint.wrap(trunk, _TOP2, edges[k], edges[k + 1])
        elif person.pattern == "yoke":
            paint.wrap(trunk, _TOP2, neck, neck - 0.06 - person.print_box[1] * 0.6)
        elif person.pattern == "halves":
            paint.wrap(trunk, _TOP2, hip + 0.06 + person.print_box[1], hem)
        elif person.pattern in ("front print", "back print"):
            middle = 0.0 if person.pattern == "front print" else math.pi
            width, height = person.print_box
            paint.wrap(trunk, _TOP2, neck - 0.09, neck - 0.09 - 1.4 * height, middle, width)
        if person.open_front:
            paint.wrap(trunk, _INNER, neck, hem, 0.0, 0.35)
        if person.bag == "backpack":
            for side in (-1, 1):
                paint.wrap(trunk, _BAG, neck, neck - 0.17, side * 0.62, 0.13)
        elif person.bag == "crossbody":
            start, end = -person.bag_side * 0.6 * person.shoulder, person.bag_side * person.pelvis
            depth = person.depth if facing else -person.depth
            paint.limb(paint.at(start, neck - 0.01, lean), paint.at(0, (neck + hip) / 2, depth), 0.009, 0.009, _BAG)
            paint.limb(paint.at(0, (neck + hip) / 2, depth), paint.at(end, hip, 0), 0.009, 0.009, _BAG)
        elif person.bag == "shoulder bag":
            start = person.bag_side * 0.8 * person.shoulder
            paint.limb(paint.at(start, neck - 0.02, lean), paint.at(start * 1.05, hip + 0.02, 0), 0.008, 0.008, _BAG)

    behind = person.bag == "backpack" and facing
    side_behind = person.bag in ("shoulder bag", "crossbody") and person.bag_side * paint.sin > 0.3
    far_arm, near_arm = (0, 1) if paint.depths[1] < paint.depths[2] else (1, 0)
    far_leg, near_leg = (0, 1) if paint.depths[11] + paint.depths[9] < paint.depths[12] + paint.depths[10] else (1, 0)
    if behind or side_behind:
        bag_on_body()
    arm(far_arm)
    leg(far_leg)
    leg(near_leg)
    trunk_clothes()
    if abs(paint.sin) < 0.7:  # seen from front or back, both arms are beside the trunk
        arm(far_arm)
    head()
    if not (behind or side_behind):
        bag_on_body()
    arm(near_arm)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Standard normal noise on a coarse grid, enlarged smoothly to ``size``."""
    from PIL import Image

    coarse = Image.fromarray(rng.standard_normal(cells, dtype=np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _background(camera: _Camera, size: tuple[int, int], channels: int, rng: np.random.Generator) -> np.ndarray:
    """Wall or sky, ground and clutter (height, width, channels), in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFilter

    height, width = size
    light = camera.scene[:, :3] if channels == 3 else camera.scene[:, 3:]
    spread = 0.09 if channels == 3 else 0.07

    def paint(kind: int) -> tuple[int, ...]:
        value = light[kind] + rng.normal(0, spread) + rng.normal(0, 0.02, channels)
        return tuple((np.clip(value, 0.02, 0.98) * 255).astype(int).tolist())

    image = Image.new("RGB" if channels == 3 else "L", (width, height), paint(0))
    draw = ImageDraw.Draw(image)
    horizon = height * (camera.horizon + rng.normal(0, 0.05))
    for _ in range(rng.integers(0, 5)):  # poles, doors, windows, parked things
        x, w = rng.uniform(-0.1, 1.0) * width, rng.uniform(0.04, 0.35) * width
        y, h = rng.uniform(-0.1, 0.8) * height, rng.uniform(0.1, 0.8) * height
        draw.rectangle((x, y, x + w, y + h), fill=paint(int(rng.integers(2, 4))))
    draw.polygon(
        [(0, horizon), (width, horizon + rng.normal(0, 0.04) * height), (width, height), (0, height)], fill=paint(1)
    )
    if rng.random() < 0.5:
        a, b, c, d = (rng.uniform(0, 1, 4) * width).tolist()
        draw.polygon([(a, horizon), (b, horizon), (c, height), (d, height)], fill=paint(3))
    image = image.filter(ImageFilter.GaussianBlur(0.008 * height))
    scene = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    texture = 0.04 * _smooth_noise(rng, size, (8, 5)) + 0.02 * _smooth_noise(rng, size, (32, 16))
    return scene + texture[..., None]


def _render(
    person: _Person, camera: _Camera, size: tuple[int, int], infrared: bool, rng: np.random.Generator
) -> tuple["Image.Image", np.ndarray]:
    """One image, and where its joints are: (13, 2) pixels x, y, in the order of ``_JOINTS``."""
    from PIL import Image, ImageDraw, ImageFilter

    height, width = size
    reach = min(height, 2 * width)
    canvas = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), 0)
    draw = ImageDraw.Draw(canvas)
    unit = _SUPERSAMPLE * reach * camera.body * person.scale * rng.uniform(0.94, 1.06)
    elevation = camera.elevation + rng.normal(0, 0.03)
    yaw = rng.choice((0.0, math.pi, math.pi / 2, -math.pi / 2), p=(0.4, 0.3, 0.15, 0.15)) + rng.normal(0, 0.25)
    foot = np.array([width / 2 * _SUPERSAMPLE, height / 2 * _SUPERSAMPLE + 0.49 * unit * math.cos(elevation)])
    foot += rng.normal(0, (0.04, 0.02)) * _SUPERSAMPLE * reach * (0.5, 1)
    paint = _Painter(draw, _pose(person, rng), yaw, elevation, unit, foot)
    _paint_person(paint, person)
    if rng.random() < 0.1:  # something stands in front
        x, y = rng.uniform(-0.2, 0.9) * canvas.width, rng.uniform(0.68, 0.85) * canvas.height
        if rng.random() < 0.5:
            draw.rectangle((0, y, canvas.width, canvas.height), fill=_OCCLUDER)
        else:
            draw.rectangle((x, 0, x + rng.uniform(0.1, 0.3) * canvas.width, canvas.height), fill=_OCCLUDER)

    # Label map to light, with coverage as last channel: averaging both blends the figure's edge with the background.
    channels = 1 if infrared else 3
    table = np.ones((_LABELS, channels + 1), dtype=np.float32)
    if infrared:
        table[:, 0] = person.warmth + rng.normal(0, 0.02, _LABELS)
        table[_OCCLUDER, 0] = rng.uniform(0.1, 0.5)
    else:
        table[:, :3] = person.visible + rng.normal(0, 0.015, (_LABELS, 3))
        table[_OCCLUDER, :3] = camera.scene[rng.integers(4), :3]
    table[0] = 0
    table = (np.clip(table, 0, 1) * 255).astype(np.uint8)
    layers = [
        canvas.point(table[:, c].tolist() + [0] * (256 - _LABELS)).reduce(_SUPERSAMPLE) for c in range(channels + 1)
    ]
    figure = np.stack([np.asarray(layer) for layer in layers], -1).astype(np.float32) / 255

    folds = (
        1 + 0.03 * _smooth_noise(rng, size, (20, 10))[..., None] + 0.04 * _smooth_noise(rng, size, (4, 3))[..., None]
    )
    light = figure[..., :-1] * folds + (1 - figure[..., -1:]) * _background(camera, size, channels, rng)
    if infrared:
        low, high = 0.06 + rng.normal(0, 0.04), 0.95 + rng.normal(0, 0.05)  # the automatic gain control's limits
        light = np.clip((light - low) / (high - low), 0, 1) ** (camera.contrast * rng.uniform(0.8, 1.2))
        light = 1 - 0.9 * light if camera.inverted else light
    else:
        side = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
        light = light * (camera.gain * rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.12) * side)) * camera.tint
        light = (light - 0.4) * camera.contrast + 0.4 + rng.normal(0, 0.03)
    pixels = (np.clip(light, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if infrared else pixels)
    blur = camera.blur * rng.uniform(0.5, 1.6) * (1.2 if infrared else 1.0) * height / 128
    noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    noisy = noisy + 255 * camera.noise * rng.standard_normal(noisy.shape, dtype=np.float32)
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert("RGB")
    return image, paint.points / _SUPERSAMPLE
