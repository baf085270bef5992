// Pictures for messages: read in the browser, made no larger than models look at.

import { urlOf } from "./files.js";

const LONGEST_SIDE = 1568; // pixels
const KEPT = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const KEPT_BYTES = 1_500_000;
const QUALITY = 0.9;
const DATA_URL = /^data:image\/(png|jpeg|jpg|webp|gif);base64,[A-Za-z0-9+/]+=*$/;

/** What file dialogs offer. */
export const ACCEPTED = KEPT.join(",");

/**
 * A picture of a file: {name, url, width, height}. url: a data: URL.
 *
 * Throws an Error that says what is wrong.
 */
export async function readPicture(file) {
  const name = file.name || "picture";
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${name} cannot be read as a picture.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const asItIs = scale === 1 && KEPT.includes(file.type) && file.size <= KEPT_BYTES;
  const url = await urlOf(asItIs ? file : await drawn(bitmap, width, height, file.type));
  bitmap.close();
  return { name, url, width, height };
}

/** What a message of a file may hold as a picture. */
export function isPicture(found) {
  return typeof found?.name === "string" && typeof found.url === "string" && DATA_URL.test(found.url);
}

// Lossless where it was and the result is small; on white, since JPEG knows no transparency.
async function drawn(bitmap, width, height, type) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  if (type !== "image/jpeg") {
    const png = await encoded(canvas, "image/png");
    if (png.size <= KEPT_BYTES) return png;
  }
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  return encoded(canvas, "image/jpeg");
}

const encoded = (canvas, type) => new Promise((resolve) => canvas.toBlob(resolve, type, QUALITY));
