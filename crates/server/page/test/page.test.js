// The page in a real browser, with the model of letters: a run, a cancelled one, settings used again, errors, and how it looks.
//
//     AQUATINT=target/debug/aquatint npm test        (CHROMIUM: the browser [/usr/bin/chromium]; SCREENSHOTS: a folder for pictures)

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import puppeteer from "puppeteer-core";

const program = process.env.AQUATINT ?? "../../../target/debug/aquatint";
const chromium = process.env.CHROMIUM ?? "/usr/bin/chromium";
const model = process.env.MODEL ? [process.env.MODEL] : [];
const downloads = mkdtempSync(join(tmpdir(), "aquatint-page-"));
let server, url, browser;

/** A server, and where it listens. */
async function serve(args, env = {}) {
  const child = spawn(program, ["serve", ...args, "--port", "0", "--device", "cpu"], { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "inherit"] });
  const line = await new Promise((done) => child.stdout.once("data", (data) => done(String(data))));
  return { child, url: line.match(/http:\/\/[^ ]+/)[0] };
}

before(async () => {
  ({ child: server, url } = await serve(model));
  browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"] });
});

after(async () => {
  await browser?.close();
  server?.kill();
});

/** A fresh page, which must not complain in its console. */
async function open({ where = url, width = 1200, height = 900, dark = false } = {}) {
  const page = await (await browser.createBrowserContext()).newPage();
  page.faults = [];
  page.on("pageerror", (e) => page.faults.push(String(e)));
  page.on("console", (message) => message.type() === "error" && page.faults.push(message.text()));
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  await page.goto(where, { waitUntil: "networkidle0" });
  return page;
}

async function screenshot(page, name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) });
}

const text = (page, selector) => page.$eval(selector, (it) => it.textContent);
const value = (page, selector) => page.$eval(selector, (it) => it.value);
const count = (page, selector) => page.$$eval(selector, (all) => all.length);

async function type(page, selector, what) {
  await page.$eval(selector, (it) => (it.value = ""));
  await page.type(selector, what);
}

test("a run, by keyboard alone", async () => {
  const page = await open();
  assert.equal(await page.$eval("#prompt", (it) => document.activeElement === it), true, "the prompt has the focus");
  await page.keyboard.type("Q");
  await type(page, "#steps", "8");
  await type(page, "#seed", "5");
  await type(page, "#count", "2");
  await page.waitForFunction(() => /of working memory/.test(document.querySelector("#estimate").textContent));
  await page.keyboard.down("Control");
  await page.keyboard.press("Enter");
  await page.keyboard.up("Control");
  await page.waitForFunction(() => document.querySelectorAll("figure").length === 2, { timeout: 60000 });
  await page.waitForFunction(() => document.querySelector("#state").textContent === "Done");
  assert.match(await text(page, "figure figcaption"), /seed 6/, "the last picture is first");
  assert.equal(await page.$eval("figure img", (it) => it.complete && it.naturalWidth > 0), true);
  await screenshot(page, "run");
  assert.deepEqual(page.faults, []);
  await page.close();
});

test("a downloaded picture brings its settings when it is dropped", async () => {
  const page = await open();
  await page.type("#prompt", "R");
  await type(page, "#steps", "3");
  await type(page, "#guidance", "2.5");
  await page.select("#sampler", "DPM++ 2M");
  await page.select("#sigmas", "Karras");
  await page.click("#go");
  await page.waitForSelector("figure", { timeout: 60000 });
  const client = await page.createCDPSession();
  await client.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: downloads, browserContextId: page.browserContext().id });
  await page.click("figure a.button");
  let file;
  for (let i = 0; i < 200 && !file; i++) {
    file = readdirSync(downloads).find((name) => name.endsWith(".png"));
    await new Promise((done) => setTimeout(done, 25));
  }
  assert.match(file, /^R-\d+\.png$/);
  const seed = file.match(/\d+/)[0];
  const png = readFileSync(join(downloads, file)).toString("base64");
  for (const selector of ["#prompt", "#steps", "#guidance", "#seed"]) await page.$eval(selector, (it) => (it.value = ""));
  await page.select("#sampler", "");
  await page.select("#sigmas", "");
  await page.evaluate((png) => {
    const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "a.png", { type: "image/png" }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
  }, png);
  await page.waitForFunction(() => document.querySelector("#prompt").value === "R");
  assert.deepEqual([await value(page, "#steps"), await value(page, "#guidance"), await value(page, "#seed")], ["3", "2.5", seed]);
  assert.deepEqual([await value(page, "#sampler"), await value(page, "#sigmas")], ["DPM++ 2M", "Karras"]);
  // The same again is the same.
  await page.click("#go");
  await page.waitForFunction(() => document.querySelectorAll("figure").length === 2, { timeout: 60000 });
  const [one, two] = await page.$$eval("figure img", (all) =>
    all.map((image) => {
      const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, canvas.width, canvas.height).data.join();
    }),
  );
  assert.ok(one.length > 1000);
  assert.equal(one, two);
  assert.deepEqual(page.faults, []);
  await page.close();
});

