// Requests to the server: the keys, and errors as it tells them.

const KEY = "api-key";
// Of who may change the server; forgotten with the tab.
const ADMIN_KEY = "admin-key";

/** An error answer. param: the field that is wrong, where the server named one. */
export class ApiError extends Error {
  constructor(status, { message, type, param, code } = {}, retryAfter = null) {
    super(message || `The server answered with status ${status}.`);
    Object.assign(this, { status, type, param, code, retryAfter });
  }
}

let askForKey = async () => false;

/**
 * Say who asks for a key; the function gets "api" or "admin" and the error, and gives whether there
 * is a new one.
 */
export function whenLocked(ask) {
  askForKey = ask;
}

export function key() {
  return localStorage.getItem(KEY) ?? "";
}

export function adminKey() {
  return sessionStorage.getItem(ADMIN_KEY) ?? "";
}

export function setAdminKey(value) {
  sessionStorage.setItem(ADMIN_KEY, value);
}

export function setKey(value) {
  if (value) localStorage.setItem(KEY, value);
  else localStorage.removeItem(KEY);
  dispatchEvent(new Event("api-key"));
}

/**
 * Send a request and give its response when that is a success.
 *
 * model: whose answer is wanted, where neither path nor body can say it. admin: it changes the
 * server. asks: whether the user is asked for a key where one is missing.
 * Throws an ApiError, a TypeError where the server is not there, or an AbortError.
 */
export async function send(path, { method = "GET", body = null, signal = null, ...more } = {}) {
  const { asks = true, model = "", admin = false } = more;
  for (;;) {
    const keys = { api: key(), admin: adminKey() };
    const headers = headersOf(keys.api, admin ? keys.admin : "", model, body);
    const sent = body === null ? null : JSON.stringify(body);
    const response = await fetch(path, { method, signal, headers, body: sent });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (!(await isUnlocked(error, keys, asks))) throw error;
  }
}

// Whether there is a key now that the request did not have; another one may have brought it.
async function isUnlocked(error, sent, asks) {
  if (error.status !== 401 || error.code === "not_local") return false;
  const kind = error.code === "invalid_admin_key" ? "admin" : "api";
  const now = kind === "api" ? key() : adminKey();
  return now !== sent[kind] || (asks && askForKey(kind, error));
}

/** The JSON of an answer. */
export async function json(path, options = {}) {
  return (await send(path, options)).json();
}

function headersOf(apiKey, adminKey, model, body) {
  const headers = {};
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  if (adminKey) headers["X-Admin-Key"] = adminKey;
  // Headers hold bytes, one for each character of a string.
  if (model) headers["X-Model"] = String.fromCharCode(...new TextEncoder().encode(model));
  if (body !== null) headers["Content-Type"] = "application/json";
  return headers;
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
