"""Files in folders that a user names."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def why_no_file(path: Path) -> str | None:
    """Why there's no file at a path, as the system says it; None where there is one."""
    try:
        return None if stat.S_ISREG(os.stat(path).st_mode) else "Not a file"
    except OSError as error:
        return error.strerror or str(error)
