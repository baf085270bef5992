// A picture as it stands in a message: small, and large by a click.

import { element, iconButton } from "../dom.js";

/** remove: called by a button on it; without one there is none. */
export function thumbnail(picture, remove = null) {
  const { name, url, width, height } = picture;
  const image = element("img", { src: url, alt: name, width, height });
  const open = element("button", { type: "button", class: "thumbnail", onclick: () => large(picture) }, image);
  open.setAttribute("aria-label", `Enlarge: ${name}`);
  open.title = name;
  const off = remove && iconButton("close", `Remove: ${name}`, remove);
  return element("li", {}, open, off);
}

function large({ name, url }) {
  const close = () => dialog.close();
  const image = element("img", { src: url, alt: name });
  const head = element("div", { class: "row between" }, element("span", { class: "quiet", text: name }), iconButton("close", "Close", close));
  const dialog = element("dialog", { class: "large", "aria-label": name }, head, image);
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
