"""Training the codec's encoder along with the language model: `python -m moshi_mlx.train lm CONFIG --init . --encoder`.

What users say comes into a step as what the codec's convolutions made of it (features) rather than as codes. The
encoder's transformer gives it codes there and then, and learns from what the language model makes of them. The
codebooks stay: what Moshi says, and what the decoder makes of it, remains as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ..config import LMConfig, MimiConfig
from ..errors import ConfigError
from ..lm.model import ZERO_TOKEN
from .augment import perturbed
from .codewords import look_up, look_up_softly
from .config import Config, MixConfig
from .conversation import Conversation, missed
from .corpus import (
    Utterance,
    codebooks,
    codec_shape,
    fingerprint,
    read_features,
    read_shard,
    shards_with_features,
)
from .lm import Trainer, Update
from .loss import Arrays, Batch, Drill, Score, Trainee, batch_of, loss_name, losses, score, total
from .semantic import Encoding, encode

Tensors = dict[str, mx.array]
Made = TypeVar("Made")

ENCODER = ("encoder_transformer.", "downsample.", "quantizer.rvq_first.input_proj.", "quantizer.rvq_rest.input_proj.")
"""How the names of the codec's tensors begin that learn."""
_FIRST = 10_000
"""The first frame's number: all below are codes."""
_SLOWLY = 0.25
"""Of the optimizer's steps in the language model, how long the encoder's are: its codes are to stay near their
meaning. Layers that add nothing yet (`grow`) take whole ones."""
_LAYER = "encoder_transformer.transformer.layers."
_COMMITMENT = 0.5
"""What it counts how far latents are from what they found, as a share of their size."""
_VARIED = 0.6
_GAIN, _NOISE = 0.15, 0.2
"""Of the streams so many are varied, by gains of each channel and by noise, of at most so much of its spread."""


