// A page that asks the server for pictures, one request at a time.

import { type Ask, type Capabilities, type Estimate, type Happening, type Picture, Refusal, type State, call, events, login } from "./api";
import { byId, bytes, duration, fileAsUrl } from "./dom";
import { ask, chosen, dice, fill, fromText, model, use } from "./form";
import { show } from "./gallery";
import { begin, remove, unpaint } from "./mask";

const form = byId("ask", HTMLFormElement);
const go = byId("go", HTMLButtonElement);
const cancel = byId("cancel", HTMLButtonElement);
const work = byId("work", HTMLDivElement);
const state = byId("state", HTMLParagraphElement);
const bar = byId("bar", HTMLProgressElement);
const preview = byId("preview", HTMLImageElement);
const error = byId("error", HTMLParagraphElement);
const estimate = byId("estimate", HTMLParagraphElement);

/** The job at work, if there is one. */
let job: string | undefined;

function complain(what: unknown): void {
  error.textContent = what instanceof Error ? what.message : String(what);
  error.hidden = false;
}

/** Shows what a promise fails with. */
function attempt(promise: Promise<void>): void {
  promise.catch(complain);
}

login.ask = () =>
  new Promise((done) => {
    const dialog = byId("login", HTMLDialogElement);
    dialog.addEventListener("close", () => done(byId("token", HTMLInputElement).value), { once: true });
    dialog.showModal();
  });

function words(it: State): string {
  const left = it.eta_seconds === null ? "" : `, ${duration(it.eta_seconds)} left`;
  switch (it.status) {
    case "queued":
      return it.position ? `Waiting for ${it.position} ${it.position === 1 ? "job" : "jobs"} before` : "Waiting";
    case "encoding":
      return "Reading the prompt";
    case "sampling":
      return `Step ${it.step} of ${it.steps}${left}`;
    case "decoding":
      return "Making the picture";
    case "done":
      return "Done";
    case "cancelled":
      return "Cancelled";
    case "failed":
      return "Failed: the server's log says why";
  }
}

function see(happening: Happening, asked: Ask): void {
  if (happening.name === "image") return show(happening.data as Picture, asked);
  if (happening.name === "preview") {
    const seen = happening.data as Picture;
    preview.src = `data:image/${seen.format};base64,${seen.b64_json}`;
    preview.hidden = false;
    return;
  }
  const it = happening.data as State;
  state.textContent = words(it);
  bar.value = it.progress;
  if (it.status === "failed") complain(words(it));
}

async function make(): Promise<void> {
  const asked = ask();
  error.hidden = true;
  go.disabled = true;
  try {
    const made = await call<State>("/v1/jobs", "POST", asked);
    job = made.id;
    work.hidden = cancel.hidden = false;
    preview.hidden = true;
    bar.value = 0;
    for await (const happening of events(made.id)) see(happening, asked);
  } catch (e) {
    complain(e);
  } finally {
    job = undefined;
    go.disabled = false;
    cancel.hidden = true;
    preview.hidden = true;
    look();
  }
}

let pending: AbortController | undefined;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Says what the request would take, a moment after it was last changed. */
function look(): void {
  clearTimeout(timer);
  pending?.abort();
  const asked = ask();
  if (!model().reads_prompts && asked.prompt === "") {
    estimate.textContent = "";
    return;
  }
  timer = setTimeout(() => {
    pending = new AbortController();
    // The picture itself is not needed for that, and is large.
    const light: Ask = { ...asked, image: undefined, mask: undefined, strength: undefined };
    const told = call<Estimate>("/v1/estimate", "POST", light, pending.signal);
    told.then(
      (it) => {
        const time = it.seconds === null ? "" : `${duration(it.seconds)}, `;
        const before = it.waiting > 0 ? `; ${it.waiting} waiting before` : "";
        estimate.textContent = `${time}${bytes(it.memory_bytes)} of working memory${before}`;
      },
      (e) => {
        if (e instanceof Refusal) estimate.textContent = e.message;
      },
    );
  }, 250);
}

/** A picture that was dropped: a PNG with a text brings its settings; any picture may be begun with. */
async function take(file: File): Promise<void> {
  const url = await fileAsUrl(file);
  if (file.type === "image/png") {
    const told = await call<{ info: string; parameters: Record<string, string> }>("/sdapi/v1/png-info", "POST", {
      image: url.slice(url.indexOf(",") + 1),
    });
    if (told.info) return use(fromText(told.parameters));
  }
  if (model().reads_pictures) return begin(url);
  complain("That picture says nothing of how it was made, and this model does not begin with pictures.");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!job) attempt(make());
});
form.addEventListener("input", look);
byId("model", HTMLSelectElement).addEventListener("change", () => {
  chosen();
  look();
});
byId("dice", HTMLButtonElement).addEventListener("click", dice);
byId("unpaint", HTMLButtonElement).addEventListener("click", unpaint);
byId("remove", HTMLButtonElement).addEventListener("click", remove);
byId("file", HTMLInputElement).addEventListener("change", (event) => {
  const file = (event.target as HTMLInputElement).files?.[0];
  if (file) attempt(begin(file));
});
cancel.addEventListener("click", () => {
  if (job) attempt(call<State>(`/v1/jobs/${job}`, "DELETE").then(() => undefined));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  if (event.key === "Escape" && job) cancel.click();
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = event.dataTransfer?.files[0];
  const begins = event.target instanceof Element && event.target.closest("#drop") !== null;
  if (file) attempt(begins ? begin(file) : take(file));
});

attempt(
  call<Capabilities>("/v1/capabilities").then((all) => {
    fill(all);
    look();
  }),
);
