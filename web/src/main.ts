import { microphones, type MicrophoneWish } from "./audio/devices";
import { Conversation, type State } from "./conversation";
import { Ribbon } from "./ribbon";
import { byId, View } from "./view";

const token = new URLSearchParams(location.hash.slice(1)).get("token");
const view = new View();
const ribbon = new Ribbon(document.querySelector<HTMLCanvasElement>("#ribbon canvas")!);
const microphone = byId<HTMLSelectElement>("microphone");
const echo = byId<HTMLInputElement>("echo");
const save = byId<HTMLDetailsElement>("save");

let conversation: Conversation | undefined;
let running = false;
let wakeLock: WakeLockSentinel | undefined;

function wish(): MicrophoneWish {
  return { deviceId: microphone.value || undefined, echoCancellation: echo.checked };
}

function changed(state: State): void {
  running = state.name !== "over";
  view.state(state);
  if (state.name === "live") void listMicrophones();
  if (state.name === "over") {
    if (conversation?.seconds) ribbon.freeze();
    else ribbon.follow(undefined);
    mute(false);
    void wakeLock?.release().catch(() => {});
  }
  const summary = save.querySelector("summary")!;
  summary.setAttribute("aria-disabled", String(!(conversation && conversation.seconds > 0) && state.name !== "live"));
}

function start(): void {
  view.clear();
  const mine = new Conversation(token, {
    state: (state) => mine === conversation && changed(state),
    heard: (peaks, end) => ribbon.heard(peaks, end),
    spoken: (peaks, end) => ribbon.spoken(peaks, end),
    word: (text, at) => ribbon.word(text, at),
    transcript: (transcript) => view.transcript(transcript),
    figures: (figures) => view.figures(figures),
  });
  conversation = mine;
  ribbon.follow(() => mine.now);
  void mine.start(wish());
  void navigator.wakeLock?.request("screen").then(
    (lock) => (wakeLock = lock),
    () => {},
  );
}

function mute(muted: boolean): void {
  if (conversation) conversation.muted = muted;
  ribbon.muted = muted;
  view.muted(muted);
}

async function listMicrophones(): Promise<void> {
  const chosen = microphone.value;
  const options = (await microphones()).map((device) => new Option(device.label || "Microphone", device.deviceId));
  microphone.replaceChildren(new Option("The system's choice", ""), ...options);
  microphone.value = options.some((option) => option.value === chosen) ? chosen : "";
}

function download(file: Blob, kind: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  const now = new Date();
  const two = (value: number) => String(value).padStart(2, "0");
  const date = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
  link.download = `moshi-${date}-${two(now.getHours())}${two(now.getMinutes())}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  shut(save);
}

/** Close a menu; the keyboard goes on from its button. */
function shut(menu: HTMLDetailsElement): void {
  const inside = menu.contains(document.activeElement);
  menu.open = false;
  if (inside) menu.querySelector("summary")!.focus();
}

byId("talk").onclick = () => (running ? conversation?.stop() : start());
byId("mute").onclick = () => mute(!conversation?.muted);
byId("save-sound").onclick = () => conversation && download(conversation.recording.toWav(), "wav");
byId("save-text").onclick = () => {
  if (!conversation) return;
  const text = conversation.transcript.toText(`A conversation with Moshi, ${new Date().toLocaleString()}`);
  download(new Blob([text], { type: "text/plain;charset=utf-8" }), "txt");
};
save.querySelector("summary")!.onclick = (event) => {
  if ((event.currentTarget as HTMLElement).getAttribute("aria-disabled") === "true") event.preventDefault();
};
microphone.onchange = echo.onchange = () => running && void conversation?.changeMicrophone(wish());
navigator.mediaDevices?.addEventListener("devicechange", () => void listMicrophones());

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const menu of document.querySelectorAll<HTMLDetailsElement>("details[open]")) shut(menu);
  const typing = event.target instanceof HTMLSelectElement || event.target instanceof HTMLInputElement;
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.toLowerCase() === "s") byId("talk").click();
  if (event.key.toLowerCase() === "m" && !byId<HTMLButtonElement>("mute").disabled) byId("mute").click();
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details[open]")) {
    if (!menu.contains(event.target as Node)) menu.removeAttribute("open");
  }
});
window.setInterval(() => conversation && view.tick(conversation.seconds, conversation.muted), 250);
window.addEventListener("pagehide", () => conversation?.stop());

async function greet(): Promise<void> {
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  try {
    const answer = await fetch(`api/info${token ? `?token=${encodeURIComponent(token)}` : ""}`);
    if (answer.status === 401) return view.trouble("token");
    const { model } = (await answer.json()) as { model: string };
    const name = model.split("/").at(-1);
    byId("where").textContent = local
      ? `${name} runs on this machine. Nothing you say leaves it.`
      : `${name} runs on ${location.hostname}. What you say goes there and nowhere else.`;
  } catch {
    view.trouble("unreachable");
  }
}

void greet();
