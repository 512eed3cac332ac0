// Questions and answers, which stay over a reload; evidence with pictures, and clips that play.

import { ask, clock, el, request, wall } from "./api.js";

const KEPT = 40;
const EXAMPLES = ["What is shown?", "What happens first?", "When is a person there?", "How often does a car appear?"];

export class Talk {
  /**
   * `place` has the URL of the session or memory and whether it has its video, or `all` where it
   * stands for all memories; `onPlace(item)` is called with the evidence that was chosen.
   */
  constructor(place, about, onPlace) {
    this.place = place;
    this.onPlace = onPlace;
    this.key = `streammem ${place.url}`;
    this.turns = this.kept();
    this.question = el("input", { type: "text", id: "question", placeholder: "Ask about what was seen", "aria-label": "Question", maxlength: 2000, autocomplete: "off" });
    this.send = el("button", { id: "ask" }, "Ask");
    this.find = el("button", { type: "button", id: "find", onclick: () => this.search() }, "Find");
    this.examples = el("div", { class: "chips", id: "examples" }, ...EXAMPLES.map((text) =>
      el("button", { type: "button", onclick: () => this.put(text) }, text)));
    this.list = el("div", { class: "talk", id: "talk", "aria-live": "polite" });
    this.clear = el("button", { class: "plain hidden", id: "forget-talk", onclick: () => this.forget() }, "Clear the conversation");
    this.node = el("section", { "aria-label": "Ask" },
      el("form", { class: "row", onsubmit: (event) => { event.preventDefault(); this.put(this.question.value); } },
        this.question, this.send, this.find),
      el("p", { class: "muted", id: "words" }, about.words), this.examples, this.list, this.clear);
    this.show();
  }

  kept() {
    try { return JSON.parse(localStorage.getItem(this.key)) || []; } catch { return []; }
  }

  keep() {
    this.turns = this.turns.slice(-KEPT);
    try { localStorage.setItem(this.key, JSON.stringify(this.turns)); } catch { /* full, or forbidden */ }
  }

  forget() { this.turns = []; this.keep(); this.show(); this.question.focus(); }

  show() {
    this.list.replaceChildren(...this.turns.map((turn) => this.turn(turn)).reverse());
    this.examples.classList.toggle("hidden", this.turns.length > 0);
    this.clear.classList.toggle("hidden", !this.turns.length);
  }

  async put(text) {
    const question = text.trim();
    if (!question || this.busy) return;
    this.busy = this.send.disabled = true;
    const words = el("p", { class: "a" }, "…");
    const waiting = el("div", { class: "turn" }, el("div", { class: "q" }, question), words);
    this.list.prepend(waiting);
    this.examples.classList.add("hidden");
    try {
      this.turns.push(...(this.place.all ? await this.askAll(question) : [await this.askOne(question, words)]));
      this.question.value = "";
      this.keep();
      this.show();
    } catch (error) {
      words.textContent = error.message;
      words.classList.add("bad");
    } finally {
      this.busy = this.send.disabled = false;
    }
  }

  /** Return the turn of one session or memory; `words` shows the answer as it comes. */
  async askOne(question, words) {
    const turn = { question, text: "", at: Date.now() };
    const reply = await request(`${this.place.url}/questions`, { body: { question, stream: true } });
    for await (const { kind, content } of events(reply)) {
      if (kind === "text") { turn.text += content.text; words.textContent = turn.text; }
      if (kind === "answer") Object.assign(turn, content);
      if (kind === "error") throw new Error(content.error.message);
    }
    return turn;
  }

  /** Return a turn of each memory that answers; the last one, which is shown first, is the best. */
  async askAll(question) {
    const { answers, asked, failed } = await ask(`${this.place.url}/questions`, { body: { question } });
    const among = `${asked} memories were asked${failed.length ? `; not opened: ${failed.join(", ")}` : ""}`;
    return answers.reverse().map((answer) => ({
      ...answer, question: `${answer.memory}: ${question}`, among, at: Date.now(),
      evidence: answer.evidence.map((item) => ({ ...item, memory: answer.memory })),
    }));
  }

  async search() {
    const query = this.question.value.trim();
    if (!query || this.busy) return;
    this.busy = true;
    try {
      const { moments } = await ask(`${this.place.url}/find`, { body: { query, count: 12 } });
      this.turns.push({ question: `Find: ${query}`, text: "Best first:", evidence: moments, seen: true, at: Date.now() });
      this.keep();
      this.show();
    } catch (error) {
      this.list.prepend(el("div", { class: "turn bad", role: "alert" }, error.message));
    } finally {
      this.busy = false;
    }
  }

  turn(turn) {
    const evidence = turn.evidence || [];
    const seen = turn.seen ? "" : evidence.length ? "Not seen with confidence; the nearest moments:" : "";
    return el("div", { class: "turn" },
      el("div", { class: "q" }, turn.question),
      el("p", { class: "a" }, [turn.text, turn.remark].filter(Boolean).join("\n")),
      turn.among ? el("p", { class: "muted" }, turn.among) : null,
      turn.looked_at ? el("p", { class: "muted" }, `looked at ${turn.looked_at}`) : null,
      seen ? el("p", { class: "muted" }, seen) : null,
      evidence.length ? el("div", { class: "strip evidence" }, ...evidence.map((item) => this.card(item))) : null,
      el("button", { class: "plain copy", onclick: (event) => copy(event.target, asText(turn)) }, "Copy"));
  }

  card(item) {
    const shot = el("img", { src: item.keyframe, alt: "", loading: "lazy", onerror: (event) => event.target.classList.add("hidden") });
    const holder = el("div", {}, shot);
    const play = this.place.video ? el("button", { class: "plain clip", "aria-label": `Play the clip of ${times(item)}`, onclick: () => {
      const from = item.start, to = Math.min(item.end, item.start + 30);
      const clip = el("video", { controls: true, autoplay: true, playsinline: true, poster: item.keyframe, src: `${this.place.url}/clip?start=${from}&end=${to}` });
      clip.addEventListener("error", () => holder.replaceChildren(shot));
      holder.replaceChildren(clip);
    } }, "▶ Clip") : null;
    return el("div", { class: "shot-card" }, holder,
      el("div", { class: "row" }, el("button", { class: "plain place", "data-start": item.start, title: wall(item.wall_start), onclick: () => this.onPlace(item) }, times(item)), play),
      item.memory ? el("span", { class: "muted" }, item.memory) : null,
      el("span", { class: "words" }, item.caption || item.speech || ""),
      el("span", { class: "muted" }, `${Math.round(item.score * 100)} % by ${item.matched}`));
  }
}

function times(item) { return `${clock(item.start, true)}–${clock(item.end, true)}`; }

function asText(turn) {
  const lines = (turn.evidence || []).map((item) =>
    `- ${times(item)}${item.wall_start ? ` (${wall(item.wall_start)})` : ""} ${item.memory ?? item.source} ${item.caption || ""}`.trimEnd());
  return [turn.question, turn.text, turn.remark, ...lines].filter(Boolean).join("\n");
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed without https: the older way
    const area = el("textarea", {});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

/** Read Server-Sent Events of a reply as they come. */
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { value, done } = await reader.read();
    text += value || "";
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => {
        const colon = line.indexOf(": ");
        return [line.slice(0, colon), line.slice(colon + 2)];
      }));
      if (fields.data) yield { kind: fields.event, content: JSON.parse(fields.data) };
    }
    if (done) return;
  }
}
