"""A model ready to converse: language model, codec and text tokenizer together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .checkpoint import Recipe, load_lm_tensors, resolve
from .config import FRAME_SIZE
from .errors import CheckpointError, ConfigError, InputError
from .layers import arrays_of
from .lm import LMModel, Sampling
from .lm.conditions import Conditions
from .lm.weights import build
from .mimi import Mimi
from .session import _FORMAT, Session
from .step_graph import StepGraph
from .text import TextTokenizer


class Moshi:
    """Language model, codec and text tokenizer; makes sessions, which share what was compiled for the first."""

    def __init__(self, lm: LMModel, mimi: Mimi, tokenizer: TextTokenizer, name: str = ""):
        self.lm = lm
        self.mimi = mimi
        self.tokenizer = tokenizer
        self.name = name
        self._graphs: dict[tuple[Sampling, Sampling, bool, int | None], StepGraph] = {}
        if mimi.config.bins != lm.config.card:
            raise ConfigError(
                f"The codec has {mimi.config.bins} entries a codebook, the language model expects {lm.config.card}. "
                "Name the codec that belongs to the model."
            )

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model's weights from another's, from a few of them."""
        digest = hashlib.sha256(json.dumps([repr(self.lm.config), repr(self.mimi.config)]).encode())
        for name in ("text_linear", "out_norm"):
            for array in arrays_of(self.lm[name].parameters()).values():
                digest.update(np.array(array.reshape(-1)[:4096].astype(mx.float32)).tobytes())
        return digest.hexdigest()[:16]

    def session(
        self,
        seed: int | None = None,
        temp: float = 0.8,
        temp_text: float = 0.7,
        top_k: int = 250,
        top_k_text: int = 25,
        conditions: Conditions | None = None,
        kv_bits: int | None = None,
        profile: bool = False,
        compile: bool = True,
    ) -> Session:
        """Begin a conversation.

        Args:
            seed: of the sampling; None draws one.
            temp, top_k: sampling of audio tokens; 0 and 0 mean greedy and the whole vocabulary.
            temp_text, top_k_text: sampling of text tokens.
            conditions: values by name, for models that have conditions.
            kv_bits: quantize the KV cache to 8 or 4 bits, for less memory.
            profile: time encoder, language model and decoder one by one (three synchronisations a step, not one).
            compile: build a step's graph once, where MLX can.

        Raises:
            InputError: a parameter is out of range or a condition unknown.
        """
        graph = self._graph(Sampling(temp, top_k), Sampling(temp_text, top_k_text), compile, kv_bits)
        return Session(self, seed, graph, profile, conditions)

    def _graph(self, audio: Sampling, text: Sampling, compile: bool, kv_bits: int | None) -> StepGraph:
        key = (audio, text, compile, kv_bits)
        if key not in self._graphs:
            self._graphs[key] = StepGraph(self.lm, 1, audio, text, compile, kv_bits)
        return self._graphs[key]

    def warm_up(self, progress: Callable[[int, int], None] | None = None, **settings: Any) -> None:
        """Build every graph that sessions with these settings will need, so that none is built while one runs.

        Args:
            progress: called with graphs done and in all.
            settings: as for `session`.

        Raises:
            InputError: as for `session`.
        """
        session = self.session(**{"seed": 0, **settings})
        silence = np.zeros(FRAME_SIZE, np.float32)
        for _ in range(self.lm.config.max_delay + 1):
            session.step(silence)
        windows = session._gen.graph.windows
        for done, window in enumerate(windows, 1):
            session._gen.state.kv.offset = window - 1
            session.step(silence)
            if progress:
                progress(done, len(windows))

    def resume(self, path: str | Path, profile: bool = False) -> Session:
        """Continue a conversation that `Session.save` wrote.

        Raises:
            CheckpointError: no saved conversation, or one with another model.
        """
        try:
            loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
            arrays, metadata = loaded
            about = json.loads(metadata["moshi"])
            ours = (about.get("format"), about.get("model")) == (_FORMAT, self.fingerprint)
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path} holds no saved conversation ({error}). Choose a file made by save."
            ) from error
        if not ours:
            raise CheckpointError(f"{path} was saved with another model; load that one to resume it.")
        try:
            audio, text = Sampling(*about["audio"]), Sampling(*about["text"])
            graph = self._graph(audio, text, about.get("compile", True), about["kv_bits"])
            session = Session(self, about["seed"], graph, profile, about["conditions"])
            session._restore(arrays, about)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged ({error}). Begin a new conversation.") from error
        return session

    # The codec's parts of a step's graph.

    def encode_graph(self, pcm: mx.array, state: Any, encode: bool) -> tuple[mx.array, Any]:
        """User codes [1, n_q - dep_q] of a frame `pcm` [1, 1, 1920]; -1 where it isn't to be encoded."""
        user_q = self.lm.config.user_q
        if not encode or not user_q:
            return mx.full((1, user_q), -1, mx.int32), state
        codes, state = self.mimi.encode_frame(pcm, state)
        return codes[:, :user_q, 0].astype(mx.int32), state

    def decode_graph(self, tokens: mx.array, state: Any, decode: bool) -> tuple[mx.array, Any]:
        """Tokens [1, 1 + dep_q] and the sound they decode to, packed into one int32 array to be read at once."""
        if not decode or not self.lm.config.dep_q:
            silence = mx.zeros((FRAME_SIZE,), mx.int32)
            return mx.concatenate([tokens[0], silence]), state
        pcm, state = self.mimi.decode_frame(tokens[:, 1:, None], state)
        return mx.concatenate([tokens[0], mx.view(pcm.astype(mx.float32).reshape(-1), mx.int32)]), state


def load(
    where: str | Path = "nano",
    quantize: int | str | Recipe | None = None,
    moshi_weight: str | Path | None = None,
    mimi_weight: str | Path | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    download_bar: type | None = None,
) -> Moshi:
    """Load a model.

    Args:
        where: hub repository (`kyutai/moshiko-mlx-q4`), folder, `nano` (the small one inside the package), or
            `untrained` (a small random one made on the spot, which speaks noise).
        quantize: bits (2, 3, 4, 5, 6, 8), `mxfp4`, `nvfp4` or a recipe, to quantize a bf16 checkpoint while loading;
            of one that is quantized already, what it must be.
        moshi_weight, mimi_weight, tokenizer: files to use instead of those of `where`.
        seed: of `untrained`'s weights.
        progress: called with tensors done and in all, while quantizing.
        download_bar: a class with tqdm's interface that shows downloads, such as `download_bar.DownloadBar`.

    Raises:
        CheckpointError: a file is missing or damaged, or isn't the model that it should be.
        DownloadError: a file can't be fetched.
        InputError: `untrained` is given files.
    """
    if str(where) == "untrained":
        from .untrained import make_untrained

        if moshi_weight or mimi_weight or tokenizer:
            raise InputError("`untrained` is made on the spot: it takes no weights, codec or tokenizer. Name a model.")
        return make_untrained(seed)
    files = resolve(where, moshi_weight, mimi_weight, tokenizer, progress=download_bar)
    config = files.lm_config
    tensors, quantization = load_lm_tensors(files.need("lm"), config, quantize, progress)
    lm = build(config, tensors, quantization, consume=True)
    mimi = Mimi.load(files.need("mimi"), num_codebooks=max(config.user_q, config.dep_q))
    return Moshi(lm, mimi, TextTokenizer(files.need("tokenizer")), name=files.name)
