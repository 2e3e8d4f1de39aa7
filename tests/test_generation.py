"""LMGen: sampling, forced tokens, batches, hooks, and graphs that are built once."""

import json

import mlx.core as mx
import numpy as np
import pytest
from golden import golden, reference

from moshi_mlx import LMConfig, LMGen, LMModel
from moshi_mlx.checkpoint import pieces
from moshi_mlx.errors import InputError
from moshi_mlx.lm.sampling import Sampling, gumbel_noise, sample
from moshi_mlx.lm.weights import build
from moshi_mlx.untrained import random_tensors


@pytest.fixture(scope="module")
def lm() -> LMModel:
    return LMModel.load(golden("moshi"))


def user_codes() -> np.ndarray:
    return reference("moshi")["user_codes"].astype(np.int32)


def run(gen: LMGen, codes: np.ndarray) -> np.ndarray:
    steps = [gen.step(codes[:, :, t]) for t in range(codes.shape[2])]
    return np.stack([np.array(tokens) for tokens in steps if tokens is not None], axis=-1)


def test_a_seed_repeats_and_another_differs(lm: LMModel) -> None:
    first, second, other = (run(LMGen(lm, seed=seed), user_codes()) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_compiled_and_uncompiled_steps_give_equal_tokens(lm: LMModel) -> None:
    np.testing.assert_array_equal(
        run(LMGen(lm, seed=1), user_codes()), run(LMGen(lm, seed=1, compile=False), user_codes())
    )


def test_a_batch_gives_each_row_what_it_gets_alone(lm: LMModel) -> None:
    codes = user_codes()
    other = np.roll(codes, 3, axis=2)
    greedy = {"temp": 0, "temp_text": 0}
    both = run(LMGen(lm, batch_size=2, **greedy), np.concatenate([codes, other]))
    np.testing.assert_array_equal(both[:1], run(LMGen(lm, **greedy), codes))
    np.testing.assert_array_equal(both[1:], run(LMGen(lm, **greedy), other))


def test_two_interleaved_generators_do_not_see_each_other(lm: LMModel) -> None:
    codes = user_codes()
    alone = run(LMGen(lm, seed=3), codes)
    first = LMGen(lm, seed=3)
    second = LMGen(lm, seed=4, graph=first.graph)
    tokens = []
    for t in range(codes.shape[2]):
        step = first.step(codes[:, :, t])
        second.step(codes[:, :, -1 - t])
        if step is not None:
            tokens.append(np.array(step))
    np.testing.assert_array_equal(np.stack(tokens, axis=-1), alone)


def test_forced_tokens_come_out_and_are_read_by_the_next_step(lm: LMModel) -> None:
    codes = user_codes()
    free = run(LMGen(lm, temp=0, temp_text=0), codes)
    gen = LMGen(lm, temp=0, temp_text=0)
    texts: list[int] = []
    gen.on_text = lambda token: texts.append(int(np.array(token)[0]))
    tokens = []
    for t in range(codes.shape[2]):
        forced = np.full((1, 9), -2, np.int32)
        if 10 <= t < 14:
            forced[0, 0], forced[0, 1], forced[0, 5] = 42, 11, 12
        step = gen.step(codes[:, :, t], forced)
        if step is not None:
            tokens.append(np.array(step)[0])
    assert texts[10:14] == [42] * 4
    out = np.array(tokens)
    # Step t's text and semantic token come out one step later, its acoustic ones at once: with delay 1 the first
    # frame comes out at step 1.
    assert (out[10:14, 0] == 42).all() and (out[10:14, 1] == 11).all() and (out[9:13, 5] == 12).all()
    assert (out[:9] == free[0].T[:9]).all()
    assert (out != free[0].T).any(axis=1)[14:].any(), "what was forced changed nothing that came after"


def test_hooks_see_every_step(lm: LMModel) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {"logits": [], "text": [], "audio": []}
    gen = LMGen(
        lm,
        seed=0,
        batch_size=2,
        on_text_logits=lambda x: seen["logits"].append(x.shape),
        on_text=lambda x: seen["text"].append(x.shape),
        on_audio=lambda x: seen["audio"].append(x.shape),
    )
    for _ in range(3):
        gen.step(np.zeros((2, 8), np.int32))
    assert seen == {"logits": [(2, 128)] * 3, "text": [(2,)] * 3, "audio": [(2, 8)] * 3}


def test_no_graph_is_built_after_warm_up(lm: LMModel) -> None:
    gen = LMGen(lm, seed=0)
    gen.warm_up()
    assert gen.state.offset == 0
    built = gen.graph.traces
    assert built == len(gen.graph.windows)
    for _ in range(3 * lm.config.context):
        gen.step(np.zeros((1, 8), np.int32))
    assert gen.graph.traces == built


def test_the_cache_does_not_grow(lm: LMModel) -> None:
    gen = LMGen(lm, seed=0)
    sizes = set()
    for _ in range(3 * lm.config.context):
        gen.step(np.zeros((1, 8), np.int32))
        sizes.add(gen.state.kv.nbytes + gen.state.line.nbytes)
    assert len(sizes) == 1


@pytest.mark.parametrize("compile", [True, False])
def test_a_step_moves_the_cache_on_in_place(compile: bool) -> None:
    gen = LMGen(wide_model(context=4000), seed=0, compile=compile)
    codes = np.zeros((1, 8), np.int32)
    for _ in range(3):
        np.array(gen.step(codes))
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    np.array(gen.step(codes))
    taken = mx.get_peak_memory() - before
    assert taken < gen.state.kv.nbytes / 4, f"a step took {taken} bytes, the cache has {gen.state.kv.nbytes}"


def wide_model(context: int = 24) -> LMModel:
    """A random model with heads 64 wide, as the published ones have at least."""
    shape = {"dim": 128, "num_heads": 2, "num_layers": 2, "context": context}
    config = LMConfig.from_dict(json.loads((golden("moshi") / "config.json").read_text()) | shape)
    return build(config, random_tensors({name: piece.shape for name, piece in pieces(config).items()}, seed=3))


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.3)])
def test_a_quantized_cache_stays_close_and_takes_less_memory(bits: int, bound: float) -> None:
    lm = wide_model()
    codes = user_codes()

    def run_with(kv_bits: int | None) -> tuple[np.ndarray, int]:
        seen: list[np.ndarray] = []
        gen = LMGen(lm, temp=0, temp_text=0, kv_bits=kv_bits, on_text_logits=lambda x: seen.append(np.array(x)))
        for t in range(codes.shape[2]):
            # Forced tokens keep both conversations the same.
            gen.step(codes[:, :, t], np.full((1, 9), t, np.int32))
        return np.concatenate(seen), gen.state.kv.nbytes

    exact, whole = run_with(None)
    close, packed = run_with(bits)
    error = (close - exact).std() / exact.std()
    assert 0 < error < bound, f"text logits differ by {error:.3f} of their spread"
    assert packed < whole * (bits + 2) / 32


