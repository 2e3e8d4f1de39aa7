import { FRAME, RATE, type Captured } from "./messages";
import { Resampler } from "./resampler";

/** Collects the microphone's sound into frames of 80 ms at 24 kHz. */
class Capture extends AudioWorkletProcessor {
  private readonly resampler = new Resampler(sampleRate, RATE);
  private frame = new Float32Array(FRAME);
  private filled = 0;

  process(inputs: Float32Array[][]): boolean {
    const channels = inputs[0] ?? [];
    const mono = new Float32Array(channels[0]?.length ?? 128);
    for (const channel of channels) {
      for (let i = 0; i < mono.length; i++) mono[i]! += channel[i]! / channels.length;
    }
    let sound = this.resampler.process(mono);
    while (sound.length > 0) {
      const taken = sound.subarray(0, FRAME - this.filled);
      this.frame.set(taken, this.filled);
      this.filled += taken.length;
      sound = sound.subarray(taken.length);
      if (this.filled === FRAME) this.send(sound.length / RATE);
    }
    return true;
  }

  private send(after: number): void {
    const message: Captured = { pcm: this.frame, end: currentTime + 128 / sampleRate - after };
    this.port.postMessage(message, [this.frame.buffer]);
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
  }
}

registerProcessor("capture", Capture);
