// A conversation in headless Chromium; prints what it saw as JSON, one object a line.
// node conversation.mjs URL QUESTION.wav FOLDER        A line "cut" asks the caller to break every connection.
import { chromium } from "playwright-core";
import { join } from "node:path";

const [url, question, folder] = process.argv.slice(2);
const tell = (what, facts = {}) => console.log(JSON.stringify({ what, ...facts }));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", `--use-file-for-fake-audio-capture=${question}`,
  ],
});

async function open(settings = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 760 }, permissions: ["microphone"], ...settings });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => tell("error", { message: error.message }));
  await page.goto(url + (settings.query ?? ""));
  return page;
}

const state = (page, name) => page.waitForFunction((name) => document.body.dataset.state === name, name);
const words = (page, count) =>
  page.waitForFunction((count) => [...document.querySelectorAll("#transcript .moshi p")].map((p) => p.textContent).join("").length >= count, count);
const picture = (page, name) => page.screenshot({ path: join(folder, `${name}.png`) });
const text = (page, selector) => page.locator(selector).textContent();

async function saved(page, button, name) {
  await page.click("#save summary");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  await download.saveAs(join(folder, name));
}

// The conversation, with a lost connection in the middle
const page = await open();
await picture(page, "idle");
await page.click("#talk");
await state(page, "live");
await words(page, 20);
await page.waitForFunction(() => /\d ms/.test(document.querySelector("#round-trip").textContent));
await picture(page, "live");
tell("live", { roundTrip: await text(page, "#round-trip"), step: await text(page, "#step"), where: await text(page, "#where") });

const waiting = await open({ colorScheme: "dark" });
await waiting.click("#talk");
await state(waiting, "queued");
await picture(waiting, "queued");
tell("queued", { title: await text(waiting, "#notice-title") });
await waiting.click("#talk");
await state(waiting, "over");
await waiting.context().close();

const before = (await text(page, "#transcript")).length;
tell("cut");
await state(page, "reconnecting");
await picture(page, "reconnecting");
await state(page, "live");
await page.waitForFunction((before) => document.querySelector("#transcript").textContent.length > before + 10, before);
tell("back");

await page.keyboard.press("m");
tell("muted", { pressed: await page.getAttribute("#mute", "aria-pressed") });
await page.waitForTimeout(1500);
await picture(page, "muted");
await saved(page, "#save-sound", "conversation.wav");
await saved(page, "#save-text", "conversation.txt");
await page.keyboard.press("s");
await state(page, "over");
await picture(page, "over");
await page.context().close();

// Opus, on a phone, in the dark
const phone = await open({ viewport: { width: 390, height: 780 }, colorScheme: "dark", query: "?format=opus" });
await phone.click("#talk");
await state(phone, "live");
await words(phone, 20);
await picture(phone, "phone");
await saved(phone, "#save-sound", "opus.wav");
tell("opus", { how: await phone.getAttribute("#network", "title") });
await phone.click("#talk");
await state(phone, "over");
await phone.context().close();

// A refused microphone
const refused = await open();
await refused.evaluate(() => {
  navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", "NotAllowedError"));
});
await refused.click("#talk");
await state(refused, "over");
await picture(refused, "refused");
tell("refused", { title: await text(refused, "#notice-title") });
await browser.close();
tell("done");
