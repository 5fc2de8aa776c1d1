"""A posed, clothed body drawn as a map of labels: only shapes, the same for both modalities."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vireid.data.synthetic._pedestrian import BOTTOMS, TOPS, Label, Person

if TYPE_CHECKING:
    from PIL import ImageDraw


class Painter:
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
        """Return the pixels (…, 2) and nearness to the camera (…) of points (…, 3) of the body."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        across, near = x * self.cos + z * self.sin, z * self.cos - x * self.sin
        up = y * self.tilt[0] - near * self.tilt[1]
        return self.foot + self.unit * np.stack([across, -up], -1), near

    def at(self, x: float, y: float, z: float) -> np.ndarray:
        return self.project(np.array([x, y, z]))[0]

    def below(self, p: np.ndarray, drop: float) -> np.ndarray:
        """Return the pixel this many body heights further down."""
        return p + np.array([0.0, drop * self.unit])

    def width(self, side: float, front: float) -> float:
        """Return the half width seen of something with these half widths."""
        return math.hypot(side * self.cos, front * self.sin)

    def disc(self, p: np.ndarray, rx: float, label: int, ry: float | None = None) -> None:
        rx, ry = rx * self.unit, (rx if ry is None else ry) * self.unit
        self.draw.ellipse((p[0] - rx, p[1] - ry, p[0] + rx, p[1] + ry), fill=label)

    def box(self, p: np.ndarray, rx: float, ry: float, label: int) -> None:
        rx, ry = rx * self.unit, ry * self.unit
        self.draw.rounded_rectangle((p[0] - rx, p[1] - ry, p[0] + rx, p[1] + ry), radius=min(rx, ry) * 0.4, fill=label)

    def limb(self, p: np.ndarray, q: np.ndarray, rp: float, rq: float, label: int) -> None:
        """Paint a tapered limb from p to q."""
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
        center = (middle + turn + math.pi) % (2 * math.pi) - math.pi
        center = 0.0 if half >= math.pi else center
        left, right = max(-math.pi / 2, center - half), min(math.pi / 2, center + half)
        if right - left < 0.05:
            return
        axis = self.project(np.stack([np.zeros_like(y), y, np.interp(y, heights, offset)], -1))[0]
        radius = np.hypot(a * self.cos, b * self.sin) * self.unit
        edge = np.concatenate([axis, axis[::-1]])
        edge[:, 0] += np.concatenate([radius * math.sin(left), radius[::-1] * math.sin(right)])
        self.draw.polygon(edge.ravel().tolist(), fill=label)


def paint_person(paint: Painter, person: Person) -> None:
    """Paint a clothed body, from what is far to what is near."""
    body = _measure(paint, person)
    far_arm, near_arm = (0, 1) if paint.depths[1] < paint.depths[2] else (1, 0)
    far_leg, near_leg = (0, 1) if paint.depths[11] + paint.depths[9] < paint.depths[12] + paint.depths[10] else (1, 0)
    beside = person.bag in ("shoulder bag", "crossbody")
    bag_is_behind = (person.bag == "backpack" and body.facing) or (beside and person.bag_side * paint.sin > 0.3)
    if bag_is_behind:
        _paint_bag(paint, person, body)
    _paint_arm(paint, person, body, far_arm)
    _paint_leg(paint, person, far_leg)
    _paint_leg(paint, person, near_leg)
    _paint_trunk(paint, person, body)
    if abs(paint.sin) < 0.7:  # seen from front or back, both arms are beside the trunk
        _paint_arm(paint, person, body, far_arm)
    _paint_head(paint, person, body)
    if not bag_is_behind:
        _paint_bag(paint, person, body)
    _paint_arm(paint, person, body, near_arm)


@dataclass(frozen=True)
class _Measures:
    """Places of the parts of a posed body. Lengths and heights are in body heights."""

    hip: float
    waist: float
    neck: float
    hem: float  # of the top
    lean: float  # shoulders' offset to the front
    bulk: float  # of the top
    trunk: np.ndarray  # (6, 4) profile as in Painter.wrap
    facing: bool  # the camera rather than away from it


def _measure(paint: Painter, person: Person) -> _Measures:
    joints, top, bulk = paint.joints, TOPS[person.top], TOPS[person.top].bulk
    hip, neck, lean = joints[7:9, 1].mean(), joints[1:3, 1].mean() + 0.025, joints[1, 2]
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
    return _Measures(hip, waist, neck, hip - top.hem, lean, bulk, trunk, facing=paint.cos > 0)


