// The viewer: a dialog with one image, its masks to switch on and off one by one, zoom and pan, and its neighbours.

import { ImageView } from "./image_view.js";

/**
 * Fills a <dialog class="viewer"> and shows images in it. Text from outside is set as text, never as HTML.
 *
 * An image is what `ImageView` draws, and
 *   name, uri: texts. note: why there is no picture, or what is worth knowing about it; "" for nothing.
 *   facts: [[name, value], …] to list below the name. leftOut: instances that are not in the list, or 0.
 *   areMasksWhole: whether the masks have the image's size, so that one may be copied.
 */
export class Viewer {
  /**
   * @param {HTMLDialogElement} dialog
   * @param {object} options
   * @param {(step: number) => void} options.onStep asks for the next (1) or previous (-1) image.
   * @param {(item: object) => string} [options.linkOf] the address of an image, for a button that copies it.
   */
  constructor(dialog, { onStep, linkOf = null }) {
    this.dialog = dialog;
    this.linkOf = linkOf;
    this.onStep = onStep;
    this.minScore = 0;
    this.#build();
    this.view = new ImageView(this.canvas, { onPick: (index) => this.#pick(index) });
    dialog.addEventListener("keydown", (event) => this.#key(event));
    // A click on the backdrop is a click on the dialog itself.
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  /**
   * @param {object} item see the class.
   * @param {{position?: string, minScore?: number}} options position: such as "3 of 16". minScore: masks of
   *   instances with a lower score are off at first.
   */
  show(item, { position = "", minScore = this.minScore } = {}) {
    this.item = item;
    this.minScore = minScore;
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.canvas.focus();
    }
    this.title.textContent = item.name;
    this.position.textContent = position;
    this.uri.textContent = item.uri;
    this.note.textContent = item.note || "";
    this.note.hidden = !item.note;
    this.facts.replaceChildren(
      ...(item.facts || []).flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]),
    );
    const problems = this.view.show(item);
    this.rows = item.instances.map((instance, index) => this.#row(instance, index, problems[index]));
    this.list.replaceChildren(...this.rows.map((row) => row.item));
    this.#paintSwatches();
    this.empty.hidden = item.instances.length > 0;
    this.leftOut.textContent = item.leftOut ? `${item.leftOut} more, with lower scores, are not in this list.` : "";
    this.leftOut.hidden = !item.leftOut;
    this.score.value = String(minScore);
    this.#applyScore();
    this.canvas.setAttribute("aria-label", describe(item));
    this.live.textContent = `${position}: ${describe(item)}`;
  }

  close() {
    this.dialog.close();
  }

  #build() {
    this.title = element("h2", { className: "viewer-title", id: "viewer-title" });
    this.position = element("span", { className: "viewer-position" });
    this.canvas = element("canvas", { className: "viewer-canvas", role: "img", tabIndex: 0 });
    this.note = element("p", { className: "viewer-note", hidden: true });
    this.uri = element("p", { className: "viewer-uri" });
    this.facts = element("dl", { className: "viewer-facts" });
    this.list = element("ul", { className: "viewer-instances" });
    this.empty = element("p", { text: "No instances.", className: "quiet" });
    this.count = element("p", { className: "quiet viewer-count" });
    this.leftOut = element("p", { className: "quiet" });
    this.live = element("p", { className: "only-spoken", role: "status" });
    this.score = element("input", { type: "range", min: "0", max: "1", step: "0.05", id: "viewer-score" });
    this.score.addEventListener("input", () => {
      this.minScore = Number(this.score.value);
      this.#applyScore();
      this.#announceCount();
    });
    this.scoreText = element("output", { className: "range-value" });
    this.scoreText.htmlFor = "viewer-score";
    this.labels = element("input", { type: "checkbox", id: "viewer-labels", checked: true });
    this.labels.addEventListener("change", () => {
      this.view.hasLabels = this.labels.checked;
      this.view.redraw();
    });
    const button = (text, label, press, extra = {}) => {
      const made = element("button", { type: "button", text, className: "tool", ...extra });
      made.setAttribute("aria-label", label);
      made.title = label;
      made.addEventListener("click", press);
      return made;
    };
    this.ownColours = element("input", { type: "checkbox", id: "viewer-colours" });
    this.ownColours.addEventListener("change", () => {
      this.view.hasOwnColours = this.ownColours.checked;
      this.#paintSwatches();
      this.view.redraw();
    });
    const close = button("✕", "Close (Escape)", () => this.close(), { className: "tool viewer-close" });
    const previous = button("‹", "Previous image (left arrow)", () => this.onStep(-1));
    const next = button("›", "Next image (right arrow)", () => this.onStep(1));
    const head = element("div", { className: "viewer-head" });
    head.append(previous, next, this.title, this.position, close);
    const tools = element("div", { className: "viewer-tools", role: "group" });
    tools.setAttribute("aria-label", "Zoom");
    tools.append(
      button("−", "Zoom out (-)", () => this.view.zoom(1 / 1.5)),
      button("+", "Zoom in (+)", () => this.view.zoom(1.5)),
      button("⤢", "Whole image (0)", () => this.view.fit()),
    );
    const stage = element("div", { className: "viewer-stage" });
    stage.append(this.canvas, tools);
    const masks = element("div", { className: "viewer-switches", role: "group" });
    masks.setAttribute("aria-label", "Masks");
    const all = element("button", { type: "button", text: "All masks", className: "small" });
    all.addEventListener("click", () => this.#setAll(true));
    const none = element("button", { type: "button", text: "No masks", className: "small" });
    none.addEventListener("click", () => this.#setAll(false));
    const labelsLabel = element("label", { className: "check" });
    labelsLabel.append(this.labels, " Labels");
    const coloursLabel = element("label", { className: "check" });
    coloursLabel.append(this.ownColours, " A colour each");
    masks.append(all, none, labelsLabel, coloursLabel);
    if (this.linkOf) {
      masks.append(this.#copyButton("Copy link", () => this.linkOf(this.item)));
    }
    const scoreLabel = element("label", { text: "Score at least", className: "viewer-score" });
    scoreLabel.htmlFor = "viewer-score";
    scoreLabel.append(this.score, this.scoreText);
    const hint = element("p", {
      className: "quiet viewer-hint",
      text: "Keys: ← → other image (zoomed: move) · + − zoom · 0 whole image · m all masks on or off · Esc close",
    });
    const panel = element("div", { className: "viewer-panel" });
    panel.append(
      this.note, this.uri, this.facts, masks, scoreLabel, this.count, this.list, this.empty, this.leftOut, hint, this.live,
    );
    const body = element("div", { className: "viewer-body" });
    body.append(stage, panel);
    this.dialog.setAttribute("aria-labelledby", "viewer-title");
    this.dialog.replaceChildren(head, body);
  }

  #row(instance, index, problem) {
    const item = element("li");
    const label = element("label");
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      this.view.toggle(index, box.checked);
      this.live.textContent = `${instance.category} ${index + 1}: mask ${box.checked ? "shown" : "hidden"}`;
    });
    box.addEventListener("focus", () => this.view.highlight(index));
    box.addEventListener("blur", () => this.view.highlight(-1));
    item.addEventListener("pointerenter", () => this.view.highlight(index));
    item.addEventListener("pointerleave", () => this.view.highlight(-1));
    const swatch = element("span", { className: "swatch" });
    const name = element("span", { className: "viewer-category", text: instance.category });
    const score = element("span", {
      className: "viewer-number",
      text: instance.score == null ? "" : instance.score.toFixed(2),
    });
    label.append(box, swatch, name, score);
    item.append(label);
    if (problem) item.append(element("span", { className: "viewer-problem", text: problem }));
    if (instance.mask && !problem && this.item.areMasksWhole && navigator.clipboard) {
      const copy = this.#copyButton("Copy mask", () => JSON.stringify(instance.mask));
      copy.setAttribute("aria-label", `Copy the mask of ${instance.category} ${index + 1} (COCO run lengths)`);
      item.append(copy);
    }
    return { item, box, instance, swatch };
  }

  #paintSwatches() {
    this.rows.forEach((row, index) => (row.swatch.style.background = this.view.colourOf(index)));
  }

