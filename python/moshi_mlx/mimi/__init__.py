"""The Mimi codec: 24 kHz speech to 12.5 frames of codes a second and back."""

from .model import Mimi
from .state import MimiState
from .weights import expected_tensors

__all__ = ["Mimi", "MimiState", "expected_tensors"]
