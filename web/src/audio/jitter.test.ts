import { expect, test } from "vitest";
import { JitterBuffer } from "./jitter";

const RATE = 48000;
const FRAME = 3840;

/** Play for some seconds while frames arrive at the given times; returns what was played. */
function play(buffer: JitterBuffer, arrivals: number[], seconds: number): { sound: number[]; begun: Map<number, number> } {
  const sound: number[] = [];
  const begun = new Map<number, number>();
  let next = 0;
  for (let at = 0; at < seconds * RATE; at += 128) {
    while (next < arrivals.length && arrivals[next]! * RATE <= at) buffer.write(new Float32Array(FRAME).fill(0.5), next++);
    const output = new Float32Array(128);
    for (const { id, at: offset } of buffer.read(output)) begun.set(id, (at + offset) / RATE);
    sound.push(...output);
  }
  return { sound, begun };
}

test("frames that come evenly are played without a gap, soon", () => {
  const buffer = new JitterBuffer(RATE);
  const { begun } = play(buffer, Array.from({ length: 50 }, (_, i) => 0.1 + i * 0.08), 4);
  expect(buffer.underruns).toBe(0);
  for (let i = 1; i < 48; i++) expect(begun.get(i)! - begun.get(i - 1)!).toBeCloseTo(0.08, 6);
  expect(begun.get(0)! - 0.1).toBeLessThan(0.04);
});

test("the lead grows until late frames are in time", () => {
  const buffer = new JitterBuffer(RATE);
  const late = Array.from({ length: 125 }, (_, i) => i * 0.08 + (i % 7 === 3 ? 0.07 : 0));
  play(buffer, late.slice(0, 60), 4.8);
  const before = buffer.underruns;
  expect(before).toBeGreaterThan(0);
  play(buffer, late.slice(60).map((time) => time - 4.8), 5);
  expect(buffer.underruns).toBeLessThanOrEqual(before + 1);
});

test("a burst after a stall is caught up with, not carried along as delay", () => {
  const buffer = new JitterBuffer(RATE);
  const stalled = Array.from({ length: 200 }, (_, i) => (i >= 20 && i < 35 ? 35 * 0.08 : i * 0.08));
  const { begun } = play(buffer, stalled, 15);
  expect(buffer.skipped).toBeGreaterThan(0.5 * RATE);
  expect(begun.get(180)! - stalled[180]!).toBeLessThan(0.12);
  expect(begun.get(50)! - stalled[50]!).toBeLessThan(0.3); // most of it within 1.2 s
});

test("sound ends and begins without a click", () => {
  const { sound } = play(new JitterBuffer(RATE), [0, 0.5], 1);
  const steps = sound.slice(1).map((x, i) => sound[i]! - x);
  expect(Math.max(...steps)).toBeLessThan(0.05);
});

test("what waits is forgotten when asked to", () => {
  const buffer = new JitterBuffer(RATE);
  buffer.write(new Float32Array(FRAME).fill(0.5));
  buffer.clear();
  const output = new Float32Array(128);
  buffer.read(output);
  expect(Math.max(...output)).toBe(0);
});
