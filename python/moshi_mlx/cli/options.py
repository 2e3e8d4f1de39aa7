"""What the command lines share: naming a model, sampling settings, and how they end."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import hub
from ..checkpoint.locate import PUBLISHED_MIMI, PUBLISHED_TOKENIZER
from ..errors import AudioFileError, InputError, MoshiError
from ..files import ResultFile
from ..sound import Samples, load_sound

if TYPE_CHECKING:
    from rich.console import Console

    from ..moshi import Moshi
    from ..session import Session

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells know it."""

PUBLISHED = {None: "kyutai/moshiko-mlx-bf16", 4: "kyutai/moshiko-mlx-q4", 8: "kyutai/moshiko-mlx-q8"}
"""The repository that `-q` stands for; other bits are quantized from the bf16 one while loading."""

SMALL = "nano"
"""The model in the package, for where no other is named or in the cache."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model to load, as the published commands name it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-q", "--quantized", type=int, choices=[2, 3, 4, 5, 6, 8], metavar="{2,3,4,5,6,8}",
        help="bits of the weights: 4 and 8 are published, others are made from bf16 while loading (default: bf16)",
    )  # fmt: skip
    group.add_argument("--hf-repo", metavar="OWNER/NAME", help="model repository on the Hugging Face hub")
    group.add_argument(
        "--model", metavar="NAME",
        help="nano (small, comes with the package), untrained (random, makes noise), a folder, or a hub repository",
    )  # fmt: skip
    group.add_argument("--moshi-weight", "--moshi-weights", metavar="FILE", help="the language model's weights")
    group.add_argument("--mimi-weight", "--mimi-weights", metavar="FILE", help="the codec's weights")
    group.add_argument("--tokenizer", metavar="FILE", help="the text tokenizer")
    group.add_argument(
        "--kv-bits", type=int, choices=[4, 8], help="quantize what is remembered of the conversation, for less memory"
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How tokens are drawn."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--seed", type=int, help="same seed, same sound: same answer (default: drawn anew)")
    group.add_argument("--temp", type=at_least(0.0), default=0.8, help="of the sound, 0 is greedy (default: 0.8)")
    group.add_argument("--temp-text", type=at_least(0.0), default=0.7, help="of the words (default: 0.7)")
    group.add_argument("--top-k", type=at_least(0), default=250, help="of the sound, 0 is all (default: 250)")
    group.add_argument("--top-k-text", type=at_least(0), default=25, help="of the words (default: 25)")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a session, as `Moshi.session` takes them."""
    return {
        "kv_bits": args.kv_bits,
        "temp": args.temp,
        "temp_text": args.temp_text,
        "top_k": args.top_k,
        "top_k_text": args.top_k_text,
    }


def model_name(args: argparse.Namespace) -> str:
    """The model that the options ask for.

    Raises:
        InputError: it is named twice.
    """
    if args.model and args.hf_repo:
        raise InputError("Both --model and --hf-repo name a model: give one of them.")
    if args.model or args.hf_repo:
        return str(args.model or args.hf_repo)
    if args.quantized or args.moshi_weight:
        return PUBLISHED.get(args.quantized, str(PUBLISHED[None]))
    return cached_published() or SMALL


def cached_published() -> str | None:
    """A published model that is in the hub's cache, whole, one of 4 bits rather than of 8 or 16."""
    for bits, repository in ((4, PUBLISHED[4]), (8, PUBLISHED[8]), (None, PUBLISHED[None])):
        weights = f"model.q{bits}.safetensors" if bits else "model.safetensors"
        if all(hub.is_cached(repository, name) for name in (weights, PUBLISHED_MIMI, PUBLISHED_TOKENIZER)):
            return repository
    return None


def load_model(args: argparse.Namespace, console: "Console") -> "Moshi":
    """Load the model that the options ask for, showing downloads and quantization on `console`.

    Raises:
        CheckpointError, DownloadError: as `moshi_mlx.load`.
    """
    from rich.progress import Progress

    from ..moshi import load
    from .download_bar import DownloadBar

    name = model_name(args)
    console.print(f"Loading {name} ...", style="dim", highlight=False)
    if name == SMALL and not args.model:
        console.print(
            "nano is the small model in the package: 137 subjects, no more. For the 7B model: -q 4, which downloads "
            "4.8 GB once.", style="dim", highlight=False, soft_wrap=True,
        )  # fmt: skip
    bars = Progress(console=console, transient=True, disable=not console.is_terminal)
    bar = bars.add_task("Quantizing", total=None)

    def quantizing(done: int, total: int) -> None:
        bars.start()  # only now: the downloads before it draw bars of their own
        bars.update(bar, completed=done, total=total)

    try:
        moshi = load(
            name,
            quantize=args.quantized,
            moshi_weight=args.moshi_weight,
            mimi_weight=args.mimi_weight,
            tokenizer=args.tokenizer,
            seed=args.seed or 0,
            progress=quantizing,
            download_bar=DownloadBar,
        )
    finally:
        bars.stop()
    if name == "untrained":
        console.print("This model is untrained, made of random numbers: it makes noise.", style="yellow")
        if args.quantized:
            console.print("It is too small to be quantized: -q changes nothing.", style="yellow", highlight=False)
    return moshi


def load_input(path: str) -> Samples:
    """The sound that --input names, as `load_sound` gives it.

    Raises:
        AudioFileError: as `load_sound`; of a file that is cut off it says how the command hears what there is.
    """
    try:
        return load_sound(path)
    except AudioFileError as error:
        piped = f"--input - --output FILE < {shlex.quote(path)}"  # a pipe is heard as far as it goes
        raise AudioFileError(str(error).replace("partial=True", piped)) from error


def try_place(path: str | Path | None) -> None:
    """Find out that a result can't be written before a model is loaded, not after; None is a result not asked for.

    Raises:
        StorageError: as `ResultFile`.
    """
    # Whoever reads a named pipe would take this for the result's end.
    if path is not None and not Path(path).is_fifo():
        ResultFile(path).discard()


def begin(moshi: "Moshi", args: argparse.Namespace, console: "Console", profile: bool) -> "Session":
    """A session, or the one that --resume names, with all built that its steps need, so that none waits for it.

    Raises:
        CheckpointError: as `Moshi.resume`.
    """
    from rich.progress import Progress

    if args.resume:
        session = moshi.resume(args.resume, profile)
    else:
        session = moshi.session(args.seed, profile=profile, **sampling(args))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("Warming up", total=None)
        moshi.warm_up(lambda done, total: bars.update(bar, completed=done, total=total), **session.settings)
    return session


def save(session: "Session", path: str | None) -> None:
    """Save a conversation where that is wanted.

    Raises:
        StorageError: it can't be written.
    """
    if path is not None:
        session.save(path)


def at_least(least: int | float, most: int | float | None = None) -> Callable[[str], int | float]:
    """A type for argparse: a finite number of `least`'s type that isn't smaller, nor larger than `most`."""
    kind = type(least)

    def number(text: str) -> int | float:
        value = kind(text)
        if not least <= value < float("inf") or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not {least} or more" + (f", {most} at most" if most else ""))
        return value

    number.__name__ = "number" if kind is float else "whole number"
    return number


def above_zero(text: str) -> float:
    """A type for argparse: a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


above_zero.__name__ = "number"  # as argparse calls it where `text` is none


def run_program(program: Callable[[], int]) -> int:
    """Run a command line's `program` and return its exit code; an error becomes one line on standard error."""
    try:
        return program()
    except MoshiError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
