// The picture to begin with, and paint over what is to be made anew.

import { byId, fileAsUrl } from "./dom";

const box = byId("canvas-box", HTMLDivElement);
const image = byId("init", HTMLImageElement);
const canvas = byId("mask", HTMLCanvasElement);
const brush = byId("brush", HTMLInputElement);

/** The picture as a `data:` URL, if there is one. */
let picture: string | undefined;
let painted = false;
let last: [number, number] | undefined;

function context(): CanvasRenderingContext2D {
  return canvas.getContext("2d")!;
}

/** Shows a picture to begin with. */
export async function begin(source: Blob | string): Promise<void> {
  const url = typeof source === "string" ? source : await fileAsUrl(source);
  image.src = url;
  await image.decode();
  picture = url;
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  painted = false;
  box.hidden = false;
  byId("begin", HTMLDetailsElement).open = true;
}

/** Takes it away. */
export function remove(): void {
  picture = undefined;
  box.hidden = true;
  byId("file", HTMLInputElement).value = "";
}

export function unpaint(): void {
  context().clearRect(0, 0, canvas.width, canvas.height);
  painted = false;
}

/** The picture and its mask, as a request has them. */
export function given(): { image?: string; mask?: string } {
  if (!picture) return {};
  return painted ? { image: picture, mask: mask() } : { image: picture };
}

/** White where there is paint, black elsewhere. */
function mask(): string {
  const out = document.createElement("canvas");
  [out.width, out.height] = [canvas.width, canvas.height];
  const to = out.getContext("2d")!;
  to.drawImage(canvas, 0, 0);
  to.globalCompositeOperation = "source-in";
  to.fillStyle = "#fff";
  to.fillRect(0, 0, out.width, out.height);
  to.globalCompositeOperation = "destination-over";
  to.fillStyle = "#000";
  to.fillRect(0, 0, out.width, out.height);
  return out.toDataURL("image/png");
}

function place(event: PointerEvent): [number, number] {
  const seen = canvas.getBoundingClientRect();
  return [((event.clientX - seen.left) * canvas.width) / seen.width, ((event.clientY - seen.top) * canvas.height) / seen.height];
}

function paint(event: PointerEvent): void {
  if (!last) return;
  const to = context();
  const [x, y] = place(event);
  to.strokeStyle = "#1b6e8c";
  to.lineCap = to.lineJoin = "round";
  to.lineWidth = (Number(brush.value) * canvas.width) / canvas.getBoundingClientRect().width;
  to.beginPath();
  to.moveTo(...last);
  to.lineTo(x + 0.01, y);
  to.stroke();
  last = [x, y];
  painted = true;
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  paint(event);
});
canvas.addEventListener("pointermove", paint);
canvas.addEventListener("pointerup", () => (last = undefined));
canvas.addEventListener("pointercancel", () => (last = undefined));
