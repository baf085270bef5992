// Before anything is painted: the theme that was chosen; without a choice the system's.
// A classic script, since modules run too late for that.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("theme");
  } catch {
    // Storage is switched off in this browser: the system's theme holds.
  }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
})();
