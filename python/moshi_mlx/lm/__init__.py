"""The language model: temporal transformer, depth transformer, KV cache."""

from .model import UNGENERATED_TOKEN, ZERO_TOKEN, LMModel, LMOutput
from .sampling import Sampling
from .transformer import KVCache

__all__ = ["UNGENERATED_TOKEN", "ZERO_TOKEN", "KVCache", "LMModel", "LMOutput", "Sampling"]
