// A day: its activities by the wall clock, on a line of 24 hours and as a list.

import { ask, el } from "./api.js";

const DAY_S = 86400;

export class DayView {
  /** `place` has the URL of the session or memory; `onPlace(item)` is called with an activity. */
  constructor(place, onPlace) {
    this.place = place;
    this.onPlace = onPlace;
    this.date = el("input", { type: "date", id: "day", "aria-label": "Day", onchange: () => this.load() });
    this.line = el("div", { class: "day", id: "day-line" });
    this.list = el("ol", { class: "plain", id: "day-list" });
    this.error = el("p", { class: "muted", id: "day-error", role: "status" });
    this.node = el("details", { id: "day-box", class: "hidden", ontoggle: () => { if (this.node.open) this.load(); } },
      el("summary", {}, "Day"), el("div", { class: "row" }, this.date), this.line, this.list, this.error);
  }

  /** Offer the view where the wall clock is known: `newest` is a time in ISO 8601, or null. */
  offer(newest) {
    if (!newest) return;
    this.node.classList.remove("hidden");
    if (!this.date.value) this.date.value = newest.slice(0, 10);
  }

  async load() {
    const day = this.date.value;
    if (!day) return;
    this.error.textContent = "…";
    try {
      const { chapters } = await ask(`${this.place.url}/summary?day=${day}`);
      if (day !== this.date.value) return; // another was chosen meanwhile
      this.error.textContent = chapters.length ? "" : "Nothing was seen on this day.";
      this.draw(day, chapters);
    } catch (error) {
      this.error.textContent = error.message;
    }
  }

  draw(day, chapters) {
    const activities = chapters.map((chapter) => {
      const text = chapter.captions.map((caption) => caption.text).filter(Boolean).join(" / ");
      const from = seconds(chapter.wall_start), until = from + chapter.end - chapter.start;
      // One that began the day before is drawn from midnight on.
      const begin = chapter.wall_start.slice(0, 10) < day ? from - DAY_S : from;
      const item = { start: chapter.start, source: chapter.source };
      return { item, begin, until: begin + (until - from), text: text || "(no caption)", label: `${time(from)}–${time(until)}`, source: chapter.source };
    });
    this.line.replaceChildren(
      ...[0, 6, 12, 18].map((hour) => { const mark = el("span", { class: "hour" }, `${hour}:00`); mark.style.left = `${hour / 0.24}%`; return mark; }),
      ...activities.map((activity) => {
        const block = el("button", { type: "button", class: "activity", title: `${activity.label} ${activity.text}`, "aria-label": `${activity.label} ${activity.text}`, onclick: () => this.onPlace(activity.item) });
        const left = Math.max(0, activity.begin), right = Math.min(DAY_S, activity.until);
        block.style.left = `${left / DAY_S * 100}%`;
        block.style.width = `${Math.max(0, right - left) / DAY_S * 100}%`;
        return block;
      }));
    this.list.replaceChildren(...activities.map((activity) => el("li", {},
      el("button", { type: "button", class: "plain place", onclick: () => this.onPlace(activity.item) }, activity.label),
      ` ${activity.text} `, el("span", { class: "muted" }, activity.source))));
  }
}

/** Seconds of the day that an ISO 8601 time shows in the zone that it is written in. */
function seconds(iso) {
  const [, h, m, s] = /T(\d\d):(\d\d):(\d\d)/.exec(iso);
  return 3600 * h + 60 * m + Number(s);
}

function time(second) {
  const minutes = Math.floor(second / 60) % 1440;
  return `${String(Math.floor(minutes / 60)).padStart(2, "0")}:${String(minutes % 60).padStart(2, "0")}`;
}
