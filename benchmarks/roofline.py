"""Which Mac can run which quantization of the model in time, as far as its memory decides?

A large model's step takes at least as long as reading everything that it touches: all weights of both transformers and
the output projections, the looked-up rows of the embeddings, the keys and values of the context, and the codec. These
bytes, divided by a chip's memory bandwidth, are limits and not measurements: no machine does better, every machine does
worse. `report.py` measures what yours really does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common import Figure, options, report
from limits import FRAME_MS, LEVELS, TIGHT, chips, gpu_share, need, verdict
from macs import table as markdown_table
from rich.console import Console
from rich.table import Table
from traffic import kv_bytes

from moshi_mlx.cli.options import at_least, run_program
from moshi_mlx.config import LMConfig
from moshi_mlx.lm.cache import KV_BITS

NOTES = (
    "[bold]These are limits, not measurements:[/] bytes read per step by the chip's stated bandwidth.",
    "First line: milliseconds with an empty and with a filled cache. Second: at a filled cache, can (the limit is at "
    f"most {TIGHT:.0%} of a frame's {FRAME_MS:g} ms) or tight (above; a real step takes longer than its limit), and "
    "the smallest memory of that chip whose share for the GPU holds weights, full cache and codec.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument(
        "--context", type=at_least(0), default=3000, help="steps in the cache (%(default)s: full, 4 minutes)"
    )
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    parser.add_argument("--kv-bits", type=int, choices=KV_BITS, help="quantize the cache, in all that follows from it")
    parser.add_argument("--markdown", action="store_true", help="print only the README's table, a line a chip")
    chosen = parser.parse_args(arguments)
    if chosen.markdown:
        print(markdown_table())
        return 0
    config = LMConfig.published()
    needs = [need(config, level, chosen.context, chosen.kv_bits) for level in chosen.levels]
    empty = [need(config, level, 0, chosen.kv_bits) for level in chosen.levels]

    figures, details = [], {}
    for bits in (None, *reversed(KV_BITS)):
        cache = f"cache, {bits or 16} bits"
        held, read = (kv_bytes(config, steps, bits=bits) for steps in (config.context, chosen.context))
        figures.append(Figure.exact(f"{cache}: memory", "GB", held / 1e9))
        figures.append(Figure.exact(f"{cache}: read per step", "GB", read / 1e9))
    for wanted in needs:
        figures.append(Figure.exact(f"{wanted.level}: file", "GB", wanted.file / 1e9))
        figures.append(Figure.exact(f"{wanted.level}: read per step", "GB", wanted.read / 1e9))
        figures.append(Figure.exact(f"{wanted.level}: memory, full context", "GB", wanted.held / 1e9))
    title = f"Lowest possible ms per step, cache of {chosen.kv_bits or 16} bits"
    table = Table("chip", "GB/s", *(wanted.level for wanted in needs), title=title)
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
    report(
        __doc__, chosen.json, figures, {"context": chosen.context, "kv_bits": chosen.kv_bits, "chips": details}, NOTES
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
