// All memories at once: a grid of cameras, one timeline for all, one question over all of them.

import { ask, banner, clock, el, wall } from "./api.js";
import { Talk } from "./talk.js";

const EVERY_MS = 3000, ROW = 16, NAMES = 130, LABELS = 18, LEAST_S = 1;
const BAD = ["down", "failed", "broken", "unreadable"];
const STATES = { watched: "watched now", kept: "", whole: "whole file" };

export function archive(main, about) {
  const grid = el("ul", { class: "cards", id: "cameras" });
  const count = el("span", { class: "muted", id: "counted" });
  const chosen = el("span", { class: "muted", id: "at" });
  const newest = el("button", { class: "hidden", id: "newest", onclick: () => choose(null) }, "Back to the newest");
  const timeline = new CommonTimeline(choose, open);
  const talk = new Talk({ url: "v1/archive", all: true }, about, open);
  main.replaceChildren(
    el("div", { class: "head" },
      el("a", { href: "#/", id: "back" }, "All videos"), el("h1", {}, "Cameras"), count, newest, chosen),
    timeline.node, grid, el("h2", {}, "Ask all of them"), talk.node);
  document.title = "Cameras · streammem";
  const cards = new Map();
  let at = null, timer = 0, over = false, failed = false, asked = 0;

  function open(item) {
    location.hash = `#/memory/${encodeURIComponent(item.memory)}${item.segment === undefined ? "" : `/${item.segment}`}`;
  }

  /** Show what all cameras saw at a time (Unix seconds); null for the newest. */
  function choose(seconds) {
    at = seconds;
    newest.classList.toggle("hidden", at === null);
    chosen.textContent = at === null ? "" : timeline.text(at);
    timeline.now = at;
    timeline.plan();
    refresh();
  }

  async function refresh() {
    const mine = ++asked; // an answer to an earlier request may come later
    try {
      const { cameras } = await ask(at === null ? "v1/archive" : `v1/archive?at=${at}`);
      if (over || mine !== asked) return;
      if (failed) banner();
      failed = false;
      show(cameras);
      await timeline.refresh(cameras);
    } catch (error) {
      failed = true;
      if (!over) banner(`${error.message} Trying again…`);
    }
  }

  function show(cameras) {
    for (const [name, card] of cards) {
      if (!cameras.some((camera) => camera.memory === name)) { card.item.remove(); cards.delete(name); }
    }
    for (const camera of cameras) {
      if (!cards.has(camera.memory)) cards.set(camera.memory, cardOf(camera));
      cards.get(camera.memory).update(camera);
    }
    // In the order of their names; one that is in its place is not moved.
    cameras.forEach((camera, i) => {
      const { item } = cards.get(camera.memory);
      if (grid.children[i] !== item) grid.insertBefore(item, grid.children[i] ?? null);
    });
    const down = cameras.filter((camera) => BAD.includes(camera.state)).length;
    count.textContent = cameras.length ? `${cameras.length} memories${down ? `, ${down} not well` : ""}` : "Nothing is kept yet.";
  }

  function cardOf(camera) {
    const title = el("a", {}, camera.memory);
    const shot = el("img", { class: "shot", alt: "", src: "data:," });
    const state = el("span", { class: "state" });
    const when = el("span", { class: "muted when" });
    const words = el("span", { class: "words" });
    const item = el("li", { class: "card", "data-memory": camera.memory }, shot, el("div", { class: "in" }, title, state, when, words));
    let shown = null;
    shot.onerror = () => { shown = null; }; // it may be written at this moment
    function update({ seen, ...now }) {
      title.href = `#/memory/${encodeURIComponent(now.memory)}${seen && at !== null ? `/${seen.segment}` : ""}`;
      state.textContent = [STATES[now.state] ?? now.state, now.reason].filter(Boolean).join(": ");
      state.className = BAD.includes(now.state) ? "state bad" : "state muted";
      when.textContent = seen ? (seen.wall_start ? wall(seen.wall_start) : `at ${clock(seen.start)}`) : at === null ? "nothing seen yet" : "nothing at that time";
      words.textContent = seen?.caption ?? "";
      const wanted = seen ? seen.keyframe : "data:,";
      if (wanted !== shown) { shown = wanted; shot.src = wanted; }
    }
    return { item, update };
  }

  async function tick() {
    if (!document.hidden) await refresh();
    if (!over) timer = setTimeout(tick, EVERY_MS);
  }
  tick();
  return { close() { over = true; clearTimeout(timer); } };
}

