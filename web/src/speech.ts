/** When the user speaks, from loudness alone: well above the quietest of the last seconds, pauses bridged. */
export class SpeechDetector {
  speaking = false;
  private floor = 0.003;
  private quiet = 0;

  /** Hear 80 ms; returns whether that's within speech. */
  hear(frame: Float32Array): boolean {
    let sum = 0;
    for (const sample of frame) sum += sample * sample;
    const loudness = Math.sqrt(sum / frame.length);
    // Falls at once, rises by 6 dB in 10 s: the room's noise, not the voice.
    this.floor = Math.max(0.0005, Math.min(loudness, this.floor * 1.0056));
    const loud = loudness > Math.max(0.008, 3 * this.floor);
    this.quiet = loud ? 0 : this.quiet + 1;
    this.speaking = loud || (this.speaking && this.quiet < 7);
    return this.speaking;
  }
}
