"""Conversations made for training: who speaks when, and what is written down of it."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train_corpus import make_corpus, utterance

from moshi_mlx.config import FRAME_RATE
from moshi_mlx.errors import CheckpointError
from moshi_mlx.text import TextTokenizer
from moshi_mlx.train.config import Config, MixConfig
from moshi_mlx.train.conversation import END_OF_PADDING, PADDING, Conversation, Mixer, paused
from moshi_mlx.train.corpus import Utterance, read_corpus, read_features, write_features, write_shard
from moshi_mlx.train.script import Script

PLAIN = MixConfig(frames=250, interruptions=0, backchannels=0, echoes=0, wrong_codes=0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Script, list[Utterance], TextTokenizer]:
    folder = tmp_path_factory.mktemp("corpus")
    config = Config.load(make_corpus(folder))
    return Script.load(config.script), read_corpus(folder / "corpus"), TextTokenizer(folder / "tokenizer.model")


def conversations(parts: tuple[Script, list[Utterance], TextTokenizer], mix: MixConfig) -> list[Conversation]:
    mixer = Mixer(*parts, mix)
    return [mixer.draw(random.Random(n)) for n in range(30)]


def test_a_corpus_survives_the_disk(parts: tuple[Script, list[Utterance], TextTokenizer]):
    _, utterances, _ = parts
    spoken = next(u for u in utterances if u.text == "who are you" and u.split == "train")
    assert spoken.codes.shape == (8, 2 + 3 * 4 + 3)
    assert spoken.words == (("who", 0.16), ("are", 0.48), ("you", 0.8))
    assert (spoken.first_frame, spoken.end_frame) == (2, 14)


def test_answers_start_two_or_three_frames_after_the_question(parts: tuple[Script, list[Utterance], TextTokenizer]):
    for talk in conversations(parts, PLAIN):
        for end, _, _ in talk.turns:
            if end + 6 < talk.text.size:
                silent = next(n for n in range(20) if talk.speaking[end + n])
                # Moshi's first frame is one before its first sound.
                assert silent in (1, 2), f"speech {silent} frames after the question's end"


def test_some_answers_come_late(parts: tuple[Script, list[Utterance], TextTokenizer]):
    waited = []
    for talk in conversations(parts, replace(PLAIN, late_answers=0.3, late_gap=(6, 16))):
        for end, _, _ in talk.turns:
            if end + 20 < talk.text.size:
                # Moshi's first frame is one before its first sound.
                waited.append(1 + next(n for n in range(20) if talk.speaking[end + n]))
                assert (talk.asked[end : end + waited[-1]] > 0).all()
                first = end + waited[-1] - 1
                assert not talk.wrong[first : first + 3].any(), "the answer itself is learned"
                if waited[-1] > 3:
                    assert talk.overdue[end + 2 : first].all(), "waiting is not, beginning in any of its frames is"
                    assert (talk.wanted[end + 2 : first + 1] == END_OF_PADDING).all() and talk.wanted[end] == PADDING
                    assert (talk.text[end:first] == PADDING).all()
    late = [gap for gap in waited if gap not in (2, 3)]
    assert 0.2 < len(late) / len(waited) < 0.4
    assert min(late) >= 6 and max(late) <= 16 and len(set(late)) > 5


def test_moshi_is_measured_on_conversations_without_its_mistakes(parts: tuple[Script, list[Utterance], TextTokenizer]):
    often = replace(
        PLAIN, late_answers=1.0, late_gap=(6, 16), interruptions=0.5, late_stops=1.0, overruns=1.0, slips=1.0
    )
    training, measuring = (Mixer(*parts, often, split).draw(random.Random(1)) for split in ("train", "known"))
    assert training.wrong.any() and training.overdue.any()
    assert measuring.turns and not measuring.wrong.any() and not measuring.overdue.any()


def test_a_conversation_ends_though_every_answer_is_interrupted(parts: tuple[Script, list[Utterance], TextTokenizer]):
    script, utterances, tokenizer = parts
    # No answer is so short that it stands.
    longer = [
        replace(u, codes=np.repeat(u.codes, 4, axis=1), end=4 * u.end) for u in utterances if u.group == "answers"
    ]
    utterances = [*longer, *(u for u in utterances if u.group != "answers")]
    talk = Mixer(script, utterances, tokenizer, replace(PLAIN, interruptions=1.0)).draw(random.Random(0))
    assert len(talk.turns) > 3


def test_an_onset_is_an_answers_first_three_frames_of_sound(parts: tuple[Script, list[Utterance], TextTokenizer]):
    seen = 0
    for talk in conversations(parts, replace(PLAIN, interruptions=0.5, slips=0.2)):
        for first in np.flatnonzero(np.diff(talk.onsets.astype(int)) == 1) + 1:
            if first + 3 >= talk.text.size:
                continue
            seen += 1
            assert talk.onsets[first : first + 3].all() and not talk.onsets[first + 3]
            assert talk.speaking[first - 1 : first + 3].all() and not talk.wrong[first : first + 3].any()
            assert talk.text[first] not in (PADDING, END_OF_PADDING), "the first word comes with the first sound"
    assert seen > 30


def test_a_drills_question_begins_soon_however_long_it_is(parts: tuple[Script, list[Utterance], TextTokenizer]):
    begins: dict[bool, list[int]] = {False: [], True: []}
    for waits in begins:
        mixer = Mixer(*parts, replace(PLAIN, pauses=float(waits)))
        for n in range(400):
            talk = mixer.drill(random.Random(n))
            ((end, _, answer),) = talk.turns
            begins[waits].append(int(np.flatnonzero(talk.user[0] != 7)[0]))
            if end + 3 < talk.text.size:
                assert talk.speaking[end + 2] and talk.asked[end] == mixer.numbers[answer]
            else:
                assert not talk.speaking[:end].any(), "what is not over yet is not answered"
    for first in begins.values():
        assert min(first) <= 1 and 24 <= max(first) <= 32
        assert 0.5 < np.mean(np.array(first) < 8) < 0.7
    assert abs(np.mean(begins[False]) - np.mean(begins[True])) < 0.5


def test_in_drills_an_answer_can_come_too_late(parts: tuple[Script, list[Utterance], TextTokenizer]):
    mixer = Mixer(*parts, replace(PLAIN, late_answers=0.3, late_gap=(6, 9)))
    late = 0
    for n in range(100):
        talk = mixer.drill(random.Random(n))
        ((end, _, _),) = talk.turns
        if end + 12 < talk.text.size and not talk.speaking[end + 4]:
            late += 1
            assert talk.speaking[end + 9] and talk.overdue[end + 2 : end + 4].all(), "waiting is not to be learned"
    assert 15 < late < 45


def test_the_text_stream_spells_the_answers(parts: tuple[Script, list[Utterance], TextTokenizer]):
    tokenizer = parts[2]
    for talk in conversations(parts, PLAIN):
        written = "".join(tokenizer.piece(int(t)) for t in talk.text).strip()
        expected = " ".join(answer for _, _, answer in talk.turns)
        assert expected.startswith(written) or written in expected, f"{written!r} is no start of {expected!r}"
        first_words = np.flatnonzero((talk.text != PADDING) & (talk.text != END_OF_PADDING))
        assert talk.text[first_words[0] - 1] == END_OF_PADDING


def test_the_first_token_tells_an_answer_from_all_others(parts: tuple[Script, list[Utterance], TextTokenizer]):
    mixer, tokenizer = Mixer(*parts, PLAIN), parts[2]
    firsts = [int(answer.text[answer.tokens[0]]) for answer in mixer.answers.values()]
    assert len(set(firsts)) == len(firsts) > 3
    for text, answer in mixer.answers.items():
        assert tokenizer.decode([int(t) for t in answer.text if t not in (PADDING, END_OF_PADDING)]).strip() == text


def test_only_the_semantic_codebook_of_the_user_is_heard(parts: tuple[Script, list[Utterance], TextTokenizer]):
    for talk in conversations(parts, PLAIN):
        assert (talk.user[0] >= 0).all()
        assert (talk.user[1:] == -1).all()


def test_in_training_some_of_the_users_frames_and_codebooks_are_not_heard(
    parts: tuple[Script, list[Utterance], TextTokenizer],
):
    every, mix = replace(PLAIN, user_codebooks=4), replace(PLAIN, user_codebooks=4, masked=0.1, fewer_codebooks=0.5)
    whole, missed = (np.stack([talk.user for talk in conversations(parts, one)]) for one in (every, mix))
    assert (whole[:, :4] >= 0).all() and (missed[:, 4:] == -1).all()
    masked = missed[:, 0] == -1
    assert 0.08 < masked.mean() < 0.12 and (missed[:, :4].swapaxes(1, 2)[masked] == -1).all()
    heard = missed[:, :4].swapaxes(1, 2)[~masked]
    assert ((heard == whole[:, :4].swapaxes(1, 2)[~masked]) | (heard == -1)).all(), "what is heard stays as it is"
    books = [int((talk[:4, ~gone] >= 0).all(axis=1).sum()) for talk, gone in zip(missed, masked, strict=True)]
    assert 5 < books.count(4) < 25 and {1, 2, 3} < set(books)
    measured = Mixer(*parts, mix, "known").draw(random.Random(1))
    assert (measured.user[:4] >= 0).all()


@pytest.mark.parametrize("split", ["train", "known", "held_out"])
def test_in_training_alone_some_of_the_users_codes_are_others(
    parts: tuple[Script, list[Utterance], TextTokenizer], split: str
):
    right, wrong = (
        Mixer(*parts, replace(PLAIN, wrong_codes=share), split).draw(random.Random(1)).user[0] for share in (0.0, 0.5)
    )
    assert 0.4 < np.mean(right != wrong) < 0.6 if split == "train" else np.array_equal(right, wrong)


def test_an_interruption_silences_moshi_within_four_frames(parts: tuple[Script, list[Utterance], TextTokenizer]):
    mixer = Mixer(*parts, replace(PLAIN, interruptions=1.0))
    seen = marked = 0
    for n in range(60):
        talk = mixer.draw(random.Random(n))
        talking = talk.speaking.astype(int)
        hearing = np.flatnonzero(np.diff((talk.user[0] != 7).astype(int)) == 1) + 1
        for start in hearing:
            if 2 < start < talk.text.size - 6 and talking[start - 1] and talking[start]:
                seen += 1
                assert not talk.speaking[start + 5], "Moshi speaks on, five frames into an interruption"
                assert (talk.moshi[:, start + 5] == mixer.silence).all()
        for first in np.flatnonzero(np.diff(talk.stopping.astype(int)) == 1) + 1:
            marked += 1
            assert talk.speaking[first - 1] and not talk.speaking[first : first + 3].any()
            assert (talk.text[first : first + 3] == PADDING).all()
    assert seen > 5, "no interruptions were drawn"
    assert marked > 5, "no interruption is marked"


def test_where_moshi_falls_silent_late_only_its_silence_is_to_be_learned(
    parts: tuple[Script, list[Utterance], TextTokenizer],
):
    mixer = Mixer(*parts, replace(PLAIN, interruptions=1.0, late_stops=1.0))
    seen = 0
    for n in range(60):
        talk = mixer.draw(random.Random(n))
        for end in np.flatnonzero(np.diff(talk.wrong.astype(int)) == -1) + 1:
            first = end - np.argmin(talk.wrong[:end][::-1])
            assert 1 <= end - first <= 8
            assert talk.speaking[first - 1]
            assert talk.speaking[first:end].all()
            seen += int(talk.stopping[end] and not talk.speaking[end])
    assert seen > 5, "Moshi never falls silent late"
    assert not any(talk.wrong.any() for talk in conversations(parts, replace(PLAIN, interruptions=1.0)))


def test_sounds_after_an_answer_are_not_learned_but_the_silence_behind_them(
    parts: tuple[Script, list[Utterance], TextTokenizer],
):
    mix = replace(PLAIN, overruns=1.0)
    mixer, seen = Mixer(*parts, mix), 0
    for talk in conversations(parts, mix):
        for end in np.flatnonzero(np.diff(talk.wrong.astype(int)) == -1) + 1:
            first = end - np.argmin(talk.wrong[:end][::-1])
            assert 2 <= end - first <= 10
            assert talk.speaking[first - 1 : end].all() and not talk.speaking[end : end + 2].any()
            assert (talk.text[first:end] == PADDING).all(), "there are words, too"
            assert (talk.moshi[:, end : end + 2] == mixer.silence[:, None]).all()
            assert talk.stopping[end : end + 2].all()
            seen += int((talk.moshi[:, first:end] != mixer.silence[:, None]).any())
    assert seen > 20, "nothing sounds after an answer"
    untouched = Mixer(*parts, mix, split="known")
    assert not any(untouched.draw(random.Random(n)).wrong.any() for n in range(20))


def test_what_moshi_slips_into_is_to_be_learned_from_where_nothing_else_can_follow(
    parts: tuple[Script, list[Utterance], TextTokenizer],
):
    tokenizer = parts[2]
    mix = replace(PLAIN, slips=1.0)
    mixer = Mixer(*parts, mix)
    spelled = [a.text[a.tokens].tolist() for a in mixer.answers.values()]
    slipped = 0
    for talk in conversations(parts, mix):
        for (end, _, right), following in zip(talk.turns, [*[t[0] for t in talk.turns[1:]], 250], strict=True):
            frames = np.arange(min(end, 250), min(following, 250))
            frames = frames[(talk.text[frames] != PADDING) & (talk.text[frames] != END_OF_PADDING)]
            said = "".join(tokenizer.piece(int(t)) for t in talk.text[frames]).strip()
            if said not in mixer.answers:
                continue  # cut off by the end
            assert said != right
            learned = ~talk.wrong[frames]
            begun = [talk.text[frames[:n]].tolist() for n in range(len(frames))]
            possible = [sum(tokens[: len(b)] == b for tokens in spelled) for b in begun]
            assert not learned[0]
            assert learned.sum() == 0 or learned[np.argmax(learned) :].all()
            assert all(n == 1 for n, yes in zip(possible, learned, strict=True) if yes)
            assert talk.asked[end] == mixer.numbers[right], "what is called for is no longer asked for"
            slipped += int(learned.any())
    assert slipped > 20
    untouched = Mixer(*parts, mix, split="known")
    assert not any(untouched.draw(random.Random(n)).wrong.any() for n in range(20)), "what is measured has slips"


def test_pauses_and_mm_hms_are_what_moshi_is_to_mind(parts: tuple[Script, list[Utterance], TextTokenizer]):
    script, utterances, tokenizer = parts
    mixer = Mixer(script, utterances, tokenizer, replace(PLAIN, backchannels=1.0))
    talks = [mixer.draw(random.Random(n)) for n in range(60)]
    assert any((talk.minded & talk.speaking).any() for talk in talks), "no mm-hm is minded"
    assert not any((talk.minded & ~talk.speaking & (talk.asked > 0)).any() for talk in talks)

    def halting(u: Utterance) -> Utterance:
        # A second before the last word, in which nothing is said.
        *before, (word, start) = u.words
        last = int(start * FRAME_RATE)
        codes = np.insert(u.codes, [last] * 13, 7, axis=1)
        return replace(u, codes=codes, words=(*before, (word, start + 1.04)), end=u.end + 1.04)

    asked = [halting(u) if u.group == "intents" and len(u.words) > 2 else u for u in utterances]
    mixer = Mixer(script, asked, tokenizer, PLAIN)
    talk = next(t for t in (mixer.draw(random.Random(n)) for n in range(60)) if t.minded.any() and not t.stopping.any())
    assert not talk.speaking[talk.minded].any()
    assert (talk.user[0, talk.minded] == 7).mean() > 0.7
    assert np.convolve(talk.minded, np.ones(11)).max() == 11, "an answer may begin early in a pause"


def test_pauses_are_put_between_words_and_waited_for(parts: tuple[Script, list[Utterance], TextTokenizer]):
    script, utterances, tokenizer = parts

    def twice(u: Utterance) -> Utterance:
        # What is asked, and at once once more, so that there are words enough for a pause between them.
        begin, again = u.first_frame, u.end - u.start
        codes = np.concatenate([u.codes[:, : u.end_frame], u.codes[:, begin:]], axis=1)
        return replace(u, codes=codes, words=(*u.words, *((w, t + again) for w, t in u.words)), end=u.end + again)

    quiet = next(u for u in utterances if u.group == "backgrounds")
    silent = replace(quiet, codes=np.full_like(quiet.codes, 7))
    asked = [twice(u) if u.group == "intents" else u for u in utterances if u.group != "backgrounds"]
    long = [u for u in asked if u.group == "intents"]
    split = paused(long[0], 2, silent.codes[:, :10])
    assert split.codes.shape[1] == long[0].codes.shape[1] + 10
    assert split.end == pytest.approx(long[0].end + 0.8)
    before = round(split.words[2][1] * FRAME_RATE) - 10
    assert (split.codes[:, before : before + 10] == 7).all()
    assert np.array_equal(np.delete(split.codes, np.s_[before : before + 10], axis=1), long[0].codes)

    for share in (0.0, 1.0):
        mixer = Mixer(script, [*asked, silent], tokenizer, replace(PLAIN, pauses=share, follow_ups=0, out_of_domain=0))
        talks = [mixer.draw(random.Random(n)) for n in range(20)]
        minded = [talk.minded & ~talk.stopping for talk in talks]
        assert any(m.any() for m in minded) == (share > 0)
        for talk, m in zip(talks, minded, strict=True):
            assert not talk.speaking[m].any()
            assert (talk.user[0, m] == 7).all()


def test_and_yours_is_answered_for_the_turn_before(parts: tuple[Script, list[Utterance], TextTokenizer]):
    script, utterances, tokenizer = parts
    mixer = Mixer(script, utterances, tokenizer, replace(PLAIN, follow_ups=1.0))
    rng = random.Random(0)
    kinds = set()
    for _ in range(300):
        last = rng.choice(list(script.intents.values()))
        answer = rng.choice(last.answers)
        said, _, reply = mixer.question(rng, last, answer)
        kinds.add(said.name)
        if said.name == "yours":
            assert reply == script.intents[str(last.yours)].answers[0]
        elif said.name == "again":
            assert reply == answer
        elif said.name == "another":
            assert reply in last.answers and reply != answer
    assert kinds >= {"yours", "again", "another"}


def test_no_window_opens_at_a_question_that_needs_the_one_before(
    parts: tuple[Script, list[Utterance], TextTokenizer],
):
    turns = 0
    for talk in conversations(parts, replace(PLAIN, follow_ups=1.0, interruptions=0.0, backchannels=0.0)):
        turns += len(talk.turns)
        assert len(talk.openings) <= 1, "all questions but the first one refer back"
    assert turns > 60


def test_an_exchange_holds_what_its_second_question_refers_to(
    parts: tuple[Script, list[Utterance], TextTokenizer],
):
    mixer = Mixer(*parts, replace(PLAIN, follow_ups=0.0, interruptions=0.0, backchannels=0.0))
    referring = 0
    for n in range(60):
        talk = mixer.exchange(random.Random(n), 90)
        assert talk.codes.shape == (17, 90)
        if len(talk.turns) < 2:  # a "mm-hm" or a long silence between them
            continue
        *_, (_, before, answer), (end, intent, reply) = talk.turns
        assert end <= 90 - 8, "the answer's beginning is missing"
        assert talk.speaking[:end].any(), "the first answer was cut off"
        assert talk.asked[end] == mixer.numbers[reply]
        first = parts[0].intents.get(before)
        referring += intent == before or reply == answer or (first is not None and first.yours == intent)
    assert referring > 30


def test_a_seed_always_gives_the_same_conversation(parts: tuple[Script, list[Utterance], TextTokenizer]):
    mixer = Mixer(*parts, MixConfig())
    first, second = mixer.draw(random.Random(5)), mixer.draw(random.Random(5))
    assert np.array_equal(first.codes, second.codes)
    assert not np.array_equal(first.codes, mixer.draw(random.Random(6)).codes)


def test_held_out_conversations_use_held_out_renderings_only(parts: tuple[Script, list[Utterance], TextTokenizer]):
    script, utterances, tokenizer = parts
    mixer = Mixer(script, utterances, tokenizer, PLAIN, split="held_out")
    rng = random.Random(0)
    assert {mixer.question(rng, None, None)[0].split for _ in range(100)} == {"held_out"}


def test_a_corpus_can_be_read_while_it_grows(tmp_path: Path):
    config = Config.load(make_corpus(tmp_path))
    before = len(read_corpus(config.work / "corpus"))
    (config.work / "corpus" / ".00001.npz.123.part").write_bytes(b"half a shard")
    assert len(read_corpus(config.work / "corpus")) == before


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "flipped"])
def test_a_damaged_file_of_a_corpus_is_told_with_what_to_do(tmp_path: Path, damage: str):
    def damaged(path: Path) -> Path:
        whole = path.read_bytes()
        half = len(whole) // 2
        flipped = whole[:half] + bytes(255 - byte for byte in whole[half : half + 9]) + whole[half + 9 :]
        path.write_bytes({"cut": whole[:half], "empty": b"", "other": b"a text", "flipped": flipped}[damage])
        return path

    write_shard(tmp_path / "00000.npz", [utterance(f"who are you {i}", "intents", "name", "train") for i in range(20)])
    damaged(tmp_path / "00000.npz")
    with pytest.raises(CheckpointError, match=r"00000\.npz is damaged .*moshi_mlx\.train\.data"):
        read_corpus(tmp_path)
    features = tmp_path / "features.npz"
    write_features(features, [(np.zeros((2000, 4), np.float16), np.zeros((1000, 4), np.float16))], "convolutions")
    damaged(features)
    with pytest.raises(CheckpointError, match=r"features\.npz is damaged .*moshi_mlx\.train\.data"):
        read_features(features, "convolutions")
