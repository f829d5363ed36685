"""Light on surface points: ambient with occlusion, suns and lamps with shadows, highlights, haze and sky."""

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.render.packed import Packed
from pipeline.demo.render.rays import Geometry, Hits, blocked
from pipeline.demo.render.textures import PATTERNS, Places, fractal, unroll
from pipeline.demo.scenes.scene import Light, Scene, Sky
from pipeline.demo.things.shapes import dots

Array = NDArray[np.float64]

LIFT = 1e-4
"""Secondary rays start this far (metres) above the surface."""

OPENNESS_RAYS = 2


def colours(scene: Scene, packed: Packed, hits: Hits, directions: Array, openness: Array, pixel: float) -> Array:
    """Linear colours (n, 3) of what rays from the camera hit, or of the sky; `pixel` is a pixel's angle (radians).

    `openness` (n,) is how much of the ambient light arrives, 0..1.
    """
    result = sky_colours(scene.sky, directions)
    rows = np.flatnonzero(hits.shape >= 0)
    seen = hits.of(rows)
    towards = directions[rows]
    albedo = _albedo(packed, seen, towards, pixel)
    points = np.array(scene.camera.position) + towards * seen.distance[:, None]
    up = (0.5 + 0.5 * seen.normal[:, 1])[:, None]
    light = (np.array(scene.sky.above) * up + np.array(scene.sky.below) * (1 - up)) * openness[rows, None]
    shine = np.zeros_like(light)
    gloss, glow = packed.look[seen.shape, 1], packed.look[seen.shape, 2]
    for lamp in scene.lights:
        arriving, to_light = _arriving(lamp, packed.geometry, points, seen.normal)
        light += arriving
        shine += arriving * _highlight(seen.normal, to_light, towards, gloss)[:, None]
    lit = albedo * light + shine + albedo * glow[:, None]
    veil = np.exp(-scene.sky.haze * seen.distance)[:, None]
    result[rows] = lit * veil + np.array(scene.sky.horizon) * (1 - veil)
    return result


def _albedo(packed: Packed, seen: Hits, towards: Array, pixel: float) -> Array:
    shape = seen.shape
    scale, key = packed.look[shape, 0], packed.look[shape, 3]
    size = packed.size[shape]
    slant = np.maximum(-dots(seen.normal, towards), 0.15)
    flat = unroll(packed.kind[shape], seen.local, seen.face, size)
    at = Places(
        seen.local * size / scale[:, None] + key[:, None],
        flat / scale[:, None] + key[:, None],
        key,
        seen.distance * pixel / (slant * scale),
    )
    mix = np.zeros(len(shape))
    patterns = packed.pattern[shape]
    for number, draw in enumerate(PATTERNS.values()):
        rows = np.flatnonzero(patterns == number)
        if len(rows):
            mix[rows] = draw(Places(*(column[rows] for column in at)))
    blended: Array = packed.first[shape] * (1 - mix[:, None]) + packed.second[shape] * mix[:, None]
    return blended


def _arriving(lamp: Light, geometry: Geometry, points: Array, normals: Array) -> tuple[Array, Array]:
    """Light that arrives from `lamp`, (n, 3), its cosine included; and the unit directions towards it."""
    if lamp.sun:
        to_light = np.broadcast_to(np.array(lamp.position), points.shape)
        distance = np.full(len(points), 1e4)
        strength = np.ones(len(points))
    else:
        offset = np.array(lamp.position) - points
        distance = np.sqrt(dots(offset, offset))
        to_light = offset / np.maximum(distance, 1e-6)[:, None]
        strength = 1.0 / (0.4 + distance**2)
    strength = strength * np.clip(dots(normals, to_light), 0.0, 1.0)
    if lamp.openings is not None:
        strength *= _through(lamp.openings, points, np.array(lamp.position))
    if lamp.shadow:
        reach = np.where(strength > 0, distance, 0.0)
        strength[blocked(geometry, points + LIFT * normals, np.ascontiguousarray(to_light), reach, False)] = 0.0
    return strength[:, None] * np.array(lamp.colour), to_light


def _through(openings: Array, points: Array, direction: Array) -> Array:
    """1 where the line from a point along `direction` passes one of the upright openings, else 0."""
    passes = np.zeros(len(points), dtype=bool)
    for low, high in openings:
        axis = 0 if high[0] - low[0] < high[2] - low[2] else 2
        if abs(direction[axis]) < 1e-6:
            continue
        t = ((low[axis] + high[axis]) / 2 - points[:, axis]) / direction[axis]
        at = points + t[:, None] * direction
        other = 2 - axis
        inside = (at[:, other] > low[other]) & (at[:, other] < high[other]) & (at[:, 1] > low[1]) & (at[:, 1] < high[1])
        passes |= inside & (t > 0)
    return passes.astype(np.float64)


