"""python -m moshi_mlx.quantize: save a language model with fewer bits, in the published MLX layout.

How many bits is said outright (--bits, --recipe), or searched for: the best measured quality within a budget of memory
(--target-gb) or of bytes read per step (--target-ms at a memory --bandwidth, less what the codec and a full KV cache,
of --kv-bits, take of it).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .checkpoint.layout import pieces
from .checkpoint.loading import LMFile, check_lm
from .checkpoint.locate import CheckpointFiles, resolve
from .checkpoint.quantization import KINDS, LEVELS, Recipe, bytes_of, kind_of
from .checkpoint.saving import config_to_save, need_floating_point, save_quantized
from .cli.download_bar import DownloadBar
from .cli.options import above_zero, at_least
from .errors import InputError, MoshiError, StorageError
from .files import copy_file, make_folder, storage_errors, write_json
from .lm.cache import KV_BITS
from .mimi.weights import locate, quantize_weights
from .quality import Divergence
from .recipe_file import read_recipe, report_of
from .recipe_search import DEFAULT_LEVELS, file_budget, search, time_budget

_LEVELS = [*map(str, LEVELS), "bf16"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        _run(options, console)
    except MoshiError as error:
        console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moshi_mlx.quantize", description=__doc__)
    parser.add_argument("source", help="hub repository, folder or weights file of a bf16 checkpoint, in either layout")
    parser.add_argument("destination", help="folder for a complete model, or a .safetensors file for the weights alone")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--bits", choices=_LEVELS, help="level of all tensors (bf16 only changes the layout)")
    how.add_argument(
        "--recipe", metavar="TEXT",
        help="levels by kind of tensor, such as '4,attention=8,embeddings=bf16', or a recipe.json that a search wrote; "
        f"kinds: {', '.join(KINDS)}",
    )  # fmt: skip
    how.add_argument("--target-gb", type=above_zero, metavar="GB", help="search: size of the weights, in 10^9 bytes")
    how.add_argument("--target-ms", type=above_zero, metavar="MS", help="search: time to read all in that a step reads")
    parser.add_argument("--bandwidth", type=above_zero, metavar="GB/S", help="memory bandwidth, for --target-ms")
    parser.add_argument(
        "--kv-bits", type=int, choices=KV_BITS,
        help="for --target-ms: quantize what is remembered of the conversation, for less memory",
    )  # fmt: skip
    parser.add_argument(
        "--levels", default=",".join(map(str, DEFAULT_LEVELS)), help="levels that a search may use (%(default)s)"
    )
    parser.add_argument(
        "--codec-bits", type=int, choices=(8,),
        help="store the codec's weights with fewer bits, too, for this package alone: others read whole ones only",
    )  # fmt: skip
    parser.add_argument("--steps", type=at_least(1), default=48, help="steps of the streams that a search measures on")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of those streams")
    return parser


def _run(options: argparse.Namespace, console: Console) -> None:
    if (options.bandwidth is None) != (options.target_ms is None):
        raise InputError("--target-ms and --bandwidth go together: milliseconds a step, and GB/s to read weights at.")
    destination = Path(options.destination).expanduser()
    alone = destination.suffix == ".safetensors"
    if options.codec_bits is not None and alone:
        raise InputError("--codec-bits goes with a folder for a complete model; this is a file for its weights alone.")
    if options.kv_bits is not None and options.target_ms is None:
        raise InputError("--kv-bits goes with --target-ms, which counts the cache; the weights don't depend on it.")
    files = resolve(options.source, progress=DownloadBar)
    if options.codec_bits is not None and files.mimi is None:
        raise InputError(f"{options.source} has no codec that --codec-bits could be for.")
    file = check_lm(files.need("lm"), files.lm_config)
    need_floating_point(file)
    if files.mimi is not None and destination.exists() and destination.samefile(files.mimi):
        raise InputError(f"{destination} is the model's codec. Name another folder for the weights.")
    recipe, report = _chosen(options, files, file, console)
    name = weights_name(recipe)
    weights = destination if alone else _make_folder(destination) / name
    with _progress(console) as bar:
        task = bar.add_task(f"Quantizing {file.path.name}", total=None)
        size = save_quantized(file, weights, recipe, lambda done, total: bar.update(task, completed=done, total=total))
    if not alone:
        _complete(files, destination, name, options.codec_bits)
    if report is not None:
        write_json(weights.with_name("recipe.json"), report)
    console.print(_summary(file, recipe))
    console.print(
        f"{weights}: {size / 1e6:,.1f} MB, was {file.header.nbytes / 1e6:,.1f} MB", highlight=False, soft_wrap=True
    )


def _chosen(
    options: argparse.Namespace, files: CheckpointFiles, file: LMFile, console: Console
) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe that the options name or ask to search for, and a search's report."""
    if options.target_gb is not None or options.target_ms is not None:
        return _searched(options, files, file, console)
    if options.recipe is not None and options.recipe.endswith(".json"):
        return read_recipe(options.recipe, file.config), None
    return Recipe.parse(options.recipe or options.bits), None


