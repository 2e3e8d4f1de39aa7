"""A conversation with a sound file: it is heard frame by frame, and the answer is written as it is spoken."""

import argparse
import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from ..config import FRAME_RATE, FRAME_SIZE
from ..errors import InputError
from ..files import STDOUT, ResultFile, keep_all
from ..session import Session
from ..sound import Samples, WavWriter
from .file_screen import FileScreen, console_on
from .interrupt import StopRequest
from .options import INTERRUPTED, begin, load_input, load_model, save, try_place
from .transcript import Transcript


@dataclass(frozen=True)
class FileRun:
    """How far a run over a file came."""

    steps: int
    interrupted: bool


def steps_for(samples: int, tail: float, delay: int, limit: int | None) -> int:
    """Steps to hear `samples` samples and `tail` seconds of silence and to speak what belongs to them.

    The model speaks `delay` frames behind what it has decided, so as many are added.
    """
    steps = math.ceil(samples / FRAME_SIZE) + math.ceil(tail * FRAME_RATE - 1e-9) + delay
    return steps if limit is None else min(steps, limit)


def run_file(
    session: Session,
    heard: Samples,
    steps: int,
    writer: WavWriter,
    transcript: Transcript,
    screen: FileScreen,
    stop: StopRequest,
) -> FileRun:
    """Step `session` over `heard`, float32 [samples] at 24 kHz, and silence after it, until done or asked to stop.

    Frame t of what is written was spoken while frame t was heard: a stereo `writer` gets both, user left.
    """
    for step in range(steps):
        if stop.requested:
            return FileRun(step, interrupted=True)
        user = np.zeros(FRAME_SIZE, np.float32)
        part = heard[step * FRAME_SIZE : (step + 1) * FRAME_SIZE]
        user[: len(part)] = part
        frame = session.step(user)
        writer.write(frame.pcm if writer.channels == 1 else np.stack([user, frame.pcm], axis=1))
        transcript.add(step, frame.text)
        screen.show(frame)
    return FileRun(steps, interrupted=False)


def converse_with_file(args: argparse.Namespace) -> int:
    """The command with `--input FILE --output FILE`; returns its exit code.

    Raises:
        MoshiError: as its parts; nothing is left half written.
    """
    console = console_on(sys.stderr)
    check_streams(args)
    heard = load_input(args.input)
    try_place(args.save)
    transcript = Transcript()
    # Results are opened before the model is loaded: what can't be written is better known at once.
    with StopRequest() as stop, ExitStack() as results:
        writer = results.enter_context(WavWriter(args.output, channels=2 if args.stereo else 1))
        said = results.enter_context(ResultFile(args.transcript)) if args.transcript else None
        moshi = load_model(args, console)
        session = begin(moshi, args, console, profile=True)
        steps = steps_for(len(heard), args.tail, moshi.lm.config.max_delay, args.steps)
        writer.expected = steps * FRAME_SIZE
        words_to = sys.stderr if STDOUT in (args.output, args.transcript, args.save) else sys.stdout
        screen = FileScreen(console, words_to, steps)
        stop.begin()
        with screen:
            run = run_file(session, heard, steps, writer, transcript, screen, stop)
        screen.summary()
        about = {"model": moshi.name, "seed": session.seed, "seconds": run.steps / FRAME_RATE}
        keep_all(writer.close, lambda: transcript.keep(said, about), lambda: save(session, args.save))
    written = " and ".join(name for name in (args.output, args.transcript, args.save) if name and name != STDOUT)
    if run.interrupted:
        console.print(f"Interrupted after {writer.seconds:.1f} s; what there was by then was written.", highlight=False)
    if written:
        console.print(f"written: {written}", highlight=False, soft_wrap=True)
    return INTERRUPTED if run.interrupted else 0


def check_streams(args: argparse.Namespace) -> None:
    """Refuse what can't work with pipes, before anything is loaded.

    Raises:
        InputError: sound or a saved conversation to a terminal, or sound from it.
    """
    if args.input == STDOUT and sys.stdin.isatty():
        raise InputError("--input - reads a sound file from a pipe, but standard input is the terminal.")
    for option, what in (("output", "WAV"), ("save", "a saved conversation")):
        if getattr(args, option) == STDOUT and sys.stdout.isatty():
            raise InputError(f"--{option} - writes {what} to a pipe, but standard output is the terminal.")
