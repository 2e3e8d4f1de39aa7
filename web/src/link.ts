/** What the server tells; see "/api/stream" in the README. */
export type ServerEvent =
  | { type: "queued"; position: number }
  | { type: "ready"; session: string; resumed: boolean; time: number; model: string }
  | { type: "step"; step: number; time: number; heard: number; step_ms: number; wait_ms: number; dropped_in: number; dropped_out: number }
  | { type: "text"; text: string; time: number }
  | { type: "state"; state: "speaking" | "listening"; time: number }
  | { type: "pong"; id: number }
  | { type: "error"; code: string; message: string };

export interface LinkEvents {
  event(event: ServerEvent): void;
  sound(bytes: ArrayBuffer): void;
  /** The connection broke; it's tried again, for the `attempt`th time. */
  trying(attempt: number): void;
  /** It's over for good. */
  over(reason: string): void;
}

/** Errors after which trying again is of no use. */
const FINAL = new Set(["bad-stream", "busy", "idle", "time-over", "replaced"]);
const PATIENCE = 30_000;

/** The WebSocket: comes back by itself to the same conversation for 30 s after it broke. */
export class Link {
  roundTrip: number | undefined;
  private socket: WebSocket | undefined;
  private session: string | undefined;
  private attempt = 0;
  private broken: number | undefined;
  private timer: number | undefined;
  private pinging: number | undefined;
  private last: { code: string; message: string } | undefined;
  private closed = false;

  constructor(
    private readonly format: string,
    private readonly token: string | null,
    private readonly events: LinkEvents,
  ) {
    this.connect();
  }

  send(bytes: ArrayBuffer): void {
    // Where more than a second of sound waits to be sent, the rest would arrive too late to be heard.
    if (this.socket?.readyState === WebSocket.OPEN && this.socket.bufferedAmount < 96_000) this.socket.send(bytes);
  }

  /** Leave for good. */
  close(): void {
    this.closed = true;
    window.clearTimeout(this.timer);
    window.clearInterval(this.pinging);
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: "end" }));
    this.socket?.close(1000);
  }

  private connect(): void {
    const address = new URL("api/stream", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    address.search = new URLSearchParams({ format: this.format }).toString();
    if (this.session) address.searchParams.set("session", this.session);
    if (this.token) address.searchParams.set("token", this.token);
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.last = undefined;
    socket.onmessage = (message: MessageEvent<ArrayBuffer | string>) => {
      if (typeof message.data === "string") this.heard(JSON.parse(message.data) as ServerEvent);
      else this.events.sound(message.data);
    };
    socket.onclose = () => {
      if (socket === this.socket) this.lost();
    };
  }

  private heard(event: ServerEvent): void {
    if (event.type === "ready" || event.type === "queued") {
      this.attempt = 0;
      this.broken = undefined;
    }
    if (event.type === "ready") {
      this.session = event.session;
      this.startPings();
    } else if (event.type === "pong") {
      this.roundTrip = performance.now() - event.id;
    } else if (event.type === "error") {
      this.last = event;
    }
    this.events.event(event);
  }

  private lost(): void {
    window.clearInterval(this.pinging);
    if (this.closed) return;
    this.broken ??= performance.now();
    if (this.last && FINAL.has(this.last.code)) return this.events.over(this.last.code);
    if (performance.now() - this.broken > PATIENCE) return this.events.over("lost");
    this.attempt++;
    this.events.trying(this.attempt);
    this.timer = window.setTimeout(() => this.connect(), Math.min(4000, 250 * 2 ** (this.attempt - 1)));
  }

  private startPings(): void {
    window.clearInterval(this.pinging);
    const ping = () => this.socket?.send(JSON.stringify({ type: "ping", id: performance.now() }));
    ping();
    this.pinging = window.setInterval(ping, 2000);
  }
}
