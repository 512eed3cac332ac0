"""Events as HTML for the page; all text of events is escaped.

    captions([Caption(0, 0.0, 4.0, "a red room")])  # '<div class="sm-list" ...'

Each item with a time is a button with ``data-time``: a click, or Enter, moves the video there.
"""

from collections.abc import Iterable, Sequence
from html import escape

from streammem.server.session_host import Depth
from streammem.types import (
    Alert,
    Answer,
    Caption,
    Chapter,
    Event,
    Evidence,
    Note,
    Notice,
    Segment,
    clock,
)

MAX_LINES = 300  # captions on the page, the newest
MAX_KEYFRAMES = 120  # on the page, the newest
CURVE_WIDTH, CURVE_HEIGHT = 1000, 60

SCRIPT = """
<script>
document.addEventListener("click", (event) => {
  const place = event.target.closest("[data-time]");
  const video = document.querySelector("#player video, #remote video");
  if (place && video) { video.currentTime = Number(place.dataset.time); video.play(); }
});
</script>
"""
STYLE = """
.sm-list { max-height: 24rem; overflow-y: auto; display: flex; flex-direction: column; }
.sm-list button, .sm-strip button { text-align: left; background: none; border: 0; padding: .35rem;
  cursor: pointer; font: inherit; color: inherit; border-radius: .3rem; }
.sm-list button:hover, .sm-strip button:hover { background: rgba(128, 128, 128, .2); }
.sm-list button:focus-visible, .sm-strip button:focus-visible { outline: 2px solid #f97316; }
.sm-time { opacity: .7; font-variant-numeric: tabular-nums; margin-right: .5rem; }
.sm-alert { font-weight: 600; } .sm-warning { color: #b45309; padding: .35rem; }
.sm-strip { display: flex; gap: .25rem; overflow-x: auto; padding: .25rem 0; align-items: start; }
.sm-strip button { flex: none; max-width: 11rem; }
.sm-strip img { height: 5.5rem; max-width: none; display: block; border-radius: .3rem; }
.sm-curve { width: 100%; height: 60px; display: block; }
.sm-links a { margin-right: 1rem; text-decoration: underline; }
#remote video { width: 100%; max-height: 26rem; }
"""


def captions(events: Sequence[Event]) -> str:
    """List captions, speech and alerts, the newest last."""
    lines = [line for event in events if (line := _line(event))][-MAX_LINES:]
    return f'<div class="sm-list" role="log" aria-label="Captions">{"".join(lines)}</div>'


def timeline(events: Iterable[Event], depths: Sequence[Depth], path: str) -> str:
    """Show the keyframes of scenes under the curve of SceneTilling's depth.

    Args:
        events: the segments among them are shown.
        depths: newest last.
        path: URL path of the session or memory; keyframes are below it.
    """
    scenes = [event for event in events if isinstance(event, Segment)][-MAX_KEYFRAMES:]
    shown = "".join(_scene(scene, path) for scene in scenes)
    start = scenes[0].start if scenes else 0.0
    return f'{_curve([d for d in depths if d.time >= start])}<div class="sm-strip">{shown}</div>'


def evidence(answer: Answer, path: str) -> str:
    """Show the evidence of an answer, or the nearest moments if it was not seen."""
    heading = "Evidence" if answer.seen else "Not seen with confidence; the nearest moments"
    return moments(answer.evidence, path, heading)


def moments(found: Sequence[Evidence], path: str, heading: str) -> str:
    """Show moments by their keyframes, times and captions."""
    shown = "".join(
        f"{_button(item.start)}{_picture(path, item.segment)}"
        f"{_time(item.start, item.end)}{escape(item.caption or '')}</button>"
        for item in found
    )
    return f'<p>{escape(heading)}</p><div class="sm-strip">{shown or "nothing yet"}</div>'


def chapters(found: Sequence[Chapter]) -> str:
    """List chapters with the captions of their central scenes."""
    shown = "".join(
        f"{_button(c.start)}{_time(c.start, c.end)}"
        f"{escape(' '.join(caption.text for caption in c.captions))}</button>"
        for c in found
    )
    return f'<div class="sm-list" aria-label="Chapters">{shown or "nothing yet"}</div>'


def downloads(path: str) -> str:
    """Link to the downloads of the whole memory."""
    links = "".join(
        f'<a href="{path}/export?format={form}" download>{form.upper()}</a>'
        for form in ("srt", "vtt", "jsonl")
    )
    return f'<p class="sm-links">{links}</p>'


def player(url: str) -> str:
    """Embed a video of another site, which plays if the browser can."""
    return f'<video src="{escape(url)}" controls playsinline></video>'


def failure(message: str) -> str:
    """Show an error message."""
    return f'<p class="sm-warning" role="alert">{escape(message)}</p>'


def _line(event: Event) -> str:
    if isinstance(event, Caption | Note):
        text = event.text if isinstance(event, Caption) else f"“{event.text}”"
        if isinstance(event, Caption) and event.reason:
            text = f"{text} … (unsure)" if text else "(unsure)"
        return f"{_button(event.start)}{_time(event.start, event.end)}{escape(text)}</button>"
    if isinstance(event, Alert):
        text = escape(event.query)
        return f'{_button(event.time)}{_time(event.time)}<b class="sm-alert">{text}</b></button>'
    return failure(event.message) if isinstance(event, Notice) else ""


def _scene(scene: Segment, path: str) -> str:
    return f"{_button(scene.start)}{_picture(path, scene.id)}{_time(scene.start)}</button>"


def _button(at: float) -> str:
    return f'<button type="button" data-time="{at:.3f}">'


def _time(*times: float) -> str:
    return f'<span class="sm-time">{"-".join(map(clock, times))}</span>'


def _picture(path: str, segment: int) -> str:
    return f'<img src="{path}/keyframes/{segment}" alt="scene {segment}" loading="lazy">'


def _curve(depths: Sequence[Depth]) -> str:
    if len(depths) < 2 or depths[-1].time <= depths[0].time:
        return ""
    first, span = depths[0].time, depths[-1].time - depths[0].time
    highest = max(max(d.depth for d in depths), 1e-6)
    points = " ".join(
        f"{(d.time - first) / span * CURVE_WIDTH:.1f},"
        f"{CURVE_HEIGHT - max(0.0, d.depth) / highest * CURVE_HEIGHT:.1f}"
        for d in depths
    )
    return (
        f'<svg class="sm-curve" viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" '
        'preserveAspectRatio="none" role="img" aria-label="depth of scene changes">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )
