"""`python -m moshi_mlx.train.data CONFIG`: render a script to a corpus of utterances as codes.

The corpus grows shard by shard in the work folder; started again, it goes on where it stopped. Conversations are made
of it while training (`moshi_mlx.train.conversation`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from ..cli.options import INTERRUPTED, at_least
from ..config import MimiConfig
from ..errors import MoshiError
from ..files import make_folder, storage_errors
from ..mimi import Mimi
from ..mimi.weights import locate
from .augment import perturbed
from .config import Config
from .corpus import (
    PERTURBED,
    Utterance,
    alike,
    convolutions_of,
    known_answers,
    read_features,
    read_shard,
    said_as_known,
    same_take,
    shards_with_features,
    write_features,
    write_shard,
)
from .render import Encode, Encoded, Job, Sound, encode, perform, plan
from .script import Script
from .tokenizer import train_tokenizer
from .word_times import align_answers

_TOGETHER = 2400
"""Steps of utterances that are encoded anew together."""


def codec_of(config: Config) -> Encode:
    """The configured codec's encoder as a function of arrays."""
    mimi = load_codec(config)

    def run(pcm: np.ndarray) -> Encoded:
        return Encoded(*(np.array(stage) for stage in mimi.stages(mx.array(pcm))))

    return run


def load_codec(config: Config) -> Mimi:
    """The configured codec, with as many of the codebooks that are used as it has so far.

    Raises:
        CheckpointError: no codec there, or a damaged one.
    """
    return Mimi.load(config.codec, min(config.codebooks, locate(config.codec)[1].n_q))


def recode(config: Config, progress: Progress | None = None) -> Path:
    """Give the corpus the codes of the configured codec, from the features kept beside it.

    What users say is encoded as it will be heard, somewhere in a stream: after silence or noise of up to the context of
    the codec's transformer. Moshi's answers get the codes that language models say them with, where the codec brings
    those, and keep the ones they have where its codebooks were kept.

    Returns:
        The corpus' folder.

    Raises:
        ConfigError: no features, or they are another codec's: its convolutions differ.
        CheckpointError: no codec there, or a damaged one.
        StorageError: disk full, no permission.
    """
    shards = shards_with_features(config.work)
    mimi, convolutions = load_codec(config), convolutions_of(config.codec)
    kept, known = config.semantic_training.keep, known_answers(config.codec)
    task = progress.add_task("encoding", total=len(shards)) if progress else None
    backgrounds = [
        convolved
        for path, beside in shards
        for u, (convolved, _) in zip(read_shard(path), read_features(beside, convolutions), strict=True)
        if u.group == "backgrounds"
    ]
    for number, (path, beside) in enumerate(shards):
        draws = np.random.default_rng([config.train.seed, number])
        utterances = list(read_shard(path))
        features = read_features(beside, convolutions)
        streams = {
            i: convolved
            if u.group in ("answers", "backgrounds")
            else _behind(convolved, backgrounds, mimi.config, draws)
            for i, (u, (convolved, _)) in enumerate(zip(utterances, features, strict=True))
        }
        before = {
            i: same_take(known, u.voice, u.text, u.end) or (u if kept else None)
            for i, u in enumerate(utterances)
            if u.group == "answers"
        }
        _perturb(path, utterances, streams, mimi, config, draws)
        for i, codes, latents in _encoded(mimi, streams):
            frames = utterances[i].codes.shape[1]
            utterances[i] = replace(utterances[i], codes=codes[:, -frames:])
            features[i] = features[i][0], latents[-frames:]
        for i, take in before.items():
            utterances[i] = said_as_known(utterances[i], take)
        write_features(beside, features, convolutions)
        write_shard(path, utterances)
        if progress and task is not None:
            progress.advance(task)
    return config.work / "corpus"


