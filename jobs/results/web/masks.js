// COCO masks in the browser: run lengths decoded, outlines traced as vector paths that stay sharp at any zoom.

/**
 * Decode COCO's compressed run lengths.
 *
 * Each number is written in groups of five bits, the lowest first, one group per character (48 is added to it); bit 5
 * says that another group follows, bit 4 of the last group is the sign. From the fourth number on, each is the
 * difference to the number two places before it.
 *
 * @param {string} counts
 * @returns {number[]} run lengths, of background and mask in turn, the first of background.
 * @throws {RangeError} the text is no such code.
 */
export function decodeCounts(counts) {
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let value = 0;
    let shift = 0;
    let group = 0;
    do {
      if (place >= counts.length || shift > 30) throw new RangeError("the mask's code breaks off");
      group = counts.charCodeAt(place) - 48;
      if (group < 0 || group > 63) throw new RangeError("the mask's code has a character of another kind");
      value |= (group & 31) << shift;
      shift += 5;
      place += 1;
    } while (group & 32);
    if (group & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) throw new RangeError("the mask's code has a negative run");
    runs.push(value);
  }
  return runs;
}

/**
 * Decode a mask into the pixels of its bounding box.
 *
 * @param {{size: number[], counts: string}} mask size is [height, width]
 * @returns {{x: number, y: number, width: number, height: number, pixels: Uint8Array, area: number}} pixels by rows
 * @throws {RangeError} the mask is damaged: its runs do not add up to its size.
 */
export function decodeMask(mask) {
  const [height, width] = mask.size;
  const runs = decodeCounts(mask.counts);
  const total = runs.reduce((sum, run) => sum + run, 0);
  if (!(height > 0 && width > 0) || total !== height * width) {
    throw new RangeError("the mask's runs do not add up to its size");
  }
  // Pieces of columns: [column, first row, end row].
  const pieces = [];
  let [left, top, right, bottom, area, start] = [width, height, 0, 0, 0, 0];
  for (let index = 0; index < runs.length; index += 1) {
    const end = start + runs[index];
    for (let at = start; index % 2 && at < end; ) {
      const column = Math.floor(at / height);
      const first = at - column * height;
      const last = Math.min(height, first + end - at);
      pieces.push([column, first, last]);
      left = Math.min(left, column);
      right = Math.max(right, column + 1);
      top = Math.min(top, first);
      bottom = Math.max(bottom, last);
      area += last - first;
      at += last - first;
    }
    start = end;
  }
  if (area === 0) return { x: 0, y: 0, width: 0, height: 0, pixels: new Uint8Array(0), area };
  const box = { x: left, y: top, width: right - left, height: bottom - top, area };
  const pixels = new Uint8Array(box.width * box.height);
  for (const [column, first, last] of pieces) {
    for (let row = first; row < last; row += 1) pixels[(row - top) * box.width + column - left] = 1;
  }
  return { ...box, pixels };
}

/**
 * Trace the outlines of a mask along the edges of its pixels, holes included.
 *
 * @param {ReturnType<typeof decodeMask>} decoded
 * @returns {number[][]} closed rings: x0, y0, x1, y1, … in pixels of the mask; to be filled by the even-odd rule.
 */
export function traceOutlines({ x, y, width, height, pixels }) {
  const at = (column, row) =>
    column >= 0 && row >= 0 && column < width && row < height ? pixels[row * width + column] : 0;
  // Directed edges with the mask on the right, by the corner where they start. At a corner where two pixels touch,
  // two edges start.
  const stride = width + 1;
  const edges = new Map();
  const add = (fromX, fromY, toX, toY) => {
    const key = fromY * stride + fromX;
    const value = toY * stride + toX;
    if (edges.has(key)) edges.get(key).push(value);
    else edges.set(key, [value]);
  };
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      if (!pixels[row * width + column]) continue;
      if (!at(column, row - 1)) add(column, row, column + 1, row);
      if (!at(column + 1, row)) add(column + 1, row, column + 1, row + 1);
      if (!at(column, row + 1)) add(column + 1, row + 1, column, row + 1);
      if (!at(column - 1, row)) add(column, row + 1, column, row);
    }
  }
  const rings = [];
  while (edges.size) {
    const [first] = edges.keys();
    const ring = [];
    let corner = first;
    let step = 0;
    do {
      const ends = edges.get(corner);
      const next = ends.pop();
      if (!ends.length) edges.delete(corner);
      // A corner counts only where the direction changes.
      if (next - corner !== step) ring.push(x + (corner % stride), y + Math.floor(corner / stride));
      step = next - corner;
      corner = next;
    } while (corner !== first);
    rings.push(ring);
  }
  return rings;
}

/**
 * The outlines of a mask as a path.
 *
 * @param {{size: number[], counts: string}} mask
 * @param {number} width, height of the image in whose pixels the path is; the mask may be smaller than the image.
 * @returns {Path2D} to be filled by the even-odd rule.
 * @throws {RangeError} the mask is damaged.
 */
export function pathOf(mask, width, height) {
  const [scaleX, scaleY] = [width / mask.size[1], height / mask.size[0]];
  const path = new Path2D();
  for (const ring of traceOutlines(decodeMask(mask))) {
    path.moveTo(ring[0] * scaleX, ring[1] * scaleY);
    for (let place = 2; place < ring.length; place += 2) path.lineTo(ring[place] * scaleX, ring[place + 1] * scaleY);
    path.closePath();
  }
  return path;
}
