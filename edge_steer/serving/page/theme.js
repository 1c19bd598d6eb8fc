// Light or dark, before anything is drawn. Without a choice the page follows the system.
"use strict";

const THEME_KEY = "edge-steer theme";

function storedTheme() {
  try {
    return localStorage.getItem(THEME_KEY);
  } catch {
    return null; // storage is switched off
  }
}

function currentTheme() {
  return document.documentElement.dataset.theme
    ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(THEME_KEY, theme);
  } catch {
    // the choice lasts as long as the page
  }
}

if (["light", "dark"].includes(storedTheme())) {
  document.documentElement.dataset.theme = storedTheme();
}
