// The transcript: a list of any length of which only the visible lines exist.
//
// Lines have one height, so that the place of each is known. It follows the newest (or the current)
// line until it is scrolled, and goes on when "Follow" is pressed.

import { el, clock, wall } from "./api.js";

const MARGIN = 6; // lines beyond what is visible

export class Transcript {
  /** `onPlace` is called with a line that was chosen. */
  constructor(onPlace) {
    this.onPlace = onPlace;
    this.all = [];
    this.shown = [];
    this.query = "";
    this.kind = ""; // of the lines that are shown; empty for all
    this.current = -1; // index in shown
    this.chosen = -1;
    this.following = true;
    this.live = false;
    this.fromEnd = false; // whether the newest lines are shown first
    this.space = el("div");
    this.box = el("div", {
      class: "lines", id: "transcript", tabindex: 0, role: "listbox", "aria-label": "Transcript",
      onscroll: () => this.scrolled(), onkeydown: (event) => this.pressed(event),
    }, this.space);
    this.search = el("input", {
      type: "search", id: "search", placeholder: "Search the transcript", "aria-label": "Search the transcript",
      oninput: () => this.filter(),
    });
    this.pick = el("select", {
      class: "hidden", id: "show", "aria-label": "What the transcript shows",
      onchange: () => { this.kind = this.pick.value; this.filter(); },
    }, el("option", { value: "" }, "Seen and said"), el("option", { value: "scene" }, "Seen"), el("option", { value: "note" }, "Said"));
    this.count = el("span", { class: "muted", id: "count", "aria-live": "polite" });
    this.follow = el("button", { class: "hidden", id: "follow", onclick: () => this.goOn() }, "Follow ↓");
    this.node = el("div", { class: "side" },
      el("div", { class: "row" }, this.search, this.pick, this.count, this.follow), this.box);
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.box);
    this.nodes = new Map();
  }

  get height() {
    if (!this.rowHeight) {
      const probe = el("div", { class: "line" });
      this.space.append(probe);
      this.rowHeight = probe.getBoundingClientRect().height || 54;
      probe.remove();
    }
    return this.rowHeight;
  }

  /** Show these lines, in order; `added` of them are new at the beginning, and keep their place. */
  set(lines, added = 0) {
    const top = this.box.scrollTop;
    const isFirst = !this.all.length && lines.length > 0;
    this.all = lines;
    this.pick.classList.toggle("hidden", !lines.some((line) => line.kind === "note"));
    this.filter(false);
    if ((this.following && this.live) || (isFirst && this.fromEnd)) this.toEnd();
    else if (!isFirst && added && top && !this.query && !this.kind) this.quietly(top + added * this.height);
    this.draw();
  }

  filter(reset = true) {
    this.query = this.search.value.trim().toLowerCase();
    const chosen = this.shown[this.chosen], current = this.shown[this.current];
    this.shown = this.query || this.kind
      ? this.all.filter((line) => (!this.kind || line.kind === this.kind) && line.text.toLowerCase().includes(this.query))
      : this.all;
    this.chosen = chosen ? this.shown.findIndex((line) => line.key === chosen.key) : -1;
    this.current = current ? this.shown.findIndex((line) => line.key === current.key) : -1;
    this.count.textContent = this.query || this.kind ? `${this.shown.length} of ${this.all.length}` : `${this.all.length} lines`;
    this.space.style.height = `${this.shown.length * this.height}px`;
    for (const node of this.nodes.values()) node.remove();
    this.nodes.clear();
    if (reset) { this.quietly(0); this.draw(); }
  }

  /** Mark the line at a time; followed, it is kept in view. */
  at(seconds, source) {
    let low = -1;
    for (let i = 0; i < this.shown.length; i += 1) {
      const line = this.shown[i];
      if (line.source === source && line.start <= seconds + 0.05 && seconds < line.end + 0.05 && line.kind !== "alert") low = i;
    }
    if (low === this.current) return;
    this.current = low;
    if (this.following && low >= 0 && !this.live) this.reveal(low);
    this.draw();
  }

  goOn() {
    this.following = true;
    this.follow.classList.add("hidden");
    if (this.live) this.toEnd();
    else if (this.current >= 0) this.reveal(this.current);
    this.draw();
  }

  toEnd() { this.quietly(this.box.scrollHeight); }

  quietly(top) {
    this.box.scrollTop = top;
    this.expected = this.box.scrollTop;
  }

  reveal(index) {
    const top = index * this.height, { scrollTop, clientHeight } = this.box;
    if (top < scrollTop || top + this.height > scrollTop + clientHeight) {
      this.quietly(Math.max(0, top - clientHeight / 3));
    }
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.box;
    if (Math.abs(scrollTop - this.expected) > 2) {
      this.following = this.live && scrollTop + clientHeight >= scrollHeight - 4;
      this.follow.classList.toggle("hidden", this.following);
      this.expected = undefined;
    }
    this.draw();
  }

  pressed(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 }[event.key];
    const last = this.shown.length - 1;
    if (step !== undefined && last >= 0) {
      event.preventDefault();
      const from = this.chosen >= 0 ? this.chosen : this.current >= 0 ? this.current : step > 0 ? -1 : 0;
      this.chosen = Math.min(last, Math.max(0, from + step));
      this.following = false;
      this.follow.classList.remove("hidden");
      this.reveal(this.chosen);
      this.draw();
    } else if ((event.key === "Enter" || event.key === " ") && this.chosen >= 0) {
      event.preventDefault();
      this.onPlace(this.shown[this.chosen]);
    }
  }

  draw() {
    const height = this.height, top = this.box.scrollTop;
    const first = Math.max(0, Math.floor(top / height) - MARGIN);
    const last = Math.min(this.shown.length, Math.ceil((top + this.box.clientHeight) / height) + MARGIN);
    for (const [index, node] of this.nodes) {
      if (index < first || index >= last) { node.remove(); this.nodes.delete(index); }
    }
    for (let i = first; i < last; i += 1) {
      let node = this.nodes.get(i);
      if (!node) {
        node = this.made(this.shown[i], i);
        this.nodes.set(i, node);
        this.space.append(node);
      }
      node.classList.toggle("current", i === this.current);
      node.classList.toggle("chosen", i === this.chosen);
      node.setAttribute("aria-selected", String(i === this.chosen));
      if (i === this.chosen) this.box.setAttribute("aria-activedescendant", node.id);
    }
  }

  made(line, index) {
    const at = line.wall ? wall(line.wall, { date: false }) : clock(line.start);
    const sure = line.confidence === undefined || line.confidence === null ? "" : `${Math.round(line.confidence * 100)} %`;
    const own = line.likelihood === undefined || line.likelihood === null ? "" : `the model's own likelihood ${Math.round(line.likelihood * 100)} %, fitted to nothing`;
    const title = [line.text, own, line.wall ? wall(line.wall) : "", clock(line.start, true), line.source].filter(Boolean).join("\n");
    const node = el("div", {
      class: `line ${line.kind}${line.unsure ? " unsure" : ""}`, role: "option", id: `line-${index}`, title,
      "data-start": line.start, "aria-setsize": this.shown.length, "aria-posinset": index + 1,
      onclick: () => { this.chosen = index; this.draw(); this.onPlace(line); },
    },
    el("span", { class: "at" }, at), el("span", { class: "words" }, line.text),
    line.kind === "note" ? el("span", { class: "sure", title: line.sound ? "a sound, not seen" : "what was said, not seen" }, line.sound ? "heard" : "said")
      : el("span", { class: "sure", title: "how likely a noun of it is right" }, sure));
    node.style.top = `${index * this.height}px`;
    return node;
  }
}
