"""The language model: temporal transformer, depth transformer, KV cache."""

from .cache import KVCache
from .model import UNGENERATED_TOKEN, ZERO_TOKEN, LMModel, LMOutput
from .sampling import Sampling

__all__ = ["UNGENERATED_TOKEN", "ZERO_TOKEN", "KVCache", "LMModel", "LMOutput", "Sampling"]
