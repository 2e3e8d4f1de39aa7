"""The language model agrees with what the published implementations computed."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden import golden, reference

from moshi_mlx import LMModel
from moshi_mlx.errors import InputError
from moshi_mlx.generation import LMGen
from moshi_mlx.lm.weights import build, export
from moshi_mlx.quantize import main

CONDITIONS = {"hibiki": {"description": "very_good"}, "split": {"description": "very_good"}}
# `plain` is what the published implementation builds of a configuration without norm, gating and positional_embedding,
# `split` a checkpoint as it saves one now, with another norm, MLP width and a condition that takes any text.
ALL = ["moshi", "hibiki", "stt", "plain", "split"]


def greedy(lm: LMModel, **settings: object) -> LMGen:
    return LMGen(lm, temp=0, temp_text=0, **settings)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("compile", [True, False])
def test_every_step_gives_the_reference_text_logits_and_tokens(name: str, compile: bool) -> None:
    expected = reference(name)
    logits: list[np.ndarray] = []
    gen = greedy(
        LMModel.load(golden(name)),
        compile=compile,
        conditions=CONDITIONS.get(name),
        on_text_logits=lambda x: logits.append(np.array(x[0])),
    )
    tokens, heads = {}, []
    for step, codes in enumerate(np.moveaxis(expected["user_codes"], 2, 0)):
        result = gen.step_with_extra_heads(codes)
        if result is not None:
            tokens[step] = np.array(result[0])
            heads.append([np.array(head) for head in result[1]])
    error = np.abs(np.stack(logits) - expected["text_logits"]).max()
    assert error < 2e-4, f"text logits differ by {error}"
    assert min(tokens) == expected.get("first_output_step", 0)
    np.testing.assert_array_equal(np.stack(list(tokens.values()), axis=-1), expected["tokens"])
    if "extra_heads" in expected:
        np.testing.assert_allclose(np.array(heads), expected["extra_heads"], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ALL if name != "stt"])
def test_teacher_forced_logits_equal_the_reference(name: str) -> None:
    expected = reference(name)
    out = LMModel.load(golden(name))(expected["tf_codes"], CONDITIONS.get(name))
    for mine, theirs in (("logits", "tf_logits"), ("text_logits", "tf_text_logits")):
        mask = np.array(getattr(out, mine.replace("logits", "mask")))
        np.testing.assert_array_equal(mask, expected[theirs.replace("logits", "mask")])
        values = np.array(getattr(out, mine))
        error = np.abs(values - expected[theirs])[mask].max()
        assert error < 2e-4, f"{mine} differ by {error}"
        np.testing.assert_array_equal(np.isnan(values), np.isnan(expected[theirs]))


@pytest.mark.parametrize("level", ["bf16", "q8", "q4"])
def test_published_mlx_checkpoints_give_the_reference(level: str) -> None:
    expected = reference(f"moshi_mlx/{level}")
    lm = LMModel.load(golden(f"moshi_mlx/{level}"))
    state = lm.make_state()
    logits, tokens = [], []
    for row in expected["inputs"].astype(np.int32):
        hidden, text_logits = lm.forward_text(mx.array(row)[None, :, None], state)
        logits.append(np.array(text_logits[0, 0]))
        tokens.append(np.array(lm.sample_audio(hidden[:, 0], mx.argmax(text_logits[:, 0], axis=-1)))[0])
    error = np.abs(np.stack(logits) - expected["text_logits"]).max()
    assert error < 2e-3, f"text logits differ by {error}"
    agreement = (np.stack(tokens) == expected["audio_tokens"]).mean()
    assert agreement >= 0.99, f"only {agreement:.1%} of the audio tokens agree"


@pytest.mark.parametrize("name", ["plain", "split"])
def test_other_architectures_are_saved_in_the_mlx_layout(name: str, tmp_path: Path) -> None:
    rounded = {k: v.astype(mx.bfloat16) for k, v in mx.load(str(golden(name) / "model.safetensors")).items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), rounded)
    (tmp_path / "config.json").write_text((golden(name) / "config.json").read_text())
    assert main([str(tmp_path), str(tmp_path / "saved"), "--bits", "bf16"]) == 0
    tokens = mx.random.randint(0, 32, (1, 6, 6), key=mx.random.key(2))
    first, second = LMModel.load(tmp_path)(tokens), LMModel.load(tmp_path / "saved")(tokens)
    assert mx.allclose(first.text_logits, second.text_logits, atol=1e-4, equal_nan=True)
    assert mx.allclose(first.logits, second.logits, atol=1e-4, equal_nan=True)


def test_a_user_frame_is_seen_by_the_step_that_it_is_given_to() -> None:
    lm = LMModel.load(golden("moshi"))
    codes = reference("moshi")["user_codes"]
    changed = codes.copy()
    changed[0, 0, 20] = (changed[0, 0, 20] + 1) % lm.config.card

    def text_logits(user: np.ndarray) -> np.ndarray:
        seen: list[np.ndarray] = []
        gen = greedy(lm, on_text_logits=lambda x: seen.append(np.array(x)))
        for step in range(user.shape[2]):
            gen.step(user[:, :, step])
        return np.concatenate(seen)

    differs = np.abs(text_logits(codes) - text_logits(changed)).max(axis=1) > 1e-6
    assert differs.argmax() == 20 and differs.any()


@pytest.mark.parametrize("chunk", [1, 5, 24, 31])
def test_three_windows_in_chunks_equal_one_windowed_pass(chunk: int) -> None:
    lm = LMModel.load(golden("moshi"))
    length = 3 * lm.config.context + 7
    tokens = mx.random.randint(0, lm.config.card, (2, lm.config.n_q + 1, length), key=mx.random.key(1))
    whole, _ = lm.forward_text(tokens)
    state = lm.make_state(2)
    pieces = [lm.forward_text(tokens[:, :, at : at + chunk], state)[0] for at in range(0, length, chunk)]
    error = mx.abs(mx.concatenate(pieces, axis=1) - whole).max().item()
    assert error < 1e-4, f"hidden states differ by {error}"


def test_minus_one_adds_nothing() -> None:
    lm = LMModel.load(golden("hibiki"))
    nothing = mx.full((1, lm.config.n_q + 1, 1), -1, mx.int32)
    assert mx.abs(lm.embed(nothing)).max().item() == 0
    assert mx.abs(lm.depformer.slices[1].embed(mx.array([-1]))).max().item() == 0


def test_ids_in_an_mlx_array_that_are_out_of_range_are_taken_for_the_nearest() -> None:
    lm = LMModel.load(golden("moshi"))
    for beyond, text, code in ((10**6, lm.config.text_card, lm.config.card), (-(10**6), -1, -1)):
        nearest = mx.concatenate([mx.full((1, 1, 4), text), mx.full((1, 16, 4), code)], axis=1)
        found, expected = lm(mx.full((1, 17, 4), beyond)), lm(nearest)
        assert mx.array_equal(found.text_logits, expected.text_logits)
        assert mx.array_equal(found.logits, expected.logits, equal_nan=True)
    hidden = mx.zeros((1, lm.config.dim))
    last = lm.sample_audio(hidden, mx.array([lm.config.text_card]))
    assert mx.array_equal(lm.sample_audio(hidden, mx.array([10**6])), last)


def test_wrong_shapes_and_conditions_are_refused() -> None:
    moshi, hibiki = LMModel.load(golden("moshi")), LMModel.load(golden("hibiki"))
    with pytest.raises(InputError, match=r"expected \[B, 17, T\]"):
        moshi(mx.zeros((1, 9, 4), mx.int32))
    with pytest.raises(InputError, match=r"expected \[B, 17, T\]"):
        moshi(np.zeros((1, 17, 0), np.int32))
    with pytest.raises(InputError, match="float32; expected integers"):
        moshi.forward_text(mx.zeros((1, 17, 4)))
    with pytest.raises(InputError, match="ids from 65 to 65"):
        moshi(np.full((1, 17, 4), 65))
    with pytest.raises(InputError, match="takes no conditions"):
        LMGen(moshi, conditions={"description": "good"})
    with pytest.raises(InputError, match="possible are very_bad"):
        LMGen(hibiki, conditions={"description": "superb"})
    with pytest.raises(InputError, match="no condition mood"):
        LMGen(hibiki, conditions={"mood": "good"})


@pytest.mark.parametrize("name", ALL)
def test_exported_weights_build_the_same_model(name: str) -> None:
    lm = LMModel.load(golden(name))
    again = build(lm.config, export(lm))
    tokens = mx.random.randint(0, lm.config.card, (1, lm.config.n_q + 1, 6), key=mx.random.key(2))
    assert mx.array_equal(lm.forward_text(tokens)[1], again.forward_text(tokens)[1])
    if lm.config.dep_q:
        hidden = mx.random.normal((1, lm.config.dim), key=mx.random.key(3))
        first = lm.sample_audio(hidden, mx.array([5]))
        assert mx.array_equal(first, again.sample_audio(hidden, mx.array([5])))
