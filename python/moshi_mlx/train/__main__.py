"""`python -m moshi_mlx.train {lm,codec} CONFIG`: train a language model on a corpus, or fit a codec to its voices.

`python -m moshi_mlx.train mean FOLDER ... --out FOLDER` takes the mean of models that started from the same weights,
`python -m moshi_mlx.train grow FOLDER --out FOLDER` gives a model layers that learn what it has no room for.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..cli.options import above_zero, at_least
from ..errors import MoshiError
from ..files import make_folder
from .codec import CodecTrainer
from .config import Config
from .export import export
from .growing import grow
from .joint import JointTrainer
from .lm import Trainer
from .mean import mean
from .progress import Progress
from .semantic import SemanticTrainer
from .widening import widen


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m moshi_mlx.train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    lm = commands.add_parser("lm", help="train the language model, going on where a run stopped")
    codec = commands.add_parser("codec", help="fit the codec to the corpus' voices, going on where a run stopped")
    for command in (lm, codec):
        command.add_argument("config", type=Path, help="training configuration (moshi_mlx/nano/train.yaml is one)")
        command.add_argument(
            "--work", type=Path, help="folder of corpus and checkpoints, instead of the configured one"
        )
        command.add_argument("--codec", type=Path, help="folder of the codec, instead of the configured one")
        command.add_argument("--steps", type=at_least(1), help="length of the run, instead of the configured one")
        command.add_argument("--rate", type=above_zero, help="learning rate, instead of the configured one")
        command.add_argument("--out", type=Path, help="write the result, complete, into this folder")
    lm.add_argument("--init", type=Path, help="start from this checkpoint folder's weights")
    lm.add_argument(
        "--encoder",
        action="store_true",
        help="train the codec's encoder, too, from the corpus' features: it learns what the language model understands",
    )
    codec.add_argument(
        "--parts",
        choices=("decoder", "all", "semantic", "hearing"),
        help="what to train, instead of what is configured",
    )
    means = commands.add_parser("mean", help="the mean of models that started from the same weights")
    means.add_argument("folders", type=Path, nargs="+", help="their folders; named twice, one counts twice")
    means.add_argument("--out", type=Path, required=True, help="write the result, complete, into this folder")
    grows = commands.add_parser("grow", help="a model with more layers, which computes what it did until they learn")
    grows.add_argument("folder", type=Path, help="its folder")
    grows.add_argument("--layers", type=at_least(1), help="of the temporal transformer, instead of as many as it has")
    grows.add_argument(
        "--encoder-layers", type=at_least(1), help="of the codec's encoder, instead of as many as it has"
    )
    grows.add_argument("--out", type=Path, required=True, help="write the result, complete, into this folder")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        {"codec": _train_codec, "grow": _grow, "lm": _train_lm, "mean": _mean}[options.command](options, console)
    except MoshiError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from the last checkpoint.")
        return 130
    return 0


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """What of a run's settings the command line names."""
    named = {"steps": options.steps, "rate": options.rate}
    return {name: value for name, value in named.items() if value is not None}


def _train_lm(options: argparse.Namespace, console: Console) -> None:
    config = Config.load(options.config, options.work, options.codec)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **_chosen(options)))
    trainer = (JointTrainer if options.encoder else Trainer)(config, options.init)
    going_on = trainer.resume()
    if trainer.processes.rank:
        trainer.run(None)
        return
    if going_on:
        console.print(f"going on from step {trainer.step}")
    with Progress(config.work, config.train.steps, console, name=trainer.name) as progress:
        trainer.run(progress)
    out = options.out or config.work / (f"model-{trainer.name}" if trainer.name else "model")
    export(trainer, out)
    _say_where(out, console)


def _mean(options: argparse.Namespace, console: Console) -> None:
    mean(options.folders, options.out)
    _say_where(options.out, console)


def _grow(options: argparse.Namespace, console: Console) -> None:
    grow(options.folder, options.out, options.layers, options.encoder_layers)
    console.print(f"model in {options.out}; a run from it needs its layers as 'num_layers' under 'model'")


def _say_where(out: Path, console: Console) -> None:
    console.print(f"model in {out}; make it smaller with: python -m moshi_mlx.quantize {out} FOLDER --bits 8")


def _train_codec(options: argparse.Namespace, console: Console) -> None:
    config = Config.load(options.config, options.work, options.codec)
    parts = options.parts or config.codec_training.parts
    if parts == "hearing":
        out = options.out or config.work / "codec"
        with console.status("fitting codebooks"):
            shares = widen(config, out)
        console.print(f"codec in {out}; of what was lost is left: {', '.join(f'{share:.0%}' for share in shares)}")
        return
    chosen = _chosen(options)
    if parts == "semantic":
        config = dataclasses.replace(config, semantic_training=dataclasses.replace(config.semantic_training, **chosen))
    else:
        training = dataclasses.replace(config.codec_training, parts=parts, **chosen)
        config = dataclasses.replace(config, codec_training=training)
    make_folder(config.work)
    trainer: SemanticTrainer | CodecTrainer
    trainer = SemanticTrainer(config) if parts == "semantic" else CodecTrainer(config)
    going_on = trainer.resume()
    if trainer.processes.rank:
        # The first process of several shows and writes what all have learned.
        trainer.run(None)
        return
    if going_on:
        console.print(f"going on from step {trainer.step}")
    with Progress(config.work, trainer.settings.steps, console, name=f"codec-{parts}") as progress:
        trainer.run(progress)
    out = options.out or config.work / "codec"
    trainer.export(out)
    console.print(f"codec in {out}")


if __name__ == "__main__":
    sys.exit(main())
