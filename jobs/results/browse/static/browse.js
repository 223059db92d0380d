// The pages of `htc browse`. Everything but the viewer also works without scripts.

import { ImageView } from "./image_view.js";
import { Viewer, element } from "./viewer.js";

const said = document.getElementById("said");
const DRAWN_SCORE = 0.3;

function say(sentence) {
  said.textContent = sentence;
}

/** The address of what is seen, as others may open it. */
function copyLinks() {
  for (const button of document.querySelectorAll("[data-copy-link]")) {
    const text = button.textContent;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        button.textContent = "Copied";
      } catch (error) {
        button.textContent = "Not copied";
        say(`The link was not copied: ${error.message}`);
      }
      setTimeout(() => (button.textContent = text), 1500);
    });
  }
}

/** Addresses without fields that say nothing. */
function tidyForms() {
  for (const form of document.querySelectorAll('form[method="get"]')) {
    form.addEventListener("formdata", (event) => {
      for (const [name, value] of [...event.formData.entries()]) if (value === "") event.formData.delete(name);
    });
    if (form.hasAttribute("data-submit")) {
      for (const choice of form.querySelectorAll("select")) {
        choice.addEventListener("change", () => form.requestSubmit());
      }
    }
  }
}

async function fetchText(address, signal) {
  const answer = await fetch(address, { signal, headers: { Accept: "text/html" } });
  const text = await answer.text();
  if (answer.ok) return text;
  const page = new DOMParser().parseFromString(text, "text/html");
  throw new Error(page.querySelector(".notice")?.textContent.trim() || `The server answered ${answer.status}.`);
}

function gallery() {
  const form = document.getElementById("filters");
  if (!form) return;
  const fold = form.querySelector("details");
  if (matchMedia("(max-width: 760px)").matches) fold.open = false;
  const drawn = document.getElementById("masks");
  drawn.addEventListener("change", () => {
    document.getElementById("no-masks").disabled = drawn.checked;
    form.requestSubmit();
  });
  for (const name of ["run", "order"]) {
    form.elements[name].addEventListener("change", () => form.requestSubmit());
  }
  facets(form);
  const list = document.querySelector("[data-cards]");
  list?.addEventListener("keydown", (event) => moveBetween(list, event));
}

async function facets(form) {
  const place = document.getElementById("facets");
  try {
    const text = await fetchText(place.dataset.address);
    place.innerHTML = text;
    document.getElementById("images").textContent = place.querySelector("[data-count]").dataset.count;
    place.addEventListener("change", () => form.requestSubmit());
  } catch (error) {
    if (!place.isConnected) return;
    place.querySelector("[data-waiting]").textContent = `Not counted: ${error.message}`;
  }
}

/** Arrow keys go to the neighbouring card, Home and End to the first and last. */
function moveBetween(list, event) {
  const cards = [...list.querySelectorAll("a")];
  const here = cards.indexOf(document.activeElement);
  if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const inRow = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -inRow, ArrowDown: inRow };
  const there = event.key === "Home" ? 0 : event.key === "End" ? cards.length - 1 : here + (steps[event.key] ?? NaN);
  if (!cards[there]) return;
  event.preventDefault();
  cards[there].focus();
}

async function fetchJson(address) {
  const answer = await fetch(address);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.problem || `The server answered ${answer.status}.`);
  return value;
}

