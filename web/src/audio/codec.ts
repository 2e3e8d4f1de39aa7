import { RATE } from "./messages";

/** How sound goes over the wire: PCM, or Opus through the browser's WebCodecs. */
export interface Codec {
  readonly format: "s16" | "opus";
  encode(pcm: Float32Array<ArrayBuffer>): void;
  /** Decode a message of the server's; `id` names the step that begins with it. */
  decode(bytes: ArrayBuffer, id: number | undefined): void;
  close(): void;
}

export interface CodecEvents {
  encoded(bytes: ArrayBuffer): void;
  decoded(pcm: Float32Array<ArrayBuffer>, rate: number, id: number | undefined): void;
  failed(error: unknown): void;
}

const ENCODER: AudioEncoderConfig = { codec: "opus", sampleRate: RATE, numberOfChannels: 1, bitrate: 40_000 };
const DECODER: AudioDecoderConfig = { codec: "opus", sampleRate: RATE, numberOfChannels: 1 };

/** Within this machine, PCM: it adds no delay. Over a network, Opus where the browser has it. */
export async function chooseFormat(host: string, wish: string | null): Promise<Codec["format"]> {
  if (wish === "s16" || wish === "opus") return wish;
  if (["localhost", "127.0.0.1", "[::1]"].includes(host)) return "s16";
  return (await hasOpus()) ? "opus" : "s16";
}

export function makeCodec(format: Codec["format"], events: CodecEvents): Codec {
  return format === "opus" ? new OpusCodec(events) : new PcmCodec(events);
}

async function hasOpus(): Promise<boolean> {
  if (typeof AudioEncoder === "undefined" || typeof AudioDecoder === "undefined") return false;
  try {
    const [encoder, decoder] = await Promise.all([
      AudioEncoder.isConfigSupported(ENCODER),
      AudioDecoder.isConfigSupported(DECODER),
    ]);
    return encoder.supported === true && decoder.supported === true;
  } catch {
    return false;
  }
}

class PcmCodec implements Codec {
  readonly format = "s16";

  constructor(private readonly events: CodecEvents) {}

  encode(pcm: Float32Array): void {
    this.events.encoded(toInt16(pcm).buffer);
  }

  decode(bytes: ArrayBuffer, id: number | undefined): void {
    const samples = new Int16Array(bytes, 0, bytes.byteLength >> 1);
    this.events.decoded(Float32Array.from(samples, (sample) => sample / 32768), RATE, id);
  }

  close(): void {}
}

class OpusCodec implements Codec {
  readonly format = "opus";
  private readonly encoder: AudioEncoder;
  private readonly decoder: AudioDecoder;
  private readonly ids = new Map<number, number>();
  private sent = 0;
  private got = 0;

  constructor(events: CodecEvents) {
    this.encoder = new AudioEncoder({
      output: (chunk) => {
        const bytes = new ArrayBuffer(chunk.byteLength);
        chunk.copyTo(bytes);
        events.encoded(bytes);
      },
      error: (error) => events.failed(error),
    });
    this.encoder.configure(ENCODER);
    this.decoder = new AudioDecoder({
      output: (data) => {
        const pcm = new Float32Array(data.numberOfFrames);
        data.copyTo(pcm, { planeIndex: 0, format: "f32-planar" });
        const id = this.ids.get(data.timestamp);
        this.ids.delete(data.timestamp);
        events.decoded(pcm, data.sampleRate, id);
        data.close();
      },
      error: (error) => events.failed(error),
    });
    this.decoder.configure(DECODER);
  }

  encode(pcm: Float32Array<ArrayBuffer>): void {
    const timestamp = Math.round((this.sent / RATE) * 1e6);
    this.sent += pcm.length;
    const shape = { format: "f32-planar", sampleRate: RATE, numberOfFrames: pcm.length, numberOfChannels: 1 } as const;
    const data = new AudioData({ ...shape, timestamp, data: pcm });
    this.encoder.encode(data);
    data.close();
  }

  decode(bytes: ArrayBuffer, id: number | undefined): void {
    const timestamp = this.got++ * 40_000; // the server's packets last 40 ms
    if (id !== undefined) this.ids.set(timestamp, id);
    this.decoder.decode(new EncodedAudioChunk({ type: "key", timestamp, data: bytes }));
  }

  close(): void {
    if (this.encoder.state !== "closed") this.encoder.close();
    if (this.decoder.state !== "closed") this.decoder.close();
  }
}

/** Samples as 16 bits; what's beyond full scale is clipped. */
export function toInt16(pcm: Float32Array): Int16Array<ArrayBuffer> {
  const samples = new Int16Array(pcm.length);
  for (let i = 0; i < pcm.length; i++) samples[i] = Math.round(Math.max(-1, Math.min(1, pcm[i]!)) * 32767);
  return samples;
}
