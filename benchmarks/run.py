"""How fast is all of it on this machine, in under five minutes?

Runs the quick set (`make bench`), each benchmark in a process of its own, prints every figure, and writes
`benchmarks/results/NAME.json` and all figures as one table, `benchmarks/results/table.md`. Those that have a target say
whether it is reached. With MOSHI_PEERS=PYTHON the published packages run beside. The long ones (an hour's soak, loading
4.8 GB, the 7B's report) are named in `benchmarks/README.md`.

    python benchmarks/run.py --plot step.svg      draws the ratios to the published packages of the results that are
                                                  there, and runs nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bars import draw, ratio_bars
from common import HERE, NO_PEERS, Figure, figures_table, machine_line, peers
from rich.console import Console

RESULTS = HERE / "results"

QUICK: dict[str, list[str]] = {
    "dispatches": [],
    "step": ["--rounds", "8", "--steps", "12", "--session-levels", "float32"],
    "mimi": ["--rounds", "6", "--frames", "5"],
    "load": ["--runs", "2"],
    "quantization": ["random-256", "--steps", "15", "--length", "24"],
    "roofline": [],
    "report": ["random-512-4", "--steps", "15"],
    "soak": ["--steps", "2000"],
}
"""Benchmarks and how they are called."""


def run(name: str, arguments: Sequence[str], results: Path, console: Console) -> dict[str, Any] | None:
    """Run one; its result, None if it failed."""
    target = results / f"{name}.json"
    started = time.perf_counter()
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json", str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        console.print(f"[red]{name} failed[/] ({' '.join(command)}):")
        console.print(done.stdout[-3000:], markup=False, highlight=False)
        return None
    result: dict[str, Any] = json.loads(target.read_text())
    console.print(f"[bold]{result['question']}[/] ({name}, {time.perf_counter() - started:.0f} s)")
    return result


def markdown(results: Mapping[str, Mapping[str, Any]], seconds: float) -> str:
    """All figures as one table."""
    first = next(iter(results.values()))
    lines = [
        f"`make bench`, {first['date'][:10]}, {seconds / 60:.1f} minutes, commit {first['machine']['commit']}:",
        f"{machine_line()}.",
        "",
        "| command | figure | median | quartiles | runs | target | reached |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results.values():
        command = " ".join(result["command"].split()[1:]).partition(" --json ")[0]
        for figure in (Figure(**found) for found in result["figures"]):
            reached = "" if figure.reached is None else "yes" if figure.reached else "no"
            lines.append("| " + " | ".join([f"`{command}`", figure.name, *figure.cells(), reached]) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUICK, default=list(QUICK), metavar="NAME")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results that are there, as SVG")
    chosen = parser.parse_args(arguments)
    if chosen.plot:
        draw(ratio_bars(chosen.results), chosen.plot)
        return 0
    console = Console()
    console.print(machine_line(), style="dim", highlight=False)
    if not peers():
        console.print(NO_PEERS, highlight=False)
    started = time.perf_counter()
    results: dict[str, dict[str, Any]] = {}
    for name in chosen.only:
        result = run(name, QUICK[name], chosen.results, console)
        if result is not None:
            results[name] = result
            console.print(figures_table([Figure(**figure) for figure in result["figures"]]))
    if results:
        (chosen.results / "table.md").write_text(markdown(results, time.perf_counter() - started))
    console.print(f"Results: {chosen.results}/*.json and table.md", highlight=False)
    failed = [name for name in chosen.only if name not in results]
    if failed:
        console.print(f"[red]Failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
