import type { Figures, State } from "./conversation";
import { clock, type Entry, type MoshiEntry, type Transcript, type UserEntry } from "./transcript";

export function byId<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element as T;
}

/** Titles and explanations for ends that aren't the user's own wish. */
const NOTICES: Record<string, [title: string, text: string]> = {
  "microphone-refused": [
    "Moshi can’t hear you",
    "The microphone is blocked for this page. Allow it in the browser’s address bar or its site settings, then start again.",
  ],
  "microphone-missing": ["No microphone found", "Connect one, or choose another in the settings, then start again."],
  "microphone-busy": ["The microphone is in use", "Another program holds it. Close that program, then start again."],
  "microphone-insecure": [
    "This address can’t use a microphone",
    "Browsers give it to secure pages only. Open the page as http://localhost on the server’s machine, or by https.",
  ],
  "microphone-failed": ["The sound didn’t start", "The browser couldn’t open its audio. Start again, or reload the page."],
  busy: ["The line is full", "As many people talk and wait as this machine can serve. Try again in a few minutes."],
  idle: ["Are you still there?", "No sound came from your microphone for a while, so the place went to the next."],
  "time-over": ["Time’s up", "A conversation has a longest length here, and this one reached it. Start another."],
  replaced: ["Moved to another window", "This conversation goes on elsewhere."],
  lost: ["The connection is lost", "The server didn’t come back within 30 seconds. Start again when it runs."],
  token: ["This address lacks its key", "Open the whole address that the server printed when it started, including “#token=”."],
  unreachable: ["No server here", "Nothing answers at this address. Start it, then reload the page."],
  failed: ["Something went wrong", "The conversation ended by an error. The browser’s console and the server’s log say more."],
};

export class View {
  private readonly entries = new Map<Entry, HTMLLIElement>();
  private readonly list = byId("transcript");
  private readonly items = this.list.querySelector("ol")!;
  private liveText = "Live";

  state(state: State): void {
    document.body.dataset["state"] = state.name;
    document.body.dataset["reason"] = state.name === "over" ? state.reason : "";
    const live = state.name === "live" || state.name === "reconnecting";
    byId<HTMLButtonElement>("mute").disabled = !live;
    byId("talk-text").textContent = { idle: "Start talking", over: "Start again" }[state.name as string] ?? (live ? "End" : "Cancel");
    byId("welcome").hidden = state.name !== "idle" && !(state.name === "over" && !NOTICES[state.reason] && this.entries.size === 0);
    const waiting = this.waitingText(state);
    if (waiting) this.notice(...waiting);
    else if (state.name === "over" && NOTICES[state.reason]) this.notice(...NOTICES[state.reason]!);
    else byId("notice").hidden = true;
    // A conversation that has words stays in sight while the connection comes back.
    this.list.hidden = !byId("notice").hidden || !byId("welcome").hidden || this.entries.size === 0;
    this.status(this.statusText(state));
    this.liveText = state.name === "live" ? "Live" : "";
  }

  tick(seconds: number, muted: boolean): void {
    if (!this.liveText) return;
    const text = `${muted ? "Muted" : "Live"} ${clock(seconds)}`;
    // Not through the live region each second: a screen reader would read every one.
    const status = byId("status-text");
    byId("status").setAttribute("aria-live", "off");
    if (status.textContent !== text) status.textContent = text;
  }

  notice(title: string, text: string): void {
    byId("notice-title").textContent = title;
    byId("notice-text").textContent = text;
    byId("notice").hidden = false;
    byId("welcome").hidden = true;
    this.list.hidden = true;
  }

  trouble(reason: string): void {
    const notice = NOTICES[reason];
    if (notice) this.notice(...notice);
  }

  muted(muted: boolean): void {
    document.body.classList.toggle("muted", muted);
    byId("mute").setAttribute("aria-pressed", String(muted));
    byId("mute").querySelector("span")!.textContent = muted ? "Muted" : "Mute";
    byId("mute").title = muted ? "Let Moshi hear you (M)" : "Mute the microphone (M)";
  }

