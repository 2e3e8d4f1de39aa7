"""The command without files: load, warm up, open microphone and speaker, converse until told to stop."""

import argparse
import gc
from contextlib import ExitStack

from rich.console import Console

from ..errors import InputError
from ..files import STDOUT, ResultFile, keep_all
from ..sound import Samples, WavWriter, need_extension
from .conversation import Conversation
from .devices import Choice, chosen, devices_table, try_devices
from .file_screen import console_on
from .interrupt import StopRequest
from .keys import Keys
from .live_ends import FileEar, FileMouth, Finished, LiveSound
from .live_screen import LiveScreen, figures
from .live_state import LiveState, clock
from .measures import memory_line
from .options import begin, load_input, load_model, save, try_place
from .quiet import libraries_kept_quiet
from .recording import Recording
from .trace import Trace


def converse_live(args: argparse.Namespace) -> int:
    """The command with a microphone, a speaker or both; returns its exit code.

    Raises:
        MoshiError: as its parts, before the conversation begins; afterwards what goes wrong is told on the screen.
    """
    if STDOUT in (args.input, args.output, args.transcript, args.save, args.record, args.trace):
        raise InputError("Pipes need both --input and --output; with a microphone or speaker, name a file.")
    need_extension()
    with libraries_kept_quiet() as stderr:
        return _converse(args, console_on(stderr))


def _converse(args: argparse.Namespace, console: Console) -> int:
    devices = chosen(args)
    try_devices(devices)
    heard = None if args.input is None else load_input(args.input)
    for path in (args.save, args.record, args.trace):
        try_place(path)
    with StopRequest() as stop, ExitStack() as results:
        writer = WavWriter(args.output, channels=2 if args.stereo else 1) if args.output else None
        if writer:
            results.enter_context(writer)
        said = results.enter_context(ResultFile(args.transcript)) if args.transcript else None
        moshi = load_model(args, console)
        session = begin(moshi, args, console, profile=bool(args.trace))
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection during the conversation looks through it again
        state = LiveState(model=moshi.name)
        stop.begin()
        with open_ends(args, devices, heard, writer) as sound:
            # These grow in place: only now is it known that there is a conversation to put in what stood there.
            recording = results.enter_context(Recording(args.record)) if args.record else None
            trace = results.enter_context(Trace(args.trace)) if args.trace else None
            screen = LiveScreen(state, console)
            conversation = Conversation(session, sound, screen, recording, trace)
            with Keys() as keys, screen:
                run(conversation, sound, keys, stop, args.steps)
            summary(state, console)
            about = {"model": moshi.name, "seed": session.seed, "dropped": session.dropped, "sound": sound.stats()}
            # Before the devices are closed: a sound server that hangs must not cost what was said.
            keep_all(
                writer.close if writer else lambda: None,
                lambda: conversation.transcript.keep(said, about),
                lambda: save(session, args.save),
            )
    written = [name for name in (args.output, args.record, args.transcript, args.trace, args.save) if name]
    if written:
        console.print(f"written: {' and '.join(written)}", highlight=False, soft_wrap=True)
    return 0


def open_ends(
    args: argparse.Namespace, devices: dict[str, Choice], heard: Samples | None, writer: WavWriter | None
) -> LiveSound:
    """Open microphone and speaker, or the file for either.

    Raises:
        DeviceError: a device is missing, busy or refused.
    """
    from ..audio_io import AudioIO

    device = AudioIO(
        devices["input"],
        devices["output"],
        echo_cancel=not args.no_echo_cancel,
        max_lag_ms=args.max_lag,
        noise_suppression=args.noise_suppression,
    )
    ear = None if heard is None else FileEar(heard, args.tail)
    mouth = FileMouth(writer) if writer else None
    return LiveSound(device, ear, mouth, cancels=not args.no_echo_cancel)


def run(conversation: Conversation, sound: LiveSound, keys: Keys, stop: StopRequest, steps: int | None) -> None:
    """Turn by turn until the user or the sound comes to an end, or `steps` are done."""
    try:
        while not (stop.requested or conversation.quitting):
            conversation.press(keys.pressed())
            conversation.turn()
            if steps is not None and conversation.steps >= steps:
                break
    except Finished:
        pass


def summary(state: LiveState, console: Console) -> None:
    """Print what the conversation was like."""
    line = f"{clock(state.elapsed)} · {state.steps} steps · " + " · ".join(text for text, _ in figures(state))
    console.print(line, highlight=False, soft_wrap=True)
    console.print(memory_line(), highlight=False)


def list_devices() -> int:
    """Print the microphones and speakers that there are."""
    need_extension()
    from .. import audio_io

    with libraries_kept_quiet():
        devices = audio_io.list_devices()
    Console().print(devices_table(devices))
    return 0
