import { expect, test } from "vitest";
import { Resampler } from "./resampler";

const tone = (rate: number, hertz: number, seconds: number) =>
  Float32Array.from({ length: rate * seconds }, (_, i) => 0.5 * Math.sin((2 * Math.PI * hertz * i) / rate));

function inPieces(resampler: Resampler, sound: Float32Array, size: number): Float32Array {
  const parts: number[] = [];
  for (let at = 0; at < sound.length; at += size) parts.push(...resampler.process(sound.subarray(at, at + size)));
  return Float32Array.from(parts);
}

const power = (sound: Float32Array) => sound.reduce((sum, x) => sum + x * x, 0) / sound.length;

for (const [from, to] of [[48000, 24000], [44100, 24000], [24000, 44100], [24000, 48000], [16000, 24000]] as const) {
  test(`a tone stays itself from ${from} to ${to} Hz`, () => {
    const sound = inPieces(new Resampler(from, to), tone(from, 997, 0.5), 128);
    const expected = tone(to, 997, 0.5);
    const middle = sound.subarray(2000, 6000);
    const error = middle.map((x, i) => x - expected[i + 2000]!);
    // In time with the original: what the delay holds back is at the end, not at the beginning.
    expect(10 * Math.log10(power(error) / power(middle))).toBeLessThan(-60);
    expect(Math.abs(sound.length - to / 2)).toBeLessThan(60);
  });

  test(`pieces of any size give the same from ${from} to ${to} Hz`, () => {
    const sound = tone(from, 440, 0.2);
    const whole = new Resampler(from, to).process(sound);
    const pieces = inPieces(new Resampler(from, to), sound, 77);
    for (let i = 0; i < Math.min(whole.length, pieces.length); i++) expect(pieces[i]).toBeCloseTo(whole[i]!, 5);
  });
}

test("what is above the lower rate's band is gone, not folded back", () => {
  const sound = inPieces(new Resampler(48000, 24000), tone(48000, 15000, 0.5), 128);
  expect(10 * Math.log10(power(sound.subarray(1000, 11000)) / 0.125)).toBeLessThan(-60);
});