def _searched(
    options: argparse.Namespace, files: CheckpointFiles, file: LMFile, console: Console
) -> tuple[Recipe, dict[str, Any]]:
    """Search a recipe within the budget; the recipe and what is to be kept in recipe.json."""
    if options.target_gb is not None:
        budget = file_budget(options.target_gb)
    else:
        codec = None if files.mimi is None else locate(files.mimi)[1]
        budget = time_budget(options.target_ms, options.bandwidth, file.config, options.kv_bits, codec)
    with _progress(console, "measurements") as bar:
        task = bar.add_task("Measuring the original", total=None)
        outcome = search(
            file, budget, options.levels.split(","), options.steps, options.seed,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    table = Table("recipe", "MB counted", "KL from the original", "same most likely text token")
    for name, (nbytes, measured) in outcome.uniform.items():
        fits = "" if nbytes <= budget.nbytes else " (over budget)"
        _add_measured(table, f"all {name}{fits}", nbytes, measured)
    _add_measured(table, "found", outcome.nbytes, outcome.measured)
    console.print(table)
    return outcome.recipe, report_of(outcome, budget)


def _add_measured(table: Table, name: str, nbytes: int, measured: Divergence) -> None:
    table.add_row(name, f"{nbytes / 1e6:,.1f}", f"{measured.kl:.2e}", f"{measured.text_agreement:.1%}")


def weights_name(recipe: Recipe) -> str:
    """The published name for weights of this recipe: `model.q4.safetensors`, and `model.safetensors` for bf16."""
    if recipe.kinds or recipe.modules:
        return "model.mixed.safetensors"
    if recipe.default is None:
        return "model.safetensors"
    bits = recipe.default.bits if recipe.default.mode == "affine" else recipe.default.mode
    return f"model.q{bits}.safetensors" if isinstance(bits, int) else f"model.{bits}.safetensors"


def _make_folder(folder: Path) -> Path:
    with storage_errors(str(folder)):
        if folder.exists() and not folder.is_dir():
            raise StorageError(f"{folder} is a file. Name a folder, or a .safetensors file for the weights alone.")
    make_folder(folder)
    return folder


def _complete(files: CheckpointFiles, folder: Path, weights: str, codec_bits: int | None) -> None:
    """Put the rest of a model beside its new weights: codec, tokenizer, and a config.json that names them all."""
    config = {**config_to_save(files.config, files.lm_config), "moshi_name": weights}
    for key, path in (("mimi_name", files.mimi), ("tokenizer_name", files.tokenizer)):
        config.pop(key, None)
        if path is not None:
            config[key] = path.name
            _copy(path, folder / path.name)
            if key == "mimi_name" and codec_bits is not None:
                quantize_weights(*locate(folder / path.name), codec_bits)
    write_json(folder / "config.json", config)


def _copy(source: Path, target: Path) -> None:
    if not source.is_dir():
        copy_file(source, target)
        return
    with storage_errors(str(target)):
        if not (target.exists() and target.samefile(source)):
            shutil.copytree(source, target, dirs_exist_ok=True)


def _progress(console: Console, what: str = "tensors") -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(what),
        TimeRemainingColumn(), console=console,
    )  # fmt: skip


def _summary(file: LMFile, recipe: Recipe) -> Table:
    """Megabytes and levels by kind of tensor."""
    sizes: Counter[str] = Counter()
    levels: dict[str, set[str]] = {}
    for name, piece in pieces(file.config).items():
        module = name.removesuffix(".weight")
        kind: str = kind_of(module) or "norms and others"
        how = recipe(module, piece.shape) if name.endswith(".weight") else None
        sizes[kind] += bytes_of(piece.shape, how)
        levels.setdefault(kind, set()).add(str(how) if how else "bf16")
    table = Table("kind", "MB", "level")
    for kind, size in sizes.most_common():
        table.add_row(kind, f"{size / 1e6:,.1f}", "; ".join(sorted(levels[kind])))
    return table


if __name__ == "__main__":
    sys.exit(main())
