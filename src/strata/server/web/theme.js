// Loaded before the first paint, so that a page that was set to dark does not flash white.
"use strict";

(() => {
  const KEY = "strata.theme";
  const ORDER = ["auto", "light", "dark"];
  const root = document.documentElement;

  function stored() {
    try {
      const theme = localStorage.getItem(KEY);
      return ORDER.includes(theme) ? theme : "auto";
    } catch {
      return "auto";
    }
  }

  root.dataset.theme = stored();

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      const theme = root.dataset.theme;
      const name = theme === "auto" ? "as the system" : theme;
      button.setAttribute("aria-label", `Colours: ${name}. Change`);
      button.title = `Colours: ${name}`;
    };
    button.addEventListener("click", () => {
      const next = ORDER[(ORDER.indexOf(root.dataset.theme) + 1) % ORDER.length];
      root.dataset.theme = next;
      try {
        localStorage.setItem(KEY, next);
      } catch {
        // Without storage the choice lasts as long as the page.
      }
      show();
    });
    show();
  });
})();
