// The timeline: scenes of one source on a canvas, from seconds to days.
//
// Where scenes are narrower than a few pixels their density is drawn instead.

import { address, clock, el, wall } from "./api.js";

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];
const LEAST_S = 4, PICTURE = 64, LABELS = 18;

export class Timeline {
  /** `onPlace(seconds)` is called with where the visitor clicks. */
  constructor(onPlace) {
    this.onPlace = onPlace;
    this.scenes = []; // { id, start, end, keyframe, wall, text }, by start
    this.alerts = [];
    this.notes = [];
    this.range = [0, 60];
    this.whole = [0, 60];
    this.now = null;
    this.auto = true; // shows everything until it is zoomed
    this.pictures = new Map();
    this.canvas = el("canvas", {
      id: "timeline", tabindex: 0, role: "slider", "aria-label": "Timeline", "aria-valuemin": 0,
      onwheel: (event) => this.wheel(event), onkeydown: (event) => this.pressed(event),
      onpointerdown: (event) => this.down(event),
    });
    this.label = el("span", { class: "muted", id: "range" });
    this.node = el("div", {},
      this.canvas,
      el("div", { class: "row" },
        el("button", { class: "plain", "aria-label": "Zoom in", id: "zoom-in", onclick: () => this.zoom(0.5) }, "+"),
        el("button", { class: "plain", "aria-label": "Zoom out", id: "zoom-out", onclick: () => this.zoom(2) }, "−"),
        el("button", { class: "plain", id: "zoom-all", onclick: () => this.all() }, "All"), this.label));
    new ResizeObserver(() => this.plan()).observe(this.canvas);
  }

  set(scenes, alerts, notes = []) {
    this.scenes = scenes;
    this.alerts = alerts;
    this.notes = notes;
    if (scenes.length) {
      const end = scenes.reduce((most, scene) => Math.max(most, scene.end), 0);
      this.whole = [scenes[0].start, Math.max(end, scenes[0].start + LEAST_S)];
    }
    if (this.auto) this.range = [...this.whole];
    this.plan();
  }

  at(seconds) {
    this.now = seconds;
    const [a, b] = this.range;
    if (!this.auto && this.follows && (seconds < a || seconds > b)) {
      this.range = [seconds - (b - a) / 2, seconds + (b - a) / 2];
    }
    this.plan();
  }

  all() { this.auto = true; this.range = [...this.whole]; this.plan(); }

  zoom(factor, about = this.now) {
    const [a, b] = this.range, [first, last] = this.whole;
    const middle = about === null || about < a || about > b ? (a + b) / 2 : about;
    const span = Math.min(Math.max((b - a) * factor, LEAST_S), last - first || LEAST_S);
    const start = middle - (middle - a) * span / (b - a);
    this.move(start, span);
  }

  move(start, span) {
    const [first, last] = this.whole;
    const from = Math.min(Math.max(start, first), Math.max(first, last - span));
    this.range = [from, from + span];
    this.auto = span >= (last - first) * 0.999;
    this.follows = true;
    this.plan();
  }

  wheel(event) {
    event.preventDefault();
    const [a, b] = this.range, at = this.time(event.offsetX);
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.move(a + event.deltaX / this.canvas.clientWidth * (b - a), b - a);
    else this.zoom(event.deltaY > 0 ? 1.25 : 0.8, at);
  }

  down(event) {
    const from = event.offsetX, [a, b] = this.range;
    let moved = false;
    const move = (next) => {
      const by = next.clientX - this.canvas.getBoundingClientRect().left - from;
      if (Math.abs(by) > 5) moved = true;
      if (moved) { this.move(a - by / this.canvas.clientWidth * (b - a), b - a); this.follows = false; }
    };
    const up = () => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", up);
      if (!moved) this.onPlace(this.time(from));
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", up);
  }

  pressed(event) {
    const now = this.now ?? this.range[0];
    const index = this.index(now);
    const to = {
      ArrowRight: () => this.scenes[Math.min(this.scenes.length - 1, index + 1)],
      ArrowLeft: () => this.scenes[Math.max(0, index - 1)],
      Home: () => this.scenes[0], End: () => this.scenes[this.scenes.length - 1],
    }[event.key];
    if (to && this.scenes.length) { event.preventDefault(); this.follows = true; this.onPlace(to().start); }
    if (event.key === "+" || event.key === "=") this.zoom(0.5);
    if (event.key === "-") this.zoom(2);
    if (event.key === "0") this.all();
  }

