interface Column {
  end: number;
  peak: number;
}

interface Word {
  text: string;
  said: number;
  /** Where it stands on the line of time: at `said`, or after the word before it. */
  time: number;
  width: number;
}

const KEPT = 20; // seconds
const BAR = 0.04; // seconds a bar stands for
const DELAY = 0.12; // seconds by which the drawing is late, so that what it shows has arrived

/** Both voices on one line of time: Moshi above it with its words, the user below. */
export class Ribbon {
  muted = false;
  private readonly context: CanvasRenderingContext2D;
  private readonly calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  private moshi: Column[] = [];
  private user: Column[] = [];
  private words: Word[] = [];
  private leftOut = false;
  private clock: (() => number) | undefined;
  private colours = { moshi: "", you: "", ink: "", line: "", serif: "" };

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d")!;
    const restyle = () => {
      const style = getComputedStyle(document.documentElement);
      const read = (name: string) => style.getPropertyValue(`--${name}`).trim();
      this.colours = { moshi: read("moshi"), you: read("you"), ink: read("ink"), line: read("line"), serif: read("serif") };
      this.draw();
    };
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
    new ResizeObserver(() => {
      this.arrange();
      this.draw();
    }).observe(canvas);
    restyle();
    let drawn = 0;
    const loop = (now: number) => {
      // 40 pictures a second are smooth enough, and leave a machine without a GPU its time for the sound.
      if (now - drawn > 23 && (this.clock || !this.calm.matches)) {
        drawn = now;
        this.draw();
      }
      requestAnimationFrame(loop);
    };
    requestAnimationFrame(loop);
  }

  /** Follow a conversation's clock, or show the picture of the beginning. */
  follow(clock: (() => number) | undefined): void {
    this.clock = clock;
    this.moshi = [];
    this.user = [];
    this.words = [];
    this.draw();
  }

  /** Stand still, showing the end of what was. */
  freeze(): void {
    const at = this.clock?.() ?? 0;
    if (this.clock) this.clock = () => at;
  }

  heard(peaks: number[], end: number): void {
    add(this.user, peaks, end);
  }

  spoken(peaks: number[], end: number): void {
    add(this.moshi, peaks, end);
  }

  word(text: string, time: number): void {
    const last = this.words.at(-1);
    if (!text.startsWith(" ") && this.leftOut) return;
    if (last && (!text.startsWith(" ") || text.trim() === "")) {
      last.text += text.trim();
      last.width = this.measure(last.text);
      return;
    }
    const after = this.after(last);
    // Where words come faster than they have room, they go on to the right; those too far from their sound are left out.
    this.leftOut = after > time + 0.6;
    if (this.leftOut) return;
    this.words.push({ text: text.trim(), said: time, time: Math.max(time, after), width: this.measure(text.trim()) });
    if (this.words.length > 80) this.words.shift();
  }

  private after(word: Word | undefined): number {
    return word ? word.time + (word.width + 8) / this.scale : 0;
  }

  /** Give the words their places anew, for another scale or size of letters. */
  private arrange(): void {
    this.words.forEach((word, index) => {
      word.width = this.measure(word.text);
      word.time = Math.max(word.said, this.after(this.words[index - 1]));
    });
  }

  private get scale(): number {
    return Math.max(95, Math.min(150, this.canvas.clientWidth / 7));
  }

  private get font(): string {
    return `${this.canvas.clientWidth < 560 ? 15 : 17}px ${this.colours.serif}`;
  }

  private measure(text: string): number {
    this.context.font = this.font;
    return this.context.measureText(text).width;
  }

  private draw(): void {
    const { canvas, context, colours } = this;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    const density = Math.min(3, window.devicePixelRatio || 1);
    if (canvas.width !== Math.round(width * density) || canvas.height !== Math.round(height * density)) {
      canvas.width = Math.round(width * density);
      canvas.height = Math.round(height * density);
    }
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    const middle = Math.round(height * 0.56);
    context.fillStyle = colours.line;
    context.fillRect(0, middle, width, 1);
    const edge = width - Math.max(58, Math.min(110, width * 0.14));
    if (!this.clock) return this.drawPicture(edge, height, middle);

    const now = this.clock() - DELAY;
    const at = (time: number) => edge - (now - time) * this.scale;
    this.drawBars(this.moshi, colours.moshi, now, at, middle - 3, -(middle - 40));
    context.globalAlpha = this.muted ? 0.3 : 1;
    this.drawBars(this.user, colours.you, now, at, middle + 4, height - middle - 22);
    context.globalAlpha = 0.35;
    context.fillStyle = colours.ink;
    context.fillRect(edge + 2, 8, 1, height - 16);
    context.globalAlpha = 1;
    context.font = this.font;
    for (const word of this.words) {
      const x = at(word.time);
      if (x + word.width > 0) context.fillText(word.text, x, 26);
    }
  }

  private drawBars(columns: Column[], colour: string, now: number, at: (time: number) => number, base: number, room: number): void {
    const { context } = this;
    const thick = Math.max(2, this.scale * BAR * 0.56);
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.lineCap = "round";
    context.beginPath();
    let bar = -1;
    let peak = 0;
    const flush = () => {
      if (bar < 0) return;
      const x = at((bar + 0.5) * BAR);
      context.moveTo(x, base);
      context.lineTo(x, base + room * heightOf(peak) + Math.sign(room) * 0.01);
    };
    for (const column of columns) {
      if (column.end > now) break;
      const index = Math.floor((column.end - 0.01) / BAR);
      if (index !== bar) {
        flush();
        bar = index;
        peak = 0;
      }
      peak = Math.max(peak, column.peak);
    }
    flush();
    context.stroke();
  }

  /** Before there's anything to show: two voices that overlap, drifting slowly. */
  private drawPicture(width: number, height: number, middle: number): void {
    const { context, colours } = this;
    const shift = this.calm.matches ? 0 : performance.now() / 1000;
    const pitch = this.scale * BAR;
    const first = Math.floor((shift * 22) / pitch);
    context.lineWidth = Math.max(2, pitch * 0.56);
    context.lineCap = "round";
    context.globalAlpha = 0.32;
    for (const [colour, base, room, seed] of [
      [colours.moshi, middle - 3, -(middle - 40), 0],
      [colours.you, middle + 4, height - middle - 22, 61],
    ] as const) {
      context.strokeStyle = colour;
      context.beginPath();
      for (let i = first; i * pitch - shift * 22 < width; i++) {
        const x = i * pitch - shift * 22;
        context.moveTo(x, base);
        context.lineTo(x, base + room * murmur(i, seed) + Math.sign(room) * 0.01);
      }
      context.stroke();
    }
    context.globalAlpha = 1;
  }
}

function add(columns: Column[], peaks: number[], end: number): void {
  peaks.forEach((peak, index) => columns.push({ end: end - (peaks.length - 1 - index) * 0.02, peak }));
  while (columns.length > 0 && columns[0]!.end < end - KEPT) columns.shift();
}

/** Part of the room that a peak takes: quiet speech shall be seen, too. */
function heightOf(peak: number): number {
  return peak < 0.002 ? 0 : Math.min(1, peak ** 0.55);
}

/** A bar of made-up speech: syllables within phrases, pauses between them. */
function murmur(i: number, seed: number): number {
  const phrase = Math.max(0, Math.sin(i / 23 + seed) + 0.35 * Math.sin(i / 9.1 + 2 * seed));
  const syllable = 0.55 + 0.45 * Math.sin(i / 1.9 + seed * 1.7) * Math.sin(i / 4.3 + seed);
  return Math.min(1, phrase * syllable * 0.75);
}