/** A row for each memory, on the wall clock; those without a clock begin at 0, below. */
class CommonTimeline {
  /** `onAt(seconds)` is called with the Unix second that is clicked, `onOpen` with a memory without a clock. */
  constructor(onAt, onOpen) {
    this.onAt = onAt;
    this.onOpen = onOpen;
    this.rows = [];
    this.whole = this.range = [0, LEAST_S];
    this.auto = true; // shows everything until it is zoomed
    this.now = null;
    this.zone = 0; // seconds that the cameras' clocks are ahead of UTC
    this.known = "";
    this.canvas = el("canvas", {
      id: "common", tabindex: 0, role: "slider", "aria-label": "Time on all cameras",
      onclick: (event) => this.clicked(event), onwheel: (event) => this.wheel(event), onkeydown: (event) => this.pressed(event),
    });
    this.label = el("span", { class: "muted", id: "range" });
    this.node = el("div", {}, el("div", { class: "rows" }, this.canvas),
      el("div", { class: "row" },
        el("button", { class: "plain", "aria-label": "Zoom in", id: "zoom-in", onclick: () => this.zoom(0.5) }, "+"),
        el("button", { class: "plain", "aria-label": "Zoom out", id: "zoom-out", onclick: () => this.zoom(2) }, "−"),
        el("button", { class: "plain", id: "zoom-all", onclick: () => this.all() }, "All"), this.label));
    new ResizeObserver(() => this.plan()).observe(this.canvas);
  }

  /** Ask for the spans again where a memory has grown. */
  async refresh(cameras) {
    const state = JSON.stringify(cameras.map((camera) => [camera.memory, camera.written]));
    if (state === this.known) return;
    this.known = state;
    const text = cameras.map((camera) => camera.seen?.wall_start).find(Boolean);
    const offset = /([+-])(\d\d):(\d\d)$/.exec(text || "");
    if (offset) this.zone = (offset[1] === "-" ? -60 : 60) * (60 * offset[2] + Number(offset[3]));
    await this.load();
  }

  async load() {
    const window = this.auto ? "" : `?start=${Math.max(0, this.range[0])}&end=${this.range[1]}`;
    const { rows } = await ask(`v1/archive/timeline${window}`);
    this.rows = [...rows.filter((row) => row.clock === "wall"), ...rows.filter((row) => row.clock !== "wall")];
    if (this.auto) {
      const spans = this.rows.filter((row) => row.clock === "wall").flatMap((row) => row.spans);
      const first = spans.reduce((least, [a]) => Math.min(least, a), Infinity);
      const last = spans.reduce((most, [, b]) => Math.max(most, b), -Infinity);
      this.whole = spans.length ? [first, Math.max(last, first + LEAST_S)] : [0, LEAST_S];
      this.range = [...this.whole];
    }
    this.plan();
  }

  all() { this.auto = true; this.load().catch((error) => banner(error.message)); }