  /** The index of the last scene that begins at or before a time; -1 without one. */
  index(seconds) {
    let low = 0, high = this.scenes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.scenes[middle].start <= seconds + 0.01) low = middle + 1; else high = middle;
    }
    return low - 1;
  }

  time(x) {
    const [a, b] = this.range;
    return a + x / this.canvas.clientWidth * (b - a);
  }

  plan() { this.planned ??= requestAnimationFrame(() => { this.planned = null; this.draw(); }); }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const dense = window.devicePixelRatio || 1;
    this.canvas.width = width * dense;
    this.canvas.height = height * dense;
    const context = this.canvas.getContext("2d");
    context.scale(dense, dense);
    const style = getComputedStyle(this.canvas);
    const ink = style.color, accent = style.getPropertyValue("--accent").trim() || "#c2410c";
    const [a, b] = this.range, x = (t) => (t - a) / (b - a) * width, bottom = height - LABELS;
    const first = Math.max(0, this.index(a)), last = this.index(b);
    const visible = this.scenes.slice(first, last + 1);
    // 1. Scenes, or how many there are.
    if (visible.length > width / 4) this.density(context, visible, x, width, bottom, ink);
    else visible.forEach((scene, i) => this.scene(context, scene, first + i, x, bottom, ink));
    // 2. Alerts.
    context.fillStyle = accent;
    for (const alert of this.alerts) {
      if (alert.start < a || alert.start > b) continue;
      context.beginPath();
      context.moveTo(x(alert.start) - 5, 0); context.lineTo(x(alert.start) + 5, 0); context.lineTo(x(alert.start), 9);
      context.fill();
    }
    // 3. Where words are said: a row of bars above the times.
    context.fillStyle = style.getPropertyValue("--said").trim() || "#0b5fa5";
    const spoken = this.notes.filter((note) => note.end >= a && note.start <= b);
    for (const note of spoken) context.fillRect(x(note.start), bottom - 4, Math.max(1, x(note.end) - x(note.start)), 4);
    this.canvas.dataset.said = spoken.length;
    // 4. Times.
    this.times(context, x, width, height, bottom, ink);
    // 5. The present.
    if (this.now !== null) {
      context.fillStyle = accent;
      context.fillRect(x(this.now) - 1, 0, 2, bottom);
    }
    this.canvas.setAttribute("aria-valuemax", String(Math.round(this.whole[1])));
    this.canvas.setAttribute("aria-valuenow", String(Math.round(this.now ?? a)));
    const shown = this.scenes[this.index(this.now ?? a)];
    this.canvas.setAttribute("aria-valuetext", `${this.text(this.now ?? a, true)} ${shown?.text || ""}`.trim());
    this.label.textContent = `${this.text(a, true)} to ${this.text(b, true)} · ${this.scenes.length} scenes`;
    this.canvas.dataset.mode = visible.length > width / 4 ? "density" : "scenes";
    this.canvas.dataset.range = `${a} ${b}`;
  }

  density(context, visible, x, width, bottom, ink) {
    const counts = new Float32Array(Math.ceil(width / 3));
    for (const scene of visible) counts[Math.min(counts.length - 1, Math.max(0, Math.floor(x(scene.start) / 3)))] += 1;
    const most = counts.reduce((m, c) => Math.max(m, c), 1);
    context.fillStyle = ink;
    context.globalAlpha = 0.55;
    counts.forEach((count, i) => count && context.fillRect(i * 3, bottom - count / most * (bottom - 4), 2.5, count / most * (bottom - 4)));
    context.globalAlpha = 1;
  }

  scene(context, scene, number, x, bottom, ink) {
    const left = x(scene.start), wide = Math.max(1, x(scene.end) - left - 1);
    context.fillStyle = ink;
    context.globalAlpha = number % 2 ? 0.16 : 0.28;
    context.fillRect(left, 0, wide, bottom);
    context.globalAlpha = 1;
    const picture = wide >= PICTURE / 2 ? this.picture(scene) : null;
    if (!picture) return;
    const scale = Math.min(wide / picture.naturalWidth, (bottom - 2) / picture.naturalHeight);
    context.drawImage(picture, left, 1, picture.naturalWidth * scale, picture.naturalHeight * scale);
  }

  picture(scene) {
    const known = this.pictures.get(scene.keyframe);
    if (known) return known.complete && known.naturalWidth ? known : null;
    if (this.pictures.size > 200) this.pictures.clear();
    const made = new Image();
    made.onload = () => this.plan();
    made.src = address(scene.keyframe);
    this.pictures.set(scene.keyframe, made);
    return null;
  }

  times(context, x, width, height, bottom, ink) {
    const [a, b] = this.range;
    const step = STEPS.find((each) => each / (b - a) * width > 90) || STEPS[STEPS.length - 1];
    // Whole hours of the wall clock, where it is known, are not whole hours of the stream.
    const zero = this.zero(a);
    const shift = zero ? (zero.seconds % step) : 0;
    context.fillStyle = ink;
    context.font = "11px system-ui, sans-serif";
    context.globalAlpha = 0.8;
    for (let t = Math.ceil((a + shift) / step) * step - shift; t <= b; t += step) {
      context.fillRect(x(t), bottom, 1, 4);
      const text = this.text(t, step >= 86400);
      if (x(t) + 60 < width || x(t) > 60) context.fillText(text, Math.min(x(t) + 2, width - 62), height - 4);
    }
    context.globalAlpha = 1;
  }

  /** The wall clock at stream time 0, near a time: seconds of the day and the date's epoch. */
  zero(seconds) {
    const scene = this.scenes[Math.max(0, this.index(seconds))];
    if (!scene?.wall) return null;
    const found = /^(.{19})(?:\.\d+)?(.*)$/.exec(scene.wall);
    const local = Date.parse(`${found[1]}Z`) / 1000; // as if it were UTC: shown in the zone of the text
    return { seconds: local - scene.start };
  }

  text(seconds, date = false) {
    const zero = this.zero(seconds);
    if (!zero) return clock(Math.max(0, seconds));
    const iso = new Date((zero.seconds + seconds) * 1000).toISOString();
    return wall(iso, { date });
  }
}
