// Elements and icons. Strings become text nodes, so that nothing a model or a server says is ever HTML.

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  check: "m5 12.5 4.5 4.5L19 7",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  edit: "m4 20 1-4.5L16.5 4l3.5 3.5L8.5 19 4 20Z",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z",
  share: "M12 15V4m-4 4 4-4 4 4M5 13v7h14v-7",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Zm0-6v2m0 16v2M2 12h2m16 0h2M5 5l1.4 1.4m11.2 11.2L19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  tokens: "M3 7h7v4H3zM13 7h8v4h-8zM3 14h10v4H3zM16 14h5v4h-5z",
};

/** An element. `on...` are listeners; true is an empty attribute; false and null are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A line drawing; it says nothing to a screen reader. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  svg.append(path);
  return svg;
}

/** A button that is an icon; `label` is what it does. */
export function iconButton(name, label, onclick, attributes = {}) {
  return el("button", { type: "button", class: "quiet icon-button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

/** A button that copies what `text` gives, and says so for a moment. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const copied = await navigator.clipboard.writeText(text()).then(() => true, () => false);
    const words = copied ? "Copied" : "The browser does not let pages copy";
    button.replaceChildren(icon(copied ? "check" : "copy"));
    button.setAttribute("aria-label", words);
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
    }, 1500);
  });
  return button;
}

/** A modal dialog with a title, shown now and gone from the page when closed. */
export function openDialog(title, attributes, ...children) {
  const heading = el("h2", { id: "dialog-title" }, title);
  const close = el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close");
  const dialog = el(
    "dialog",
    { "aria-labelledby": "dialog-title", onclose: () => dialog.remove(), ...attributes },
    el("div", { class: "dialog-head" }, heading, close),
    ...children,
  );
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** `redraw`, at most once a frame however often it is called. */
export function oncePerFrame(redraw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      redraw();
    });
  };
}
