"""Keeps what sound libraries print by themselves off the terminal."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

log = logging.getLogger(__name__)

_STDERR = 2


@contextmanager
def libraries_kept_quiet() -> Iterator[TextIO]:
    """Give a stream to the real standard error, while what C libraries write there goes to the log instead.

    ALSA and JACK explain on standard error whatever they look for and don't find, which would run through the screen.
    """
    sys.stderr.flush()
    real = os.dup(_STDERR)
    with tempfile.TemporaryFile() as kept, os.fdopen(os.dup(real), "w", encoding="utf-8", errors="replace") as stream:
        os.dup2(kept.fileno(), _STDERR)
        try:
            yield stream
        finally:
            sys.stderr.flush()
            os.dup2(real, _STDERR)
            os.close(real)
            kept.seek(0)
            if said := kept.read(1 << 16).decode(errors="replace").strip():
                log.debug("libraries said on standard error:\n%s", said)
