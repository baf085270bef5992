// A picture or a video as it stands in a message: small, and large by a click.

import { isVideoUrl } from "../data/videos.js";
import { element, iconButton } from "../dom.js";

/** remove: called by a button on it; without one there is none. */
export function thumbnail(picture, remove = null) {
  const { name } = picture;
  const image = isVideoUrl(picture.url) ? film(picture) : still(picture);
  const open = element("button", { type: "button", class: "thumbnail", onclick: () => large(picture) }, image);
  open.setAttribute("aria-label", `Enlarge: ${name}`);
  open.title = name;
  const off = remove && iconButton("close", `Remove: ${name}`, remove);
  return element("li", {}, open, off);
}

const still = ({ name, url, width, height }) => element("img", { src: url, alt: name, width, height });

function film({ name, url }) {
  const video = element("video", { src: url, preload: "metadata", "aria-label": name });
  video.muted = true;
  return video;
}

function large({ name, url }) {
  const close = () => dialog.close();
  const image = isVideoUrl(url) ? Object.assign(film({ name, url }), { controls: true }) : element("img", { src: url, alt: name });
  const head = element("div", { class: "row between" }, element("span", { class: "quiet", text: name }), iconButton("close", "Close", close));
  const dialog = element("dialog", { class: "large", "aria-label": name }, head, image);
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
