// One session or memory: picture, timeline, questions, transcript, alerts, downloads.

import { ask, banner, clock, el, wall } from "./api.js";
import { capturing, stop as stopCapture } from "./capture.js";
import { DayView } from "./day.js";
import { stateText } from "./home.js";
import { PlanView } from "./plan.js";
import { Talk } from "./talk.js";
import { Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";

const PAGE = 1000, TICK_MS = 1000, MEMORY_MS = 20000, MAX_ALERTS = 8;

/** Show a session or memory; `moment` is the number of a scene to begin with. */
export function view(main, kind, name, about, moment) {
  const url = `v1/${kind === "session" ? "sessions" : "memories"}/${encodeURIComponent(name)}`;
  let over = false, timer = 0, stream = null;
  let info = null, parts = null;
  // What is known, by id; events that come twice change nothing.
  let scenes = new Map(), order = [], notes = new Map(), alerts = [], counted = 0;
  let source = null, planned = 0, added = 0;

  load();
  return { close() { over = true; clearTimeout(timer); stream?.close(); } };

  // -- loading --

  async function load() {
    scenes = new Map(); order = []; notes = new Map(); alerts = []; source = null;
    stream?.close();
    try {
      info = await ask(url);
    } catch (error) {
      return failed(error);
    }
    if (over) return undefined;
    banner();
    if (!parts) parts = build();
    describe();
    let before, page;
    try {
      do { // the newest first, so that there is something to see at once
        page = (await ask(`${info.url}/segments?count=${PAGE}${before === undefined ? "" : `&before=${before}`}`)).events;
        if (over) return undefined;
        older(page);
        before = page.length ? page[0].id : undefined;
      } while (page.filter((event) => event.type === "segment").length === PAGE);
    } catch (error) {
      return failed(error);
    }
    if (moment !== undefined && scenes.has(Number(moment))) {
      const scene = scenes.get(Number(moment));
      render();
      place({ start: scene.start, source: scene.source, id: scene.id });
    }
    moment = undefined; // loaded again, it stays where the visitor is
    if (kind === "session") follow(0);
    tick();
    return undefined;
  }

  function failed(error) {
    if (over) return;
    if (error.status === 404 || error.status === 410) {
      document.title = "streammem";
      stream?.close();
      main.replaceChildren(
        el("div", { class: "head" }, el("a", { href: "#/" }, "← All videos")),
        el("p", { role: "alert", id: "gone" }, kind === "session"
          ? "This session is closed: its server has ended it, or was started anew. What it kept in a memory is in the list."
          : `There is no memory ${name} here: it was renamed or deleted.`));
      return;
    }
    banner(`${error.message} Trying again…`);
    clearTimeout(timer);
    timer = setTimeout(load, 3000);
  }

  /** Add a page of events that are older than all that is known. */
  function older(page) {
    const ids = [];
    for (const event of page) take(event, ids);
    order = [...ids, ...order];
    added += ids.length;
    changed();
  }

  function take(event, ids) {
    if (event.type === "segment") {
      if (!scenes.has(event.id)) ids.push(event.id);
      scenes.set(event.id, { ...scenes.get(event.id), ...event });
    } else if (event.type === "caption") {
      const scene = scenes.get(event.segment);
      // A live scene is described before it ends.
      if (!scene) { ids.push(event.segment); scenes.set(event.segment, { id: event.segment, start: event.start, end: event.end, wall_start: event.wall_start, source: event.source }); }
      Object.assign(scenes.get(event.segment), { text: event.text, confidence: event.confidence, likelihood: event.likelihood, unsure: event.reason === "unsure" });
    } else if (event.type === "note") {
      notes.set(`n${kind === "memory" ? event.source : ""}${event.start}${event.text}`, event);
    }
  }

  function follow(position) {
    stream = new EventSource(`${info.url}/events?position=${position}`);
    for (const type of ["segment", "caption", "note", "alert", "plan", "warning"]) {
      stream.addEventListener(type, (sent) => happened(JSON.parse(sent.data), Number(sent.lastEventId)));
    }
    stream.onerror = () => {
      if (over) return;
      // A server that was started anew counts its events anew: everything is asked for again.
      stream.close();
      stream = null;
      setTimeout(async () => {
        if (over) return;
        try {
          info = await ask(url);
          if (info.events <= counted) return void load();
          if (info.state === "watching" || info.state === "opening") follow(counted + 1);
          else describe();
        } catch (error) {
          if (error.status === 0) { banner(`${error.message} Trying again…`); clearTimeout(timer); timer = setTimeout(load, 3000); } else failed(error);
        }
      }, 1500);
    };
  }

  function happened(event, number) {
    counted = Number.isFinite(number) ? number : counted;
    if (event.type === "alert") {
      if (alerts.some((known) => known.start === event.time && known.text === event.query)) return;
      alerts.push({ start: event.time, text: event.query, score: event.score, wall: event.wall_start });
      parts.alerts.add(event);
    } else if (event.type === "plan") {
      parts.plan.changed(event);
    } else if (event.type === "warning") {
      parts.notices.prepend(el("li", {}, event.message));
      parts.noticeBox.classList.remove("hidden");
    } else {
      take({ ...event, source: info.source }, order);
    }
    changed();
  }

  /** Draw anew, at most once a frame. */
  function changed() {
    planned ||= requestAnimationFrame(() => { planned = 0; if (!over) render(); });
  }

  function render() {
    const lines = [];
    let last = null;
    for (const id of order) {
      const scene = scenes.get(id);
      last = scene;
      lines.push({
        key: `s${id}`, kind: "scene", id, start: scene.start, end: scene.end, wall: scene.wall_start, source: scene.source,
        text: scene.unsure ? (scene.text ? `${scene.text} … (unsure)` : "(unsure)") : scene.text ?? "…",
        unsure: scene.unsure, confidence: scene.confidence, likelihood: scene.likelihood, keyframe: scene.keyframe,
      });
    }
    for (const [key, note] of notes) lines.push({ key, kind: "note", sound: note.kind === "sound", start: note.start, end: note.end, wall: note.wall_start, source: note.source, text: note.text });
    for (const alert of alerts) lines.push({ key: `a${alert.start}${alert.text}`, kind: "alert", start: alert.start, end: alert.start, wall: alert.wall, source: last?.source, text: `Alert: ${alert.text}` });
    if (notes.size || alerts.length) {
      const places = new Map(order.map((id, i) => [scenes.get(id).source, i]));
      lines.sort((a, b) => (places.get(a.source) ?? 0) - (places.get(b.source) ?? 0) || a.start - b.start);
    }
    parts.transcript.set(lines, added);
    added = 0;
    sources();
    parts.day.offer(last?.wall_start);
    const mine = order.map((id) => scenes.get(id)).filter((scene) => scene.source === source);
    mine.sort((a, b) => a.start - b.start);
    parts.timeline.set(mine.map((scene) => ({ id: scene.id, start: scene.start, end: scene.end, wall: scene.wall_start, text: scene.text, keyframe: `${info.url}/keyframes/${scene.id}` })), alerts, [...notes.values()].filter((note) => note.source === source));
    if (!parts.screen.started && order.length) parts.screen.begin();
  }

  function sources() {
    const known = [...new Set(order.map((id) => scenes.get(id).source))];
    if (!known.includes(source)) source = known[known.length - 1] ?? null;
    const { pick } = parts;
    pick.classList.toggle("hidden", known.length < 2);
    if (pick.options.length !== known.length) {
      pick.replaceChildren(...known.map((each) => el("option", { value: each }, each)));
    }
    pick.value = source;
  }

  async function tick() {
    clearTimeout(timer);
    if (over) return;
    if (kind === "session" && !document.hidden) {
      try {
        info = await ask(url);
        describe();
        parts.screen.refresh();
      } catch (error) {
        if (error.status === 404) return void failed(error);
        banner(`${error.message} Trying again…`);
        timer = setTimeout(load, 3000);
        return;
      }
    } else if (kind === "memory" && !document.hidden) {
      try { // it may be written meanwhile
        const now = await ask(url);
        if (now.segments !== info.segments || now.captions !== info.captions) {
          info = now;
          describe();
          const fresh = [];
          for (const event of (await ask(`${info.url}/segments?count=${PAGE}`)).events) take(event, fresh);
          order.push(...fresh);
          changed();
        }
      } catch (error) {
        if (error.status === 404) return void failed(error);
      }
    }
    timer = setTimeout(tick, kind === "session" ? TICK_MS : MEMORY_MS);
  }

  function describe() {
    const title = kind === "session" ? info.title : info.id;
    document.title = `${title} · streammem`;
    parts.title.textContent = title;
    if (kind === "session") {
      parts.state.textContent = stateText(info);
      const known = info.state === "watching" && info.duration;
      parts.progress.classList.toggle("hidden", !known);
      if (known) parts.progress.value = Math.min(1, (info.time || 0) / info.duration);
      parts.transcript.live = info.state === "watching";
      parts.alerts.set(info.alerts);
      parts.plan.following(info.plan);
      parts.webcam.classList.toggle("hidden", capturing() !== info.id);
    } else {
      parts.state.textContent = info.wall_start ? `${wall(info.wall_start)} to ${wall(info.wall_end)}` : `${info.segments} scenes`;
    }
  }

  // -- the parts --

  function build() {
    const made = {};
    made.title = el("h1", { id: "title" });
    made.state = el("span", { class: "muted", id: "state" });
    made.progress = el("progress", { max: 1, value: 0, class: "hidden", id: "progress", "aria-label": "watched" });
    made.webcam = el("button", { class: "hidden", id: "stop-webcam", onclick: () => stopCapture() }, "Stop the webcam");
    made.screen = screen();
    made.timeline = new Timeline((seconds) => place({ start: seconds, source }));
    made.transcript = new Transcript((line) => place(line));
    made.transcript.fromEnd = kind === "memory";
    made.talk = new Talk({ url: info.url, video: kind === "session" && info.video }, about, (item) => place(item));
    made.alerts = alertBox();
    made.plan = new PlanView({ url: info.url, follows: kind === "session" }, (item) => place({ source, ...item }));
    made.day = new DayView({ url: info.url }, (item) => place(item));
    made.notices = el("ul", { class: "plain", id: "notices" });
    made.noticeBox = el("details", { class: "hidden" }, el("summary", {}, "Warnings"), made.notices);
    made.pick = el("select", { class: "hidden", id: "source", "aria-label": "Source on the timeline", onchange: (event) => { source = event.target.value; changed(); } });
    const downloads = el("p", { class: "row", id: "downloads" }, "Download:",
      ...[["SRT", "srt", ""], ["WebVTT", "vtt", ""], ["SRT with wall clock", "srt", "&wall_clock=true"], ["JSON Lines", "jsonl", ""], ["Text", "text", ""]].map(([text, form, more]) =>
        el("a", { href: `${info.url}/export?format=${form}${more}`, download: true }, text)));
    main.replaceChildren(
      el("div", { class: "head" },
        el("a", { href: about.archive ? "#/archive" : "#/", id: "back" }, about.archive ? "← All cameras" : "← All videos"), made.title, made.progress, made.state, made.webcam,
        kind === "session" ? el("button", { id: "end", class: "bad", onclick: end }, "Close") : null),
      el("div", { class: "view" },
        el("div", {}, made.screen.node, made.pick, made.timeline.node, made.talk.node),
        el("div", { class: "side" }, made.transcript.node, made.plan.node, made.day.node, kind === "session" ? made.alerts.node : null, made.noticeBox, downloads)));
    return made;
  }

  async function end() {
    if (!confirm("Close this session? What is not kept in a memory is gone then.")) return;
    if (capturing() === info.id) await stopCapture();
    try { await ask(info.url, { method: "DELETE" }); location.hash = "#/"; } catch (error) { banner(error.message); }
  }

  /** Show a moment: in the video, or by its scene's keyframe. */
  function place({ start, source: from, segment, id }) {
    if (from && from !== source && [...parts.pick.options].some((option) => option.value === from)) { source = from; changed(); }
    const scene = scenes.get(id ?? segment) || sceneAt(start);
    parts.screen.show(start, scene);
    moved(start);
  }

  function moved(seconds) {
    parts.timeline.at(seconds);
    parts.transcript.at(seconds, source);
    const scene = sceneAt(seconds);
    parts.screen.caption(scene);
    parts.screen.heard(seconds);
  }

  function sceneAt(seconds) {
    const { timeline } = parts;
    const found = timeline.scenes[timeline.index(seconds)];
    return found && scenes.get(found.id);
  }

  function screen() {
    const words = el("p", { class: "caption", id: "caption" });
    const spoken = el("p", { class: "heard", id: "heard", "aria-label": "Said now" });
    const now = el("span", { class: "now hidden" });
    const picture = el("img", { id: "picture", alt: "", src: "data:,", class: "hidden" });
    const back = el("button", { id: "live", class: "hidden", onclick: () => { past = false; refresh(); } }, "Back to the live picture");
    const holder = el("div", { class: "screen" }, picture, now);
    const node = el("div", {}, holder, el("div", { class: "row" }, back), words, spoken);
    let video = null, past = false, busy = false;
    const made = { node, started: false, begin, show, refresh, caption, heard };

    function begin() {
      made.started = true;
      if (kind === "session" && info.video) {
        video = el("video", { id: "player", controls: true, playsinline: true, preload: "metadata", src: info.video });
        video.addEventListener("loadeddata", () => moved(video.currentTime));
        video.addEventListener("timeupdate", () => moved(video.currentTime));
        video.addEventListener("seeked", () => moved(video.currentTime));
        video.addEventListener("error", () => { // a codec that this browser lacks: keyframes then
          video.remove();
          video = null;
          if (order.length) show(scenes.get(order[0]).start, scenes.get(order[0]));
        });
        holder.prepend(video);
      } else if (kind === "memory" || info.state !== "watching") {
        const scene = scenes.get(order[order.length - 1]);
        show(scene.start, scene);
      }
    }

    function show(seconds, scene) {
      if (video) {
        video.currentTime = seconds;
        video.play().catch(() => {});
        return;
      }
      if (!scene) return;
      past = kind === "session" && info.state === "watching";
      back.classList.toggle("hidden", !past);
      put(`${info.url}/keyframes/${scene.id}`, scene.wall_start ? wall(scene.wall_start) : clock(scene.start, true));
    }

    /** Show the newest picture of what is watched now. */
    function refresh() {
      back.classList.toggle("hidden", !past);
      if (video || past || busy || !info.picture || info.state !== "watching") return;
      if (info.video && order.length) return;
      busy = true;
      picture.onload = picture.onerror = () => { busy = false; };
      put(`${info.picture}?${Date.now()}`, info.live ? "live" : clock(info.time || 0));
      if (info.time !== null) parts.timeline.at(info.time);
      caption(scenes.get(order[order.length - 1]));
    }

    function put(address, text) {
      picture.classList.remove("hidden");
      picture.src = address;
      now.classList.remove("hidden");
      now.textContent = text;
    }

    function caption(scene) {
      words.textContent = scene ? [scene.text, scene.unsure ? "(unsure)" : ""].filter(Boolean).join(" … ") : "";
    }

    /** Show what is said at a time. */
    function heard(seconds) {
      const said = [...notes.values()].filter((note) => note.source === source && note.start <= seconds + 0.05 && seconds < note.end);
      spoken.textContent = said.map((note) => note.kind === "sound" ? `(${note.text})` : `“${note.text}”`).join(" ");
    }
    return made;
  }

  function alertBox() {
    const wanted = el("ul", { class: "plain", id: "alerts-wanted" });
    const list = el("ul", { class: "plain", id: "alerts" });
    const text = el("input", { type: "text", id: "alert", maxlength: 200, placeholder: "a dog on the sofa", "aria-label": "Tell me when it shows" });
    const notify = el("button", { type: "button", id: "notify", onclick: allow }, "Notify me in the browser");
    let known = null;
    if (!("Notification" in window) || !window.isSecureContext || Notification.permission !== "default") notify.classList.add("hidden");

    async function allow() { await Notification.requestPermission(); notify.classList.add("hidden"); }
    async function put(alertsNow) {
      try {
        info = await ask(info.url, { method: "PATCH", body: { alerts: alertsNow } });
        set(info.alerts);
      } catch (error) { banner(error.message); }
    }
    function set(alertsNow) {
      const state = JSON.stringify([alertsNow, info.state]);
      if (state === known) return;
      known = state;
      wanted.replaceChildren(...alertsNow.map((query) => el("li", { class: "row" }, query,
        el("button", { class: "plain", "aria-label": `Stop waiting for ${query}`, onclick: () => put(alertsNow.filter((each) => each !== query)) }, "×"))));
      form.classList.toggle("hidden", info.state !== "watching" && info.state !== "opening");
    }
    const form = el("form", { class: "row", onsubmit: (event) => {
      event.preventDefault();
      const query = text.value.trim();
      if (!query || info.alerts.includes(query)) return;
      if (info.alerts.length >= MAX_ALERTS) return void banner(`${MAX_ALERTS} alerts at most; remove one.`);
      text.value = "";
      put([...info.alerts, query]);
    } }, text, el("button", { id: "add-alert" }, "Wait for it"), notify);
    const node = el("details", { id: "alert-box" }, el("summary", {}, "Alerts"), form, wanted,
      el("p", { class: "muted" }, about.alerts), list);

    function add(event) {
      node.open = true;
      const at = event.wall_start ? wall(event.wall_start) : clock(event.time, true);
      const by = event.matched === "caption" ? " (by its caption)" : "";
      list.prepend(el("li", {}, el("button", { class: "plain place", onclick: () => place({ start: event.time, source, id: event.segment }) }, at), ` ${event.query}${by}`));
      while (list.childElementCount > 200) list.lastChild.remove();
      // One by a caption is timed by its scene's start, and comes after its end.
      const scene = by ? scenes.get(event.segment) : null;
      const late = 30000 + 1000 * (scene ? scene.end - scene.start : 0);
      const fresh = !event.wall_start || Date.now() - Date.parse(event.wall_start) < late;
      if (fresh && info.live && "Notification" in window && Notification.permission === "granted") {
        new Notification(event.query, { body: `${parts.title.textContent}, ${at}`, tag: `${info.url} ${event.query}` });
      }
    }
    return { node, set, add };
  }
}
