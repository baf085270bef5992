// The page: puts its parts together, and the keys that work everywhere.

import { element, toast } from "./dom.js";
import { Metrics } from "./data/metrics.js";
import { isReady } from "./data/models.js";
import { explain, whenLocked } from "./server/api.js";
import { Session } from "./session.js";
import { Bar } from "./views/bar.js";
import { Composer } from "./views/composer.js";
import { Dashboard, liveLine } from "./views/dashboard.js";
import { Decisions } from "./views/decisions.js";
import { askForKey, showKeys } from "./views/dialogs.js";
import { ModelsView } from "./views/models.js";
import { SettingsPanel } from "./views/settings_panel.js";
import { Sidebar } from "./views/sidebar.js";
import { Transcript } from "./views/transcript.js";

const NARROW = matchMedia("(max-width: 800px)");

const $ = (id) => document.getElementById(id);
whenLocked(askForKey);
const session = new Session();
const metrics = new Metrics(() => ({
  model: session.models.isFleet ? session.model : "",
  ready: !session.models.isFleet || isReady(session.card),
}));
const settings = new SettingsPanel(session, $("panel"), () => showPanel(false));
const bar = new Bar(session, $("bar"), {
  toggleSidebar: () => showSidebar(!isSidebarShown()),
  togglePanel: () => showPanel($("panel").hidden),
  view: (name) => toggle(name),
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
const views = {
  models: new ModelsView(session, $("models"), () => {
    show("chat");
    $("message").focus();
  }),
  dashboard: new Dashboard(session, metrics, $("dashboard")),
};
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

/** The "chat", "decisions", "models" or the "dashboard". */
function show(view) {
  $("chat").hidden = view !== "chat";
  $("decisions").hidden = view !== "decisions";
  for (const [name, shown] of Object.entries(views)) shown.show(name === view);
  bar.shows(view);
}

const toggle = (view) => show($(view).hidden ? view : "chat");

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
  else if (altKey && code === "KeyD") act(event, () => toggle("dashboard"));
  else if (altKey && code === "KeyM") act(event, () => toggle("models"));
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

session.models.addEventListener("error", ({ detail }) => {
  if (detail.status === 401) toast(explain(detail), "error");
});

// What is shown of one model changes with the choice of it, and with its being loaded.
let known = "";
session.addEventListener("models", () => {
  const now = `${session.model} ${session.card?.status}`;
  if (now === known) return;
  known = now;
  metrics.again();
  if (!$("panel").hidden) settings.memories.refresh();
});

await session.load();
await session.models.refresh();
$("message").focus();
