"""Whether a process of this machine is alive."""

import os


def is_alive(process: int) -> bool:
    """True where it answers, also as another user's; one that ended and waits for its parent answers too."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
