// The gallery: cards of images, filtered by category, score, status and name; arrow keys move between cards.

/**
 * Make a list of cards filter and answer to keys.
 *
 * A card is a list item with data-status, data-name and data-scores (JSON: {category: best score of its instances}),
 * and one <button> that opens it. The form has fields named category, score, status and name; each may be missing, and
 * "" in a choice means all.
 */
export class Gallery {
  /**
   * @param {object} parts
   * @param {HTMLElement} parts.list of cards. @param {HTMLFormElement} parts.form with the filters.
   * @param {HTMLElement} parts.status gets "12 of 16 images"; a live region.
   * @param {HTMLElement} [parts.empty] is shown where no card matches.
   * @param {(card: HTMLElement) => void} parts.onOpen
   */
  constructor({ list, form, status, empty = null, onOpen }) {
    Object.assign(this, { list, form, status, empty });
    list.addEventListener("click", (event) => {
      const card = event.target.closest("li");
      if (card && event.target.closest("button")) {
        this.focus(card);
        onOpen(card);
      }
    });
    list.addEventListener("keydown", (event) => this.#key(event));
    form.addEventListener("input", () => this.refresh());
    form.addEventListener("reset", () => setTimeout(() => this.refresh()));
    form.addEventListener("submit", (event) => event.preventDefault());
    this.refresh();
  }

  /** All cards, in the order of the page. */
  get cards() {
    return [...this.list.children];
  }

  /** The cards that match the filters. */
  get shown() {
    return this.cards.filter((card) => !card.hidden);
  }

  /** The card that is `step` places after this one among those shown; null at an end. */
  neighbour(card, step) {
    const shown = this.shown;
    return shown[shown.indexOf(card) + step] || null;
  }

  /** The least score that the filter asks for. */
  get minScore() {
    return Number(this.#value("score") || 0);
  }

  /** Apply the filters; to be called also when the cards have changed. */
  refresh() {
    const wanted = Object.fromEntries(["category", "status", "name"].map((name) => [name, this.#value(name)]));
    for (const output of this.form.querySelectorAll("output")) output.textContent = this.minScore.toFixed(2);
    for (const card of this.cards) card.hidden = !this.#matches(card, wanted);
    const [shown, all] = [this.shown.length, this.cards.length];
    this.status.textContent = shown === all ? `${all} images` : `${shown} of ${all} images`;
    if (this.empty) this.empty.hidden = shown > 0;
    // One stop of the tab key for the whole list; arrows go on from there.
    const current = this.shown.find((card) => this.#button(card).tabIndex === 0) || this.shown[0];
    for (const card of this.cards) this.#button(card).tabIndex = card === current ? 0 : -1;
  }

  /** Make a card the one that the tab key reaches, and focus it. */
  focus(card) {
    for (const each of this.cards) this.#button(each).tabIndex = each === card ? 0 : -1;
    this.#button(card).focus();
  }

  #matches(card, { category, status, name }) {
    if (status && card.dataset.status !== status) return false;
    if (name && !card.dataset.name.toLowerCase().includes(name.toLowerCase())) return false;
    if (!category && this.minScore === 0) return true;
    const scores = JSON.parse(card.dataset.scores || "{}");
    const best = category ? scores[category] : Math.max(-1, ...Object.values(scores));
    return best !== undefined && best >= this.minScore;
  }

  #button(card) {
    return card.querySelector("button");
  }

  #value(name) {
    const field = this.form.elements.namedItem(name);
    return field ? field.value : "";
  }

  #key(event) {
    const card = event.target.closest("li");
    if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
    const shown = this.shown;
    const place = shown.indexOf(card);
    const inRow = shown.filter((each) => each.offsetTop === shown[0].offsetTop).length;
    const to = {
      ArrowLeft: place - 1,
      ArrowRight: place + 1,
      ArrowUp: place - inRow,
      ArrowDown: place + inRow,
      Home: 0,
      End: shown.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (shown[to]) this.focus(shown[to]);
  }
}
