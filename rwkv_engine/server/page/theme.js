// Not a module, because it must run before the page is first painted: else a dark page would begin white.
try {
  const theme = localStorage.getItem("rwkv:theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off in this browser: the page follows the system.
}