def _highlight(normals: Array, to_light: Array, towards: Array, gloss: Array) -> Array:
    half = to_light - towards
    half /= np.maximum(np.sqrt(dots(half, half))[:, None], 1e-9)
    cosine = np.clip(dots(normals, half), 0.0, 1.0)
    shine: Array = gloss * cosine ** (8.0 + 80.0 * gloss)
    return shine


def openness(geometry: Geometry, hits: Hits, points: Array, size: tuple[int, int], reach: float) -> Array:
    """How open each pixel's surroundings are, (h * w,) in 0.15..1, smoothed along surfaces of like normal.

    Neighbouring pixels look in different directions (a 4 x 4 pattern), and the smoothing averages what they saw.
    """
    height, width = size
    rows, columns = np.divmod(np.arange(height * width), width)
    pattern = (rows % 4) * 4 + columns % 4
    open_rays = np.zeros(height * width)
    rest = np.where(hits.shape >= 0, reach, 0.0)
    for number in range(OPENNESS_RAYS):
        u = (number + (pattern * 7 % 16 + 0.5) / 16) / OPENNESS_RAYS
        angle = 2 * np.pi * ((pattern * 5 % 16) / 16 + number * 0.618)
        spread = np.sqrt(u)
        disc = np.stack([spread * np.cos(angle), spread * np.sin(angle), np.sqrt(1 - u)], axis=1)
        directions = _around(hits.normal, disc)
        open_rays += ~blocked(geometry, points + LIFT * hits.normal, directions, rest, True)
    smooth = _smoothed(open_rays.reshape(size) / OPENNESS_RAYS, hits.normal.reshape(height, width, 3), hits.shape >= 0)
    return np.clip(0.15 + 0.85 * smooth.ravel(), 0.0, 1.0)


def _around(normals: Array, local: Array) -> Array:
    """Turn `local` directions (z up) into the frames of the normals."""
    sign = np.where(normals[:, 2] >= 0, 1.0, -1.0)
    a = -1.0 / (sign + normals[:, 2] + 1e-12 * sign)
    b = normals[:, 0] * normals[:, 1] * a
    x, y = normals[:, 0], normals[:, 1]
    tangent = np.stack([1.0 + sign * x * x * a, sign * b, -sign * x], axis=1)
    other = np.stack([b, sign + y * y * a, -y], axis=1)
    return np.ascontiguousarray(local[:, :1] * tangent + local[:, 1:2] * other + local[:, 2:] * normals)


def _smoothed(values: Array, normals: Array, hit: NDArray[np.bool_]) -> Array:
    """Mean over 4 x 4 neighbours whose normals agree: as many as there are directions in the pattern."""
    height, width = values.shape
    padded = np.pad(values, ((2, 1), (2, 1)), mode="reflect")
    around = np.pad(normals, ((2, 1), (2, 1), (0, 0)), mode="reflect")
    total, weight = np.zeros_like(values), np.full_like(values, 1e-9)
    for row in range(4):
        for column in range(4):
            window = (slice(row, row + height), slice(column, column + width))
            agrees = (dots(around[window], normals) > 0.9) & hit.reshape(values.shape)
            total += padded[window] * agrees
            weight += agrees
    smooth: Array = np.where(weight > 0.5, total / weight, 1.0)
    return smooth


def sky_colours(sky: Sky, directions: Array) -> Array:
    """The sky along unit directions (n, 3): from the horizon's colour to the zenith's, with clouds."""
    height = np.clip(directions[:, 1], 0.0, 1.0)[:, None]
    gradient = np.array(sky.horizon) * (1 - height**0.5) + np.array(sky.zenith) * height**0.5
    if sky.clouds <= 0.0:
        return gradient
    sheet = directions / np.maximum(directions[:, 1:2], 0.06)
    veil = fractal(np.stack([sheet[:, 0], sheet[:, 2], np.full(len(sheet), sky.key)], axis=1), 4)
    cover = np.clip((veil - 1.0 + sky.clouds) * 4.0, 0.0, 0.9)[:, None] * np.clip(height * 8.0, 0.0, 1.0)
    clouded: Array = gradient * (1 - cover) + cover * np.array([0.95, 0.95, 0.97]) * max(sky.zenith)
    return clouded
