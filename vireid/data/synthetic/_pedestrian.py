"""An identity's body, clothes and belongings, and the joints of a moment of its walk."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from vireid.nn.skeleton import PERSON_13

JOINTS = PERSON_13.names


class Label(IntEnum):
    """Content of a pixel. A body is drawn once as a map of these; a modality is a table from label to light."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    HAT = 3
    TOP = 4
    TOP2 = 5  # a garment's or a bag's second fabric
    INNER = 6  # what an open jacket shows
    SLEEVE = 7
    BOTTOM = 8
    BOTTOM2 = 9
    SHOES = 10
    BAG = 11
    BAG2 = 12
    SCARF = 13
    OCCLUDER = 14


class Top(NamedTuple):
    """Garment above the hip. Lengths are in body heights."""

    sleeve: int  # 0 none, 1 short, 2 long
    hem: float  # below the hip
    bulk: float
    warmth: float  # of the outside


class Bottom(NamedTuple):
    """Garment below the hip. Lengths are in body heights."""

    covered: float  # share of thigh and shin, 0 to 2
    bulk: float  # of the legs
    flare: float  # of a skirt at its hem; 0: trouser legs
    warmth: float


TOPS = {
    "tank": Top(0, 0.02, 0.000, 0.74),
    "tshirt": Top(1, 0.03, 0.002, 0.70),
    "shirt": Top(2, 0.03, 0.004, 0.63),
    "sweater": Top(2, 0.02, 0.009, 0.54),
    "jacket": Top(2, 0.05, 0.014, 0.44),
    "coat": Top(2, 0.20, 0.013, 0.40),
}
BOTTOMS = {
    "slim": Bottom(2.0, 0.000, 0.0, 0.62),
    "trousers": Bottom(2.0, 0.006, 0.0, 0.55),
    "wide": Bottom(2.0, 0.014, 0.0, 0.50),
    "shorts": Bottom(0.85, 0.009, 0.0, 0.60),
    "skirt": Bottom(0.90, 0.0, 0.045, 0.57),
    "long skirt": Bottom(1.70, 0.0, 0.060, 0.52),
}
_HEADS = ("short hair", "long hair", "bun", "bald", "cap", "beanie", "hood")
_PATTERNS = ("plain", "hoops", "yoke", "front print", "back print", "halves", "sleeves")
_BAGS = ("none", "backpack", "handbag", "shoulder bag", "crossbody", "trolley")
_COLORS = np.array(  # clothes are mostly dark or gray
    [
        *((25, 25, 28), (45, 47, 52), (90, 92, 95), (150, 150, 150), (225, 225, 220), (28, 36, 70), (60, 90, 150)),
        *((120, 150, 190), (150, 35, 40), (200, 70, 60), (40, 80, 50), (110, 120, 60), (95, 65, 45), (190, 165, 125)),
        *((210, 180, 60), (110, 60, 120), (220, 140, 160), (60, 140, 140)),
    ],
    dtype=np.float32,
)
_SKINS = np.array([(235, 200, 175), (215, 170, 140), (180, 130, 100), (130, 90, 65), (90, 60, 45)], dtype=np.float32)
_HAIRS = np.array([(25, 20, 20), (50, 35, 28), (95, 65, 40), (165, 130, 80), (140, 140, 140)], dtype=np.float32)


@dataclass(frozen=True)
class Person:
    """An identity. Lengths are in body heights."""

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
    visible: np.ndarray  # (labels, 3) color in [0, 1]
    warmth: np.ndarray  # (labels,) in [0, 1]

    @staticmethod
    def draw(rng: np.random.Generator) -> "Person":
        def pick(options: Iterable[str], weights: Sequence[float]) -> str:
            return str(rng.choice(list(options), p=np.array(weights) / sum(weights)))

        build = rng.uniform(0.75, 1.35)
        top = pick(TOPS, (1, 4, 3, 2, 3, 2))
        bottom = pick(BOTTOMS, (3, 4, 2, 3, 2, 1))
        pattern = pick(_PATTERNS, (2, 2, 2, 1, 1, 2, 2))
        crown = pick(_HEADS, (5, 4, 2, 1, 2, 2, 2))
        bag = pick(_BAGS, (3, 3, 2, 2, 2, 2))

        visible = _COLORS[rng.integers(len(_COLORS), size=len(Label))]
        gray = _COLORS.mean(1)
        for label, beside in (  # an edge that warmth shows is seen in color too
            (Label.TOP2, Label.TOP),
            (Label.BOTTOM, Label.TOP),
            (Label.BOTTOM2, Label.BOTTOM),
            (Label.INNER, Label.TOP),
            (Label.BAG, Label.TOP),
            (Label.BAG2, Label.BAG),
        ):
            apart = _COLORS[np.abs(gray - visible[beside].mean()) > 35]
            visible[label] = apart[rng.integers(len(apart))]
        visible[Label.SKIN], visible[Label.HAIR] = _SKINS[rng.integers(len(_SKINS))], _HAIRS[rng.integers(len(_HAIRS))]
        if pattern != "sleeves":
            visible[Label.SLEEVE] = visible[Label.TOP]
        visible = np.clip(visible / 255 + rng.normal(0, 0.03, visible.shape), 0.03, 0.97).astype(np.float32)

        def contrast() -> float:  # two fabrics of one garment differ a little in warmth, either way
            return float(rng.choice((-1, 1)) * rng.uniform(0.02, 0.08))

        warmth = np.full(len(Label), 0.3)
        warmth[Label.SKIN], warmth[Label.HAIR], warmth[Label.HAT] = 0.93, rng.uniform(0.45, 0.6), rng.uniform(0.35, 0.5)
        warmth[Label.TOP] = TOPS[top].warmth + rng.normal(0, 0.03)
        warmth[Label.TOP2] = warmth[Label.TOP] + contrast()
        warmth[Label.SLEEVE] = warmth[Label.TOP] + (contrast() if pattern == "sleeves" else 0)
        warmth[Label.INNER] = rng.uniform(0.66, 0.76)
        warmth[Label.BOTTOM] = BOTTOMS[bottom].warmth + rng.normal(0, 0.03)
        warmth[Label.BOTTOM2] = warmth[Label.BOTTOM] + contrast()
        warmth[Label.SHOES], warmth[Label.SCARF] = rng.uniform(0.3, 0.42), rng.uniform(0.42, 0.52)
        warmth[Label.BAG] = rng.uniform(0.18, 0.34)
        warmth[Label.BAG2] = warmth[Label.BAG] + contrast()
        cloth = [*(Label.HAT, Label.TOP, Label.TOP2, Label.SLEEVE, Label.INNER), *(Label.BOTTOM, Label.BOTTOM2)]
        cloth += [Label.SHOES, Label.SCARF]
        warmth[cloth] += 0.7 * (0.4 - visible[cloth].mean(1))  # dark cloth takes up more of the light
        return Person(
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
            side_stripe=BOTTOMS[bottom].flare == 0 and rng.random() < 0.25,
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


def pose(person: Person, rng: np.random.Generator) -> np.ndarray:
    """Draw a moment of a walk: 13 joints (x to the left, y up, z forward) in body heights, ordered as ``JOINTS``."""
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
