"""python -m moshi_mlx.local: talk with Moshi by microphone and speaker, or have it answer a sound file."""

import argparse
import os
import sys
from collections.abc import Sequence

from .cli.options import add_model_options, add_sampling_options, at_least, run_program
from .errors import InputError
from .files import STDOUT

_RESULTS = ("output", "transcript", "save", "record", "trace")
"""The options that name a file to write."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="moshi-local",
        description="Talk with Moshi, which listens and speaks at the same time.",
        epilog='Examples: moshi-local -q 4; moshi-local -q 4 --input question.wav --output answer.wav. "-" is a pipe.',
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
    files.add_argument("--save", metavar="FILE", help="save the conversation at its end, to be continued later")
    files.add_argument("--resume", metavar="FILE", help="continue a conversation that was saved")
    live = parser.add_argument_group("live, where --input or --output is left out")
    live.add_argument("--input-device", metavar="DEVICE", help="microphone: its number or a part of its name")
    live.add_argument("--output-device", metavar="DEVICE", help="speaker: its number or a part of its name")
    live.add_argument("--list-devices", action="store_true", help="show microphones and speakers, and stop")
    live.add_argument("--record", metavar="FILE", help="WAV file of the conversation: user left, Moshi right")
    live.add_argument("--trace", metavar="FILE", help="Chrome trace of where each step's time went")
    live.add_argument("--no-echo-cancel", action="store_true", help="let Moshi hear itself (fine with headphones)")
    live.add_argument("--noise-suppression", action="store_true", help="take steady noise out of what Moshi hears")
    live.add_argument(
        "--max-lag", type=at_least(80, 60_000), default=400, metavar="MS",
        help="drop sound rather than be later than this, 60000 at most (default: 400)",
    )  # fmt: skip
    add_sampling_options(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect, or one result in another's place.

    Raises:
        InputError: two results are one file, or one pipe; a device beside the file that replaces it, a live
            conversation's file where none is live, or noise suppression without the echo cancellation that it's a
            part of.
    """
    for end, device in (("input", args.input_device), ("output", args.output_device)):
        if device is not None and getattr(args, end) is not None:
            raise InputError(f"--{end} takes the place of --{end}-device: give one of them.")
    for option in ("record", "trace"):
        if getattr(args, option) is not None and args.input is not None and args.output is not None:
            raise InputError(
                f"--{option} is for a live conversation, and with --input and --output none is: leave one of them out. "
                "--output FILE --stereo keeps what both say."
            )
    if args.noise_suppression and (args.no_echo_cancel or args.input is not None or args.output is not None):
        raise InputError(
            "--noise-suppression is a part of echo cancellation, which needs a microphone and a speaker: leave it out, "
            "or --no-echo-cancel, --input and --output."
        )
    places: dict[str, str] = {}
    for option in _RESULTS:
        name = getattr(args, option)
        if name is None:
            continue
        place = name if name == STDOUT else os.path.realpath(name)
        if place in places:
            where = "standard output" if name == STDOUT else name
            raise InputError(f"--{places[place]} and --{option} are both {where}: give each a file of its own.")
        if place == STDOUT or os.path.isfile(place) or not os.path.exists(place):  # a device takes several
            places[place] = option


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the options and do what they ask for.

    Raises:
        MoshiError: whatever went wrong.
    """
    args = parser().parse_args(argv)
    check(args)
    if args.list_devices:
        from .cli.live_run import list_devices

        return list_devices()
    if args.input is not None and args.output is not None:
        from .cli.file_run import converse_with_file

        return converse_with_file(args)
    from .cli.live_run import converse_live

    return converse_live(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_program(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
