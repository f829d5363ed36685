"""From a seed to a scene worth looking at: compose, look at it coarsely, and try again if it shows too little."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from pipeline.demo.render.packed import pack
from pipeline.demo.render.picture import RenderedScene, cast, prominence, render
from pipeline.demo.scenes.interiors import INDOOR_SUBJECTS, room
from pipeline.demo.scenes.outdoors import OUTDOOR_SUBJECTS, outdoors
from pipeline.demo.scenes.scene import Placed, Scene
from pipeline.demo.things.classes import CLASS_ID, CLASSES, PERSON, SUBJECTS
from pipeline.demo.things.materials import Palette
from sak.errors import UsageError, nearest

STREAMS = ("imagenet", "pascal-context", "nyud", "training")
"""The demo writes the first three; `training` is left to whoever renders scenes that the demo must not contain."""

LARGEST_SEED = 2**63 - 1


def generator(stream: str, seed: int, index: int = 0, purpose: str = "scene") -> np.random.Generator:
    """A generator that depends on its four arguments alone, so that any process may draw any scene.

    The arguments are hashed as text: SeedSequence folds a list of integers into 32-bit words, where different lists
    can meet. Raises UsageError for an unknown stream or a seed that is not in 0 .. 2**63 - 1.
    """
    if stream not in STREAMS:
        raise UsageError(f"no stream of scenes is called {stream!r}{nearest(stream, STREAMS)}")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed is {seed}: give an integer between 0 and {LARGEST_SEED}")
    digest = sha256(f"{stream}/{seed}/{index}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


ATTEMPTS = 8
ENOUGH = 0.75
GLANCE = 28
"""Pixels on the longer side of the coarse look."""

SETTINGS = ("any", "indoors", "outdoors")


@dataclass(frozen=True)
class Verdict:
    """What a coarse look at a scene found: points, and the most prominent class."""

    points: float
    subject: str


def render_scene(
    seed: int,
    size: int | tuple[int, int],
    *,
    stream: str = "training",
    index: int = 0,
    setting: str = "any",
    subject: str | None = None,
) -> RenderedScene:
    """Scene number `index` of a stream, rendered at `size` pixels (square, or (height, width)), with every label.

    The same arguments give the same scene bit for bit; the demo on disk never uses the stream `training`. `setting`
    is any, indoors or outdoors; `subject` (one of `classes.SUBJECTS`) aims the camera at a thing of that class.
    Raises UsageError for an unknown word or a size below 16.
    """
    shape = (size, size) if isinstance(size, int) else size
    if min(shape) < 16:
        raise UsageError(f"a scene of {shape[1]} x {shape[0]} pixels shows nothing: give at least 16")
    if setting not in SETTINGS:
        raise UsageError(f"no setting is called {setting!r}{nearest(setting, SETTINGS)}")
    if subject is not None and subject not in SUBJECTS:
        raise UsageError(f"no subject is called {subject!r}{nearest(subject, SUBJECTS)}")
    scene = compose(seed, shape, stream=stream, index=index, setting=setting, subject=subject)
    return render(scene, shape, generator(stream, seed, index, "sensor"))


def compose(seed: int, size: tuple[int, int], *, stream: str, index: int, setting: str, subject: str | None) -> Scene:
    """The first of ATTEMPTS scenes that shows enough, or the best of them.

    Where it plays and how many people there are is decided before, so that the trying does not favour easy scenes.
    """
    wish = Palette(generator(stream, seed, index, "wish"))
    make, people = _maker(wish, setting, subject), _people(wish, stream, subject)
    best: Scene | None = None
    most = -10.0
    for attempt in range(ATTEMPTS):
        p = Palette(generator(stream, seed, index, f"attempt {attempt}"))
        scene = make(p, people=people, subject=subject)
        verdict = judge(scene, size, people=people)
        if best is None or verdict.points > most:
            best, most = replace(scene, subject=subject or verdict.subject), verdict.points
        if most >= ENOUGH:
            break
    assert best is not None
    return best


def _maker(p: Palette, setting: str, subject: str | None) -> Callable[..., Scene]:
    inside = setting != "outdoors" and (subject is None or subject in INDOOR_SUBJECTS)
    outside = setting != "indoors" and (subject is None or subject in OUTDOOR_SUBJECTS)
    if inside == outside:
        return room if p.chance(0.5) else outdoors
    return room if inside else outdoors


def _people(p: Palette, stream: str, subject: str | None) -> int:
    """How many persons to add; rooms of the NYUD kind and pictures of one thing have fewer."""
    if subject is not None or stream == "nyud":
        return int(p.rng.choice(3, p=(0.7, 0.2, 0.1)))
    return int(p.rng.choice(5, p=(0.15, 0.33, 0.25, 0.15, 0.12)))


def judge(scene: Scene, size: tuple[int, int], *, people: int) -> Verdict:
    """Look at the scene in few pixels: about 1 point if it is varied and shows its subject and its people, if any."""
    scale = GLANCE / max(size)
    coarse = (max(round(size[0] * scale), 4), max(round(size[1] * scale), 4))
    packed = pack(scene.placed)
    seen = cast(scene, packed, coarse)
    semantic, instances = seen.of_shapes(packed.semantic), seen.of_shapes(packed.instance)
    share = np.bincount(instances.ravel(), minlength=len(scene.placed) + 1) / instances.size
    by_class = np.bincount(semantic.ravel(), minlength=len(CLASSES)) / semantic.size
    first = int(prominence(semantic, instances).argmax())
    name = scene.placed[first - 1].thing.name if first else CLASSES[int(by_class.argmax())].name
    near = float((seen.hits.distance < 0.4 * min(1.0, _reach(scene))).mean())
    if scene.subject:
        own = float(by_class[CLASS_ID[scene.subject]])
        size_points = min(own / 0.08, 1.0) - 2 * max(own - 0.65, 0.0)
        return Verdict(size_points - 0.3 * (name != scene.subject) - near, name)
    things = [number for number, item in enumerate(scene.placed, start=1) if _is_seen_thing(item, share[number])]
    crowding = max(float(share.max()) - 0.6, 0.0) + max(float(share[first]) - 0.4, 0.0)
    missing = float(people > 0 and by_class[PERSON] < 0.015)
    return Verdict(min(len(things) / 4, 1.0) - crowding - 2 * near - missing, name)


def _is_seen_thing(item: Placed, share: float) -> bool:
    return share > 0.008 and not CLASSES[CLASS_ID[item.thing.name]].stuff


def _reach(scene: Scene) -> float:
    """Distance from the camera to what it aims at, in metres."""
    return float(np.linalg.norm(np.array(scene.camera.position) - np.array(scene.camera.target)))