  #copyButton(text, content) {
    const made = element("button", { type: "button", text, className: "small" });
    made.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(content());
        this.live.textContent = "Copied.";
        made.textContent = "Copied";
      } catch (error) {
        this.live.textContent = `Not copied: ${error.message}`;
        made.textContent = "Not copied";
      }
      setTimeout(() => (made.textContent = text), 1500);
    });
    return made;
  }

  #setAll(isShown) {
    this.rows.forEach((row, index) => {
      if (row.item.hidden) return;
      row.box.checked = isShown;
      this.view.toggle(index, isShown);
    });
    this.live.textContent = isShown ? "All masks shown." : "No masks shown.";
  }

  #applyScore() {
    this.scoreText.textContent = this.minScore.toFixed(2);
    this.rows.forEach((row, index) => {
      const isIn = row.instance.score == null || row.instance.score >= this.minScore;
      row.item.hidden = !isIn;
      this.view.toggle(index, isIn && row.box.checked);
    });
    const count = this.rows.filter((row) => !row.item.hidden).length;
    this.count.textContent = `${count} of ${this.rows.length} instances`;
    this.count.hidden = count === this.rows.length;
  }

  #announceCount() {
    this.live.textContent = this.count.textContent;
  }

  #pick(index) {
    this.rows[index].box.focus();
    this.rows[index].item.scrollIntoView({ block: "nearest" });
    this.view.highlight(index);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // Sliders have arrows of their own.
    const isSlider = event.target instanceof HTMLInputElement && event.target.type === "range";
    if (event.key === "m") this.#setAll(!this.rows.some((row) => !row.item.hidden && row.box.checked));
    else if (!isSlider && this.view.key(event.key)) event.preventDefault();
    else if (!isSlider && event.key === "ArrowLeft") this.onStep(-1);
    else if (!isSlider && event.key === "ArrowRight") this.onStep(1);
    else return;
    event.preventDefault();
  }
}

/** One sentence on an image for those who do not see it. */
export function describe(item) {
  const counts = new Map();
  for (const { category } of item.instances) counts.set(category, (counts.get(category) || 0) + 1);
  const parts = [...counts].map(([category, count]) => `${count} ${category}`);
  const what = parts.length ? parts.join(", ") : "no instances";
  return `${item.name}: ${item.image ? what : item.note || "no picture"}`;
}

/** Make an element; `text` is its text content, other keys are its properties. */
export function element(name, { text, role, ...properties } = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  if (role) made.setAttribute("role", role);
  return made;
}