def test_a_quantized_cache_goes_on_in_chunks() -> None:
    lm = wide_model()
    tokens = mx.random.randint(0, 60, (1, 17, 60), key=mx.random.key(1))
    whole, state = lm.make_state(1, kv_bits=8), lm.make_state(1, kv_bits=8)
    steps = [lm.forward_text(tokens[:, :, t : t + 1], whole)[0] for t in range(60)]
    chunks = [lm.forward_text(tokens[:, :, t : t + 20], state)[0] for t in (0, 20, 40)]
    # Within a chunk keys are still exact, so the two agree up to the quantization.
    error = mx.abs(mx.concatenate(steps, axis=1) - mx.concatenate(chunks, axis=1)).max().item()
    assert error < 0.05


def test_sampling_follows_the_softmax_of_the_top_k() -> None:
    logits = mx.array([[0.0, 1.0, 2.0, 3.0, -1.0]])
    rows = 20_000
    noise = gumbel_noise(5, 0, (rows, 5))
    tokens = np.array(sample(mx.broadcast_to(logits, (rows, 5)), Sampling(0.8, 3), noise))
    kept = np.exp(np.array([1.0, 2.0, 3.0]) / 0.8)
    frequencies = np.bincount(tokens, minlength=5) / rows
    np.testing.assert_allclose(frequencies[1:4], kept / kept.sum(), atol=0.015)
    assert frequencies[0] == frequencies[4] == 0


def test_what_is_out_of_range_is_refused(lm: LMModel) -> None:
    gen = LMGen(lm)
    with pytest.raises(InputError, match=r"shape \[1, 7\]; expected \[1, 8\]"):
        gen.step(np.zeros((1, 7), np.int32))
    with pytest.raises(InputError, match="expected integers"):
        gen.step(np.zeros((1, 8), np.float32))
    with pytest.raises(InputError, match="ids from 0 to 65"):
        gen.step(np.array([[0, 0, 0, 0, 0, 0, 0, 65]], np.int32))
    with pytest.raises(InputError, match="float32; expected integers"):
        gen.step(mx.zeros((1, 8)))
    with pytest.raises(InputError, match="is a list"):
        gen.step([[0] * 8])
    with pytest.raises(InputError, match="missing"):
        gen.step()
    with pytest.raises(InputError, match="temperature"):
        LMGen(lm, temp=-1)
    with pytest.raises(InputError, match="top-k"):
        LMGen(lm, top_k=-5)
    with pytest.raises(InputError, match="can't be quantized"):
        LMGen(lm, kv_bits=8)
    with pytest.raises(InputError, match="expected 8, 4"):
        LMGen(lm, kv_bits=3)
    with pytest.raises(InputError, match="batch_size"):
        LMGen(lm, batch_size=0)


def test_ids_in_an_mlx_array_that_are_out_of_range_are_taken_for_the_nearest(lm: LMModel) -> None:
    def last(user: int, text: int, audio: int) -> mx.array:
        gen = LMGen(lm, seed=1)
        for _ in range(4):
            tokens = gen.step(mx.full((1, 8), user), mx.array([[text] + [audio] * 8]))
        return tokens

    card, far = lm.config.card, 10**6
    assert mx.array_equal(last(far, -2, -2), last(card, -2, -2))
    assert mx.array_equal(last(-far, -far, -far), last(-1, -2, -2))
    gen, other = LMGen(lm, seed=1), LMGen(lm, seed=1)
    for _ in range(4):
        gen.step(mx.zeros((1, 8)).astype(mx.int32), mx.full((1, 9), far))
        other.step(mx.zeros((1, 8)).astype(mx.int32), mx.array([[lm.config.text_card] + [card] * 8]))
    zeros = mx.zeros((1, 8), mx.int32)
    gen.step(zeros)
    other.step(zeros)
    assert mx.array_equal(gen.step(zeros), other.step(zeros))
