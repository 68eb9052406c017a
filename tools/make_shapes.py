"""Writes a small detection data set in COCO format: textured objects over cluttered ground.

Every picture is a function of (seed, split, number), so the same command writes the same files, and
a larger data set begins with the pictures of a smaller one. Objects are drawn from signed distances
to their outline, which give smooth edges, shaded rims and soft shadows alike. Later objects hide
earlier ones; a box is the extent of what is still visible. The training annotations can be damaged
by given rates, with the clean ones kept beside them; the pictures stay the same.
"""

import argparse
import concurrent.futures
import functools
import io
import json
import math
import multiprocessing
import os
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

CATEGORIES = {1: "disc", 2: "ring", 3: "square", 5: "triangle", 8: "star", 13: "cross"}
SPLITS = ("train", "val")
TEXTURES = ("dots", "stripes", "checks", "gradient", "noise", "rings")
FAVOURITE = {  # what an object mostly wears; all objects and clutter wear every texture
    "disc": "dots",
    "ring": "rings",
    "square": "checks",
    "triangle": "stripes",
    "star": "gradient",
    "cross": "noise",
}
RADIUS = {"disc": 0.5, "ring": 0.5, "square": 0.57, "triangle": 0.61, "star": 0.56, "cross": 0.54}
HUES = (0.03, 0.07, 0.1, 0.13, 0.2, 0.28, 0.36, 0.48, 0.57, 0.63, 0.8)  # of grounds: earth to sky
MIN_VISIBLE = 0.35  # of an object's area; what shows less has no annotation
MIN_SIDE = 9  # pixels; a visible strip narrower than this has none either


class Scene(NamedTuple):
    """A drawn picture and the truth about it.

    Attributes:
      image: [S, S, 3] uint8 RGB.
      owner: [S, S] int32, the object seen at a pixel; -1 where it is ground or clutter.
      names: class name of each object, in drawing order.
      areas: [n] int, pixels of each whole object, hidden ones and those off the picture included.
    """

    image: np.ndarray
    owner: np.ndarray
    names: list[str]
    areas: np.ndarray


class Light(NamedTuple):
    """Where light comes from: a unit vector towards it (y down), and its strength in [0, 1]."""

    x: float
    y: float
    strength: float


def smooth_noise(rng: np.random.Generator, height: int, width: int, rows: float, columns: float):
    """Returns [height, width] float32 noise in [0, 1] with about `rows` x `columns` bumps."""
    grid = rng.random((max(2, round(rows) + 1), max(2, round(columns) + 1)), dtype=np.float32)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)


def fractal_noise(rng: np.random.Generator, size: int, bumps: float, stretch: float = 1.0):
    """Returns [size, size] float32 noise in about [0, 1]: octaves of ever finer, weaker bumps."""
    total, weight, scale = np.zeros((size, size), np.float32), 0.0, 1.0
    while bumps < size / 2:
        total += scale * smooth_noise(rng, size, size, bumps, bumps * stretch)
        weight, scale, bumps = weight + scale, scale * 0.55, bumps * 2
    spread = total / max(weight, 1e-6) - 0.5
    return np.clip(0.5 + 1.8 * spread, 0, 1)


