"""Materials: a pattern, two colours, and how much they shine; and palettes to draw them from."""

import colorsys
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """`pattern` is one of `textures.PATTERNS`, `scale` its period in metres; `first` and `second` are linear in 0..1.

    `gloss` is the strength of the highlight and `glow` the light it gives off itself. `key` moves the pattern, so
    that two things of one material differ.
    """

    pattern: str
    first: Colour
    second: Colour
    scale: float = 0.1
    gloss: float = 0.0
    glow: float = 0.0
    key: float = 0.0


def tint(hue: float, saturation: float, value: float) -> Colour:
    """A linear colour from hue (turns), saturation and (perceived) value."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return red**2.2, green**2.2, blue**2.2


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, lighter or darker."""
    red, green, blue = (min(channel * factor, 1.0) for channel in colour)
    return red, green, blue


def dimmed(colour: Colour, by: float) -> Colour:
    """Light of this colour, `by` times as strong; unlike a surface it may exceed 1."""
    return colour[0] * by, colour[1] * by, colour[2] * by


class Palette:
    """Draws materials from one generator; a scene has one, so that its things do not all clash."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.hue = float(rng.random())

    def uniform(self, low: float, high: float) -> float:
        """One draw between `low` and `high`."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, options: tuple[str, ...]) -> str:
        """One of the options, all alike."""
        return options[int(self.rng.integers(len(options)))]

    def material(self, pattern: str, first: Colour, second: Colour, scale: float = 0.1, gloss: float = 0.0) -> Material:
        """A material with a key of its own."""
        return Material(pattern, first, second, scale, gloss, key=self.uniform(0, 100))

    def vivid(self, gloss: float = 0.3) -> Material:
        """A plain, saturated colour: toys, cars, plastic."""
        colour = tint(self.uniform(0, 1), self.uniform(0.45, 0.85), self.uniform(0.35, 0.9))
        return self.material("plain", colour, shade(colour, 0.85), 0.3, gloss)

    def neutral(self, gloss: float = 0.1) -> Material:
        """White to black, hardly tinted."""
        colour = tint(self.uniform(0, 1), self.uniform(0, 0.12), self.uniform(0.15, 0.95))
        return self.material("plain", colour, shade(colour, 0.9), 0.3, gloss)

    def metal(self) -> Material:
        """Grey and shiny."""
        colour = tint(0.6, 0.05, self.uniform(0.35, 0.75))
        return self.material("plain", colour, shade(colour, 0.9), 0.2, 0.6)

    def dark(self) -> Material:
        """Rubber and bezels."""
        return Material("plain", (0.015, 0.015, 0.018), (0.02, 0.02, 0.02), gloss=0.15)

    def wood(self) -> Material:
        """Grained wood, pine to walnut."""
        colour = tint(self.uniform(0.055, 0.1), self.uniform(0.4, 0.7), self.uniform(0.3, 0.8))
        return self.material("grain", colour, shade(colour, self.uniform(0.45, 0.7)), self.uniform(0.03, 0.07), 0.15)

    def cloth(self) -> Material:
        """Upholstery and clothes: often patterned, near the scene's hue or far from it."""
        hue = self.hue + self.uniform(-0.12, 0.12) if self.chance(0.5) else self.uniform(0, 1)
        colour = tint(hue, self.uniform(0.1, 0.65), self.uniform(0.2, 0.85))
        other = tint(hue + self.uniform(-0.2, 0.2), self.uniform(0.05, 0.5), self.uniform(0.3, 0.9))
        pattern = self.pick(("plain", "plain", "plain", "stripes", "plaid", "dots", "mottle", "checker"))
        return self.material(pattern, colour, other, self.uniform(0.04, 0.13))

    def leaf(self, hue: float | None = None) -> Material:
        """Foliage, green unless told otherwise."""
        hue = self.uniform(0.2, 0.36) if hue is None else hue
        colour = tint(hue, self.uniform(0.5, 0.8), self.uniform(0.4, 0.65))
        return self.material("leaves", colour, shade(colour, 0.3), self.uniform(0.05, 0.12))

    def stone(self) -> Material:
        """Rock and concrete."""
        colour = tint(self.uniform(0.05, 0.15), self.uniform(0.03, 0.25), self.uniform(0.4, 0.75))
        return self.material("mottle", colour, shade(colour, 0.55), self.uniform(0.08, 0.3))

    def fur(self, hue: float, saturation: float, value: float) -> Material:
        """An animal's coat, sometimes patched."""
        colour = tint(hue, saturation, value)
        other = shade(colour, self.uniform(0.35, 0.8))
        return self.material("mottle", colour, other, self.uniform(0.05, 0.2))

    def painting(self) -> Material:
        """Something to hang on a wall or show on a screen."""
        hue = self.uniform(0, 1)
        first = tint(hue, self.uniform(0.4, 0.9), self.uniform(0.4, 0.95))
        second = tint(hue + self.uniform(0.3, 0.6), self.uniform(0.3, 0.9), self.uniform(0.3, 0.95))
        return self.material("painting", first, second, self.uniform(0.15, 0.5), 0.1)
