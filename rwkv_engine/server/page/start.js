// Not a module, because it must run before the page is first painted: else a dark page would begin white.
try {
  const theme = localStorage.getItem("rwkv:theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off in this browser: the page follows the system.
}

// The modules are loaded after that, so that they do not delay it: all at once, not as their imports are read.
requestAnimationFrame(() =>
  setTimeout(() => {
    for (const link of document.querySelectorAll("link[data-module]")) link.rel = "modulepreload";
    import("./main.js");
  }),
);
