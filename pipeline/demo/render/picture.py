"""Rendering: a scene's picture, and every label, from the same rays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.render.light import colours, openness
from pipeline.demo.render.packed import Packed, pack
from pipeline.demo.render.rays import Hits, first_hits
from pipeline.demo.scenes.scene import Scene
from pipeline.demo.things.classes import CLASSES, PART_CLASS, PERSON
from pipeline.demo.things.shapes import turned

Ids = NDArray[np.int64]

STUFF = np.array([row.stuff for row in CLASSES])

RUNNER_UP = 0.45
"""A thing is salient with the most salient one if it has this share of its prominence."""


def boundaries_of(labels: Ids) -> NDArray[np.bool_]:
    """Pixels (H, W) whose label differs from that of the east, south or south-east neighbour."""
    result = np.zeros(labels.shape, dtype=bool)
    result[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    result[:-1, :] |= labels[:-1, :] != labels[1:, :]
    result[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return result


def prominence(semantic: Ids, instances: Ids) -> NDArray[np.float64]:
    """How far each instance stands out, (instances.max() + 1,): its pixels, more in the middle; persons thrice.

    Sky and stuff have none.
    """
    height, width = instances.shape
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    weight = np.exp(-1.2 * (rows**2 + columns**2)) * ~STUFF[semantic]
    weight = weight * np.where(semantic == PERSON, 3.0, 1.0)
    scores: NDArray[np.float64] = np.bincount(instances.ravel(), weights=weight.ravel()).astype(np.float64)
    return scores


def salient(semantic: Ids, instances: Ids) -> NDArray[np.bool_]:
    """The most prominent thing and those nearly as prominent, (H, W); empty where a picture shows stuff alone."""
    scores = prominence(semantic, instances)
    kept = (scores >= RUNNER_UP * scores.max()) & (scores > 0)
    result: NDArray[np.bool_] = kept[instances]
    return result


def too_small(instances: NDArray[np.integer[Any]], least: float = 0.0004) -> NDArray[np.bool_]:
    """Pixels of instances that show too little to be told what they are; semantic maps leave them out, as VOC does."""
    counts = np.bincount(instances.ravel())
    result: NDArray[np.bool_] = (counts < least * instances.size)[instances]
    return result


Array = NDArray[np.float64]

EXTRA_SAMPLES = ((0.338, 0.123), (-0.276, 0.231), (-0.062, -0.354))
"""Where, off the centre, an uneven pixel is looked at again."""

HORIZON = 400.0
"""Metres beyond which the ground is taken for sky."""


@dataclass(frozen=True)
class RenderedScene:
    """A picture and its exact labels, all (H, W); pixel (r, c) is labelled at its centre (r + 0.5, c + 0.5).

    `rgb` uint8 (H, W, 3). `semantic` uint8: rows of `classes.CLASSES`, 0 sky. `parts` uint8: human part classes 0..6.
    `part_names` uint8: 0 or a number in `classes.PART_ID`. `instances` uint16: 0 sky, else one number a thing (or a
    kind of stuff). `saliency` bool. `normals` float32 (H, W, 3): unit, x right, y up, z to the viewer; 0 in the sky.
    `depth` float32: metres along the viewing axis, 0 in the sky. `boundaries` bool: the pixel's class or instance
    differs from that of its east, south or south-east neighbour. `focal` is the focal length in pixels; the optical
    axis meets the image's middle. `subject` is the main class, `kind` the kind of scene.
    """

    rgb: NDArray[np.uint8]
    semantic: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    part_names: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    saliency: NDArray[np.bool_]
    normals: NDArray[np.float32]
    depth: NDArray[np.float32]
    boundaries: NDArray[np.bool_]
    focal: float
    kind: str
    subject: str


@dataclass(frozen=True)
class Cast:
    """Rays through pixel centres and what they hit."""

    packed: Packed
    size: tuple[int, int]
    directions: Array
    hits: Hits

    def of_shapes(self, column: NDArray[np.int64]) -> NDArray[np.int64]:
        """A property of shapes, per pixel (H, W); 0 where nothing is hit."""
        shape = self.hits.shape
        return np.where(shape >= 0, column[shape], 0).reshape(self.size)


def cast(scene: Scene, packed: Packed, size: tuple[int, int]) -> Cast:
    """Send a ray through the centre of each pixel of a (height, width) picture."""
    rows, columns = np.divmod(np.arange(size[0] * size[1]), size[1])
    directions = scene.camera.rays(columns + 0.5, rows + 0.5, size)
    return Cast(packed, size, directions, _trace(scene, packed, directions))


def render(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> RenderedScene:
    """Picture and labels of `scene` at (height, width); `rng` draws the sensor's noise and exposure."""
    packed = pack(scene.placed)
    centre = cast(scene, packed, size)
    semantic = centre.of_shapes(packed.semantic)
    instances = centre.of_shapes(packed.instance)
    names = centre.of_shapes(packed.part)
    normals = turned(centre.hits.normal, scene.camera.axes).reshape(*size, 3)
    away = -turned(centre.directions, scene.camera.axes)[:, 2]
    distance = np.where(centre.hits.shape >= 0, centre.hits.distance, 0.0)
    return RenderedScene(
        _developed(_picture(scene, centre), rng),
        semantic.astype(np.uint8),
        np.array(PART_CLASS, dtype=np.uint8)[names],
        names.astype(np.uint8),
        instances.astype(np.uint16),
        salient(semantic, instances),
        normals.astype(np.float32),
        (distance * away).reshape(size).astype(np.float32),
        boundaries_of(instances),
        scene.camera.focal * max(size),
        scene.kind,
        scene.subject,
    )


