"""How fast is all of it on this machine, in under five minutes?

Runs the quick set (`make bench`), each benchmark in a process of its own, writes `benchmarks/results/NAME.json` and
prints every figure; those that have a target say whether it is reached. With MOSHI_PEERS=PYTHON the published packages
run beside. The long ones (an hour's soak, loading 4.8 GB, the 7B's report) are named in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import HERE, NO_PEERS, Figure, figures_table, machine_line, peers
from rich.console import Console

RESULTS = HERE / "results"

QUICK: dict[str, list[str]] = {
    "dispatches": [],
    "step": ["--rounds", "8", "--steps", "15", "--session-levels", "float32"],
    "mimi": ["--rounds", "6", "--frames", "5"],
    "load": ["--runs", "2"],
    "quantization": ["random-256", "--steps", "15", "--length", "24"],
    "roofline": [],
    "report": ["random-512-4", "--steps", "20"],
    "soak": ["--steps", "3000"],
}
"""Benchmarks and how they are called."""


def run(name: str, arguments: Sequence[str], results: Path, console: Console) -> list[Figure]:
    """Run one; its figures, none if it failed."""
    target = results / f"{name}.json"
    started = time.perf_counter()
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json", str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        console.print(f"[red]{name} failed[/] ({' '.join(command)}):")
        console.print(done.stdout[-3000:], markup=False, highlight=False)
        return []
    result = json.loads(target.read_text())
    console.print(f"[bold]{result['question']}[/] ({name}, {time.perf_counter() - started:.0f} s)")
    return [Figure(**figure) for figure in result["figures"]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUICK, default=list(QUICK), metavar="NAME")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    chosen = parser.parse_args(arguments)
    console = Console()
    console.print(machine_line(), style="dim", highlight=False)
    if not peers():
        console.print(NO_PEERS, highlight=False)
    failed = []
    for name in chosen.only:
        figures = run(name, QUICK[name], chosen.results, console)
        if not figures:
            failed.append(name)
            continue
        console.print(figures_table(figures))
    console.print(f"Results: {chosen.results}/*.json", highlight=False)
    if failed:
        console.print(f"[red]Failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
