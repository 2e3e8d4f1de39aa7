"""Where the reference fixtures are: the small ones in the repository, the larger ones beside it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

_PLACES = (Path(__file__).parent / "data" / "golden", Path(__file__).parents[2] / "shared" / "golden")


def golden(name: str) -> Path:
    """The folder of a fixture; the test is skipped where it isn't there."""
    for place in _PLACES:
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"the fixture golden/{name} isn't on this machine")


def reference(name: str) -> dict[str, npt.NDArray[np.generic]]:
    """What the published implementation computed for a fixture."""
    with np.load(golden(name) / "reference.npz") as arrays:
        return dict(arrays)
