import { chooseFormat, makeCodec, type Codec } from "./audio/codec";
import { Devices, MicrophoneError, type MicrophoneTrouble, type MicrophoneWish } from "./audio/devices";
import { COLUMN, FRAME, FRAME_SECONDS, type Captured, type Played } from "./audio/messages";
import { Link, type ServerEvent } from "./link";
import { Recording } from "./recording";
import { SpeechDetector } from "./speech";
import { Transcript } from "./transcript";

export type State =
  | { name: "idle" }
  | { name: "asking" }
  | { name: "connecting" }
  | { name: "queued"; position: number }
  | { name: "live" }
  | { name: "reconnecting"; attempt: number }
  | { name: "over"; reason: string };

export interface Figures {
  /** Milliseconds from the end of a sound in the microphone to the first answer that heard it in the speaker. */
  roundTrip: number | undefined;
  network: number | undefined;
  step: number | undefined;
  dropped: number;
  format: string;
}

export interface Watcher {
  state(state: State): void;
  /** Loudness in columns of 20 ms; the last ended at `end`, on the clock of `now`. */
  heard(peaks: number[], end: number): void;
  spoken(peaks: number[], end: number): void;
  word(text: string, at: number): void;
  transcript(transcript: Transcript): void;
  figures(figures: Figures): void;
}

/** One conversation from the click on the button to its end. */
export class Conversation {
  readonly recording = new Recording();
  readonly transcript = new Transcript();
  muted = false;
  private devices: Devices | undefined;
  private codec: Codec | undefined;
  private format: Codec["format"] = "s16";
  private link: Link | undefined;
  private live = false;
  private ended = false;
  private readonly speech = new SpeechDetector();
  private readonly captureEnds = new Map<number, number>();
  private readonly capturedBefore = new Map<number, number>();
  private sent = 0;
  private base = 0;
  private next: { step: number; heard: number } | undefined;
  private latest = { step: 0, heard: 0 };
  private speaking = -1;
  private words: { step: number; text: string; time: number }[] = [];
  private roundTrips: number[] = [];
  private stepMs: number | undefined;
  private dropped = { in: 0, out: 0, skipped: 0, before: 0 };

  constructor(
    private readonly token: string | null,
    private readonly watcher: Watcher,
  ) {}

  /** The clock of everything that's drawn. */
  get now(): number {
    return this.devices?.context.currentTime ?? 0;
  }

  get seconds(): number {
    return this.recording.seconds;
  }

  async start(wish: MicrophoneWish): Promise<void> {
    this.watcher.state({ name: "asking" });
    try {
      const devices = await Devices.open(wish);
      if (this.ended) return void devices.close();
      this.devices = devices;
    } catch (error) {
      const trouble: MicrophoneTrouble = error instanceof MicrophoneError ? error.trouble : "failed";
      if (!(error instanceof MicrophoneError)) console.error(error);
      return this.over(`microphone-${trouble}`);
    }
    this.devices.onCaptured = (frame) => this.captured(frame);
    this.devices.onPlayed = (played) => this.played(played);
    this.devices.onMicrophoneLost = () => void this.changeMicrophone({ ...wish, deviceId: undefined });
    this.watcher.state({ name: "connecting" });
    this.format = await chooseFormat(location.hostname, new URLSearchParams(location.search).get("format"));
    if (this.ended) return;
    this.link = new Link(this.format, this.token, {
      event: (event) => this.event(event),
      sound: (bytes) => this.sound(bytes),
      trying: (attempt) => this.broke(attempt),
      over: (reason) => this.over(reason),
    });
  }

  async changeMicrophone(wish: MicrophoneWish): Promise<void> {
    try {
      await this.devices?.change(wish);
    } catch (error) {
      this.over(`microphone-${error instanceof MicrophoneError ? error.trouble : "failed"}`);
    }
  }

  /** End it. */
  stop(): void {
    this.over("stopped");
  }

  private over(reason: string): void {
    if (this.ended) return;
    this.ended = true;
    this.live = false;
    this.flushWords(Infinity, this.now);
    this.link?.close();
    this.codec?.close();
    void this.devices?.close();
    this.watcher.state({ name: "over", reason });
  }