def _paint_arm(paint: Painter, person: Person, body: _Measures, i: int) -> None:
    """Paint arm 0 (left) or 1 (right), its sleeve and what its hand carries."""
    shoulder, elbow, wrist = paint.points[1 + i], paint.points[3 + i], paint.points[5 + i]
    r, bulk, sleeve = person.limb, body.bulk, TOPS[person.top].sleeve
    paint.limb(shoulder, elbow, r * 1.05, r * 0.85, Label.SKIN)
    paint.limb(elbow, wrist, r * 0.85, r * 0.65, Label.SKIN)
    paint.disc(wrist + (wrist - elbow) * 0.12, r * 0.85, Label.SKIN)
    if sleeve:
        end = elbow if sleeve == 2 else shoulder + 0.72 * (elbow - shoulder)
        paint.limb(shoulder, end, r * 1.15 + bulk, r * (0.95 if sleeve == 2 else 1.15) + bulk, Label.SLEEVE)
    if sleeve == 2:
        paint.limb(elbow, wrist, r * 0.95 + bulk, r * 0.8 + bulk, Label.SLEEVE)
    if person.bag_side != (1, -1)[i]:
        return
    width, height = person.bag_size
    if person.bag == "handbag":
        low = paint.below(wrist, 0.10)
        paint.limb(wrist, low, 0.006, 0.006, Label.BAG)
        paint.box(paint.below(low, 0.03), paint.width(0.03, 0.075 * width), 0.05 * height, Label.BAG)
        paint.box(paint.below(low, 0.03), paint.width(0.031, 0.076 * width), 0.012, Label.BAG2)
    if person.bag == "trolley":
        low = paint.at(*(paint.joints[5 + i] * (1, 0, 1) + (0, 0.13 * height, -0.12)))
        paint.limb(wrist, low, 0.006, 0.006, Label.BAG2)
        paint.box(low, paint.width(0.07 * width, 0.045), 0.13 * height, Label.BAG)
        paint.box(paint.below(low, -0.05), paint.width(0.07 * width, 0.045), 0.012, Label.BAG2)


def _paint_leg(paint: Painter, person: Person, i: int) -> None:
    """Paint leg 0 (left) or 1 (right), its shoe and its trouser leg; a skirt belongs to the trunk."""
    hip, knee, ankle = paint.points[7 + i], paint.points[9 + i], paint.points[11 + i]
    r, (covered, bulk, flare, _) = person.limb, BOTTOMS[person.bottom]
    paint.limb(hip, knee, r * 1.75, r * 1.25, Label.SKIN)
    paint.limb(knee, ankle, r * 1.2, r * 0.75, Label.SKIN)
    toe = paint.at(*(paint.joints[11 + i] + (0, -0.022, 0.075)))
    paint.limb(paint.below(ankle, 0.012), toe, 0.024, 0.016, Label.SHOES)
    if person.boots:
        paint.limb(ankle + person.boots * (knee - ankle), ankle, r * 1.15, r * 1.1, Label.SHOES)
    if flare:
        return
    end = knee if covered >= 1 else hip + covered * (knee - hip)
    paint.limb(hip, end, r * 1.85 + bulk * 0.5, r * 1.3 + bulk, Label.BOTTOM)
    if covered > 1:
        tucked = person.boots == 0.75 and person.bottom == "slim"
        stop = knee + (0.3 if tucked else 0.92) * (ankle - knee)
        paint.limb(knee, stop, r * 1.3 + bulk, r * (1.2 if tucked else 0.95) + bulk * 1.2, Label.BOTTOM)
    if person.side_stripe:
        outwards = paint.yaw + (math.pi / 2 if i == 0 else -math.pi / 2)
        if math.cos(outwards) > -0.3:  # else the leg hides it
            shift = np.array([math.sin(outwards) * r * 1.1 * paint.unit, 0.0])
            paint.limb(hip + shift * 1.4, end + shift, 0.010, 0.010, Label.BOTTOM2)
            if covered > 1:
                paint.limb(knee + shift, ankle + shift * 0.7, 0.010, 0.010, Label.BOTTOM2)


