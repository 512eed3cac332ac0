// The addresses of the page: #/ lists sessions and memories, #/session/ID and #/memory/NAME show one,
// #/memory/NAME/SEGMENT a moment of it, #/archive shows all memories at once.

import { ask, banner, el } from "./api.js";
import { archive } from "./archive.js";
import { home } from "./home.js";
import { view } from "./view.js";

const main = document.getElementById("main");
let close = () => {};
document.body.classList.toggle("embedded", window.parent !== window);

async function show() {
  close();
  close = () => {};
  banner();
  main.replaceChildren(el("p", { class: "muted" }, "Loading…"));
  const [, kind, name, moment] = location.hash.replace(/^#/, "").split("/");
  const about = await ask("watch/about").catch(() => ({ words: "", alerts: "", memories: false }));
  const all = kind === "archive" || (about.archive && !location.hash);
  const made = kind === "session" || kind === "memory"
    ? view(main, kind, decodeURIComponent(name || ""), about, moment)
    : all ? archive(main, about) : home(main, about);
  close = made.close;
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  (document.querySelector("#question") || document.querySelector("#url"))?.focus();
});
window.addEventListener("hashchange", show);
show();
