"""How well a model converses: spoken questions, frame by frame through `Session`, at the default temperatures.

    python benchmarks/conversation.py                        the whole table, for the model in the package
    python benchmarks/conversation.py --sample 30            30 questions a line, for a first impression
    python benchmarks/conversation.py --json F --timeline F  all figures, and a picture of a conversation
    python benchmarks/conversation.py --voices pico:en-GB    other users, as `moshi_mlx.train.voices` names them

Users speak in the voices that the training configuration holds out. Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from talking import FRAME, LOUD, Reply, Talk, closest_answer, comparable, edit_distance
from timeline import draw

import moshi_mlx
from moshi_mlx.cli.options import above_zero, at_least, run_program, try_place
from moshi_mlx.config import SAMPLE_RATE
from moshi_mlx.files import write_json
from moshi_mlx.train.augment import gain, noise, power, room
from moshi_mlx.train.config import Config
from moshi_mlx.train.script import Intent, Script, expand, pick
from moshi_mlx.train.voices import Voice
from moshi_mlx.train.word_times import Judge

NANO = Path(moshi_mlx.__file__).parent / "nano"
CHAIN = 4
"""Questions in one conversation, where a line of the table doesn't say otherwise."""
LATE = 0.8
"""Seconds after a question in which its answer should have begun."""
_ROUNDING = 1e-6
"""Per cent by which two figures differ that are the same."""


@dataclass(frozen=True)
class Line:
    """A line of the table: what was measured, what was asked for, what was reached."""

    name: str
    value: float
    wanted: float
    at_least: bool
    unit: str
    count: int

    @property
    def reached(self) -> bool:
        """Whether the figure is as good as wanted, also where both are the same share computed in two ways."""
        ahead = self.value - self.wanted if self.at_least else self.wanted - self.value
        return ahead > -_ROUNDING


