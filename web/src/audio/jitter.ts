interface Chunk {
  pcm: Float32Array;
  read: number;
  id: number | undefined;
}

/**
 * Sound between an uneven network and an even speaker.
 *
 * It begins to play `lead` samples after its first piece came, so that a later piece may be late by as much. When it
 * runs out all the same, the lead grows; when it hasn't for a while, it shrinks. Where more waits than the lead needs
 * for two seconds on end, or much more for half a second, the surplus is skipped: it would only be delay.
 */
export class JitterBuffer {
  buffered = 0;
  underruns = 0;
  skipped = 0;
  private readonly chunks: Chunk[] = [];
  private playing = false;
  private wait = 0;
  private lead: number;
  private lowest = Infinity;
  private watched = 0;
  private calm = 0;
  private last = 0;

  constructor(private readonly rate: number) {
    this.lead = 0.03 * rate;
  }

  /** Add a piece of sound; `id` is told back when its first sample is played. */
  write(pcm: Float32Array, id?: number): void {
    this.chunks.push({ pcm, read: 0, id });
    this.buffered += pcm.length;
    if (!this.playing) {
      this.playing = true;
      this.wait = Math.round(this.lead);
      this.watch();
    }
  }

  /** Fill `output`, with silence where there's nothing; returns which pieces began, and at which of its samples. */
  read(output: Float32Array): { id: number; at: number }[] {
    const begun: { id: number; at: number }[] = [];
    let at = Math.min(this.wait, output.length);
    output.fill(0, 0, at);
    this.wait -= at;
    while (at < output.length && this.chunks.length > 0) {
      const chunk = this.chunks[0]!;
      if (chunk.read === 0 && chunk.id !== undefined) begun.push({ id: chunk.id, at });
      const part = chunk.pcm.subarray(chunk.read, chunk.read + output.length - at);
      output.set(part, at);
      at += part.length;
      chunk.read += part.length;
      this.buffered -= part.length;
      if (chunk.read >= chunk.pcm.length) this.chunks.shift();
    }
    if (at < output.length) this.ranOut(output, at);
    else this.last = output[output.length - 1]!;
    this.keepWatch(output.length);
    return begun;
  }

  clear(): void {
    this.chunks.length = 0;
    this.buffered = 0;
    this.playing = false;
    this.wait = 0;
  }

  private ranOut(output: Float32Array, at: number): void {
    // From the last sample to silence over 32 samples, not at once: that would click.
    const from = at > 0 ? output[at - 1]! : this.last;
    for (let i = at; i < output.length; i++) output[i] = from * Math.max(0, 1 - (i - at + 1) / 32);
    this.last = 0;
    if (!this.playing) return;
    this.playing = false;
    this.underruns++;
    this.calm = 0;
    this.lead = Math.min(this.lead + 0.02 * this.rate, 0.2 * this.rate);
  }

  private watch(): void {
    this.lowest = Infinity;
    this.watched = 0;
  }

  private keepWatch(samples: number): void {
    if (!this.playing) return;
    if (this.wait === 0) this.lowest = Math.min(this.lowest, this.buffered);
    this.watched += samples;
    this.calm += samples;
    if (this.calm > 20 * this.rate) {
      this.calm = 0;
      this.lead = Math.max(this.lead - 0.01 * this.rate, 0.02 * this.rate);
    }
    if (this.watched < 0.5 * this.rate) return;
    const surplus = this.lowest - this.lead;
    const long = this.watched >= 2 * this.rate;
    if (surplus > (long ? 0.04 : 0.15) * this.rate && surplus < Infinity) this.skip(Math.round(surplus));
    else if (!long) return;
    this.watch();
  }

  private skip(samples: number): void {
    this.skipped += samples;
    while (samples > 0 && this.chunks.length > 0) {
      const chunk = this.chunks[0]!;
      const part = Math.min(samples, chunk.pcm.length - chunk.read);
      chunk.read += part;
      this.buffered -= part;
      samples -= part;
      if (chunk.read >= chunk.pcm.length) this.chunks.shift();
    }
    const next = this.chunks[0];
    if (!next) return;
    // Faded in where it goes on, so that the cut doesn't click.
    const ramp = Math.min(256, next.pcm.length - next.read);
    for (let i = 0; i < ramp; i++) {
      const weight = i / ramp;
      next.pcm[next.read + i] = next.pcm[next.read + i]! * weight + this.last * (1 - weight) ** 4;
    }
  }
}
