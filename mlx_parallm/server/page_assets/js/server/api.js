// Requests to the server: the key, and errors as it tells them.

const KEY = "api-key";

/** An error answer. param: the field that is wrong, where the server named one. */
export class ApiError extends Error {
  constructor(status, { message, type, param, code } = {}, retryAfter = null) {
    super(message || `The server answered with status ${status}.`);
    Object.assign(this, { status, type, param, code, retryAfter });
  }
}

let askForKey = async () => false;

/** Say who asks for a key; the function gives whether there is a new one. */
export function whenLocked(ask) {
  askForKey = ask;
}

export function key() {
  return localStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) localStorage.setItem(KEY, value);
  else localStorage.removeItem(KEY);
  dispatchEvent(new Event("api-key"));
}

/**
 * Send a request and give its response when that is a success.
 *
 * asks: whether the user is asked for a key where one is missing.
 * Throws an ApiError, a TypeError where the server is not there, or an AbortError.
 */
export async function send(path, { method = "GET", body = null, signal = null, asks = true } = {}) {
  for (;;) {
    const sent = key();
    const response = await fetch(path, { method, signal, ...content(body, sent) });
    if (response.ok) return response;
    const error = await errorOf(response);
    // Another request may have brought a key in the meantime.
    const locked = response.status === 401;
    if (locked && (key() !== sent || (asks && (await askForKey(error))))) continue;
    throw error;
  }
}

/** The JSON of an answer. */
export async function json(path, options = {}) {
  return (await send(path, options)).json();
}

function content(body, sent) {
  const headers = sent ? { Authorization: `Bearer ${sent}` } : {};
  if (body === null) return { headers };
  return { headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function errorOf(response) {
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // Not from this server but from a proxy before it; the status has to do.
  }
  return new ApiError(response.status, told, response.headers.get("retry-after"));
}

/** A sentence for people about anything that send() throws. */
export function explain(error) {
  if (error instanceof ApiError) return error.message;
  if (error instanceof TypeError) return "The server cannot be reached.";
  return String(error.message ?? error);
}