class Bench:
    """The measurements on one model and script."""

    def __init__(self, moshi: moshi_mlx.Moshi, script: Script, voices: Sequence[str], sample: int | None, seed: int):
        self.moshi, self.script, self.sample, self.seed = moshi, script, sample, seed
        self.voices = [Voice.parse(v) for v in dict.fromkeys(voices)]
        self.speaker, self.spoken = self.voices[0], ""  # who spoke last, and what
        self.rng = random.Random(seed)
        self.lines: list[Line] = []
        self.log: list[dict[str, object]] = []
        self.replies: list[Reply] = []
        self.sessions = 0
        self.milliseconds: list[float] = []

    # Pieces of conversations.

    def talk(self, background: np.ndarray | None = None) -> Talk:
        """A new conversation, a moment old."""
        self.sessions += 1
        talk = Talk(self.moshi.session(seed=self.seed + self.sessions), background)
        talk.silence(0.48)
        return talk

    def say(self, text: str, pause: bool = False) -> np.ndarray:
        """One of the voices' rendering of a text, with 0.5-1 s of silence inside if `pause`."""
        voice = self.speaker = self.rng.choice(self.voices)
        state = self.rng.getrandbits(32)
        words = text.split()
        self.spoken = text
        if not pause or len(words) < 4:
            return gain(voice.say(text, random.Random(state)), -4)
        cut = self.rng.randint(2, len(words) - 2)
        halves = [" ".join(words[:cut]), " ".join(words[cut:])]
        self.spoken = " ... ".join(halves)
        parts = [voice.say(half, random.Random(state)) for half in halves]
        gap = np.zeros(round(self.rng.uniform(0.5, 1.0) * SAMPLE_RATE), np.float32)
        return gain(np.concatenate([parts[0], gap, parts[1]]), -4)

    def questions(self, wordings: Callable[[Intent], Sequence[str]] = lambda i: i.ask) -> list[tuple[Intent, str]]:
        """One of the `wordings` of every intent that has any, in random order, the sample's size at most."""
        intents = [intent for intent in self.script.intents.values() if wordings(intent)]
        chosen = [(intent, pick(self.rng.choice(wordings(intent)), self.rng)) for intent in intents]
        self.rng.shuffle(chosen)
        return chosen[: self.sample]

    def right(self, reply: Reply, answers: Sequence[str]) -> bool:
        """Whether a reply is one of these answers."""
        return closest_answer(reply.text, self.script.answers) in answers

    def add(self, name: str, values: Sequence[float], wanted: float, at_least: bool = True, unit: str = "%") -> None:
        """Put a line of the table: the mean of `values`, or the given figure if there is one."""
        if values:
            mean = float(np.mean(values)) * (100 if unit == "%" else 1)
            self.lines.append(Line(name, mean, wanted, at_least, unit, len(values)))

    # The measurements.

    def accuracy(
        self,
        name: str,
        wanted: float,
        asked: Sequence[tuple[Sequence[str], str]],
        change: Callable[[np.ndarray], np.ndarray] | None = None,
        snr_db: float | None = None,
        keep: bool = False,
    ) -> list[bool]:
        """Ask questions, a few in a conversation, each with the answers that are right; in steady noise if wanted."""
        results, delays = [], []
        for first in range(0, len(asked), CHAIN):
            some = asked[first : first + CHAIN]
            spoken = [(self.say(text), str(self.speaker)) for _, text in some]
            talk = self.talk(None if snr_db is None else self.background([pcm for pcm, _ in spoken], snr_db))
            for (answers, text), (pcm, voice) in zip(some, spoken, strict=True):
                reply = talk.ask(change(pcm) if change else pcm)
                results.append(self.right(reply, answers))
                said = {"voice": voice, "asked": text, "reply": reply.text}
                self.log.append({"line": name, **said, "right": results[-1], "delay": reply.delay})
                self.milliseconds += talk.record.milliseconds[-20:]
                if reply.delay is not None and not reply.early:
                    delays.append(reply.delay)
                if keep and reply.text:
                    self.replies.append(reply)
        self.add(name, results, wanted)
        if keep and delays:
            self.lines.append(Line("delay, median", 1000 * float(np.median(delays)), 400, False, "ms", len(delays)))
            worst = 1000 * float(np.percentile(delays, 90))
            self.lines.append(Line("delay, 90th percentile", worst, 800, False, "ms", len(delays)))
        return results

    def late(self) -> None:
        """How many of the questions so far were answered late, or not at all."""
        found = [entry["delay"] for entry in self.log if "delay" in entry]
        values = [not isinstance(delay, float) or delay > LATE for delay in found]
        self.add("answers later than 800 ms, or none", values, 10, at_least=False)

    def background(self, spoken: Sequence[np.ndarray], snr_db: float) -> np.ndarray:
        """Noise to repeat that is `snr_db` softer than what is spoken, which is softer and louder in turn."""
        level = np.sqrt(np.mean([power(pcm) for pcm in spoken]) / 10 ** (snr_db / 10))
        return np.asarray(level * noise(np.random.default_rng(self.seed), 20 * SAMPLE_RATE, 1.0), np.float32)

    def follow_ups(self) -> None:
        """Questions that need the turn before: the first turn asks, the second refers back."""
        results: list[bool] = []
        cases: list[tuple[Intent, str]] = []
        for intent in self.script.intents.values():
            cases += [
                (intent, kind) for kind in (["yours"] if intent.yours else []) + (["another"] if intent.another else [])
            ]
        intents = list(self.script.intents.values())
        cases += [(i, "again") for i in self.rng.sample(intents, min(15, len(intents)))]
        self.rng.shuffle(cases)
        for intent, kind in cases[: self.sample]:
            talk = self.talk()
            first = talk.ask(self.say(pick(self.rng.choice(intent.ask), self.rng)))
            given = closest_answer(first.text, self.script.answers)
            reply = talk.ask(self.say(self.rng.choice(expand(self.rng.choice(self.script.follow_ups[kind].ask)))))
            if kind == "yours":
                right = self.right(reply, self.script.intents[str(intent.yours)].answers)
            elif kind == "again":
                right = given is not None and self.right(reply, [given])
            else:
                right = self.right(reply, [a for a in intent.answers if a != given])
            results.append(right)
            self.log.append({"line": f"follow-up: {kind}", "first": first.text, "reply": reply.text, "right": right})
        self.add("follow-ups", results, 85)

    def pauses(self) -> None:
        """Questions with a pause inside, every other one after a turn without: does Moshi wait for the end?"""
        questions = [text for _, text in self.questions()]
        asked = [text for text in questions if len(text.split()) >= 5]
        results = []
        for n, text in enumerate(asked[: min(40, self.sample or 40)]):
            talk = self.talk()
            if n % 2:
                talk.ask(self.say(questions[n]))
            reply = talk.ask(self.say(text, pause=True))
            results.append(reply.early)
            said = {"voice": str(self.speaker), "asked": self.spoken, "reply": reply.text, "early": reply.early}
            self.log.append({"line": "pauses", "turn": 1 + n % 2, **said})
        self.add("talks over a pause", results, 5, at_least=False)

    def silence(self, seconds: float = 60.0) -> None:
        """Nobody speaks: does Moshi keep silent?"""
        noisy = self.background([gain(self.voices[0].say("what is your name"), -4)], 10.0)
        for name, background in (("silence kept", None), ("silence kept, noise at 10 dB", noisy)):
            talk = self.talk(background)
            talk.silence(seconds)
            self.add(name, (~talk.record.loud()).astype(float).tolist(), 99.5)

    def interruptions(self) -> None:
        """The user breaks into long answers, with a question or with a "mm-hm"."""
        long = [i for i in self.script.intents.values() if min(len(a.split()) for a in i.answers) >= 5]
        if not long:
            return
        stops: list[bool] = []
        answered: list[bool] = []
        kept: list[bool] = []
        others = self.questions()
        for n in range(min(80, self.sample or 80)):
            intent = long[n % len(long)]
            talk = self.talk()
            talk.hear(self.say(pick(self.rng.choice(intent.ask), self.rng)))
            if not talk.wait_for_speech():
                continue
            talk.silence(0.4)
            if not talk.record.loud()[-3:].any():
                continue
            if n % 2:
                before = talk.record.frames
                talk.hear(self.say(self.rng.choice(self.script.backchannels)))
                talk.wait_for_silence()
                text = talk.record.text()
                # Whether it was the right answer is counted elsewhere: here, whether it was brought to its end.
                answer = closest_answer(text, self.script.answers)
                kept.append(answer is not None and self._whole(text, answer))
                self.log.append({"line": "backchannel", "reply": text, "frame": before, "right": kept[-1]})
                continue
            other, text = others[n % len(others)]
            first = talk.record.frames
            pcm = self.say(text)
            talk.hear(pcm)
            asked = talk.record.frames
            end = first * FRAME + len(pcm) / SAMPLE_RATE
            talk.wait_for_speech()
            talk.wait_for_silence()
            # Speech goes on for at most 400 ms, five frames: the first sounds one later than what it is an answer to.
            stops.append(not talk.record.loud()[first + 4 : min(first + 9, asked + 2)].any())
            reply = talk.reply(first, asked, end)
            answered.append(self.right(reply, other.answers))
            said = {"asked": text, "reply": reply.text, "right": answered[-1]}
            self.log.append({"line": "interruption", **said, "stopped": stops[-1]})
        self.add("interrupted: stops in 400 ms", stops, 90)
        self.add("interrupted: answers the new question", answered, 80)
        self.add("goes on through a mm-hm", kept, 80)

    def _whole(self, text: str, answer: str) -> bool:
        expected = comparable(answer)
        return edit_distance(comparable(text), expected) / len(expected) <= 0.25

    def disturbed(self, plain: float) -> None:
        """The same questions through noise, a room and other levels; wanted is 10 points below the undisturbed."""
        draws = np.random.default_rng(self.seed)
        changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "a room (0.4 s)": lambda pcm: room(draws, np.pad(pcm, (0, round(0.4 * SAMPLE_RATE))), 0.4),
            "6 dB louder": lambda pcm: gain(pcm, 6),
            "6 dB softer": lambda pcm: gain(pcm, -6),
        }

        def asked() -> list[tuple[Sequence[str], str]]:
            return [(i.answers, t) for i, t in self.questions()][: min(60, self.sample or 60)]

        self.accuracy("accuracy, noise at 10 dB", plain - 10, asked(), snr_db=10.0)
        for name, change in changes.items():
            self.accuracy(f"accuracy, {name}", plain - 10, asked(), change)

    def long_talk(self, minutes: float = 10.0) -> None:
        """One conversation of many minutes: is it as good at its end as at its beginning?"""
        talk = self.talk()
        results: list[tuple[float, bool]] = []
        questions = iter(self._endless())
        while talk.record.frames * FRAME < 60 * minutes:
            intent, text = next(questions)
            started = talk.record.frames * FRAME
            results.append((started, self.right(talk.ask(self.say(text)), intent.answers)))
        early = [right for at, right in results if at < 120]
        late = [right for at, right in results if at >= 60 * minutes - 120]
        self.add("long talk, first two minutes", early, 0)
        self.add("long talk, last two minutes", late, 100 * float(np.mean(early)) - 10 if early else 0)

    def _endless(self) -> Iterator[tuple[Intent, str]]:
        while True:
            yield from self.questions()

    def intelligibility(self, limit: int = 60) -> None:
        """Does a listener hear what the inner monologue says?"""
        judge = Judge()
        wrong = words = 0
        for reply in self.replies[:limit]:
            said, heard = comparable(reply.text), comparable(judge.text(reply.pcm))
            wrong += edit_distance(said, heard)
            words += len(said)
            if said != heard:
                self.log.append({"line": "judge", "monologue": " ".join(said), "heard": " ".join(heard)})
        if words:
            self.lines.append(Line("word error rate of the sound", 100 * wrong / words, 5, False, "%", words))

    def run(self, parts: Sequence[str], minutes: float, progress: Callable[[str], None]) -> None:
        """Measure the named parts."""
        script = self.script
        plain = 0.0
        if {"accuracy", "disturbed", "judge"} & set(parts):  # what is judged are the answers to known wordings
            progress("known wordings")
            known = [(i.answers, t) for i, t in self.questions()]
            plain = 100 * float(np.mean(self.accuracy("accuracy, known wordings", 97, known, keep=True)))
        if "accuracy" in parts:
            progress("held-out wordings")
            new = [(i.answers, t) for i, t in self.questions(lambda i: i.held_out)]
            self.accuracy("accuracy, new wordings", 80, new)
            unknown = [(script.out_of_domain.answers, pick(w, self.rng)) for w in script.out_of_domain.held_out]
            progress("out of domain")
            self.accuracy("honest out of domain", 90, unknown[: self.sample])
            progress("known wordings by other authors")
            others = [(i.answers, t) for i, t in self.questions(lambda i: i.more)]
            if others:
                self.accuracy("accuracy, known wordings, other authors", 97, others)
            self.late()
        steps: dict[str, Callable[[], None]] = {
            "follow-ups": self.follow_ups,
            "judge": self.intelligibility,
            "pauses": self.pauses,
            "silence": self.silence,
            "interruptions": self.interruptions,
            "disturbed": lambda: self.disturbed(plain),
            "long": lambda: self.long_talk(minutes),
        }
        for name, step in steps.items():
            if name in parts:
                progress(name)
                step()