  zoom(factor, about = this.now) {
    const [a, b] = this.range, [first, last] = this.whole;
    const middle = about === null || about < a || about > b ? (a + b) / 2 : about;
    const span = Math.min(Math.max((b - a) * factor, LEAST_S), last - first);
    const start = Math.min(Math.max(middle - (middle - a) * span / (b - a), first), last - span);
    this.range = [start, start + span];
    this.auto = span >= (last - first) * 0.999;
    this.load().catch((error) => banner(error.message));
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.time(event.offsetX));
  }

  pressed(event) {
    const [a, b] = this.range, now = this.now ?? b, step = (b - a) / 50;
    const to = { ArrowRight: now + step, ArrowLeft: now - step, Home: a, End: b - step / 10 }[event.key];
    if (to !== undefined) { event.preventDefault(); this.onAt(Math.min(Math.max(to, a), b - step / 10)); }
    if (event.key === "+" || event.key === "=") this.zoom(0.5);
    if (event.key === "-") this.zoom(2);
    if (event.key === "0") this.all();
  }

  clicked(event) {
    const row = this.rows[Math.floor(event.offsetY / ROW)];
    if (row && row.clock !== "wall") this.onOpen({ memory: row.memory });
    else if (row && event.offsetX >= NAMES) this.onAt(this.time(event.offsetX));
    else if (row) this.onOpen({ memory: row.memory });
  }

  time(x) {
    const [a, b] = this.range;
    return a + Math.max(0, x - NAMES) / (this.canvas.clientWidth - NAMES) * (b - a);
  }

  plan() { this.planned ??= requestAnimationFrame(() => { this.planned = null; this.draw(); }); }

  draw() {
    const height = this.rows.length * ROW + LABELS;
    this.canvas.style.height = `${height}px`;
    const width = this.canvas.clientWidth;
    if (!width) return;
    const dense = window.devicePixelRatio || 1;
    this.canvas.width = width * dense;
    this.canvas.height = height * dense;
    const context = this.canvas.getContext("2d");
    context.scale(dense, dense);
    context.font = "11px system-ui, sans-serif";
    const style = getComputedStyle(this.canvas);
    const accent = style.getPropertyValue("--accent").trim() || "#c2410c";
    const [a, b] = this.range, wide = width - NAMES;
    const longest = this.rows.filter((row) => row.clock !== "wall").flatMap((row) => row.spans).reduce((most, [, end]) => Math.max(most, end), LEAST_S);
    const placed = [];
    this.rows.forEach((row, i) => {
      const y = i * ROW, [from, to] = row.clock === "wall" ? [a, b] : [0, longest];
      const x = (t) => NAMES + (Math.min(Math.max(t, from), to) - from) / (to - from) * wide;
      context.fillStyle = style.color;
      context.globalAlpha = 0.85;
      context.fillText(row.memory, 4, y + ROW - 4, NAMES - 8);
      context.globalAlpha = row.clock === "wall" ? 0.55 : 0.25;
      for (const [start, end] of row.spans) {
        if (end >= from && start <= to) context.fillRect(x(start), y + 2, Math.max(1.5, x(end) - x(start)), ROW - 4);
      }
      if (row.spans.length) placed.push([row.memory, Math.round(x(row.spans[0][0])), Math.round(x(row.spans[row.spans.length - 1][1]))]);
    });
    context.globalAlpha = 0.8;
    context.fillStyle = style.color;
    const hasClock = this.rows.some((row) => row.clock === "wall");
    if (hasClock) {
      context.fillText(this.text(a), NAMES, height - 4);
      context.fillText(this.text(b), width - 112, height - 4);
    }
    context.globalAlpha = 1;
    if (this.now !== null) {
      context.fillStyle = accent;
      context.fillRect(NAMES + (this.now - a) / (b - a) * wide - 1, 0, 2, height - LABELS);
    }
    this.label.textContent = hasClock ? `${this.text(a)} to ${this.text(b)}` : "no camera here knows its clock";
    this.canvas.setAttribute("aria-valuemin", String(Math.round(a)));
    this.canvas.setAttribute("aria-valuemax", String(Math.round(b)));
    this.canvas.setAttribute("aria-valuenow", String(Math.round(this.now ?? b)));
    this.canvas.setAttribute("aria-valuetext", this.text(this.now ?? b));
    this.canvas.dataset.rows = JSON.stringify(placed);
    this.canvas.dataset.range = `${a} ${b}`;
  }

  text(seconds) { return wall(new Date((seconds + this.zone) * 1000).toISOString()); }
}
