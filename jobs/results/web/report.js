// The script of `htc report`: opens images of the gallery in the viewer.

import { Gallery } from "./gallery.js";
import { Viewer } from "./viewer.js";

function startReport() {
  const form = document.getElementById("filters");
  // Without an image there is no gallery.
  if (!form) return;
  const dialog = document.getElementById("viewer");
  const startScore = Number(document.body.dataset.minScore);
  let current = null;
  const viewer = new Viewer(dialog, {
    onStep: (step) => {
      const next = gallery.neighbour(current, step);
      if (next) open(next);
    },
  });
  const open = (card) => {
    current = card;
    const item = JSON.parse(document.getElementById(card.dataset.item).textContent);
    const shown = gallery.shown;
    viewer.show(item, {
      position: `${shown.indexOf(card) + 1} of ${shown.length}`,
      minScore: dialog.open ? viewer.minScore : Math.max(startScore, gallery.minScore),
    });
  };
  const gallery = new Gallery({
    list: document.getElementById("cards"),
    form,
    status: document.getElementById("gallery-status"),
    empty: document.getElementById("gallery-empty"),
    onOpen: open,
  });
  dialog.addEventListener("close", () => current && gallery.focus(current));
}

function openDetailsForPrint() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.print:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
}

/** Tables that are wider than their place scroll, and then the keyboard must reach them. */
function letKeyboardScroll() {
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const frame of document.querySelectorAll(".table-frame")) watch.observe(frame);
}

startReport();
letKeyboardScroll();
openDetailsForPrint();
