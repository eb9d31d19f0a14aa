// The form: what is asked for, filled in by hand, by a model's own settings, or by a picture's.

import type { Ask, Capabilities, Model } from "./api";
import { button, byId, element } from "./dom";
import { given } from "./mask";

const field = {
  model: byId("model", HTMLSelectElement),
  prompt: byId("prompt", HTMLTextAreaElement),
  negative: byId("negative", HTMLTextAreaElement),
  width: byId("width", HTMLInputElement),
  height: byId("height", HTMLInputElement),
  steps: byId("steps", HTMLInputElement),
  guidance: byId("guidance", HTMLInputElement),
  sampler: byId("sampler", HTMLSelectElement),
  sigmas: byId("sigmas", HTMLSelectElement),
  count: byId("count", HTMLInputElement),
  seed: byId("seed", HTMLInputElement),
  strength: byId("strength", HTMLInputElement),
};

/** Noise levels that may stand behind a sampler's title. */
const SIGMAS = ["Karras", "Exponential", "Beta"];

let known: Capabilities;

export function model(): Model {
  return known.models.find((model) => model.id === field.model.value) ?? known.models[0]!;
}

function option(value: string, text = value): HTMLOptionElement {
  const made = element("option", text);
  made.value = value;
  return made;
}

/** Fills the form with what the server can do. */
export function fill(all: Capabilities): void {
  known = all;
  field.model.replaceChildren(...all.models.map((model) => option(model.id)));
  field.model.closest("label")!.hidden = all.models.length < 2;
  field.sigmas.replaceChildren(option("", "the sampler's own"), ...SIGMAS.map((name) => option(name)));
  field.steps.max = String(all.limits.steps);
  field.count.max = String(all.limits.images);
  chosen();
}

/** Another model was chosen: its settings are those of empty fields. */
export function chosen(): void {
  const it = model();
  for (const [input, own] of [
    [field.width, it.width],
    [field.height, it.height],
    [field.steps, it.steps],
    [field.guidance, it.guidance_scale],
  ] as const) {
    input.placeholder = String(own);
  }
  for (const input of [field.width, field.height]) {
    input.step = input.min = String(it.multiple);
    input.max = String(known.limits.side);
  }
  field.sampler.replaceChildren(option("", `${it.sampler} (the model's)`), ...known.samplers.map(({ title }) => option(title)));
  byId("prompt-label", HTMLLabelElement).textContent = it.reads_prompts ? "Prompt" : "Class";
  byId("negative-row", HTMLDivElement).hidden = !it.reads_prompts;
  const chips = byId("classes", HTMLDivElement);
  chips.hidden = it.classes.length === 0;
  const choose = (name: string) => () => {
    field.prompt.value = name;
    field.prompt.dispatchEvent(new Event("input", { bubbles: true }));
  };
  chips.replaceChildren(...it.classes.slice(0, 40).map((name) => button(name, choose(name))));
  byId("begin", HTMLDetailsElement).hidden = !it.reads_pictures;
}

function number(input: HTMLInputElement): number | undefined {
  return input.value.trim() === "" ? undefined : Number(input.value);
}

/** What the form asks for; what was left empty is left out. */
export function ask(): Ask {
  const it = model();
  const begins = it.reads_pictures ? given() : {};
  const sampler = field.sampler.value || (field.sigmas.value ? it.sampler : "");
  const all: Ask = {
    model: it.id,
    prompt: field.prompt.value,
    negative_prompt: (it.reads_prompts && field.negative.value) || undefined,
    n: number(field.count),
    width: number(field.width),
    height: number(field.height),
    steps: number(field.steps),
    guidance_scale: number(field.guidance),
    sampler: sampler ? [sampler, field.sigmas.value].filter(Boolean).join(" ") : undefined,
    seed: number(field.seed),
    ...begins,
    strength: begins.image ? number(field.strength) : undefined,
  };
  return all;
}

function set(input: HTMLInputElement, value: number | string | undefined): void {
  input.value = value === undefined ? "" : String(value);
}

/** Fills the form with what a picture was made of. */
export function use(it: Ask): void {
  if (it.model && known.models.some(({ id }) => id === it.model)) {
    field.model.value = it.model;
    chosen();
  }
  field.prompt.value = it.prompt;
  field.negative.value = it.negative_prompt ?? "";
  set(field.width, it.width);
  set(field.height, it.height);
  set(field.steps, it.steps);
  set(field.guidance, it.guidance_scale);
  set(field.seed, it.seed);
  set(field.count, 1);
  const level = SIGMAS.find((name) => it.sampler?.endsWith(` ${name}`));
  const title = level ? it.sampler!.slice(0, -level.length - 1) : it.sampler;
  field.sampler.value = known.samplers.some((sampler) => sampler.title === title) ? title! : "";
  field.sigmas.value = level ?? "";
  if (it.strength !== undefined) set(field.strength, it.strength);
  field.prompt.dispatchEvent(new Event("input", { bubbles: true }));
}

/** What a picture's text says it was made of, as far as the form knows it. */
export function fromText(told: Record<string, string>): Ask {
  const number = (name: string) => (told[name] === undefined ? undefined : Number(told[name]));
  const size = told["Size"]?.split("x").map(Number) ?? [];
  const schedule = told["Schedule type"] ?? "";
  const level = SIGMAS.includes(schedule) ? schedule : undefined;
  return {
    model: told["Model"],
    prompt: told["Prompt"] ?? "",
    negative_prompt: told["Negative prompt"] || undefined,
    width: size[0],
    height: size[1],
    steps: number("Steps"),
    guidance_scale: number("CFG scale"),
    sampler: told["Sampler"] && [told["Sampler"], level].filter(Boolean).join(" "),
    seed: number("Seed"),
    strength: number("Denoising strength"),
  };
}

export function dice(): void {
  set(field.seed, crypto.getRandomValues(new Uint32Array(1))[0]);
  field.seed.dispatchEvent(new Event("input", { bubbles: true }));
}
