// The list of sessions and memories, with the newest pictures; opens videos, URLs and the webcam.

import { address, ask, banner, bytes, clock, el, wall } from "./api.js";
import { capture } from "./capture.js";

const EVERY_MS = 2000;

export function home(main, about) {
  const sessions = el("ul", { class: "cards", id: "sessions" });
  const memories = el("ul", { class: "cards", id: "memories" });
  const url = el("input", { type: "url", id: "url", placeholder: "https://… or rtsp://…", "aria-label": "URL to watch" });
  const file = el("input", { type: "file", id: "file", accept: "video/*", "aria-label": "Video file" });
  const sent = el("progress", { max: 1, value: 0, class: "hidden", "aria-label": "sent" });
  const form = el("form", { class: "row alone", onsubmit: openUrl }, url, el("button", { id: "open" }, "Watch"));
  main.replaceChildren(
    el("div", { class: "head" }, el("h1", {}, "streammem"), el("span", { class: "muted" }, about.model || "")),
    el("div", { class: "out" }, form,
      el("div", { class: "row" }, el("label", { class: "alone" }, "A file: ", file), sent,
        el("button", { id: "webcam", onclick: openWebcam }, "Use the webcam"))),
    el("h2", {}, "Watched now"), sessions,
    el("h2", {}, "Remembered"), about.memories ? el("p", {}, el("a", { href: "#/archive", id: "all" }, "All of them at once: cameras and their timeline")) : null, memories,
  );
  file.addEventListener("change", () => file.files[0] && upload(file.files[0]));
  document.title = "streammem";
  const cards = new Map(); // by URL of the session: its picture is changed, not made anew
  let timer = 0, over = false, failed = false;

  async function openUrl(event) {
    event.preventDefault();
    await opened(() => ask("watch/open", { body: { source: url.value.trim() } }));
  }

  async function openWebcam() {
    await opened(async () => ({ id: await capture() }));
  }

  async function opened(open) {
    try {
      location.hash = `#/session/${(await open()).id}`;
    } catch (error) {
      banner(error.status === 429 ? `${error.message}: each of those below has a button Close.` : error.message);
    }
  }

  async function upload(chosen) {
    sent.classList.remove("hidden");
    await opened(async () => {
      const source = await send(chosen, (share) => { sent.value = share; });
      const session = await ask("v1/sessions", { body: { source } });
      return session;
    });
    sent.classList.add("hidden");
  }

  async function refresh() {
    try {
      const [now, kept] = await Promise.all([ask("v1/sessions"), ask("v1/memories")]);
      if (over) return;
      if (failed) banner();
      failed = false;
      showSessions(now.sessions);
      memories.replaceChildren(...kept.memories.map(memoryCard));
      if (!kept.memories.length) {
        memories.append(el("li", { class: "muted" }, about.memories
          ? "Nothing is kept yet."
          : "This server keeps none: start it with --memories FOLDER."));
      }
    } catch (error) {
      failed = true;
      if (!over) banner(`${error.message} Trying again…`);
    }
  }

  function showSessions(found) {
    for (const [key, card] of cards) {
      if (!found.some((session) => session.url === key)) { card.item.remove(); cards.delete(key); }
    }
    for (const session of found) {
      if (!cards.has(session.url)) {
        cards.set(session.url, sessionCard(session));
        sessions.append(cards.get(session.url).item);
      }
      cards.get(session.url).update(session);
    }
    sessions.querySelector(".none")?.remove();
    if (!found.length) sessions.append(el("li", { class: "muted none" }, "Nothing is watched."));
  }

  function sessionCard(first) {
    const title = el("a", { href: `#/session/${encodeURIComponent(first.id)}` });
    const shot = el("img", { class: "shot", alt: "", src: "data:," });
    const state = el("span", { class: "muted state" });
    let busy = false;
    const item = el("li", { class: "card" }, shot, el("div", { class: "in" }, title, state, el("div", { class: "row" },
      el("button", { onclick: rename }, "Rename"), el("button", { class: "bad", onclick: stop }, "Close"))));

    async function rename() {
      const name = prompt("What shall it be called?", title.textContent);
      if (name?.trim()) await done(ask(first.url, { method: "PATCH", body: { title: name.trim() } }));
    }
    async function stop() {
      if (confirm(`Close ${title.textContent}? What is not kept in a memory is gone then.`)) {
        await done(ask(first.url, { method: "DELETE" }));
      }
    }
    function update(session) {
      title.textContent = session.title;
      state.textContent = stateText(session);
      if (session.picture && !busy && !document.hidden) {
        busy = true;
        shot.onload = shot.onerror = () => { busy = false; };
        shot.src = `${session.picture}?${Math.floor(Date.now() / 1000)}`;
      }
    }
    return { item, update };
  }

  function memoryCard(memory) {
    const url = memory.url;
    const span = memory.wall_start ? `${wall(memory.wall_start)} to ${wall(memory.wall_end)}`
      : memory.end === null ? "empty" : `${clock(memory.start)} to ${clock(memory.end)}`;
    const text = memory.error || `${span} · ${memory.segments} scenes · ${bytes(memory.bytes)}`;
    return el("li", { class: "card" }, el("div", { class: "in" },
      el("a", { href: `#/memory/${encodeURIComponent(memory.id)}` }, memory.id),
      el("span", { class: memory.error ? "bad" : "muted" }, text),
      el("span", { class: "muted" }, memory.sources.slice(0, 3).join(", ")
        + (memory.sources.length > 3 ? ` and ${memory.sources.length - 3} more` : "")),
      about.archive ? null : el("div", { class: "row" },
        el("button", { onclick: async () => {
          const name = prompt("What shall it be called?", memory.id);
          if (name?.trim()) await done(ask(url, { method: "PATCH", body: { name: name.trim() } }));
        } }, "Rename"),
        el("button", { class: "bad", onclick: async () => {
          if (confirm(`Delete ${memory.id} for good?`)) await done(ask(url, { method: "DELETE" }));
        } }, "Delete"))));
  }

  async function done(asked) {
    try { await asked; banner(); } catch (error) { banner(error.message); }
    await refresh();
  }

  async function tick() {
    if (!document.hidden) await refresh();
    if (!over) timer = setTimeout(tick, EVERY_MS);
  }
  tick();
  return { close() { over = true; clearTimeout(timer); } };
}

export function stateText(session) {
  const parts = [session.live && session.state === "watching" ? "live" : session.state];
  if (session.duration && session.state === "watching") {
    parts.push(`${Math.min(100, Math.round(100 * (session.time || 0) / session.duration))} %`);
  }
  if (session.time !== null) parts.push(clock(session.time));
  return parts.join(" · ");
}

/** Send a video; returns its source. XMLHttpRequest reports how much is sent. */
function send(file, onShare) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", address(`v1/uploads?name=${encodeURIComponent(file.name.slice(0, 200))}`));
    sending.setRequestHeader("content-type", "application/octet-stream");
    sending.upload.onprogress = (event) => event.total && onShare(event.loaded / event.total);
    sending.onerror = () => reject(new Error("The server does not answer."));
    sending.onload = () => {
      let reply = {};
      try { reply = JSON.parse(sending.responseText); } catch { /* the status says it */ }
      if (sending.status < 300) resolve(reply.source);
      else reject(new Error(reply.error?.message || `${sending.status}`));
    };
    sending.send(file);
  });
}
