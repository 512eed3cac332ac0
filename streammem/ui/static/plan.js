// A plan: a goal and its steps, how far they are, and what comes next.

import { ask, clock, el } from "./api.js";

const STATES = { done: "✓", doing: "▶", missing: "✗", open: "○" };
const MAX_TIMES = 5; // of one step: the first, and the newest

export class PlanView {
  /**
   * `place` has the URL of the session or memory, and whether plans are followed there;
   * `onPlace(item)` is called with the time that was chosen.
   */
  constructor(place, onPlace) {
    this.place = place;
    this.onPlace = onPlace;
    this.goal = el("input", { type: "text", id: "plan-goal", maxlength: 500, placeholder: "make coffee", "aria-label": "Goal" });
    this.steps = el("textarea", { id: "plan-steps", rows: 4, "aria-label": "Steps, one a line", placeholder: "What each step shows, one a line. Without steps, the next action is guessed from past ones." });
    this.end = el("button", { type: "button", id: "plan-end", class: "hidden", onclick: () => this.stop() }, "Stop following");
    this.error = el("p", { class: "bad", id: "plan-error", role: "alert" });
    this.shown = el("div", { id: "plan", "aria-live": "polite" });
    this.node = el("details", { id: "plan-box" }, el("summary", {}, "Plan"),
      el("form", { class: "plan", onsubmit: (event) => { event.preventDefault(); this.send(); } },
        this.goal, this.steps, el("div", { class: "row" }, el("button", { id: "plan-send" }, place.follows ? "Follow it" : "Show it"), this.end)),
      this.error, this.shown);
  }

  async send() {
    const steps = this.steps.value.split("\n").map((line) => line.trim()).filter(Boolean);
    const body = { goal: this.goal.value, steps, follow: this.place.follows };
    this.error.textContent = "";
    try {
      const plan = await ask(`${this.place.url}/plan`, { body });
      if (this.place.follows) this.following(plan.goal);
      this.set(plan);
    } catch (error) {
      this.error.textContent = error.message;
    }
  }

  async stop() {
    try { await ask(`${this.place.url}/plan`, { method: "DELETE" }); } catch (error) { this.error.textContent = error.message; }
  }

  /** Say which plan is followed now, by its goal, or null. Another page may have begun it. */
  following(goal) {
    this.followed = goal;
    this.end.classList.toggle("hidden", !goal);
    if (this.event) this.changed(this.event);
  }

  /** A plan event came; those of plans that were followed before come again after a reload. */
  changed(event) {
    this.event = event;
    if (event.goal !== this.followed) return;
    this.event = null;
    this.set(event);
  }

  set(plan) {
    if (!this.shown.firstChild) this.node.open = true;
    const seen = plan.steps.filter((step) => step.spans.length).length;
    const known = plan.progress !== null;
    const bar = el("progress", { id: "plan-progress", max: 1, value: plan.progress ?? 0, "aria-label": `${seen} of ${plan.steps.length} steps` });
    const from = plan.next_from === "past" ? "past actions" : "past actions and adapter";
    const next = plan.next.map((each) => `${each.name} ${Math.round(100 * each.probability)} %`).join(", ");
    this.shown.replaceChildren(...[
      el("div", { class: "row" }, el("strong", {}, plan.goal), known ? bar : null,
        el("span", { class: "muted" }, known ? `${seen} of ${plan.steps.length}` : "no steps given: what was done lately")),
      el("ol", { class: "plain" }, ...plan.steps.map((step) => this.step(step))),
      next ? el("p", { id: "plan-next" }, el("span", { class: "muted" }, known ? "Next: " : `Next, guessed from ${from}: `), next) : null,
      ...plan.alerts.map((text) => el("p", { class: "plan-alert" }, `! ${text}`)),
    ].filter(Boolean));
  }

  step(step) {
    const times = step.spans.map((span, at) => ({ span, segment: step.segments[at] }));
    const some = times.length > MAX_TIMES ? [times[0], ...times.slice(1 - MAX_TIMES)] : times;
    return el("li", { class: `step ${step.state}`, "data-state": step.state },
      el("span", { class: "mark", "aria-label": step.state }, STATES[step.state]), ` ${step.name}${step.late ? " (late)" : ""} `,
      ...some.map(({ span: [start, end] }) => el("button", { type: "button", class: "plain place", onclick: () => this.onPlace({ start }) }, `${clock(start)}–${clock(end)}`)));
  }
}
