"""The counters of a server, in Prometheus's text form."""

from collections import Counter

from streammem.models.vlm.server import REQUESTS
from streammem.types import Alert, Caption, Event, Segment

PREFIX = "streammem_"
_KINDS = {Segment: "segments", Caption: "captions", Alert: "alerts"}
_HELP = {
    "segments_total": "Segments closed.",
    "captions_total": "Captions sent.",
    "alerts_total": "Alerts sent.",
    "frames_pushed_total": "Pictures pushed by clients.",
    "events_lost_total": "Events that slow clients lost.",
    "caption_batches_total": "Batches in which captions were generated.",
    "batched_captions_total": "Captions in these batches.",
    "answers_total": "Questions answered.",
    "answer_seconds_total": "Seconds from question to full answer.",
    "model_server_requests_total": "Requests to model servers.",
    "model_server_retries_total": "Of these, after one that failed.",
    "model_server_failures_total": "Requests to model servers that were given up.",
    "model_server_tokens_total": "Tokens of prompts and replies of model servers.",
    "requests_total": "Requests by status class.",
    "refused_total": "Requests refused before they reached a route, by status.",
}


class Counters:
    """The counters of one server. Used in the event loop only, except ``batched``."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add to a counter; ``label`` as in ``status="2xx"``."""
        self._counts[name, label] += amount  # type: ignore[assignment]

    def count_event(self, event: Event) -> None:
        """Count an event of a source."""
        if kind := _KINDS.get(type(event)):
            self.add(f"{kind}_total")

    def answered(self, seconds: float) -> None:
        """Count an answer."""
        self.add("answers_total")
        self.add("answer_seconds_total", seconds)

    def batched(self, size: int) -> None:
        """Count a batch of captions; called under the model's lock, so by one thread at a time."""
        self.add("caption_batches_total")
        self.add("batched_captions_total", size)

    def text(self, gauges: dict[str, float]) -> str:
        """Return all counters, and these gauges, in the exposition format 0.0.4."""
        for name, count in REQUESTS.counts._asdict().items():
            self._counts[f"model_server_{name}_total", ""] = count
        lines = []
        for name, about in _HELP.items():
            lines += [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} counter"]
            found = {label: n for (key, label), n in self._counts.items() if key == name}
            for label, amount in (found or {"": 0}).items():
                lines.append(f"{PREFIX}{name}{f'{{{label}}}' if label else ''} {amount:g}")
        for name, value in gauges.items():
            lines += [f"# TYPE {PREFIX}{name} gauge", f"{PREFIX}{name} {value:g}"]
        return "\n".join(lines) + "\n"
