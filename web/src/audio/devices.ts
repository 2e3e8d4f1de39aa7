import captureUrl from "./capture.worklet?worker&url";
import playbackUrl from "./playback.worklet?worker&url";
import type { Captured, Piece, Played } from "./messages";

export type MicrophoneTrouble = "refused" | "missing" | "busy" | "insecure" | "failed";

export class MicrophoneError extends Error {
  constructor(readonly trouble: MicrophoneTrouble) {
    super(trouble);
  }
}

export interface MicrophoneWish {
  deviceId: string | undefined;
  echoCancellation: boolean;
}

/** Microphone and speaker: one audio context, so that both have one clock. */
export class Devices {
  onCaptured: (frame: Captured) => void = () => {};
  onPlayed: (played: Played) => void = () => {};
  onMicrophoneLost: () => void = () => {};
  private source: MediaStreamAudioSourceNode | undefined;
  private closed = false;

  private constructor(
    readonly context: AudioContext,
    private readonly capture: AudioWorkletNode,
    private readonly playback: AudioWorkletNode,
  ) {
    capture.port.onmessage = (event: MessageEvent<Captured>) => this.onCaptured(event.data);
    playback.port.onmessage = (event: MessageEvent<Played>) => this.onPlayed(event.data);
    playback.connect(context.destination);
    // A node that leads nowhere isn't run by every browser; what it gives out is silence.
    capture.connect(context.destination);
  }

  /** Open both; call it while a click is being handled, or the browser won't let the page make sound. */
  static async open(wish: MicrophoneWish): Promise<Devices> {
    if (!window.isSecureContext || !navigator.mediaDevices) throw new MicrophoneError("insecure");
    const context = new AudioContext({ latencyHint: "interactive" });
    let stream: MediaStream | undefined;
    try {
      stream = await askForMicrophone(wish);
      await Promise.all([context.audioWorklet.addModule(captureUrl), context.audioWorklet.addModule(playbackUrl)]);
      const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 1 });
      const playback = new AudioWorkletNode(context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
      const devices = new Devices(context, capture, playback);
      devices.listen(stream);
      await context.resume();
      return devices;
    } catch (error) {
      if (stream) stop(stream);
      await context.close();
      throw error;
    }
  }

  /** Listen to another microphone from now on. */
  async change(wish: MicrophoneWish): Promise<void> {
    const stream = await askForMicrophone(wish);
    // The conversation may have ended before the user allowed it.
    if (this.closed) return stop(stream);
    this.listen(stream);
  }

  play(piece: Piece): void {
    this.playback.port.postMessage(piece, [piece.pcm.buffer]);
  }

  /** Forget what waits to be played. */
  hush(): void {
    this.playback.port.postMessage("clear");
  }

  /** Seconds between the end of a worklet's work and the speaker. */
  get outputLatency(): number {
    return this.context.outputLatency || this.context.baseLatency || 0;
  }

  async close(): Promise<void> {
    this.closed = true;
    this.release();
    this.onCaptured = this.onPlayed = () => {};
    await this.context.close();
  }

  private listen(stream: MediaStream): void {
    this.release();
    try {
      this.source = this.context.createMediaStreamSource(stream);
    } catch (error) {
      stop(stream);
      throw error;
    }
    this.source.connect(this.capture);
    for (const track of stream.getAudioTracks()) track.onended = () => this.onMicrophoneLost();
  }

  private release(): void {
    if (this.source) stop(this.source.mediaStream);
    this.source?.disconnect();
    this.source = undefined;
  }
}

/** The microphones there are; named only once the user has allowed one. */
export async function microphones(): Promise<MediaDeviceInfo[]> {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId !== "");
}

function stop(stream: MediaStream): void {
  for (const track of stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
}

async function askForMicrophone({ deviceId, echoCancellation }: MicrophoneWish): Promise<MediaStream> {
  const wish = { echoCancellation, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
  const ask = (audio: MediaTrackConstraints) => navigator.mediaDevices.getUserMedia({ audio });
  try {
    return await ask(deviceId ? { ...wish, deviceId: { exact: deviceId } } : wish);
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    if (name === "OverconstrainedError" && deviceId) return askForMicrophone({ deviceId: undefined, echoCancellation });
    if (name === "NotAllowedError" || name === "SecurityError") throw new MicrophoneError("refused");
    if (name === "NotFoundError" || name === "OverconstrainedError") throw new MicrophoneError("missing");
    if (name === "NotReadableError" || name === "AbortError") throw new MicrophoneError("busy");
    throw new MicrophoneError("failed");
  }
}
