"""Named streams of randomness: no two of them, and no two indices of one, ever share draws."""

from hashlib import sha256

import numpy as np

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