def _trace(scene: Scene, packed: Packed, directions: Array) -> Hits:
    hits = first_hits(packed.geometry, np.array(scene.camera.position), np.ascontiguousarray(directions))
    beyond = hits.distance > HORIZON
    hits.shape[beyond], hits.distance[beyond], hits.normal[beyond] = -1, np.inf, 0.0
    return hits


def _picture(scene: Scene, centre: Cast) -> Array:
    """Linear colours (H, W, 3), uneven pixels averaged over several rays, the others one."""
    size = centre.size
    distance = np.where(centre.hits.shape >= 0, centre.hits.distance, 0.0)
    points = np.array(scene.camera.position) + centre.directions * distance[:, None]
    reach = 0.9 if scene.sky.haze == 0.0 else 2.0
    ambient = openness(centre.packed.geometry, centre.hits, points, size, reach)
    pixel = 1.0 / (scene.camera.focal * max(size))
    image = colours(scene, centre.packed, centre.hits, centre.directions, ambient, pixel)
    again = np.flatnonzero(_uneven(image.reshape(*size, 3), centre.hits.shape.reshape(size)))
    if not len(again):
        return image.reshape(*size, 3)
    rows, columns = np.divmod(again, size[1])
    offsets = np.array(EXTRA_SAMPLES) + 0.5
    finer = scene.camera.rays((columns[:, None] + offsets[:, 0]).ravel(), (rows[:, None] + offsets[:, 1]).ravel(), size)
    hits = _trace(scene, centre.packed, finer)
    extra = colours(scene, centre.packed, hits, finer, np.repeat(ambient[again], len(offsets)), pixel)
    image[again] = (image[again] + extra.reshape(len(again), len(offsets), 3).sum(axis=1)) / (len(offsets) + 1)
    return image.reshape(*size, 3)


def _uneven(image: Array, shapes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour (or they as such) shows another shape or a clearly other colour."""
    seen = np.sqrt(np.clip(image, 0.0, 1.0))
    result = np.zeros(shapes.shape, dtype=bool)
    for axis in (0, 1):
        differs = (np.abs(np.diff(seen, axis=axis)).max(axis=2) > 0.08) | (np.diff(shapes, axis=axis) != 0)
        result |= np.pad(differs, [(0, int(axis == side)) for side in (0, 1)])
        result |= np.pad(differs, [(int(axis == side), 0) for side in (0, 1)])
    return result


def _developed(image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, a soft shoulder, white balance, vignette, grain and gamma: linear light to 8 bits."""
    middle = float(np.median(image.mean(axis=2))) + 0.3 * float(image.mean())
    exposed = image * (rng.uniform(0.45, 0.65) / max(middle, 1e-3)) * rng.uniform(0.95, 1.05, 3)
    height, width = image.shape[:2]
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    exposed = exposed * (1.0 - rng.uniform(0.0, 0.15) * (rows**2 + columns**2))[:, :, None]
    toned = (1.0 - np.exp(-exposed)) ** (1 / 2.2)
    grainy = toned + rng.normal(0.0, rng.uniform(0.004, 0.015), image.shape)
    return np.asarray(np.clip(grainy * 255.0 + 0.5, 0, 255), dtype=np.uint8)
