export interface MoshiEntry {
  who: "moshi";
  start: number;
  end: number;
  text: string;
}

export interface UserEntry {
  who: "user";
  start: number;
  end: number;
  peaks: number[];
}

export type Entry = MoshiEntry | UserEntry;

/** A pause this long, in seconds, begins a new paragraph. */
const PAUSE = 1.5;

/** Who spoke when, and what Moshi said. Times are seconds of the conversation. */
export class Transcript {
  readonly entries: Entry[] = [];

  /** A piece of Moshi's text; returns the paragraph that it went to. */
  say(piece: string, time: number): MoshiEntry {
    const last = this.entries.findLast((entry) => entry.who === "moshi");
    const interrupted = last && this.entries.some((entry) => entry.who === "user" && entry.start > last.end && entry.end - entry.start > 0.6);
    if (last && time - last.end < PAUSE && !(interrupted && piece.startsWith(" "))) {
      last.text += piece;
      last.end = time;
      return last;
    }
    const entry: MoshiEntry = { who: "moshi", start: time, end: time, text: piece.trimStart() };
    this.entries.push(entry);
    return entry;
  }

  /** 80 ms in which the user spoke. */
  hear(peaks: number[], start: number, end: number): UserEntry {
    const last = this.entries.findLast((entry) => entry.who === "user");
    if (last && start - last.end < 0.3) {
      last.end = end;
      last.peaks.push(...peaks);
      return last;
    }
    const entry: UserEntry = { who: "user", start, end, peaks: [...peaks] };
    this.entries.push(entry);
    return entry;
  }

  toText(title: string): string {
    const lines = this.entries
      .toSorted((a, b) => a.start - b.start)
      .map((entry) =>
        entry.who === "moshi"
          ? `[${clock(entry.start)}] Moshi: ${entry.text.trim()}`
          : `[${clock(entry.start)}] (you spoke, ${(entry.end - entry.start).toFixed(1)} s)`,
      );
    return [title, "", ...lines, ""].join("\n");
  }
}

export function clock(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
