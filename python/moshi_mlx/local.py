"""python -m moshi_mlx.local: talk with Moshi by microphone and speaker, or have it answer a sound file."""

import argparse
import sys
from collections.abc import Sequence

from .errors import InputError
from .options import add_model_options, add_sampling_options, at_least, run_program


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="moshi-local",
        description="Talk with Moshi, which listens and speaks at the same time.",
        epilog='Example: moshi-local -q 4 --input question.wav --output answer.wav. "-" is a pipe (WAV).',
    )
    add_model_options(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--input", metavar="FILE", help="sound file to listen to: WAV, FLAC, MP3, OGG, M4A")
    files.add_argument("--output", metavar="FILE", help="WAV file for the answer; in time with the input")
    files.add_argument("--stereo", action="store_true", help="write both: the user left, Moshi right")
    files.add_argument("--transcript", metavar="FILE", help="JSON file for Moshi's words with their times")
    files.add_argument(
        "--tail", type=at_least(0.0), default=0.0, metavar="SECONDS",
        help="silence to hear after the input, for Moshi to finish its answer in (default: none)",
    )  # fmt: skip
    files.add_argument("--steps", type=at_least(1), help="stop after so many steps of 80 ms")
    add_sampling_options(parser)
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the options and do what they ask for.

    Raises:
        MoshiError: whatever went wrong.
    """
    args = parser().parse_args(argv)
    if args.input is None or args.output is None:
        raise InputError("Give --input and --output: sound files, or - for a pipe.")
    from .file_run import converse_with_file

    return converse_with_file(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_program(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
