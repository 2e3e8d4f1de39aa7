/** Zero crossings of the sinc on each side, at the lower of the two rates. */
const CROSSINGS = 12;
/** Table entries per zero crossing; between them the table is interpolated. */
const STEPS = 256;
/** From here on a tap is left out: at the very end, rounding would decide whether it counts. */
const LAST = CROSSINGS * STEPS - 1;
/** The band's edge, as part of the lower rate's Nyquist frequency. */
const EDGE = 0.94;

/** sinc under a Kaiser window (beta 8: what's outside the band is 80 dB down), from its middle outwards. */
const TABLE = (() => {
  const bessel = (x: number) => {
    let sum = 1;
    let term = 1;
    for (let k = 1; k < 40; k++) {
      term *= (x / (2 * k)) ** 2;
      sum += term;
    }
    return sum;
  };
  const table = new Float32Array(CROSSINGS * STEPS + 2);
  for (let i = 0; i < table.length; i++) {
    const x = i / STEPS;
    const r = Math.min(1, x / CROSSINGS);
    const angle = Math.PI * x * EDGE;
    const sinc = x === 0 ? 1 : Math.sin(angle) / angle;
    table[i] = (sinc * EDGE * bessel(8 * Math.sqrt(1 - r * r))) / bessel(8);
  }
  return table;
})();

/** Converts a stream of sound from one sample rate to another; delays it by 12 samples of the lower rate. */
export class Resampler {
  private readonly scale: number;
  private readonly reach: number;
  private readonly step: number;
  private held: Float32Array;
  private at: number;

  constructor(
    readonly from: number,
    readonly to: number,
  ) {
    this.scale = Math.min(1, to / from);
    this.reach = Math.ceil(CROSSINGS / this.scale);
    this.step = from / to;
    this.held = new Float32Array(this.reach);
    this.at = this.reach;
  }

  /** The converted sound that these samples complete. */
  process(input: Float32Array): Float32Array<ArrayBuffer> {
    if (this.from === this.to) return new Float32Array(input);
    const sound = new Float32Array(this.held.length + input.length);
    sound.set(this.held);
    sound.set(input, this.held.length);
    const end = sound.length - this.reach;
    const count = Math.max(0, Math.ceil((end - this.at) / this.step));
    const output = new Float32Array(count);
    let at = this.at;
    for (let i = 0; i < count; i++) {
      const first = Math.max(0, Math.ceil(at - this.reach));
      const last = Math.min(sound.length - 1, Math.floor(at + this.reach));
      let sum = 0;
      for (let j = first; j <= last; j++) {
        const x = Math.abs(at - j) * this.scale * STEPS;
        const k = Math.floor(x);
        if (k >= LAST) continue;
        const low = TABLE[k]!;
        sum += sound[j]! * (low + (TABLE[k + 1]! - low) * (x - k));
      }
      output[i] = sum * this.scale;
      at += this.step;
    }
    const done = Math.max(0, Math.floor(at) - this.reach);
    this.held = sound.slice(done);
    this.at = at - done;
    return output;
  }
}
