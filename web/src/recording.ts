import { toInt16 } from "./audio/codec";
import { Resampler } from "./audio/resampler";
import { FRAME, RATE } from "./audio/messages";

/** The conversation's sound: the user left, Moshi right, in time with each other as the model heard them. */
export class Recording {
  private readonly user: Int16Array<ArrayBuffer>[] = [];
  private readonly moshi = new Map<number, Int16Array[]>();
  private resampler: Resampler | undefined;

  get seconds(): number {
    return (this.user.length * FRAME) / RATE;
  }

  get frames(): number {
    return this.user.length;
  }

  hear(frame: Float32Array): void {
    this.user.push(toInt16(frame));
  }

  /** Moshi's sound of the step that heard the user's frame `index`, or a part of it. */
  speak(index: number, pcm: Float32Array, rate: number): void {
    if (this.resampler?.from !== rate) this.resampler = new Resampler(rate, RATE);
    const parts = this.moshi.get(index) ?? [];
    parts.push(toInt16(this.resampler.process(pcm)));
    this.moshi.set(index, parts);
  }

  /** A stereo WAV file, 16 bits at 24 kHz. */
  toWav(): Blob {
    const frames = this.user.map((user, index) => {
      const stereo = new Int16Array(2 * FRAME);
      const moshi = joined(this.moshi.get(index) ?? []);
      for (let i = 0; i < FRAME; i++) {
        stereo[2 * i] = user[i] ?? 0;
        stereo[2 * i + 1] = moshi[i] ?? 0;
      }
      return stereo;
    });
    return new Blob([wavHeader(frames.length * FRAME * 4), ...frames], { type: "audio/wav" });
  }
}

function joined(parts: Int16Array[]): Int16Array {
  if (parts.length === 1) return parts[0]!;
  const whole = new Int16Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function wavHeader(bytes: number): ArrayBuffer {
  const view = new DataView(new ArrayBuffer(44));
  const word = (at: number, letters: string) => {
    for (let i = 0; i < 4; i++) view.setUint8(at + i, letters.charCodeAt(i));
  };
  word(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  word(8, "WAVE");
  word(12, "fmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 2, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, RATE * 4, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, bytes, true);
  return view.buffer;
}
