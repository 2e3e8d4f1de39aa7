import { expect, test } from "vitest";
import { Recording } from "./recording";
import { clock, Transcript } from "./transcript";

test("pieces of words become words, and pauses paragraphs", () => {
  const transcript = new Transcript();
  for (const [piece, time] of [[" Hel", 1], ["lo", 1.1], [" there", 1.4], [" And", 4], [" now", 4.3]] as const) transcript.say(piece, time);
  expect(transcript.entries.map((entry) => entry.who === "moshi" && entry.text)).toEqual(["Hello there", "And now"]);
});

test("an utterance of the user's begins a new paragraph, but not within a word", () => {
  const transcript = new Transcript();
  transcript.say(" One", 1);
  for (let time = 1.1; time < 2; time += 0.08) transcript.hear([0.5], time, time + 0.08);
  transcript.say("der", 2);
  transcript.say(" two", 2.2);
  expect(transcript.entries.filter((entry) => entry.who === "moshi").map((entry) => entry.text)).toEqual(["Oneder two"]);
  for (let time = 2.6; time < 3.4; time += 0.08) transcript.hear([0.5], time, time + 0.08);
  for (const time of [3.5, 3.6, 3.7]) transcript.say(" on", time);
  expect(transcript.entries.filter((entry) => entry.who === "moshi").length).toBe(2);
});

test("the saved text tells who spoke when", () => {
  const transcript = new Transcript();
  transcript.hear([0.5], 0.5, 2);
  transcript.say(" Good evening", 61);
  expect(transcript.toText("Title")).toBe("Title\n\n[0:00] (you spoke, 1.5 s)\n[1:01] Moshi: Good evening\n");
  expect([clock(0), clock(59.9), clock(3601)]).toEqual(["0:00", "0:59", "60:01"]);
});

test("a recording is a stereo WAV file with both in time", async () => {
  const recording = new Recording();
  for (let i = 0; i < 3; i++) recording.hear(new Float32Array(1920).fill(0.25));
  recording.speak(1, new Float32Array(960).fill(-0.5), 24000);
  recording.speak(1, new Float32Array(960).fill(-0.5), 24000);
  recording.speak(7, new Float32Array(1920), 24000); // of a frame that isn't there: left out
  const bytes = new DataView(await recording.toWav().arrayBuffer());
  expect(bytes.byteLength).toBe(44 + 3 * 1920 * 4);
  expect([bytes.getUint32(24, true), bytes.getUint16(22, true), bytes.getUint32(40, true)]).toEqual([24000, 2, 23040]);
  const sample = (frame: number, channel: number) => bytes.getInt16(44 + frame * 4 + channel * 2, true) / 32767;
  expect([sample(0, 0), sample(0, 1), sample(1920, 1), sample(3839, 1), sample(3840, 1)].map((x) => Math.round(x * 100))).toEqual([25, 0, -50, -50, 0]);
});
