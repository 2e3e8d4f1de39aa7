"""From where a checkpoint is to a model that runs."""

from __future__ import annotations

from pathlib import Path

from ..lm.model import LMModel
from ..lm.weights import build
from .loading import Progress, load_lm_tensors
from .locate import resolve
from .quantization import Recipe


def load_lm(where: str | Path, quantize: int | str | Recipe | None = None, progress: Progress | None = None) -> LMModel:
    """Load a language model, checked before anything is read.

    Args:
        where: folder, weights file, hub repository or own name, as for `resolve`.
        quantize: see `load_lm_tensors`.
        progress: called with tensors done and in all while quantizing.

    Raises:
        CheckpointError: files are missing, damaged or of another model.
        DownloadError: a file can't be fetched.
    """
    files = resolve(where, parts=["lm"])
    config = files.lm_config
    tensors, quantization = load_lm_tensors(files.need("lm"), config, quantize, progress)
    return build(config, tensors, quantization, consume=True)