def _paint_trunk(paint: Painter, person: Person, body: _Measures) -> None:
    """Paint skirt or waistband, top and its pattern, and the straps of a bag."""
    hip, neck, lean = body.hip, body.neck, body.lean
    covered, _, flare, _ = BOTTOMS[person.bottom]
    if flare:
        end = hip - (hip - 0.045) / 2 * covered
        skirt = np.array(
            [
                (end, person.pelvis + flare, person.depth + flare, 0),
                (hip + 0.03, person.pelvis, person.depth, 0),
            ]
        )
        paint.wrap(skirt, Label.BOTTOM, hip + 0.03, end)
        if person.pattern == "hoops" or person.stripes > 4:
            paint.wrap(skirt, Label.BOTTOM2, end + 0.045, end + 0.015)
    else:
        paint.wrap(body.trunk, Label.BOTTOM, body.waist, hip - 0.04)

    paint.wrap(body.trunk, Label.TOP, neck, body.hem)
    if person.pattern == "hoops":
        edges = np.linspace(neck - 0.05, body.hem + 0.01, 2 * person.stripes + 1)
        for k in range(1, 2 * person.stripes, 2):
            paint.wrap(body.trunk, Label.TOP2, edges[k], edges[k + 1])
    elif person.pattern == "yoke":
        paint.wrap(body.trunk, Label.TOP2, neck, neck - 0.06 - person.print_box[1] * 0.6)
    elif person.pattern == "halves":
        paint.wrap(body.trunk, Label.TOP2, hip + 0.06 + person.print_box[1], body.hem)
    elif person.pattern in ("front print", "back print"):
        middle = 0.0 if person.pattern == "front print" else math.pi
        width, height = person.print_box
        paint.wrap(body.trunk, Label.TOP2, neck - 0.09, neck - 0.09 - 1.4 * height, middle, width)
    if person.open_front:
        paint.wrap(body.trunk, Label.INNER, neck, body.hem, 0.0, 0.35)

    if person.bag == "backpack":
        for side in (-1, 1):
            paint.wrap(body.trunk, Label.BAG, neck, neck - 0.17, side * 0.62, 0.13)
    elif person.bag == "crossbody":
        over = paint.at(-person.bag_side * 0.6 * person.shoulder, neck - 0.01, lean)
        middle_of_trunk = paint.at(0, (neck + hip) / 2, person.depth if body.facing else -person.depth)
        paint.limb(over, middle_of_trunk, 0.009, 0.009, Label.BAG)
        paint.limb(middle_of_trunk, paint.at(person.bag_side * person.pelvis, hip, 0), 0.009, 0.009, Label.BAG)
    elif person.bag == "shoulder bag":
        across = person.bag_side * 0.8 * person.shoulder
        over = paint.at(across, neck - 0.02, lean)
        paint.limb(over, paint.at(across * 1.05, hip + 0.02, 0), 0.008, 0.008, Label.BAG)


def _paint_head(paint: Painter, person: Person, body: _Measures) -> None:
    """Paint neck, head, hair or hat, and scarf."""
    r, (_, y, z) = person.head, paint.joints[0]
    turns = np.linspace(0, np.pi, 9)
    skull = np.stack([y - 1.22 * r * np.cos(turns), r * np.sin(turns), 1.08 * r * np.sin(turns), np.full(9, z)], 1)
    if person.crown == "long hair" and body.facing:
        paint.box(paint.at(0, y - r * 1.0, z - 0.6 * r), r * 1.15, r * 1.7, Label.HAIR)
    paint.limb(paint.at(0, body.neck - 0.01, body.lean), paint.points[0], r * 0.5, r * 0.5, Label.SKIN)
    outer, grow, face = Label.HAIR, 1.08, 1.25
    if person.crown == "bald":
        outer, grow, face = Label.SKIN, 1.0, 0.0
    elif person.crown == "hood":
        outer, grow, face = Label.SLEEVE, 1.28, 0.95
    paint.disc(paint.points[0], paint.width(r, 1.08 * r) * grow, outer, 1.22 * r * grow)
    if face:
        paint.wrap(skull, Label.SKIN, y + r * 0.5, y - r * 1.22, 0.0, face)
    if person.crown == "long hair" and not body.facing:
        paint.box(paint.at(0, y - r * 1.1, z - 0.8 * r), r * 1.15, r * 1.9, Label.HAIR)
    if person.crown == "bun":
        paint.disc(paint.at(0, y + r * 0.75, z - 1.15 * r), r * 0.55, Label.HAIR)
    if person.crown in ("cap", "beanie"):
        cap = person.crown == "cap"
        hat = skull * (1, 1.14, 1.14, 1) + (r * (0.12 if cap else 0.2), 0, 0, 0)
        paint.wrap(hat, Label.HAT, y + 1.42 * r, y + r * (0.42 if cap else 0.3))
        if cap:
            brim = paint.at(0, y + 0.42 * r, z + 1.75 * r)
            paint.limb(paint.at(0, y + 0.5 * r, z + 0.6 * r), brim, r * 0.32, r * 0.22, Label.HAT)
    if person.scarf:
        ends = [paint.at(x, body.neck + 0.004, body.lean) for x in (-0.03, 0.03)]
        paint.limb(ends[0], ends[1], 0.030, 0.030, Label.SCARF)


def _paint_bag(paint: Painter, person: Person, body: _Measures) -> None:
    """Paint a bag that hangs on the body; a carried one belongs to its arm."""
    width, height = person.bag_size
    if person.bag == "backpack":
        center = paint.at(0, body.neck - 0.16, body.lean * 0.6 - person.depth - 0.045)
        paint.box(center, paint.width(0.085 * width, 0.055), 0.115 * height, Label.BAG)
        if not body.facing:
            paint.box(paint.below(center, 0.05), 0.06 * width * abs(paint.cos), 0.035 * height, Label.BAG2)
    elif person.bag in ("shoulder bag", "crossbody"):
        drop = 0.06 if person.bag == "crossbody" else 0.02
        center = paint.at(person.bag_side * (person.pelvis + body.bulk + 0.02), body.hip - drop, 0)
        paint.box(center, paint.width(0.028, 0.08 * width), 0.065 * height, Label.BAG)
        paint.box(paint.below(center, -0.03), paint.width(0.028, 0.08 * width), 0.014, Label.BAG2)