  figures({ roundTrip, network, step, dropped, format }: Figures): void {
    document.body.classList.toggle("measured", step !== undefined);
    const ms = (value: number | undefined) => (value === undefined ? "–" : `${Math.round(value)} ms`);
    byId("round-trip").textContent = ms(roundTrip);
    byId("step").textContent = ms(step);
    byId("network").textContent = network === undefined ? "–" : `${network < 10 ? network.toFixed(1) : Math.round(network)} ms`;
    byId("network").title = format === "opus" ? "Sound goes as Opus" : "Sound goes uncompressed";
    byId("dropped").textContent = String(dropped);
  }

  transcript(transcript: Transcript): void {
    const atEnd = this.list.scrollTop + this.list.clientHeight > this.list.scrollHeight - 120;
    for (const entry of transcript.entries.slice(-6)) {
      if (entry.who === "moshi") this.moshi(entry);
      else if (entry.end - entry.start > 0.3) this.user(entry);
    }
    if (this.entries.size > 0 && byId("notice").hidden) {
      byId("welcome").hidden = true;
      this.list.hidden = false;
    }
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
  }

  clear(): void {
    this.entries.clear();
    document.body.classList.remove("measured");
    this.items.replaceChildren();
  }

  private status(text: string): void {
    byId("status").removeAttribute("aria-live");
    byId("status-text").textContent = text;
  }

  private statusText(state: State): string {
    switch (state.name) {
      case "idle":
        return "Ready";
      case "asking":
        return "Microphone?";
      case "connecting":
        return "Connecting";
      case "queued":
        return `${ordinal(state.position)} in line`;
      case "live":
        return "Live";
      case "reconnecting":
        return "Reconnecting";
      case "over":
        return NOTICES[state.reason] ? "Stopped" : "Ended";
    }
  }

  private waitingText(state: State): [string, string] | undefined {
    if (state.name === "asking") return ["May Moshi listen?", "Allow the microphone in your browser’s question."];
    if (state.name === "queued") {
      const who = state.position === 1 ? "You’re next" : `You’re ${ordinal(state.position)} in line`;
      return [who, "Somebody is talking already. Your turn comes by itself; keep this page open."];
    }
    if (state.name === "reconnecting" && state.attempt > 2) {
      return ["The connection broke", "Trying to get back to your conversation."];
    }
    return undefined;
  }

  private moshi(entry: MoshiEntry): void {
    const item = this.item(entry);
    const paragraph = item.querySelector("p")!;
    const shown = paragraph.textContent ?? "";
    if (shown === entry.text) return;
    const word = document.createElement("span");
    word.textContent = entry.text.slice(shown.length);
    paragraph.append(word);
  }

  private user(entry: UserEntry): void {
    const item = this.item(entry);
    const paragraph = item.querySelector("p")!;
    const seconds = (entry.end - entry.start).toFixed(1);
    // One bar for 80 ms, at most 90 of them.
    const group = Math.max(4, Math.ceil(entry.peaks.length / 90));
    let path = "";
    let count = 0;
    for (let at = 0; at < entry.peaks.length; at += group, count++) {
      const half = Math.max(0.6, 12 * Math.max(...entry.peaks.slice(at, at + group)) ** 0.55);
      path += `M${2 + count * 4} ${(13 - half).toFixed(1)}v${(2 * half).toFixed(1)}`;
    }
    paragraph.innerHTML = `<svg viewBox="0 0 ${count * 4} 26" width="${count * 4}" preserveAspectRatio="xMinYMid slice" aria-hidden="true"><path d="${path}"/></svg><span><span class="long">You spoke for </span>${seconds} s</span>`;
  }

  private item(entry: Entry): HTMLLIElement {
    let item = this.entries.get(entry);
    if (!item) {
      item = document.createElement("li");
      item.className = entry.who;
      const time = document.createElement("time");
      time.textContent = clock(entry.start);
      item.append(time, document.createElement("p"));
      const later = [...this.entries].find(([other]) => other.start > entry.start)?.[1];
      if (later) later.before(item);
      else this.items.append(item);
      this.entries.set(entry, item);
    }
    return item;
  }
}

function ordinal(position: number): string {
  const ending = ["th", "st", "nd", "rd"][position % 100 > 10 && position % 100 < 14 ? 0 : position % 10] ?? "th";
  return `${position}${ending}`;
}
