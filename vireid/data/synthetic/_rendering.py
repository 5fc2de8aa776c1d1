"""A pedestrian as a camera sees it: the scene behind, the light of either modality, blur and noise."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vireid.data.synthetic._figure import Painter, paint_person
from vireid.data.synthetic._pedestrian import Label, Person, pose

if TYPE_CHECKING:
    from PIL import Image

_SUPERSAMPLE = 3


@dataclass(frozen=True)
class Camera:
    """Properties of a camera, the same in all its images. Lengths are in image heights."""

    elevation: float  # radians above the horizon
    horizon: float
    body: float  # height of an average person
    tint: np.ndarray  # (3,)
    gain: float
    contrast: float
    blur: float
    noise: float
    scene: np.ndarray  # (4, 4): color and temperature of sky or wall, ground, and two kinds of clutter
    inverted: bool  # thermal: warm is dark

    @staticmethod
    def draw(rng: np.random.Generator, *, inverted: bool) -> "Camera":
        scene = np.empty((4, 4), dtype=np.float32)
        scene[:, :3] = rng.uniform(0.25, 0.75, (4, 1)) + rng.normal(0, 0.04, (4, 3))
        scene[:, 3] = rng.uniform(0.1, (0.3, 0.35, 0.4, 0.5))
        return Camera(
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


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Return standard normal noise on a coarse grid, enlarged smoothly to ``size``."""
    from PIL import Image

    coarse = Image.fromarray(rng.standard_normal(cells, dtype=np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _background(camera: Camera, size: tuple[int, int], channels: int, rng: np.random.Generator) -> np.ndarray:
    """Draw wall or sky, ground and clutter (height, width, channels), in [0, 1]."""
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


def render(
    person: Person, camera: Camera, size: tuple[int, int], infrared: bool, rng: np.random.Generator
) -> tuple["Image.Image", np.ndarray]:
    """Draw one image, and return it with its joints (13, 3) in the order of ``JOINTS``.

    A joint is x, y in pixels from the image's left and top edge, and 1 if visible, else 0: outside the image or behind
    what stands in front. A joint behind the person's own body counts as visible.
    """
    labels, joints = _draw_labels(person, camera, size, rng)
    return _expose(labels, person, camera, size, infrared, rng), joints


def _draw_labels(
    person: Person, camera: Camera, size: tuple[int, int], rng: np.random.Generator
) -> tuple["Image.Image", np.ndarray]:
    """Draw a map of the person's labels, ``_SUPERSAMPLE`` times larger; also return the joints in image pixels."""
    from PIL import Image, ImageDraw

    height, width = size
    reach = min(height, 2 * width)
    canvas = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), 0)
    draw = ImageDraw.Draw(canvas)
    unit = _SUPERSAMPLE * reach * camera.body * person.scale * rng.uniform(0.94, 1.06)
    elevation = camera.elevation + rng.normal(0, 0.03)
    yaw = rng.choice((0.0, math.pi, math.pi / 2, -math.pi / 2), p=(0.4, 0.3, 0.15, 0.15)) + rng.normal(0, 0.25)
    foot = np.array([width / 2 * _SUPERSAMPLE, height / 2 * _SUPERSAMPLE + 0.49 * unit * math.cos(elevation)])
    foot += rng.normal(0, (0.04, 0.02)) * _SUPERSAMPLE * reach * (0.5, 1)
    paint = Painter(draw, pose(person, rng), yaw, elevation, unit, foot)
    paint_person(paint, person)
    if rng.random() < 0.1:  # something stands in front
        x, y = rng.uniform(-0.2, 0.9) * canvas.width, rng.uniform(0.68, 0.85) * canvas.height
        if rng.random() < 0.5:
            draw.rectangle((0, y, canvas.width, canvas.height), fill=Label.OCCLUDER)
        else:
            draw.rectangle((x, 0, x + rng.uniform(0.1, 0.3) * canvas.width, canvas.height), fill=Label.OCCLUDER)
    # Pillow cuts off the fractions of what it draws, so that it is centered, on average, on its place from the edges.
    points = paint.points
    inside = ((points >= 0) & (points < canvas.size)).all(1)
    column, row = np.clip(points.astype(int), 0, np.array(canvas.size) - 1).T
    visible = inside & (np.asarray(canvas)[row, column] != Label.OCCLUDER)
    return canvas, np.column_stack([points / _SUPERSAMPLE, visible]).astype(np.float32)


def _expose(
    labels: "Image.Image",
    person: Person,
    camera: Camera,
    size: tuple[int, int],
    infrared: bool,
    rng: np.random.Generator,
) -> "Image.Image":
    """Return the image of a map of labels in one modality, in front of a background."""
    from PIL import Image, ImageFilter

    height, width = size
    # Label map to light, with coverage as last channel: averaging both blends the figure's edge with the background.
    channels = 1 if infrared else 3
    table = np.ones((len(Label), channels + 1), dtype=np.float32)
    if infrared:
        table[:, 0] = person.warmth + rng.normal(0, 0.02, len(Label))
        table[Label.OCCLUDER, 0] = rng.uniform(0.1, 0.5)
    else:
        table[:, :3] = person.visible + rng.normal(0, 0.015, (len(Label), 3))
        table[Label.OCCLUDER, :3] = camera.scene[rng.integers(4), :3]
    table[Label.BACKGROUND] = 0
    table = (np.clip(table, 0, 1) * 255).astype(np.uint8)
    unused = [0] * (256 - len(Label))
    layers = [labels.point(table[:, c].tolist() + unused).reduce(_SUPERSAMPLE) for c in range(channels + 1)]
    figure = np.stack([np.asarray(layer) for layer in layers], -1).astype(np.float32) / 255

    folds = 1 + 0.03 * _smooth_noise(rng, size, (20, 10)) + 0.04 * _smooth_noise(rng, size, (4, 3))
    light = figure[..., :-1] * folds[..., None] + (1 - figure[..., -1:]) * _background(camera, size, channels, rng)
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
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert("RGB")