class JointTrainee(Trainee):
    """The language model, its auxiliary heads, and by how much the encoder has moved.

    Args:
        config: of the language model.
        vocabulary, answers: of the auxiliary heads.
        codec: the shape of the codec to start from.
        weights: its tensors.
        user_codebooks: how many of its codebooks the user is heard with.
    """

    def __init__(
        self,
        config: LMConfig,
        vocabulary: int,
        answers: int,
        codec: MimiConfig,
        weights: Mapping[str, mx.array],
        user_codebooks: int,
    ):
        super().__init__(config, vocabulary, answers)
        # What starts with an underscore is none of a module's parameters.
        self._shape = codec
        tensors = {name: tensor.astype(mx.float32) for name, tensor in weights.items()}
        self._before = {name: tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
        self._books = [mx.array(book) for book in codebooks(tensors)[:user_codebooks]]
        self._quantizer = {name: tensor for name, tensor in tensors.items() if name.startswith("quantizer.")}
        self.encoder = {name.replace(".", "/"): mx.zeros_like(tensor) for name, tensor in self._before.items()}
        new = [f"{_LAYER}{i}." for i in range(codec.layers_of("encoder_transformer")) if _adds_nothing(tensors, i)]
        self._pace = {name: 1.0 if name.startswith(tuple(new)) else _SLOWLY for name in self._before}
        # A compiled step may refer to nothing that is still to be computed.
        mx.eval(self._before, self._books, self._quantizer, self.encoder)

    def moved(self, encoder: Mapping[str, mx.array]) -> Tensors:
        """The encoder's tensors, by the codec's names, where `encoder` says how far each has moved."""
        return {name: x + self._pace[name] * encoder[name.replace(".", "/")] for name, x in self._before.items()}

    def encoding(self, features: mx.array) -> Encoding:
        """What the encoder makes of features [B, T, 2 C], two steps of the convolutions a frame."""
        B, T, width = features.shape
        tensors = {**self._quantizer, **self.moved(self.encoder)}
        return encode(tensors, self._shape, features.reshape(B, 2 * T, width // 2))

    def hear(self, features: mx.array, audible: mx.array) -> tuple[mx.array, mx.array]:
        """The user's part of the temporal transformer's input.

        Args:
            features: float32 [B, T, 2 C].
            audible: float32 [B, T, L], 0 where a codebook is not to be heard.

        Returns:
            [B, T, D], and how far latents are from what they found.
        """
        entries = self.lm.config.card + 1
        first = self.lm.config.dep_q
        last = first + len(self._books)
        # One lookup in one table: a gradient of each book's part would be as large as the whole.
        table = self.lm.audio_emb.weight[first * entries : last * entries]
        still = mx.stop_gradient(table)

        def find(k: int, left: mx.array) -> tuple[tuple[mx.array, mx.array], mx.array]:
            codes, found, pull = look_up_softly(self._books[k], left, still[k * entries : (k + 1) * entries - 1])
            return (codes + k * entries, pull * audible[:, :, k : k + 1]), found

        made, apart = self._follow(self.encoding(features), find)
        codes = mx.stack([codes for codes, _ in made], axis=-1)
        embeddings = (table[codes] * audible[..., None]).sum(axis=-2)
        return embeddings + sum((pull for _, pull in made), mx.array(0.0)), apart

    def codes(self, features: mx.array) -> mx.array:
        """The codes of features [B, T, 2 C], int32 [B, L, T]."""
        found, _ = self._follow(self.encoding(features), lambda k, left: look_up(self._books[k], left))
        return mx.stack(found, axis=1).astype(mx.int32)

    def _follow(
        self, coded: Encoding, find: Callable[[int, mx.array], tuple[Made, mx.array]]
    ) -> tuple[list[Made], mx.array]:
        """From codebook to codebook: `find` gets its number and what those before left of the latents.

        Returns:
            what `find` made of each, beside the words that it found, and how far latents are from what they found.
        """
        result = []
        apart = mx.array(0.0)
        left = whole = coded.semantic
        for k in range(len(self._books)):
            if k == 1:
                apart = _share(left, whole)
                left = whole = coded.rest
            made, found = find(k, left)
            result.append(made)
            left = left - found
        return result, apart + _share(left, whole)


def _adds_nothing(tensors: Mapping[str, mx.array], layer: int) -> bool:
    outputs = [tensors[f"{_LAYER}{layer}.{name}.weight"] for name in ("self_attn.out_proj", "linear2")]
    return not any(np.array(tensor).any() for tensor in outputs)


def _share(left: mx.array, whole: mx.array) -> mx.array:
    size = mx.stop_gradient(whole.square().sum(axis=-1).mean())
    return left.square().sum(axis=-1).mean() / (size + 1e-9)


@dataclass(frozen=True)
class Hearing(Arrays):
    """A batch or drill of whose user there are features instead of codes; of what isn't heard, neither.

    Attributes:
        features: float32 [B, T, 2 C], of the frame that each step reads.
        audible: float32 [B, T, L].
        batch: all else.
    """

    features: mx.array
    audible: mx.array
    batch: Batch | Drill

    def arrays(self) -> list[mx.array]:
        """All in order, for a compiled function."""
        return [self.features, self.audible, *self.batch.arrays()]


class JointTrainer(Trainer):
    """A run that trains the encoder along with the language model.

    The corpus needs features (`features: true` under `data`); its codes aren't used but for Moshi's answers.

    Args:
        config: the run; the codec it names is the start.
        init: weights to start from, as for `Trainer`.

    Raises:
        CheckpointError: no codec there.
        ConfigError: as `Trainer`, or a corpus without backgrounds or features of this codec's convolutions.
    """

    name = "encoder"

    def __init__(self, config: Config, init: Path | None = None):
        super().__init__(config, init)
        self.encoder_average = tree_map(mx.array, self.trainee.encoder)

    @property
    def trainee(self) -> JointTrainee:
        """What is trained."""
        assert isinstance(self.model, JointTrainee)
        return self.model

    def _trainee(self, vocabulary: int, answers: int) -> JointTrainee:
        shape = MimiConfig.from_dict(codec_shape(self.config.codec))
        return JointTrainee(self.lm_config, vocabulary, answers, shape, self._codec, self.config.mix.user_codebooks)

    @property
    def _mix(self) -> MixConfig:
        # There are no codes yet that could be replaced.
        return replace(self.config.mix, near_codes=0.0, wrong_codes=0.0, masked=0.0, fewer_codebooks=0.0)

    def _utterances(self) -> list[Utterance]:
        """The corpus, what users say with their frames' numbers among all features instead of codes."""
        convolutions = fingerprint(self._codec, "encoder.")
        rows = self.config.codebooks
        result: list[Utterance] = []
        frames: list[np.ndarray] = []
        position = _FIRST
        for shard, features in shards_with_features(self.config.work):
            for u, (convolved, _) in zip(read_shard(shard), read_features(features, convolutions), strict=True):
                if u.group == "answers":
                    lacking = max(0, rows - len(u.codes))
                    codes = np.pad(u.codes, ((0, lacking), (0, 0)), constant_values=ZERO_TOKEN)
                else:
                    numbers = np.arange(position, position + u.codes.shape[1], dtype=np.int32)
                    frames.append(convolved.reshape(len(numbers), -1))
                    position += len(numbers)
                    codes = np.broadcast_to(numbers, (rows, len(numbers)))
                result.append(replace(u, codes=codes))
        if not any(u.group == "backgrounds" for u in result):
            raise ConfigError(
                f"{self.config.work}/corpus has no stream so far in which nobody speaks, which the encoder must hear, "
                "too: render more shards of it, or, where 'backgrounds' under 'data' is 0, make it anew with some."
            )
        self._frames = np.concatenate(frames)
        channels = self._frames.shape[1] // 2
        self._spread = self._frames[::41].astype(np.float32).reshape(-1, channels).std(axis=0)
        return result

    def _features(self, numbers: np.ndarray) -> np.ndarray:
        """Of frames [B, T] by number, float32 [B, T, 2 C]; for a stream's first step, which reads none, the next's."""
        numbers = np.where(numbers < _FIRST, numbers[:, 1:2], numbers)
        found: np.ndarray = self._frames[np.maximum(numbers - _FIRST, 0)].astype(np.float32)
        return found

    def batch(self, step: int) -> Hearing:
        """The batch of a step."""
        made = super().batch(step)
        assert isinstance(made, (Batch, Drill))
        draws = np.random.default_rng([self.config.train.seed, step, self.processes.rank, 1])
        inputs = np.array(made.inputs)
        user = inputs[:, 1 + self.lm_config.dep_q :]
        numbers = user[:, 0].copy()
        heard = numbers >= _FIRST
        user[:] = np.where(heard[:, None], ZERO_TOKEN, self.lm_config.initial_token_id)
        features = self._features(numbers)
        B, T, _ = features.shape
        for row in features.reshape(B, 2 * T, -1):
            if draws.random() < _VARIED:
                gain, noise = draws.uniform(0, _GAIN), draws.uniform(0, _NOISE)
                row[:] = perturbed(row, self._spread, gain, noise, draws)
        audible = [~missed(self.config.mix.user_codebooks, T, self.config.mix, draws).T for _ in range(B)]
        return Hearing(
            mx.array(features),
            mx.array((np.stack(audible) & heard[:, :, None]).astype(np.float32)),
            replace(made, inputs=mx.array(inputs)),
        )

    def _step(self) -> Update:
        weights, dep_q = self.config.train.weights, self.lm_config.dep_q

        def objective(
            trainee: JointTrainee, features: mx.array, audible: mx.array, batch: Batch | Drill
        ) -> tuple[mx.array, dict[str, mx.array]]:
            heard, apart = trainee.hear(features, audible)
            parts = {**losses(trainee, batch, heard), "commitment": apart}
            return total(parts, weights, dep_q) + _COMMITMENT * apart, parts

        value_and_grad = nn.value_and_grad(self.model, objective)

        def update(*arrays: mx.array) -> tuple[dict[str, mx.array], mx.array]:
            features, audible, *rest = arrays
            batch = batch_of(rest)
            (loss, parts), gradients = value_and_grad(self.model, features, audible, batch)
            return {**parts, loss_name(batch): loss}, self._move(gradients)

        return update

    def _average(self) -> None:
        super()._average()
        self.encoder_average = self._nearer(self.encoder_average, self.trainee.encoder)

    def _scored(self, conversations: Sequence[Conversation]) -> Score:
        """As `Trainer`, with the codes that the averaged encoder gives."""
        trained = self.trainee.encoder
        self.trainee.encoder = self.encoder_average
        coded = []
        for talk in conversations:
            user = np.full_like(talk.user, ZERO_TOKEN)
            codes = np.array(self.trainee.codes(mx.array(self._features(talk.user[:1]))))[0]
            user[: len(codes)] = codes
            coded.append(replace(talk, user=user))
        self.trainee.encoder = trained
        return score(self.model.lm, coded)

    def codec(self) -> Tensors:
        """The codec's tensors, with the averaged encoder."""
        return {**super().codec(), **self.trainee.moved(self.encoder_average)}

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "encoder_average": self.encoder_average}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.encoder_average = state["encoder_average"]
