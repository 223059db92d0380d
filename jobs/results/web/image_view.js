// An image with its instances on a canvas: zoom, pan, one mask at a time on or off.

import { pathOf } from "./masks.js";

const LARGEST_SCALE = 32;
const WHEEL_STEP = 1.0015;
const KEY_STEP = 1.25;
const KEY_PAN_PX = 48;

/**
 * Draws into a <canvas> that fills its parent.
 *
 * An image is {width, height, image, instances}: pixels of the original; a URL or null; and a list of
 * {category, score, box: [x, y, width, height], mask: {size, counts} or null, colour: "#rrggbb" of the category,
 * ownColour: "#rrggbb" of the instance}.
 */
export class ImageView {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{onPick?: (index: number) => void}} options onPick: an instance was clicked.
   */
  constructor(canvas, { onPick = () => {} } = {}) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onPick = onPick;
    this.shown = [];
    this.highlighted = -1;
    this.hasLabels = true;
    this.hasOwnColours = false;
    this.item = null;
    this.picture = null;
    this.paths = [];
    this.pointers = new Map();
    this.isFitted = true;
    this.transform = { scale: 1, x: 0, y: 0 };
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("dblclick", (event) => this.#zoomAt(event, 2));
  }

  /**
   * Show an image.
   * @returns {string[]} by instance: why its mask cannot be drawn, or "".
   */
  show(item) {
    this.item = item;
    this.highlighted = -1;
    this.shown = item.instances.map(() => true);
    this.paths = [];
    const problems = item.instances.map((instance, index) => {
      if (!instance.mask) return instance.problem || "";
      try {
        this.paths[index] = pathOf(instance.mask, item.width, item.height);
        return "";
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        return error.message;
      }
    });
    this.picture = null;
    if (item.image) {
      const picture = new Image();
      picture.addEventListener("load", () => {
        if (this.item !== item) return;
        this.picture = picture;
        this.canvas.dataset.loaded = "true";
        this.redraw();
      });
      delete this.canvas.dataset.loaded;
      picture.src = item.image;
    }
    this.resize();
    this.fit();
    return problems;
  }

  /** Show or hide the mask of one instance. */
  toggle(index, isShown) {
    this.shown[index] = isShown;
    this.redraw();
  }

  /** Draw one instance stronger than the others; -1 for none. */
  highlight(index) {
    if (index === this.highlighted) return;
    this.highlighted = index;
    this.redraw();
  }

  /** The colour in which an instance is drawn. */
  colourOf(index) {
    const { colour, ownColour } = this.item.instances[index];
    return (this.hasOwnColours && ownColour) || colour;
  }

  /** Show the whole image. */
  fit() {
    if (!this.item) return;
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min(clientWidth / this.item.width, clientHeight / this.item.height) || 1;
    this.isFitted = true;
    this.transform = {
      scale,
      x: (clientWidth - this.item.width * scale) / 2,
      y: (clientHeight - this.item.height * scale) / 2,
    };
    this.redraw();
  }

  /** Zoom by a factor around a point of the canvas, by default its middle. */
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.item) return;
    const { scale } = this.transform;
    const whole = Math.min(this.canvas.clientWidth / this.item.width, this.canvas.clientHeight / this.item.height);
    const next = Math.min(Math.max(scale * factor, whole), Math.max(LARGEST_SCALE, whole));
    if (next <= whole) return this.fit();
    this.isFitted = false;
    this.transform.x = x - ((x - this.transform.x) * next) / scale;
    this.transform.y = y - ((y - this.transform.y) * next) / scale;
    this.transform.scale = next;
    this.#keepInside();
  }

  /** Move the image by CSS pixels. */
  pan(byX, byY) {
    this.transform.x += byX;
    this.transform.y += byY;
    this.#keepInside();
  }

  /**
   * Zoom or pan by a key.
   * @returns {boolean} whether the key means something here: arrows only where the image is zoomed.
   */
  key(key) {
    const pans = {
      ArrowLeft: [KEY_PAN_PX, 0],
      ArrowRight: [-KEY_PAN_PX, 0],
      ArrowUp: [0, KEY_PAN_PX],
      ArrowDown: [0, -KEY_PAN_PX],
    };
    if (key === "+" || key === "=") this.zoom(KEY_STEP);
    else if (key === "-") this.zoom(1 / KEY_STEP);
    else if (key === "0") this.fit();
    else if (key in pans && !this.isFitted) this.pan(...pans[key]);
    else return false;
    return true;
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.max(1, Math.round(clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    if (this.isFitted) this.fit();
    else this.#keepInside();
  }

  redraw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.#draw();
    });
  }

  #keepInside() {
    const { clientWidth, clientHeight } = this.canvas;
    const { scale } = this.transform;
    const inside = (offset, size, room) =>
      size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, offset));
    this.transform.x = inside(this.transform.x, this.item.width * scale, clientWidth);
    this.transform.y = inside(this.transform.y, this.item.height * scale, clientHeight);
    this.redraw();
  }

  #draw() {
    if (!this.item) return;
    const ratio = window.devicePixelRatio || 1;
    const { context, item } = this;
    const { scale, x, y } = this.transform;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
    context.imageSmoothingEnabled = scale < 4;
    if (this.picture) {
      context.drawImage(this.picture, 0, 0, item.width, item.height);
    } else {
      context.fillStyle = "#8a8a8a";
      context.fillRect(0, 0, item.width, item.height);
    }
    // Masks on another picture would be wrong: without the image there are none.
    if (!item.image) return this.#drawNote(ratio);
    const order = item.instances
      .map((_, index) => index)
      .filter((index) => this.shown[index])
      .sort((a, b) => area(item.instances[b]) - area(item.instances[a]));
    for (const index of order) this.#drawInstance(index, scale);
    if (this.hasLabels) this.#drawLabels(order, ratio);
  }

  /** Why there is no picture, in the middle of what is shown of the grey area. */
  #drawNote(ratio) {
    const { context, item } = this;
    const { scale, x, y } = this.transform;
    const { clientWidth, clientHeight } = this.canvas;
    const [left, right] = [Math.max(0, x), Math.min(clientWidth, x + item.width * scale)];
    const [top, bottom] = [Math.max(0, y), Math.min(clientHeight, y + item.height * scale)];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "600 14px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = "#111111";
    const lines = [""];
    for (const word of (item.note || "no picture").split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (context.measureText(longer).width > right - left - 16 && lines.at(-1)) lines.push(word);
      else lines[lines.length - 1] = longer;
    }
    const first = (top + bottom) / 2 - (lines.length - 1) * 10;
    lines.forEach((line, place) => context.fillText(line, (left + right) / 2, first + place * 20, right - left));
    context.textAlign = "start";
  }

  #drawInstance(index, scale) {
    const { context } = this;
    const { box } = this.item.instances[index];
    const colour = this.colourOf(index);
    const isHighlighted = index === this.highlighted;
    let path = this.paths[index];
    if (path) {
      context.globalAlpha = isHighlighted ? 0.6 : 0.38;
      context.fillStyle = colour;
      context.fill(path, "evenodd");
    } else {
      path = new Path2D();
      path.rect(...box);
    }
    context.globalAlpha = 1;
    context.lineJoin = "round";
    context.strokeStyle = "rgba(0, 0, 0, 0.55)";
    context.lineWidth = (isHighlighted ? 5 : 3.2) / scale;
    context.stroke(path);
    context.strokeStyle = colour;
    context.lineWidth = (isHighlighted ? 3 : 1.8) / scale;
    context.stroke(path);
  }

  /** Labels of constant size; where two would overlap, the one with the higher score is written. */
  #drawLabels(order, ratio) {
    const { context, item } = this;
    const { scale, x, y } = this.transform;
    const { clientWidth, clientHeight } = this.canvas;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const placed = [];
    const ranked = [...order].sort(
      (a, b) => (b === this.highlighted) - (a === this.highlighted) || item.instances[b].score - item.instances[a].score,
    );
    for (const index of ranked) {
      const { category, score, box } = item.instances[index];
      const colour = this.colourOf(index);
      const text = score == null ? category : `${category} ${score.toFixed(2)}`;
      const [width, height] = [context.measureText(text).width + 8, 18];
      const left = Math.max(0, Math.min(x + box[0] * scale, clientWidth - width));
      const top = Math.max(0, Math.min(y + box[1] * scale - height, clientHeight - height));
      const isOff =
        x + (box[0] + box[2]) * scale < 0 || y + (box[1] + box[3]) * scale < 0 ||
        x + box[0] * scale > clientWidth || y + box[1] * scale > clientHeight;
      const overlaps = placed.some(
        (other) =>
          left < other.left + other.width && other.left < left + width &&
          top < other.top + height && other.top < top + height,
      );
      if (isOff || overlaps) continue;
      placed.push({ left, top, width });
      context.fillStyle = colour;
      context.fillRect(left, top, width, height);
      context.fillStyle = textColour(colour);
      context.fillText(text, left + 4, top + height / 2 + 1);
    }
  }

  #place(event) {
    const frame = this.canvas.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  }

  #zoomAt(event, factor) {
    const { x, y } = this.#place(event);
    this.zoom(factor, x, y);
  }

  #wheel(event) {
    event.preventDefault();
    this.#zoomAt(event, WHEEL_STEP ** -event.deltaY);
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.#place(event));
    this.moved = 0;
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    const now = this.#place(event);
    if (!before) return this.highlight(this.instanceAt(now.x, now.y));
    this.moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    if (others.length === 1) {
      const distance = (one, other) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
      this.zoom(distance(now, others[0]) / distance(before, others[0]), others[0].x, others[0].y);
    } else if (!this.isFitted) {
      this.pan(now.x - before.x, now.y - before.y);
    }
    this.pointers.set(event.pointerId, now);
  }

  #up(event) {
    const place = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (event.type === "pointerup" && place && this.moved < 5) {
      const index = this.instanceAt(place.x, place.y);
      if (index >= 0) this.onPick(index);
    }
  }

  /** The smallest shown instance at a place of the canvas in CSS pixels; -1 where there is none. */
  instanceAt(x, y) {
    if (!this.item || !this.item.image) return -1;
    const imageX = (x - this.transform.x) / this.transform.scale;
    const imageY = (y - this.transform.y) / this.transform.scale;
    let best = -1;
    this.item.instances.forEach((instance, index) => {
      const [left, top, width, height] = instance.box;
      const isInBox = imageX >= left && imageY >= top && imageX < left + width && imageY < top + height;
      if (!this.shown[index] || !isInBox) return;
      if (this.paths[index]) {
        this.context.setTransform(1, 0, 0, 1, 0, 0);
        if (!this.context.isPointInPath(this.paths[index], imageX, imageY, "evenodd")) return;
      }
      if (best < 0 || area(instance) < area(this.item.instances[best])) best = index;
    });
    return best;
  }
}

function area({ box }) {
  return box[2] * box[3];
}

/** Black or white, the one with more contrast (WCAG 2.1, "contrast ratio"). */
export function textColour(colour) {
  const channel = (place) => {
    const value = parseInt(colour.slice(place, place + 2), 16) / 255;
    return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const luminance = 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
  return (luminance + 0.05) ** 2 > 1.05 * 0.05 ? "#000000" : "#ffffff";
}
