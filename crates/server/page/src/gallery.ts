// Pictures of this session.

import type { Ask, Picture } from "./api";
import { button, byId, element } from "./dom";
import { model, use } from "./form";
import { begin } from "./mask";

/** Shows a finished picture, with what it was made of. */
export function show(picture: Picture, asked: Ask): void {
  const binary = Uint8Array.from(atob(picture.b64_json), (c) => c.charCodeAt(0));
  const blob = new Blob([binary], { type: `image/${picture.format}` });
  const url = URL.createObjectURL(blob);
  const name = `${asked.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "picture"}-${picture.seed}.${picture.format}`;
  // The seed of this picture alone makes it again.
  const made: Ask = { ...asked, seed: picture.seed, n: 1 };

  const figure = element("figure");
  const link = element("a");
  link.href = url;
  link.target = "_blank";
  const image = element("img");
  image.src = url;
  image.alt = asked.prompt;
  link.append(image);
  const caption = element("figcaption");
  caption.append(element("p", asked.prompt), element("span", `seed ${picture.seed}`));
  const actions = element("div", "", "actions");
  const download = element("a", "Download", "button");
  download.href = url;
  download.download = name;
  actions.append(download, button("Use these settings", () => use(made)));
  if (model().reads_pictures) actions.append(button("Begin with it", () => void begin(blob)));
  caption.append(actions);
  figure.append(link, caption);
  byId("gallery", HTMLDivElement).prepend(figure);
  byId("empty", HTMLParagraphElement).hidden = true;
}
