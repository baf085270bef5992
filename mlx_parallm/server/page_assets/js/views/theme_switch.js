// Light, dark, or as the system has it.

import { iconButton, icon } from "../dom.js";

const KEY = "theme";
const THEMES = ["system", "light", "dark"];
const ICONS = { system: "screen", light: "sun", dark: "moon" };

/** A button that goes from one theme to the next. */
export function themeSwitch() {
  const button = iconButton("screen", "", () => use(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]));
  const show = () => {
    const label = `Theme: ${theme()}`;
    button.replaceChildren(icon(ICONS[theme()]));
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  const use = (name) => {
    localStorage.setItem(KEY, name);
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    show();
  };
  show();
  return button;
}

function theme() {
  const kept = localStorage.getItem(KEY);
  return THEMES.includes(kept) ? kept : "system";
}
