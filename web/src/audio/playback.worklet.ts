import type { Piece, Played } from "./messages";
import { JitterBuffer } from "./jitter";
import { Resampler } from "./resampler";

/** Plays Moshi's sound as it comes, and tells what was played when. */
class Playback extends AudioWorkletProcessor {
  private readonly buffer = new JitterBuffer(sampleRate);
  private resampler: Resampler | undefined;
  private readonly column = Math.round(sampleRate / 50);
  private peaks: number[] = [];
  private peak = 0;
  private counted = 0;
  private begun: Played["begun"] = [];

  constructor() {
    super();
    this.port.onmessage = (event: MessageEvent<Piece | "clear">) => {
      if (event.data === "clear") this.buffer.clear();
      else this.add(event.data);
    };
  }

  process(_inputs: Float32Array[][], outputs: Float32Array[][]): boolean {
    const output = outputs[0]?.[0];
    if (!output) return true;
    for (const { id, at } of this.buffer.read(output)) {
      this.begun.push({ id, time: currentTime + at / sampleRate });
    }
    for (const channel of outputs[0]!.slice(1)) channel.set(output);
    for (const sample of output) this.peak = Math.max(this.peak, Math.abs(sample));
    this.counted += output.length;
    if (this.counted >= this.column) {
      this.peaks.push(this.peak);
      this.counted -= this.column;
      this.peak = 0;
      if (this.peaks.length === 4) this.report();
    }
    return true;
  }

  private add(piece: Piece): void {
    if (this.resampler?.from !== piece.rate) this.resampler = new Resampler(piece.rate, sampleRate);
    this.buffer.write(this.resampler.process(piece.pcm), piece.id);
  }

  private report(): void {
    const { buffered, underruns, skipped } = this.buffer;
    const played: Played = {
      peaks: this.peaks,
      end: currentTime,
      begun: this.begun,
      buffered: buffered / sampleRate,
      underruns,
      skipped: skipped / sampleRate,
    };
    this.port.postMessage(played);
    this.peaks = [];
    this.begun = [];
  }
}

registerProcessor("playback", Playback);
