"""Which Mac can run which quantization of the model in time, as far as its memory decides?

A large model's step takes at least as long as reading everything that it touches: all weights of both transformers and
the output projections, the looked-up rows of the embeddings, the keys and values of the context, and the codec. These
bytes, divided by a chip's memory bandwidth, are limits and not measurements: no machine does better, every machine does
worse. `report.py` measures what yours really does.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Figure, options, report
from limits import FRAME_MS, LEVELS, TIGHT, chips, gpu_share, need, verdict
from rich.console import Console
from rich.table import Table

from moshi_mlx.config import LMConfig

NOTES = (
    "[bold]These are limits, not measurements:[/] bytes read per step by the chip's stated bandwidth.",
    "First line: milliseconds with an empty and with a filled cache. Second: at a filled cache, can (the limit is at "
    f"most {TIGHT:.0%} of a frame's {FRAME_MS:g} ms) or tight (above; a real step takes longer than its limit), and "
    "the smallest memory of that chip whose share for the GPU holds weights, full cache and codec.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--context", type=int, default=3000, help="steps in the cache (%(default)s: full, 4 minutes)")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    chosen = parser.parse_args(arguments)
    config = LMConfig.published()
    needs = [need(config, level, chosen.context) for level in chosen.levels]
    empty = [need(config, level, 0) for level in chosen.levels]

    figures, details = [], {}
    for wanted in needs:
        figures.append(Figure.exact(f"{wanted.level}: file", "GB", wanted.file / 1e9))
        figures.append(Figure.exact(f"{wanted.level}: read per step", "GB", wanted.read / 1e9))
        figures.append(Figure.exact(f"{wanted.level}: memory, full context", "GB", wanted.held / 1e9))
    table = Table("chip", "GB/s", *(wanted.level for wanted in needs), title="Lowest possible ms per step")
    for chip in chips():
        cells = []
        for wanted, at_start in zip(needs, empty, strict=True):
            ms = wanted.ms(chip.gb_per_s * 1e9)
            first_ms = at_start.ms(chip.gb_per_s * 1e9)
            cells.append(f"{first_ms:.0f} - {ms:.0f}\n{verdict(chip, wanted)}")
            details.setdefault(chip.name, {})[wanted.level] = {
                "limit_ms": ms,
                "limit_ms_empty_cache": first_ms,
                "headroom": FRAME_MS / ms,
                "verdict": verdict(chip, wanted),
                "memory_gb": {gb: wanted.held <= gpu_share(gb) * gb * 2**30 for gb in chip.memory_gb},
            }
        table.add_row(chip.name, f"{chip.gb_per_s:g}", *cells)
    Console().print(table)
    report(__doc__, chosen.json, figures, {"context": chosen.context, "chips": details}, NOTES)


if __name__ == "__main__":
    main()