/** One image. The score and the masks that are off are in the address. */
async function imagePage() {
  const page = document.querySelector(".image-page");
  if (!page) return;
  const dialog = page.querySelector("dialog");
  const viewer = new Viewer(dialog, { onStep: (step) => stepTo(page, step), linkOf: () => location.href });
  dialog.addEventListener("close", () => location.assign(page.dataset.back));
  document.addEventListener("keydown", (event) => event.key === "Escape" && location.assign(page.dataset.back));
  let item;
  try {
    item = await fetchJson(page.dataset.image);
  } catch (error) {
    dialog.close = () => {};
    page.replaceChildren(element("p", { className: "notice is-bad", text: error.message }));
    return;
  }
  const state = new URLSearchParams(location.search);
  const best = Math.max(0, ...item.instances.map((instance) => instance.score ?? 1));
  const preset = page.dataset.minScore === "" ? (best >= DRAWN_SCORE ? DRAWN_SCORE : 0) : Number(page.dataset.minScore);
  viewer.show(item, { minScore: state.has("from") ? Number(state.get("from")) || 0 : preset });
  for (const place of (state.get("off") || "").split(".").filter(Boolean)) {
    const row = viewer.rows[Number(place)];
    if (!row) continue;
    row.box.checked = false;
    row.box.dispatchEvent(new Event("change"));
  }
  const wanted = item.instances.findIndex((instance) => String(instance.instance) === page.dataset.instance);
  if (wanted >= 0) viewer.rows[wanted].box.focus();
  const keep = () => setTimeout(() => keepState(viewer, preset));
  for (const name of ["change", "click", "keyup"]) dialog.addEventListener(name, keep);
}

function keepState(viewer, preset) {
  const address = new URL(location.href);
  const off = viewer.rows.flatMap((row, place) => (row.box.checked ? [] : [place])).join(".");
  const set = (name, value) => (value ? address.searchParams.set(name, value) : address.searchParams.delete(name));
  set("from", viewer.minScore === preset ? "" : viewer.minScore.toFixed(2));
  set("off", off);
  if (address.href !== location.href) history.replaceState(null, "", address);
}

async function stepTo(page, step) {
  const address = new URL(page.dataset.step, location.href);
  address.searchParams.delete("after");
  address.searchParams.delete("before");
  address.searchParams.set(step > 0 ? "after" : "before", page.dataset.place);
  try {
    const { address: next } = await fetchJson(address);
    if (next) location.assign(next);
    else say(step > 0 ? "This is the last image." : "This is the first image.");
  } catch (error) {
    say(error.message);
  }
}

function sqlPage() {
  const form = document.getElementById("sql-form");
  if (!form) return;
  const place = document.getElementById("answer");
  const state = document.querySelector("[data-state]");
  const cancel = form.querySelector("[data-cancel]");
  const text = form.elements.sql;
  let running = null;
  const ask = async () => {
    running?.abort();
    const own = (running = new AbortController());
    const query = new URLSearchParams({ sql: text.value });
    history.replaceState(null, "", `/sql?${query}`);
    cancel.hidden = false;
    state.textContent = "Asking …";
    const began = performance.now();
    try {
      const answer = await fetchText(`/sql/answer?${query}`, own.signal);
      place.innerHTML = answer;
      state.textContent = `Answered in ${((performance.now() - began) / 1000).toFixed(2)} s.`;
    } catch (error) {
      // Another question took its place.
      if (running !== own) return;
      state.textContent = own.signal.aborted ? "Cancelled." : error.message;
    }
    if (running === own) cancel.hidden = true;
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      ask();
    }
  });
  cancel.addEventListener("click", () => running?.abort());
  if (text.value.trim() && !place.textContent.trim()) ask();
}

function comparePage() {
  const place = document.getElementById("whole");
  if (!place) return;
  const [start, cancel, state] = ["[data-whole]", "[data-cancel]", "[data-state]"].map((each) => place.querySelector(each));
  let running = null;
  start.addEventListener("click", async () => {
    running = new AbortController();
    start.disabled = true;
    cancel.hidden = false;
    state.textContent = "Comparing …";
    try {
      place.innerHTML = await fetchText(place.dataset.address, running.signal);
      say("Compared.");
    } catch (error) {
      state.textContent = running.signal.aborted ? "Cancelled." : error.message;
      start.disabled = false;
      cancel.hidden = true;
    }
  });
  cancel.addEventListener("click", () => running?.abort());
}

const WORDS = {
  moved: "moved",
  score_changed: "score changed",
  class_changed: "class changed",
  appeared: "appeared",
  vanished: "vanished",
};

