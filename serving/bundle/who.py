"""Names the user and the machine that change a repository."""

import getpass
import os
import socket


def who() -> str:
    """Return USER@HOST; a user without a name, as in many containers, by its number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
