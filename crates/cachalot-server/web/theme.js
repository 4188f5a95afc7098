// The chosen theme, set before the first paint; hence a classic script in the head and no module.
// style.css does the rest: without a choice the system's preference holds.
(() => {
  try {
    const theme = localStorage.getItem('cachalot.theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  } catch {
    // A browser that keeps nothing follows the system.
  }
})();