async function pairPage() {
  const page = document.querySelector(".pair-page");
  if (!page) return;
  const sections = [...page.querySelectorAll(".side-view")];
  const views = sections.map((section) => section.dataset.image && new ImageView(section.querySelector("canvas")));
  const items = await Promise.all(
    sections.map(async (section, side) => {
      if (!views[side]) return null;
      const note = section.querySelector("[data-note]");
      try {
        const item = await fetchJson(section.dataset.image);
        const count = item.instances.length;
        note.textContent = item.note || `${count} ${count === 1 ? "instance" : "instances"}`;
        views[side].show(item);
        return item;
      } catch (error) {
        note.textContent = error.message;
        return null;
      }
    }),
  );
  if (views.every(Boolean)) views.forEach((view, side) => follow(view, views[1 - side]));
  const changes = page.dataset.changes ? await showChanges(page.dataset.changes, views, items) : [];
  const onlyChanged = document.querySelector("[data-only-changed]");
  const labels = document.querySelector("[data-labels]");
  const apply = () =>
    views.forEach((view, side) => {
      const item = items[side];
      if (!item) return;
      const changed = new Set(changes.map((change) => (side ? change.instance_b : change.instance_a)));
      view.hasLabels = labels.checked;
      item.instances.forEach((instance, place) => {
        const isShown = onlyChanged.checked ? changed.has(instance.instance) : (instance.score ?? 1) >= DRAWN_SCORE;
        view.toggle(place, isShown);
      });
    });
  if (!changes.length) onlyChanged.checked = false;
  for (const box of [onlyChanged, labels]) box.addEventListener("change", apply);
  apply();
}

async function showChanges(address, views, items) {
  const list = document.getElementById("changes");
  try {
    const { changes, note, problem } = await fetchJson(address);
    if (problem) throw new Error(problem);
    list.replaceChildren(changes.length ? changesTable(changes, views, items) : element("p", { text: note }));
    return changes;
  } catch (error) {
    list.replaceChildren(element("p", { className: "notice is-warn", text: error.message }));
    return [];
  }
}

/** Zoom and move another picture as this one. */
function follow(view, other) {
  const copy = () => {
    if (!view.item || !other.item) return;
    other.transform = { ...view.transform };
    other.isFitted = view.isFitted;
    other.redraw();
  };
  for (const name of ["wheel", "pointermove", "dblclick"]) view.canvas.addEventListener(name, copy);
  view.canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !view.key(event.key)) return;
    event.preventDefault();
    copy();
  });
}

function changesTable(changes, views, items) {
  const table = element("table");
  const head = element("tr");
  head.append(...["change", "before", "after", "mask IoU"].map((text) => element("th", { text, scope: "col" })));
  const body = element("tbody");
  const side = (category, score) => (category == null ? "–" : `${category} ${score.toFixed(2)}`);
  for (const change of changes) {
    const row = element("tr");
    const kind = element("td");
    const button = element("button", { type: "button", className: "small", text: WORDS[change.kind] || change.kind });
    kind.append(button);
    row.append(
      kind,
      element("td", { text: side(change.category_a, change.score_a) }),
      element("td", { text: side(change.category_b, change.score_b) }),
      element("td", { text: change.iou == null ? "–" : change.iou.toFixed(2) }),
    );
    const mark = (isOn) =>
      views.forEach((view, place) => {
        if (!view) return;
        const wanted = place ? change.instance_b : change.instance_a;
        const at = items[place]?.instances.findIndex((instance) => instance.instance === wanted) ?? -1;
        view.highlight(isOn && wanted != null ? at : -1);
      });
    for (const name of ["pointerenter", "focusin"]) row.addEventListener(name, () => mark(true));
    for (const name of ["pointerleave", "focusout"]) row.addEventListener(name, () => mark(false));
    body.append(row);
  }
  const top = element("thead");
  top.append(head);
  table.append(top, body);
  return table;
}

copyLinks();
tidyForms();
gallery();
imagePage();
sqlPage();
comparePage();
pairPage();
