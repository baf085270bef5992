// The page: puts its parts together, and the keys that work everywhere.

import { element, toast } from "./dom.js";
import { Metrics } from "./data/metrics.js";
import { explain, json, whenLocked } from "./server/api.js";
import { Session } from "./session.js";
import { Bar } from "./views/bar.js";
import { Composer } from "./views/composer.js";
import { Dashboard, liveLine } from "./views/dashboard.js";
import { Decisions } from "./views/decisions.js";
import { askForKey, showKeys } from "./views/dialogs.js";
import { SettingsPanel } from "./views/settings_panel.js";
import { Sidebar } from "./views/sidebar.js";
import { Transcript } from "./views/transcript.js";

const RETRY_MS = 2000;
const NARROW = matchMedia("(max-width: 800px)");

const $ = (id) => document.getElementById(id);
whenLocked(askForKey);
const session = new Session();
const metrics = new Metrics();
const dashboard = new Dashboard(session, metrics, $("dashboard"));
const settings = new SettingsPanel(session, $("panel"), () => showPanel(false));
const bar = new Bar(session, $("bar"), {
  toggleSidebar: () => showSidebar(!isSidebarShown()),
  togglePanel: () => showPanel($("panel").hidden),
  toggleDecisions: () => show($("decisions").hidden ? "decisions" : "chat"),
  toggleDashboard: () => show($("dashboard").hidden ? "dashboard" : "chat"),
});
const sidebar = new Sidebar(session, $("sidebar"), {
  close: () => {
    show("chat");
    if (NARROW.matches) showSidebar(false);
  },
  openDashboard: () => {
    show("dashboard");
    if (NARROW.matches) showSidebar(false);
  },
});
const transcript = new Transcript(session, $("transcript"));
new Decisions(session, $("decisions"));
new Composer(session, $("composer"), () => showPanel(true), () => transcript.editLast());

// Which parts are open

function isSidebarShown() {
  const app = $("app").classList;
  return NARROW.matches ? app.contains("drawer") : !app.contains("folded");
}

function showSidebar(shown) {
  if (NARROW.matches) $("app").classList.toggle("drawer", shown);
  else $("app").classList.toggle("folded", !shown);
  $("sidebar").inert = !shown;
  $("veil").hidden = !(NARROW.matches && shown);
}

function showPanel(shown) {
  if (shown && $("panel").hidden) settings.open();
  $("panel").hidden = !shown;
  bar.settings.setAttribute("aria-expanded", String(shown));
  if (shown) $("panel").querySelector("textarea").focus();
  else bar.settings.focus();
}

/** The chat, "decisions" or the "dashboard". */
function show(view) {
  $("chat").hidden = view !== "chat";
  $("decisions").hidden = view !== "decisions";
  dashboard.show(view === "dashboard");
  bar.decisions.setAttribute("aria-pressed", String(view === "decisions"));
  bar.dashboard.setAttribute("aria-pressed", String(view === "dashboard"));
}

$("veil").addEventListener("click", () => showSidebar(false));
NARROW.addEventListener("change", () => {
  $("app").classList.remove("drawer", "folded");
  showSidebar(!NARROW.matches);
});
showSidebar(!NARROW.matches);
session.addEventListener("open", () => {
  if (!$("panel").hidden) settings.open();
});

// Keys

document.addEventListener("keydown", (event) => {
  const inText = event.target.matches("input, textarea, select");
  const { key, altKey, code } = event;
  if (document.querySelector("dialog[open]")) return;
  if (key === "Escape") escape(event);
  else if (altKey && code === "KeyN") act(event, () => session.fresh());
  else if (altKey && code === "KeyS") act(event, () => showPanel($("panel").hidden));
  else if (altKey && code === "KeyD") act(event, () => show($("dashboard").hidden ? "dashboard" : "chat"));
  else if (key === "/" && !inText) act(event, () => $("message").focus());
  else if (key === "?" && (!inText || isEmptyMessage(event.target))) act(event, showKeys);
});

const isEmptyMessage = (target) => target.id === "message" && target.value === "";

function act(event, work) {
  event.preventDefault();
  work();
}

// The outermost thing first; a token's card and a box for editing have taken the key already.
function escape(event) {
  if (event.defaultPrevented) return;
  if (NARROW.matches && isSidebarShown()) showSidebar(false);
  else if (session.busy) session.stop();
  else if (!$("panel").hidden) showPanel(false);
  else show("chat");
}

// What the server has

metrics.addEventListener("change", () => {
  const [kind, text] = liveLine(metrics);
  sidebar.live.replaceChildren(element("i", { class: kind }), text);
});

async function loadModels() {
  try {
    session.models = (await json("v1/models")).data;
    session.dispatchEvent(new CustomEvent("models"));
    const ready = session.models.some(({ status }) => status === undefined || status === "ready");
    if (!ready) setTimeout(loadModels, RETRY_MS);
  } catch (error) {
    // Without a key asking again is no use; a new one is told.
    if (error.status === 401) toast(explain(error), "error");
    else setTimeout(loadModels, RETRY_MS);
  }
}

addEventListener("api-key", loadModels);
await session.load();
await loadModels();
$("message").focus();
