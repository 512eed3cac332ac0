// Requests to the server, times as text, and elements. All text from outside is set as text.

export const root = new URL("..", document.baseURI); // the server's, with its prefix

export class Failed extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

/** Ask the server for JSON; `body` makes it a POST. Throws Failed; status 0: no answer. */
export async function ask(path, { method, body, raw } = {}) {
  const reply = await request(path, { method, body, raw });
  return reply.status === 204 ? null : reply.json();
}

export async function request(path, { method, body, raw, signal } = {}) {
  const options = { method: method || (body || raw ? "POST" : "GET"), signal };
  if (body) { options.body = JSON.stringify(body); options.headers = { "content-type": "application/json" }; }
  if (raw) { options.body = raw; options.headers = { "content-type": raw.type || "application/octet-stream" }; }
  let reply;
  try {
    reply = await fetch(address(path), options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failed(0, "The server does not answer.");
  }
  if (reply.ok) return reply;
  let message = `${reply.status} ${reply.statusText}`;
  try { message = (await reply.json()).error.message; } catch { /* no JSON: the status must do */ }
  throw new Failed(reply.status, message);
}

/** The address of a path below the server's root; of a URL that it gave, that itself. */
export function address(path) {
  return path.startsWith("/") ? path : new URL(path, root).href;
}

/** Make an element: el("button", {class: "x", onclick: f}, "text", child). */
export function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** 3723.4 as 1:02:03.4; whole seconds unless `tenths`. */
export function clock(seconds, tenths = false) {
  const whole = tenths ? Math.round(seconds * 10) / 10 : Math.floor(seconds);
  const h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60, s = whole % 60;
  const two = (n) => String(Math.floor(n)).padStart(2, "0");
  const rest = tenths ? s.toFixed(1).padStart(4, "0") : two(s);
  return h ? `${h}:${two(m)}:${rest}` : `${two(m)}:${rest}`;
}

/** A wall-clock time in the zone that it was written with: "03 May 16:40:00". */
export function wall(text, { date = true } = {}) {
  const found = /^(\d{4})-(\d\d)-(\d\d)T(\d\d:\d\d:\d\d)/.exec(text || "");
  if (!found) return "";
  return date ? `${found[1]}-${found[2]}-${found[3]} ${found[4]}` : found[4];
}

export function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return `${count < 10 && unit !== "B" ? count.toFixed(1) : Math.round(count)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}

export function banner(text = "") { document.getElementById("banner").textContent = text; }
