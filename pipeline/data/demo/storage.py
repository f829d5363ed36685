"""Cupboards, shelves and fridges: boxes with fronts, which face +z."""

from pipeline.data.demo.materials import Palette
from pipeline.data.demo.shapes import Shape, Thing, Vec, block, limb, thing


def _cupboard(name: str, half: Vec, doors: tuple[int, int], p: Palette) -> Thing:
    """A box with a grid of fronts; `half` is half its size, `doors` columns and rows."""
    x, y, z = half
    material, knob = (p.wood() if p.chance(0.7) else p.neutral()), p.metal()
    shapes = [block((0, y, 0), (x, y, z), material)]
    columns, rows = doors
    for column in range(columns):
        for row in range(rows):
            at_x, at_y = -x + x * (2 * column + 1) / columns, y * (2 * row + 1) / rows
            panel = (x / columns - 0.012, y / rows - 0.012, 0.01)
            shapes.append(block((at_x, at_y, z + 0.008), panel, material))
            side = 1 if column % 2 == 0 and columns > 1 else 0
            shapes.append(
                limb(
                    (at_x + side * panel[0] * 0.8, at_y, z + 0.03),
                    (at_x + side * panel[0] * 0.8 + 0.04, at_y, z + 0.03),
                    0.012,
                    knob,
                )
            )
    return thing(name, shapes, top=2 * y)


def cabinet(p: Palette) -> Thing:
    """A cupboard with doors, waist high or tall."""
    tall = p.chance(0.4)
    half = (p.uniform(0.4, 0.65), p.uniform(0.85, 1.05) if tall else p.uniform(0.38, 0.48), p.uniform(0.2, 0.28))
    return _cupboard("cabinet", half, (2, 1 if tall else 2), p)


def dresser(p: Palette) -> Thing:
    """A chest of drawers."""
    return _cupboard("dresser", (p.uniform(0.35, 0.55), p.uniform(0.38, 0.55), p.uniform(0.2, 0.25)), (1, 4), p)


def nightstand(p: Palette) -> Thing:
    """A small cabinet beside a bed."""
    return _cupboard("cabinet", (p.uniform(0.2, 0.25), p.uniform(0.24, 0.3), 0.19), (1, 2), p)


def fridge(p: Palette) -> Thing:
    """A fridge with a freezer below."""
    x, y, z = p.uniform(0.28, 0.36), p.uniform(0.75, 0.95), p.uniform(0.28, 0.34)
    body, grip = (p.neutral(0.4) if p.chance(0.7) else p.vivid(0.5)), p.metal()
    split = 2 * y * p.uniform(0.3, 0.4)
    shapes = [
        block((0, y, -0.02), (x, y, z - 0.02), body),
        block((0, split / 2 + 0.02, z - 0.02), (x - 0.005, split / 2 - 0.025, 0.03), body),
        block((0, y + split / 2, z - 0.02), (x - 0.005, y - split / 2 - 0.01, 0.03), body),
        limb((-x + 0.07, split + 0.08, z + 0.04), (-x + 0.07, split + 0.5, z + 0.04), 0.015, grip),
        limb((-x + 0.07, split - 0.3, z + 0.04), (-x + 0.07, split - 0.06, z + 0.04), 0.015, grip),
    ]
    return thing("fridge", shapes)


def bookshelf(p: Palette) -> Thing:
    """Shelves full of books and gaps."""
    x, z, shelves, wood = p.uniform(0.35, 0.6), p.uniform(0.13, 0.18), int(p.uniform(3, 6)), p.wood()
    step = p.uniform(0.3, 0.36)
    height = step * shelves
    shapes = [block((s * x, height / 2, 0), (0.015, height / 2, z), wood) for s in (-1, 1)]
    shapes += [block((0, row * step + 0.012, 0), (x, 0.012, z), wood) for row in range(shelves + 1)]
    shapes.append(block((0, height / 2, -z + 0.005), (x, height / 2, 0.005), wood))
    for row in range(shelves):
        shapes += _books(x - 0.03, row * step + 0.024, step, z, p)
    return thing("bookshelf", shapes)


def _books(x: float, floor: float, step: float, z: float, p: Palette) -> list[Shape]:
    shapes, at = [], -x
    while at < x - 0.1:
        width, height = p.uniform(0.02, 0.05), step * p.uniform(0.55, 0.85)
        if p.chance(0.82):
            depth = z * p.uniform(0.7, 0.95)
            shapes.append(block((at + width, floor + height / 2, 0.0), (width, height / 2, depth), p.vivid(0.1)))
        at += 2 * width + 0.003
    return shapes
