"""Microphones and speakers: chosen by number or name, tried before a model is loaded, listed for people."""

import argparse
from typing import Any

from rich.table import Table

Choice = int | str | bool | None
"""A device's number, a part of its name, None for the system's own choice, False for none at all."""


def chosen(args: argparse.Namespace) -> dict[str, Choice]:
    """The devices that the options ask for, as AudioIO takes them; a file for one end leaves its device closed."""
    return {
        "input": _choice(args.input_device) if args.input is None else False,
        "output": _choice(args.output_device) if args.output is None else False,
    }


def try_devices(choices: dict[str, Choice]) -> None:
    """Open and close the devices, so that a missing or forbidden one is known before a long load.

    Raises:
        DeviceError: a device is missing, busy or refused.
    """
    from ..audio_io import AudioIO

    AudioIO(choices["input"], choices["output"], echo_cancel=False).close()


def devices_table(devices: list[dict[str, Any]]) -> Table:
    """What `list_devices` gives, as a table; a star marks the system's own choice."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", justify="right")
    table.add_column("name", overflow="fold")
    for column in ("microphone", "speaker"):
        table.add_column(column)
    table.add_column("identifier", overflow="fold", style="dim")
    for device in devices:
        ends = [_end(device["input"]), _end(device["output"])]
        table.add_row(str(device["number"]), device["name"], *ends, device["id"])
    return table


def _end(port: dict[str, Any] | None) -> str:
    if port is None:
        return "-"
    star = "* " if port["default"] else "  "
    return f"{star}{port['rate']} Hz, {port['channels']} ch"


def _choice(named: str | None) -> Choice:
    return int(named) if named is not None and named.isdecimal() else named
