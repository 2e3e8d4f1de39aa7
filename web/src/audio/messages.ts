export const RATE = 24000;
export const FRAME = 1920;
export const FRAME_SECONDS = FRAME / RATE;
/** Loudness is drawn in columns of 20 ms. */
export const COLUMN = 480;

/** From the capture worklet: a frame of the user, and the context's time at its end. */
export interface Captured {
  pcm: Float32Array<ArrayBuffer>;
  end: number;
}

/** To the playback worklet: a piece of Moshi's sound; `id` names the step that begins with it. */
export interface Piece {
  pcm: Float32Array<ArrayBuffer>;
  rate: number;
  id?: number;
}

/** From the playback worklet, every 80 ms. */
export interface Played {
  /** Peaks of columns of 20 ms, the last of which ended at `end`. */
  peaks: number[];
  end: number;
  /** Steps whose sound has begun, and when. */
  begun: { id: number; time: number }[];
  /** Seconds of sound that wait. */
  buffered: number;
  /** Times that the sound ran out, and seconds of it dropped for being late. */
  underruns: number;
  skipped: number;
}