def random_color(rng: np.random.Generator, saturation=(0.15, 0.8), value=(0.2, 0.95), hue=None):
    """Returns [3] float32 RGB in [0, 1]."""
    h = rng.random() if hue is None else hue + rng.normal(0, 0.06)
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.abs((h + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return (v * (1 - s + s * np.clip(ramp, 0, 1))).astype(np.float32)


def blend(low: np.ndarray, high: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Mixes two colours (or pictures) by amount [..., no channel axis] in [0, 1]."""
    return low + (high - low) * amount[..., None]


def polygon(x: np.ndarray, y: np.ndarray, points: int, notch: float) -> np.ndarray:
    """Signed distance to a star of outer radius 1 and inner radius `notch`.

    With notch = cos(pi / points) the sides are straight: a regular polygon.
    """
    radius, sector = np.hypot(x, y), 2 * math.pi / points
    angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    edge = np.array([notch * math.cos(sector / 2) - 1, notch * math.sin(sector / 2)])
    edge /= np.hypot(*edge)
    return (radius * np.cos(angle) - 1) * edge[1] - radius * np.sin(angle) * edge[0]


def outline(name: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the signed distance (negative inside) to a thing of radius 1."""
    radius = np.hypot(x, y)
    if name == "disc":
        return radius - 1
    if name == "ring":
        hole = rng.uniform(0.46, 0.62)
        return np.abs(radius - (1 + hole) / 2) - (1 - hole) / 2
    if name == "square":
        return polygon((x + y) * math.sqrt(0.5), (x - y) * math.sqrt(0.5), 4, math.sqrt(0.5))
    if name == "triangle":
        return polygon(x, y + 0.2, 3, 0.5)
    if name == "star":
        return polygon(x, y, 5, rng.uniform(0.4, 0.5))
    if name == "cross":
        arm = rng.uniform(0.26, 0.36)
        return np.minimum(
            np.maximum(abs(x) - 1, abs(y) - arm), np.maximum(abs(x) - arm, abs(y) - 1)
        )
    if name == "pebble":
        angle, bump = np.arctan2(y, x), np.zeros_like(x)
        for waves in (1, 2, 3, 5):
            bump += rng.uniform(0.15, 0.3) / waves**0.5 * np.cos(waves * angle + rng.uniform(0, 7))
        return radius - 0.7 * (1 + bump)
    if name == "leaf":
        offset = rng.uniform(0.7, 2.0)
        return np.hypot(x, np.abs(y) + offset) - math.hypot(1, offset)
    bend = rng.uniform(0, 0.3) * np.sin(rng.uniform(1, 4) * x + rng.uniform(0, 7))  # a twig
    return np.hypot(np.maximum(np.abs(x) - 1, 0), y - bend) - rng.uniform(0.03, 0.1)


def texture(
    name: str, x: np.ndarray, y: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns a pattern in [0, 1] over coordinates in units of `radius` pixels."""
    if name == "gradient":
        turn = rng.uniform(0, 2 * math.pi)
        return np.clip(0.5 + 0.55 * (x * math.cos(turn) + y * math.sin(turn)), 0, 1)
    if name == "noise":
        size = x.shape[0]
        return fractal_noise(rng, size, max(2.0, size / radius * rng.uniform(1, 3)))
    # No finer than six pixels a period: what a camera could not resolve would be mere grain.
    waves = min(rng.uniform(3, 6), radius / 3) * math.pi
    sharpness = min(rng.uniform(1.5, 6), max(1.5, radius / 8))
    shift = rng.uniform(0, 2 * math.pi, 2)
    if name == "stripes":
        wave = np.sin(waves * x + shift[0])
    elif name == "checks":
        wave = 1.4 * np.sin(0.7 * waves * x + shift[0]) * np.sin(0.7 * waves * y + shift[1])
    elif name == "dots":
        wave = np.cos(0.8 * waves * x + shift[0]) + np.cos(0.8 * waves * y + shift[1]) - 0.7
    else:
        wave = np.sin(0.8 * waves * np.hypot(x, y) + shift[0])
    return 0.5 + 0.5 * np.tanh(sharpness * wave)


def window(canvas: np.ndarray, center: tuple[int, int], half: int):
    """Returns (part of the canvas, part of the stamp) for a stamp of 2 * half + 1 pixels a side."""
    spans = []
    for middle, length in zip(center, canvas.shape, strict=False):
        start = max(0, middle - half)
        stop = max(start, min(length, middle + half + 1))
        spans.append((slice(start, stop), slice(start - middle + half, stop - middle + half)))
    return tuple(s[0] for s in spans), tuple(s[1] for s in spans)


def paint(
    canvas: np.ndarray,
    name: str,
    center: tuple[int, int],
    radius: float,
    angle: float,
    pattern: str,
    colors: tuple[np.ndarray, np.ndarray],
    light: Light,
    rng: np.random.Generator,
) -> tuple[tuple[slice, slice], np.ndarray, int]:
    """Paints one thing with its shadow on the canvas [S, S, 3], in place.

    Returns the touched part of the canvas, which of its pixels the thing covers by half or more,
    and the number of pixels it has in all, on and off the canvas.
    """
    half = math.ceil(1.35 * radius) + 3
    py, px = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    cos, sin = math.cos(angle), math.sin(angle)
    slant, squeeze = rng.uniform(-0.12, 0.12), rng.uniform(0.85, 1.15)
    y = (cos * py - sin * px) / radius
    x = (cos * px + sin * py) / radius * squeeze + slant * y
    distance = outline(name, x, y, rng)
    slope_y, slope_x = np.gradient(distance)
    steepness = np.hypot(slope_x, slope_y) + 1e-4
    distance = distance / steepness  # pixels
    alpha = np.clip(0.5 - distance, 0, 1)

    color = blend(*colors, texture(pattern, x, y, radius, rng))
    grain = smooth_noise(rng, 2 * half + 1, 2 * half + 1, half / 2, half / 2) - 0.5
    rim = np.exp(-((np.minimum(distance, 0) / max(1.5, 0.12 * radius)) ** 2))
    facing = (slope_x * light.x + slope_y * light.y) / steepness
    side = (px * light.x + py * light.y) / radius
    shade = 1 + light.strength * (0.5 * rim * facing + 0.3 * side) + 0.25 * grain
    color = np.clip(color * shade[..., None], 0, 1)

    drop = rng.uniform(0.05, 0.14) * radius + 1
    below = (center[0] - round(light.y * drop), center[1] - round(light.x * drop))
    on, part = window(canvas, below, half)
    shadow = np.clip(0.5 - distance / (2 + 0.15 * radius), 0, 1)[part]
    canvas[on] *= 1 - (0.25 + 0.4 * light.strength) * shadow[..., None]

    on, part = window(canvas, center, half)
    canvas[on] = blend(canvas[on], color[part], alpha[part])
    return on, alpha[part] >= 0.5, int((alpha >= 0.5).sum())


def ground(rng: np.random.Generator, size: int, hue: float) -> np.ndarray:
    """Returns [size, size, 3] float32 textured ground: two materials that meet in patches."""
    materials = []
    for tone in (hue, float(rng.choice(HUES))):
        stretch = math.exp(rng.normal(0, 0.8))
        fine = fractal_noise(rng, size, rng.uniform(4, 24), stretch)
        dark = random_color(rng, (0.1, 0.55), (0.15, 0.6), tone)
        bright = random_color(rng, (0.05, 0.5), (0.4, 0.95), tone)
        material = blend(dark, bright, fine)
        if rng.random() < 0.4:
            y, x = (np.mgrid[:size, :size] / size * 2 - 1).astype(np.float32)
            turn = rng.uniform(0, math.pi)
            x, y = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
            x = x + 0.15 * fractal_noise(rng, size, 3)
            kind = str(rng.choice(["stripes", "checks", "dots"]))
            layer = texture(kind, rng.uniform(1, 3) * x, rng.uniform(1, 3) * y, size / 2, rng)
            material = material * (1 - rng.uniform(0.15, 0.4) * layer[..., None])
        materials.append(material)
    patches = fractal_noise(rng, size, rng.uniform(1, 4))
    border = rng.uniform(0.35, 0.65)
    return blend(
        materials[0], materials[1], 0.5 + 0.5 * np.tanh((patches - border) * rng.uniform(4, 25))
    )


def clutter(
    canvas: np.ndarray, rng: np.random.Generator, light: Light, hue: float, count: int, large: float
) -> np.ndarray:
    """Scatters things of no class over the canvas, in place; returns [S, S] bool where they lie."""
    size = canvas.shape[0]
    covered = np.zeros((size, size), bool)
    for _ in range(count):
        name = str(rng.choice(["pebble", "leaf", "twig"], p=[0.4, 0.35, 0.25]))
        radius = math.exp(rng.uniform(math.log(4), math.log(large)))
        near = hue if rng.random() < 0.5 else None
        colors = (
            random_color(rng, (0.1, 0.6), (0.15, 0.6), near),
            random_color(rng, (0.1, 0.6), (0.3, 0.9), near),
        )
        center = (int(rng.integers(size)), int(rng.integers(size)))
        turn, pattern = rng.uniform(0, 2 * math.pi), str(rng.choice(TEXTURES))
        on, inside, _ = paint(canvas, name, center, radius, turn, pattern, colors, light, rng)
        covered[on] |= inside
    return covered


def object_colors(rng: np.random.Generator, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws two colours that, most of the time, stand out from the mean colour behind them."""
    for _ in range(6):
        first = random_color(rng, (0.1, 0.9), (0.2, 0.65))
        second = random_color(rng, (0.05, 0.85), (0.55, 1.0))
        if np.abs((first + second) / 2 - behind).mean() > 0.13 and second.sum() > first.sum() + 0.5:
            break
    return first, second


def place(
    rng: np.random.Generator, size: int, side: float, taken: list[tuple[float, float, float]]
) -> tuple[int, int]:
    """Draws where an object goes, (y, x), such that it does not bury or sit wholly on another."""
    margin = 0.3 * side
    for _ in range(12):
        y, x = rng.uniform(margin, size - margin, 2)
        hidden = 0.0
        for other_y, other_x, other in taken:
            reach = (side + other) / 2
            shared = max(0, reach - abs(y - other_y)) * max(0, reach - abs(x - other_x))
            hidden = max(hidden, shared / min(side, other) ** 2)
        if hidden < 0.45:
            break
    return int(y), int(x)


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draws a picture of 1 to 7 objects."""
    hue, turn = float(rng.choice(HUES)), rng.uniform(0, 2 * math.pi)
    light = Light(math.cos(turn), math.sin(turn), rng.uniform(0.25, 0.95))
    canvas = ground(rng, size, hue)
    area = (size / 256) ** 2
    clutter(canvas, rng, light, hue, round(rng.integers(8, 40) * area), 42)

    count = int(np.clip(rng.poisson(3.1) + 1, 1, 7))
    limits = np.array([(16, 31), (33, 92), (100, 172)], np.float64)[
        rng.choice(3, count, p=[0.22, 0.49, 0.29])
    ]
    sides = np.exp(rng.uniform(np.log(limits[:, 0]), np.log(limits[:, 1])))
    sides = np.sort(np.minimum(sides, 0.67 * size))[::-1]  # or the large would bury the small
    owner = np.full((size, size), -1, np.int32)
    names, areas = [], []
    taken: list[tuple[float, float, float]] = []
    for index, side in enumerate(sides.tolist()):
        name = str(rng.choice(list(CATEGORIES.values())))
        y, x = place(rng, size, side, taken)
        taken.append((y, x, side))
        reach = math.ceil(side / 2)
        behind = canvas[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach].mean((0, 1))
        pattern = FAVOURITE[name] if rng.random() < 0.65 else str(rng.choice(TEXTURES))
        radius, angle = RADIUS[name] * side, rng.uniform(-0.6, 0.6)
        colors = object_colors(rng, behind)
        on, inside, whole = paint(canvas, name, (y, x), radius, angle, pattern, colors, light, rng)
        owner[on][inside] = index
        names.append(name)
        areas.append(whole)
    owner[clutter(canvas, rng, light, hue, round(rng.integers(0, 7) * area), 16)] = -1
    return Scene(photograph(canvas, rng, light), owner, names, np.array(areas))


def photograph(canvas: np.ndarray, rng: np.random.Generator, light: Light) -> np.ndarray:
    """Takes the picture: uneven light, exposure, colour cast, a little blur and noise; uint8."""
    size = canvas.shape[0]
    y, x = (np.mgrid[:size, :size] / size * 2 - 1).astype(np.float32)
    lamp = 1 + light.strength * (0.3 * (x * light.x + y * light.y) - rng.uniform(0, 0.15) * x * y)
    lamp *= 0.75 + 0.5 * smooth_noise(rng, size, size, 2, 2)
    cast = rng.uniform(0.88, 1.08, 3) * rng.uniform(0.8, 1.15)
    lit = np.clip(canvas * lamp[..., None] * cast, 0, 1) ** rng.uniform(0.8, 1.2)
    image = Image.fromarray((255 * lit + 0.5).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    noise = rng.standard_normal((size, size, 3), np.float32) * rng.uniform(1, 6)
    return np.clip(np.asarray(image) + noise + 0.5, 0, 255).astype(np.uint8)


def visible_boxes(scene: Scene) -> list[tuple[str, list[float]]]:
    """Returns (class name, [x, y, width, height]) of every object of which enough is visible."""
    found = []
    for index, (name, area) in enumerate(zip(scene.names, scene.areas, strict=True)):
        y, x = np.nonzero(scene.owner == index)
        if len(y) < MIN_VISIBLE * area:
            continue
        left, top, right, bottom = x.min(), y.min(), x.max() + 1, y.max() + 1
        if min(right - left, bottom - top) >= MIN_SIDE:
            found.append((name, [float(v) for v in (left, top, right - left, bottom - top)]))
    return found


def make_picture(number: int, *, output: str, split: str, size: int, seed: int) -> list:
    """Writes picture `number` (from 1) of a split; returns its `visible_boxes`."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    scene = draw_scene(rng, size)
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=int(rng.integers(70, 96)))
    pathlib.Path(output, split, f"{number:06d}.jpg").write_bytes(buffer.getvalue())
    return visible_boxes(scene)


def annotations(boxes: list[list], size: int) -> dict:
    """Returns COCO's instances format for the boxes of pictures 1, 2, ...; `area` is the box's."""
    ids = {name: category for category, name in CATEGORIES.items()}
    pictures: list[dict] = []
    entries: list[dict] = []
    for image_id, found in enumerate(boxes, 1):
        name = f"{image_id:06d}.jpg"
        pictures.append(
            {"id": image_id, "file_name": name, "width": size, "height": size, "license": 1}
        )
        for name, box in found:
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "Textured shapes over clutter, generated", "version": "1.0"},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": ""}],
        "images": pictures,
        "annotations": entries,
        "categories": [
            {"id": category, "name": name, "supercategory": "shape"}
            for category, name in CATEGORIES.items()
        ],
    }


def damage(clean: dict, *, drop: float, shift: float, swap: float, seed: int) -> dict:
    """Returns a copy of annotations with mistakes such as people make.

    Each box is left out with probability `drop`; of those that stay, each is moved both ways by 10
    to 20 % of its width and height with probability `shift`, and, independently, given a wrong
    class with probability `swap`. Ids stay those of the clean file; an entry that was changed says
    how in `damage`, a list of "shift" and "swap".
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in clean["images"]}
    entries = []
    for entry in clean["annotations"]:
        rng = np.random.default_rng([seed, len(SPLITS), entry["id"]])
        dropped, shifted, swapped = rng.random(3) < (drop, shift, swap)
        moves = rng.uniform(0.1, 0.2, 2) * rng.choice([-1, 1], 2)
        wrong = int(rng.choice([c for c in CATEGORIES if c != entry["category_id"]]))
        if dropped:
            continue
        changed = dict(entry)
        if shifted:
            start, extent = np.array(entry["bbox"]).reshape(2, 2)
            low = np.clip(start + moves * extent, 0, None)
            high = np.minimum(start + (1 + moves) * extent, sizes[entry["image_id"]])
            changed["bbox"] = [round(float(v), 2) for v in (*low, *(high - low))]
            changed["area"] = round(changed["bbox"][2] * changed["bbox"][3], 2)
        if swapped:
            changed["category_id"] = wrong
        kinds = [k for k, yes in (("shift", shifted), ("swap", swapped)) if yes]
        entries.append(changed | {"damage": kinds} if kinds else changed)
    return clean | {"annotations": entries}


def make(
    output: str,
    *,
    train: int = 1500,
    val: int = 300,
    size: int = 256,
    seed: int = 0,
    drop: float = 0.0,
    shift: float = 0.0,
    swap: float = 0.0,
    workers: int = 1,
) -> None:
    """Writes the data set and one line about each split.

    Args:
      output: the folder; what it holds under the same names is replaced.
      train: number of training pictures.
      val: number of validation pictures.
      size: their height and width in pixels.
      seed: another one gives other pictures and other damage.
      drop: share of the training boxes left out.
      shift: share of the others moved.
      swap: share of the others given a wrong class.
      workers: processes that draw.
    """
    folder = pathlib.Path(output)
    notes = folder / "annotations"
    notes.mkdir(parents=True, exist_ok=True)
    (notes / "train_clean.json").unlink(missing_ok=True)
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir(exist_ok=True)
        job = functools.partial(make_picture, output=output, split=split, size=size, seed=seed)
        numbers = range(1, count + 1)
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
                boxes = list(pool.map(job, numbers, chunksize=8))
        else:
            boxes = [job(number) for number in numbers]
        truth = annotations(boxes, size)
        if split == "train" and (drop or shift or swap):
            (notes / "train_clean.json").write_text(json.dumps(truth))
            truth = damage(truth, drop=drop, shift=shift, swap=swap, seed=seed)
        (notes / f"{split}.json").write_text(json.dumps(truth))
        print(f"{folder / split}: {count} pictures, {len(truth['annotations'])} boxes")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description="Writes generated pictures to OUTPUT/train and OUTPUT/val as JPEG files, and "
        "their boxes to OUTPUT/annotations/train.json and val.json in COCO's format; where damage "
        "is asked for, train.json has it and train_clean.json is the truth beside it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default="data/shapes", help="folder to write")
    parser.add_argument("--train", type=int, default=1500, help="training pictures")
    parser.add_argument("--val", type=int, default=300, help="validation pictures")
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures")
    parser.add_argument("--drop", type=float, default=0.0, help="share of training boxes left out")
    parser.add_argument("--shift", type=float, default=0.0, help="share of the others moved")
    parser.add_argument("--swap", type=float, default=0.0, help="share of the others misnamed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    for name in ("drop", "shift", "swap"):
        if not 0 <= getattr(options, name) <= 1:
            parser.error(f"--{name} is a share: give a number from 0 to 1")
    if options.size < 64:
        parser.error("--size: objects need pictures of at least 64 pixels")
    if min(options.train, options.val, options.seed) < 0:
        parser.error("--train, --val and --seed cannot be negative")
    if "://" in options.output:
        parser.error(f"--output={options.output}: pictures are drawn into a local folder")
    try:
        make(**vars(options))
    except OSError as problem:
        parser.error(f"--output={options.output}: {problem.strerror or problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
