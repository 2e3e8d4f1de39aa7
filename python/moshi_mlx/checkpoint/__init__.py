"""Where a model's files are and what they hold: layout, quantization, checks, conversion."""

from .check import FLOAT, TensorSpec, check_tensors
from .header import Header, TensorInfo, read_header
from .layout import Piece, detect_layout, expected_tensors, pieces, to_mlx_layout
from .loading import LMFile, check_lm, load_lm_tensors, open_tensors
from .locate import CheckpointFiles, resolve
from .models import load_lm
from .quantization import KINDS, LEVELS, Quantization, Recipe, kind_of
from .writing import write_half, write_safetensors

__all__ = [
    "FLOAT",
    "KINDS",
    "LEVELS",
    "CheckpointFiles",
    "Header",
    "LMFile",
    "Piece",
    "Quantization",
    "Recipe",
    "TensorInfo",
    "TensorSpec",
    "check_lm",
    "check_tensors",
    "detect_layout",
    "expected_tensors",
    "kind_of",
    "load_lm",
    "load_lm_tensors",
    "open_tensors",
    "pieces",
    "read_header",
    "resolve",
    "to_mlx_layout",
    "write_half",
    "write_safetensors",
]