test("a run is cancelled, and the next begins", async () => {
  const page = await open();
  await page.type("#prompt", "A");
  await type(page, "#steps", "150");
  await type(page, "#count", "64");
  await page.click("#go");
  await page.waitForFunction(() => /^Step \d+ of \d+/.test(document.querySelector("#state").textContent), { timeout: 60000 });
  await screenshot(page, "working");
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => document.querySelector("#state").textContent === "Cancelled", { timeout: 60000 });
  await type(page, "#steps", "1");
  await type(page, "#count", "1");
  await page.click("#go");
  await page.waitForSelector("figure", { timeout: 60000 });
  assert.deepEqual(page.faults, []);
  await page.close();
});

test("what is wrong is said in words", async () => {
  const page = await open();
  await page.type("#prompt", "no letter");
  await page.click("#go");
  await page.waitForSelector("#error:not([hidden])");
  assert.match(await text(page, "#error"), /class/);
  assert.equal(await page.$eval("#go", (it) => it.disabled), false);
  await screenshot(page, "wrong");
  await page.close();
});

test("the token is asked for, and kept", async () => {
  const guarded = await serve(model, { AQUATINT_TOKEN: "correct horse" });
  try {
    const page = await open({ where: guarded.url });
    await page.waitForSelector("#login[open]");
    await screenshot(page, "token");
    await page.type("#token", "correct horse");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
    await page.type("#prompt", "B");
    await type(page, "#steps", "1");
    await page.click("#go");
    await page.waitForSelector("figure", { timeout: 60000 });
    await page.close();
  } finally {
    guarded.child.kill();
  }
});

for (const dark of [false, true]) {
  test(`it fits a phone, ${dark ? "dark" : "light"}`, async () => {
    const page = await open({ width: 360, height: 740, dark });
    await page.type("#prompt", "W");
    await type(page, "#steps", "4");
    await page.click("#go");
    await page.waitForSelector("figure", { timeout: 60000 });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 360, `${wide} pixels wide`);
    await screenshot(page, `phone-${dark ? "dark" : "light"}`);
    assert.deepEqual(page.faults, []);
    await page.close();
  });
}

const tiny = process.env.TINY;
test("a mask is painted", { skip: tiny && existsSync(tiny) ? false : "no TINY model with an image encoder" }, async () => {
  const other = await serve([tiny]);
  try {
    const page = await open({ where: other.url });
    await page.type("#prompt", "a dog");
    await type(page, "#steps", "2");
    await page.click("#go");
    await page.waitForSelector("figure", { timeout: 60000 });
    const buttons = await page.$$("figure button");
    await buttons[1].click();
    await page.waitForSelector("#canvas-box:not([hidden])");
    await page.$eval("#mask", (it) => it.scrollIntoView({ block: "center" }));
    const box = await (await page.$("#mask")).boundingBox();
    await page.mouse.move(box.x + box.width * 0.25, box.y + box.height / 2);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.25, box.y + box.height * 0.9, { steps: 5 });
    await page.mouse.up();
    await screenshot(page, "mask");
    let sent;
    page.on("request", (request) => {
      if (request.url().endsWith("/v1/jobs")) sent = JSON.parse(request.postData());
    });
    await page.click("#go");
    await page.waitForFunction(() => document.querySelectorAll("figure").length === 2, { timeout: 60000 });
    assert.match(sent.image, /^data:image\/png/);
    const [painted, clear] = await page.evaluate(async (mask) => {
      const image = new Image();
      image.src = mask;
      await image.decode();
      const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const at = (x, y) => [...context.getImageData(image.width * x, image.height * y, 1, 1).data];
      return [at(0.25, 0.7), at(0.9, 0.1)];
    }, sent.mask);
    assert.deepEqual([painted, clear], [[255, 255, 255, 255], [0, 0, 0, 255]]);
    assert.equal(await count(page, "#error:not([hidden])"), 0);
    assert.deepEqual(page.faults, []);
    await page.close();
  } finally {
    other.child.kill();
  }
});