PARTS = ("accuracy", "follow-ups", "judge", "pauses", "silence", "interruptions", "disturbed", "long")


def table(lines: Sequence[Line]) -> Table:
    """What was reached, beside what was asked for."""
    result = Table("", "reached", "asked", "", "of")
    for line in lines:
        sign = "≥" if line.at_least else "≤"
        verdict = "[green]yes[/]" if line.reached else "[red]no[/]"
        result.add_row(
            line.name,
            f"{line.value:.1f} {line.unit}",
            f"{sign} {line.wanted:.4g} {line.unit}",
            verdict,
            str(line.count),
        )
    return result


def picture(bench: Bench, path: Path) -> None:
    """A conversation drawn: a question, then one with a long answer and another that breaks into it."""
    talk = bench.talk()
    intents = list(bench.script.intents.values())
    longest = max(intents, key=lambda i: min(len(a) for a in i.answers))
    first, long, last = (bench.say(expand(i.ask[0])[0]) for i in (intents[0], longest, intents[-1]))
    talk.ask(first)
    talk.hear(long)
    if talk.wait_for_speech():
        talk.silence(0.8)
    talk.ask(last)
    draw(talk.record, path, f"{bench.moshi.name}: a question, an interruption")


def by_voice(log: Sequence[dict[str, object]]) -> Table | None:
    """How many of each voice's undisturbed questions were answered right; None where there is but one voice."""
    answers: dict[str, list[bool]] = {}
    for entry in log:
        if "wordings" in str(entry["line"]):
            answers.setdefault(str(entry["voice"]), []).append(bool(entry["right"]))
    if len(answers) < 2:
        return None
    shown = Table("known, new and others' wordings by voice", "right", "of")
    for voice, right in sorted(answers.items()):
        shown.add_row(voice, f"{100 * np.mean(right):.1f} %", str(len(right)))
    return shown


