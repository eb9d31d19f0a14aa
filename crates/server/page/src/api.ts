// What the server is asked, and what it answers.

/** A request for pictures: `POST /v1/jobs`. What is absent is the model's own. */
export interface Ask {
  model?: string;
  prompt: string;
  negative_prompt?: string;
  n?: number;
  width?: number;
  height?: number;
  steps?: number;
  guidance_scale?: number;
  sampler?: string;
  seed?: number;
  image?: string;
  mask?: string;
  strength?: number;
}

export interface Model {
  id: string;
  reads_prompts: boolean;
  reads_pictures: boolean;
  classes: string[];
  width: number;
  height: number;
  multiple: number;
  steps: number;
  guidance_scale: number;
  sampler: string;
}

export interface Capabilities {
  models: Model[];
  samplers: { name: string; title: string }[];
  limits: { side: number; steps: number; images: number };
}

export interface Estimate {
  seconds: number | null;
  memory_bytes: number;
  waiting: number;
}

export interface State {
  id: string;
  status: "queued" | "encoding" | "sampling" | "decoding" | "done" | "failed" | "cancelled";
  step: number;
  steps: number;
  progress: number;
  eta_seconds: number | null;
  position?: number;
  seed?: number;
}

export interface Picture {
  index: number;
  seed: number;
  format: string;
  b64_json: string;
}

export type Happening = { name: "image"; data: Picture } | { name: "preview"; data: Picture } | { name: string; data: State };

/** Why the server refused, in words. */
export class Refusal extends Error {}

const KEY = "aquatint-token";

/** Asks for the token; the page's own way of doing so is set at the start. */
export const login = { ask: async (): Promise<string> => "" };

/** A request with the token, which is asked for if the server wants one. */
async function send(path: string, method: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response: Response;
    try {
      response = await fetch(path, { method, headers, body: body === undefined ? null : JSON.stringify(body), signal: signal ?? null });
    } catch (e) {
      if (signal?.aborted) throw e;
      throw new Refusal("The server does not answer. Is it still running?");
    }
    if (response.status === 401) {
      await response.body?.cancel();
      sessionStorage.setItem(KEY, await login.ask());
      continue;
    }
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      throw new Refusal(told?.error?.message ?? told?.detail ?? `${response.status} ${response.statusText}`);
    }
    return response;
  }
}

export async function call<T>(path: string, method = "GET", body?: unknown, signal?: AbortSignal): Promise<T> {
  return (await send(path, method, body, signal)).json();
}

/** What happens to a job, to its end. */
export async function* events(id: string): AsyncGenerator<Happening> {
  const response = await send(`/v1/jobs/${id}/events`, "GET");
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const records = text.split("\n\n");
    text = records.pop() ?? "";
    for (const record of records) {
      const field = (name: string) => record.split("\n").find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1).trim();
      const [name, data] = [field("event"), field("data")];
      if (name && data) yield { name, data: JSON.parse(data) } as Happening;
    }
  }
}
