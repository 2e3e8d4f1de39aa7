import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Devices } from "./devices";

const WISH = { deviceId: undefined, echoCancellation: true };

let addModule: () => Promise<void>;
let getUserMedia: () => Promise<MediaStream>;
let createMediaStreamSource: (mediaStream: MediaStream) => object;

/** A stream that knows whether its microphone is still open. */
function microphone(): MediaStream & { open: boolean } {
  const stream = { open: true, getTracks: () => [track], getAudioTracks: () => [track] };
  const track = { onended: null, stop: () => (stream.open = false) };
  return stream as unknown as MediaStream & { open: boolean };
}

beforeEach(() => {
  addModule = () => Promise.resolve();
  createMediaStreamSource = (mediaStream) => ({ mediaStream, connect: () => {}, disconnect: () => {} });
  vi.stubGlobal("window", { isSecureContext: true });
  vi.stubGlobal("navigator", { mediaDevices: { getUserMedia: () => getUserMedia() } });
  vi.stubGlobal("AudioWorkletNode", class {
    port = {};
    connect = () => {};
  });
  vi.stubGlobal("AudioContext", class {
    audioWorklet = { addModule: () => addModule() };
    resume = () => Promise.resolve();
    close = () => Promise.resolve();
    createMediaStreamSource = (mediaStream: MediaStream) => createMediaStreamSource(mediaStream);
  });
});

afterEach(() => vi.unstubAllGlobals());

test("a microphone that is allowed after the end is closed at once", async () => {
  const [first, second] = [microphone(), microphone()];
  getUserMedia = () => Promise.resolve(first);
  const devices = await Devices.open(WISH);
  let allow = (_: MediaStream) => {};
  getUserMedia = () => new Promise((resolve) => (allow = resolve));
  const changing = devices.change(WISH);
  await devices.close();
  allow(second);
  await changing;
  expect([first.open, second.open]).toEqual([false, false]);
});

test("a microphone is closed where the page can't use it", async () => {
  const stream = microphone();
  getUserMedia = () => Promise.resolve(stream);
  addModule = () => Promise.reject(new Error("no such module"));
  await expect(Devices.open(WISH)).rejects.toThrow("no such module");
  expect(stream.open).toBe(false);
});

test("another microphone is closed where its sound can't be taken", async () => {
  const [first, second] = [microphone(), microphone()];
  getUserMedia = () => Promise.resolve(first);
  const devices = await Devices.open(WISH);
  getUserMedia = () => Promise.resolve(second);
  createMediaStreamSource = () => {
    throw new Error("another sample rate");
  };
  await expect(devices.change(WISH)).rejects.toThrow("another sample rate");
  expect([first.open, second.open]).toEqual([false, false]);
});