def _perturb(
    path: Path,
    utterances: Sequence[Utterance],
    streams: Mapping[int, np.ndarray],
    mimi: Mimi,
    config: Config,
    draws: np.random.Generator,
) -> None:
    """Write the further versions of a shard's utterances beside it, in place of those that were there."""
    beside = path.parent / PERTURBED
    said = {i: x for i, x in streams.items() if utterances[i].teaches_hearing}
    with storage_errors(str(beside)):
        for old in beside.glob(f"{path.stem}-*.npz"):
            old.unlink()
        if config.data.recodings < 2 or not said:
            return
        beside.mkdir(exist_ok=True)
    spread = np.concatenate(list(said.values())).astype(np.float32).std(axis=0)
    for version in range(1, config.data.recodings):
        changed = {}
        for i, x in said.items():
            most = draws.uniform(0, config.data.perturbed)
            changed[i] = perturbed(x, spread, most, most, draws)
        codes = {i: found[:, -utterances[i].codes.shape[1] :] for i, found, _ in _encoded(mimi, changed)}
        write_shard(beside / f"{path.stem}-{version}.npz", [replace(utterances[i], codes=codes[i]) for i in said])


def _encoded(mimi: Mimi, streams: Mapping[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Number, codes [K, F] and latents [F, C] of each stream of the convolutions' output [2 F, C]."""
    numbers = list(streams)
    for some in alike([len(x) for x in streams.values()], _TOGETHER):
        chosen = [numbers[k] for k in some]
        steps = len(streams[chosen[-1]])
        x = np.stack([np.pad(streams[i], ((0, steps - len(streams[i])), (0, 0))) for i in chosen])
        latents, _ = mimi.refine_frame(mx.array(x.astype(np.float32)), mimi.encoder_state(len(chosen), steps // 2))
        for i, codes, latent in zip(chosen, np.array(mimi.quantize(latents)), np.array(latents), strict=True):
            end = len(streams[i]) // 2
            yield i, codes[:, :end], latent[:end]


def _behind(
    convolved: np.ndarray, backgrounds: Sequence[np.ndarray], codec: MimiConfig, draws: np.random.Generator
) -> np.ndarray:
    """A stream of a background's start and then an utterance, as the convolutions put them out.

    Most start early in it: from some frames on a stream sounds like one that has always been there.
    """
    if not backgrounds:
        return convolved
    background = backgrounds[int(draws.integers(len(backgrounds)))]
    before = min(int((codec.context // 2 + 1) * draws.random() ** 2), len(background) // 2)
    return np.concatenate([background[: 2 * before], convolved])


def prepare(config: Config, progress: Progress | None = None, limit: int | None = None, jobs: int = 1) -> Path:
    """Render what the corpus lacks.

    Args:
        config: the training configuration.
        progress: shown on it.
        limit: shards to write at most.
        jobs: processes that render.

    Returns:
        The corpus' folder.

    Raises:
        ConfigError: the script is damaged.
        CheckpointError: no codec there, or a damaged one.
        SynthesisError: a synthesizer is missing or failed.
        StorageError: disk full, no permission.
        MoshiError: the system ended a process that renders.
    """
    script = Script.load(config.script)
    folder = config.work / "corpus"
    make_folder(folder)
    if config.data.features:
        make_folder(config.work / "features")
    train_tokenizer(script, config.data.text_card, config.work / "tokenizer.model")
    shards = {folder / f"{number:05d}.npz": shard for number, shard in enumerate(_shards(script, config)[:limit])}
    lacking = {path: shard for path, shard in shards.items() if not path.exists()}
    if not lacking:
        return folder
    load_codec(config)  # what is wrong with it is said once, here
    task = progress.add_task("rendering", total=len(lacking)) if progress else None
    # MLX and what it is linked to don't survive a fork.
    spawn, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with ProcessPoolExecutor(jobs, spawn, _start, (script, config, lacking)) as pool:
        try:
            with _interrupts_held_back():
                running = [pool.submit(_work, path) for path in lacking]
            for done in as_completed(running):
                done.result()
                if progress and task is not None:
                    progress.advance(task)
        except BaseException as error:
            for worker in set(multiprocessing.active_children()).difference(others):
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise MoshiError(
                    "The system ended a process that renders, as it does where memory runs out: use fewer --jobs. "
                    "The same command goes on after the last whole shard."
                ) from error
            raise
    return folder


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits while this is entered; it never reaches processes that start in it, nor those that they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shards(script: Script, config: Config) -> list[list[Job]]:
    """The corpus' jobs file by file, Moshi's answers in the first one."""
    jobs = plan(script, config.data, config.train.seed)
    answers = len(script.answers)
    edges = [0, *range(answers, len(jobs), config.data.shard), len(jobs)]
    return [jobs[a:b] for a, b in itertools.pairwise(edges)]


def end_with_parent() -> None:
    """Have this process, one of `multiprocessing`'s, end when the one that started it does, however that ended.

    A pool's processes wait for its next task forever otherwise, each with a model in memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_render_here: Callable[[Path], None] | None = None


def _start(script: Script, config: Config, shards: Mapping[Path, Sequence[Job]]) -> None:
    """What a rendering process does first."""
    global _render_here
    end_with_parent()
    convolutions = convolutions_of(config.codec) if config.data.features else ""
    _render_here = functools.partial(_render, script, config, shards, codec_of(config), convolutions)


def _work(path: Path) -> None:
    # All but its name is in the process: a pool whose processes end while it passes them more may wait forever.
    assert _render_here is not None
    _render_here(path)


def _render(
    script: Script, config: Config, shards: Mapping[Path, Sequence[Job]], codec: Encode, convolutions: str, path: Path
) -> None:
    shard = shards[path]
    sounds = [perform(job, script, config.data, config.train.seed) for job in shard]
    if config.data.judge and shard[0].group == "answers":
        sounds = align_answers(sounds, config.data.judge)
    utterances, features = encode([s for s in sounds if _spoken(s)], codec)
    if shard[0].group == "answers":
        known = known_answers(config.codec)
        utterances = [said_as_known(u, same_take(known, u.voice, u.text, u.end)) for u in utterances]
    if config.data.features:
        write_features(config.work / "features" / path.name, features, convolutions)
    write_shard(path, utterances)


def _spoken(sound: Sound) -> bool:
    # A synthesizer that says nothing to a text (a lone "mm") leaves nothing to learn from.
    return sound.end > sound.start or sound.job.group == "backgrounds"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m moshi_mlx.train.data`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m moshi_mlx.train.data", description=__doc__)
    parser.add_argument("config", type=Path, help="training configuration (moshi_mlx/nano/train.yaml is one)")
    parser.add_argument(
        "--work", type=Path, help="folder for the corpus and checkpoints, instead of the configured one"
    )
    parser.add_argument("--jobs", type=at_least(1), default=1, help="processes that render (default 1)")
    parser.add_argument("--shards", type=at_least(1), help="stop after this many shards, for a trial")
    parser.add_argument("--codec", type=Path, help="folder of the codec, instead of the configured one")
    parser.add_argument(
        "--recode", action="store_true", help="render nothing; give the corpus this codec's codes, from its features"
    )
    options = parser.parse_args(arguments)
    console = Console()
    if not shutil.which("espeak-ng"):
        console.print("[yellow]espeak-ng isn't installed: voices of that engine will fail.[/]")
    try:
        config = Config.load(options.config, options.work, options.codec)
        with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            if options.recode:
                folder = recode(config, progress)
            else:
                folder = prepare(config, progress, options.shards, options.jobs)
    except MoshiError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        if options.recode:
            console.print("Stopped; the codes are of both codecs until the same command, which starts anew, has ended.")
        else:
            console.print("Stopped; the same command goes on after the last whole shard.")
        return INTERRUPTED
    console.print(f"corpus in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
