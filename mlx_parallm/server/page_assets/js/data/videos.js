// Videos for messages: sent as they are, the server chooses frames of them.

import { urlOf } from "./files.js";

const KINDS = ["video/mp4", "video/webm", "video/quicktime"];
const LONGEST_FILE = 11_000_000; // bytes: as base64 they fit the largest body that servers take by themselves
const DATA_URL = /^data:video\/(mp4|webm|quicktime);base64,[A-Za-z0-9+/]+=*$/;

/** What file dialogs offer. */
export const ACCEPTED_VIDEOS = KINDS.join(",");

/** Whether a file, or what stands for one in a message, is a video. */
export const isVideoFile = ({ type }) => type.startsWith("video/");

/**
 * A video of a file: {name, url}. url: a data: URL.
 *
 * Throws an Error that says what is wrong.
 */
export async function readVideo(file) {
  const name = file.name || "video";
  const kind = file.type.split(";")[0];
  if (!KINDS.includes(kind)) throw new Error(`${name} is no MP4 or WebM.`);
  if (file.size === 0) throw new Error(`${name} is empty.`);
  if (file.size > LONGEST_FILE) throw new Error(`${name} is larger than ${LONGEST_FILE / 1e6} MB.`);
  return { name, url: await urlOf(new Blob([file], { type: kind })) };
}

/** What a message of a file may hold as a video. */
export function isVideo(found) {
  return typeof found?.name === "string" && typeof found.url === "string" && DATA_URL.test(found.url);
}

/** Whether a data: URL is a video's. */
export const isVideoUrl = (url) => url.startsWith("data:video/");