  private event(event: ServerEvent): void {
    switch (event.type) {
      case "queued":
        return this.watcher.state({ name: "queued", position: event.position });
      case "ready":
        return this.ready();
      case "step":
        this.next = this.latest = { step: event.step, heard: event.heard };
        this.stepMs = event.step_ms;
        this.dropped = { ...this.dropped, in: event.dropped_in, out: event.dropped_out };
        return this.tell();
      case "text":
        // In the user's time, as everything here: the model's is behind it by what was dropped or lost.
        this.words.push({ ...this.latest, text: event.text, time: (this.base + this.latest.heard / FRAME) * FRAME_SECONDS });
        return;
    }
  }

  private ready(): void {
    // A new connection counts from its own first sample, and its Opus streams begin anew.
    this.codec?.close();
    this.codec = makeCodec(this.format, {
      encoded: (bytes) => this.link?.send(bytes),
      decoded: (pcm, rate, id) => this.decoded(pcm, rate, id),
      failed: (error) => {
        console.error(error);
        this.over("failed");
      },
    });
    this.base = this.recording.frames;
    this.sent = 0;
    this.dropped = { ...this.dropped, in: 0, out: 0, before: this.dropped.before + this.dropped.in + this.dropped.out };
    this.live = true;
    this.watcher.state({ name: "live" });
  }

  private broke(attempt: number): void {
    this.live = false;
    this.codec?.close();
    this.codec = undefined;
    this.captureEnds.clear();
    this.watcher.state({ name: "reconnecting", attempt });
  }

  private captured({ pcm, end }: Captured): void {
    if (this.muted) pcm.fill(0);
    this.watcher.heard(peaksOf(pcm), end);
    if (!this.live || !this.codec) return;
    const start = this.recording.seconds;
    if (this.speech.hear(pcm) && !this.muted) {
      this.transcript.hear(peaksOf(pcm), start, start + FRAME_SECONDS);
      this.watcher.transcript(this.transcript);
    }
    this.recording.hear(pcm);
    this.sent++;
    this.captureEnds.set(this.sent, end);
    this.captureEnds.delete(this.sent - 250);
    this.codec.encode(pcm);
  }

  private sound(bytes: ArrayBuffer): void {
    const step = this.next;
    if (step) this.capturedBefore.set(step.step, Math.round(step.heard / FRAME));
    this.codec?.decode(bytes, step?.step);
    this.next = undefined; // only the first piece of a step carries its number; the others follow it
  }

  private decoded(pcm: Float32Array<ArrayBuffer>, rate: number, id: number | undefined): void {
    if (id !== undefined) this.speaking = this.base + (this.capturedBefore.get(id) ?? 0) - 1;
    this.recording.speak(this.speaking, pcm, rate);
    this.devices?.play(id === undefined ? { pcm, rate } : { pcm, rate, id });
  }

  private played(played: Played): void {
    this.watcher.spoken(played.peaks, played.end);
    this.dropped.skipped = Math.round(played.skipped / FRAME_SECONDS);
    for (const { id, time } of played.begun) {
      this.flushWords(id, time);
      const captured = this.captureEnds.get(this.capturedBefore.get(id) ?? -1);
      for (const step of this.capturedBefore.keys()) if (step <= id) this.capturedBefore.delete(step);
      if (captured === undefined || !this.devices) continue;
      this.roundTrips.push((time - captured + this.devices.outputLatency) * 1000);
      if (this.roundTrips.length > 25) this.roundTrips.shift();
    }
    if (this.live) this.tell();
  }

  /** Words appear when their sound does. */
  private flushWords(step: number, at: number): void {
    const due = this.words.filter((word) => word.step <= step);
    if (due.length === 0) return;
    this.words = this.words.filter((word) => word.step > step);
    for (const word of due) {
      this.transcript.say(word.text, word.time);
      this.watcher.word(word.text, at);
    }
    this.watcher.transcript(this.transcript);
  }

  private tell(): void {
    const sorted = [...this.roundTrips].sort((a, b) => a - b);
    const { in: unheard, out, skipped, before } = this.dropped;
    this.watcher.figures({
      roundTrip: sorted[sorted.length >> 1],
      network: this.link?.roundTrip,
      step: this.stepMs,
      dropped: unheard + out + skipped + before,
      format: this.codec?.format ?? "",
    });
  }
}

function peaksOf(pcm: Float32Array): number[] {
  const peaks: number[] = [];
  for (let at = 0; at < pcm.length; at += COLUMN) {
    let peak = 0;
    for (const sample of pcm.subarray(at, at + COLUMN)) peak = Math.max(peak, Math.abs(sample));
    peaks.push(peak);
  }
  return peaks;
}