def measure(options: argparse.Namespace) -> int:
    """Converse as the command line says, and show the figures; returns the exit code.

    Raises:
        MoshiError: as its parts, what can't be written before anything is measured.
    """
    console = Console()
    for path in (options.json, options.timeline):
        try_place(path)
    config = Config.load(options.config)
    moshi = moshi_mlx.load(options.model)
    voices = options.voices or config.data.held_out_voices
    bench = Bench(moshi, Script.load(config.script), voices, options.sample, options.seed)
    started = time.monotonic()
    try:
        with console.status("measuring") as status:
            bench.run(options.parts, options.minutes, lambda name: status.update(f"measuring: {name}"))
    finally:
        report(bench, options, time.monotonic() - started, console)
    if options.timeline:
        picture(bench, options.timeline)
    return 0


def report(bench: Bench, options: argparse.Namespace, seconds: float, console: Console) -> None:
    """Show what has been measured, and write it where that is wanted."""
    console.print(table(bench.lines))
    if voices_table := by_voice(bench.log):
        console.print(voices_table)
    console.print(
        f"{bench.sessions} conversations in {seconds:.0f} s; a step took "
        f"{np.median(bench.milliseconds or [np.nan]):.1f} ms; speech is above a level of {LOUD}"
    )
    if options.json:
        lines = [{**line.__dict__, "reached": line.reached} for line in bench.lines]
        write_json(options.json, {"model": options.model, "lines": lines, "log": bench.log})


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a folder or a hub repository")
    parser.add_argument("--config", type=Path, default=NANO / "train.yaml", help="names the script and held-out voices")
    parser.add_argument("--voices", nargs="+", help="who asks, instead of the held-out voices")
    parser.add_argument("--sample", type=at_least(1), help="questions a line at most")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--minutes", type=above_zero, default=10.0, help="length of the long conversation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures and every reply into this file")
    parser.add_argument("--timeline", type=Path, help="draw a conversation into this SVG file")
    options = parser.parse_args()
    return run_program(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
