"""A plan that is followed while a session watches its source.

followed = FollowedPlan(session, "make coffee", steps)
for event in watch(session, source):
    events = [event, *followed.after(event)]     # plan events, where the plan has changed
"""

from collections.abc import Sequence

from streammem.engine.session import Session
from streammem.types import Alert, Caption, Event, Plan, Segment


class FollowedPlan:
    """Follows a plan through the events of a session.

    With steps it takes in scenes as they close; without, as they get their captions.

    Args:
        session: which is watched.
        goal: in the user's words.
        steps: see ``Session.follow``.
        alert_steps: give an alert, too, for a step that was left out or came out of order.
        from_memory: begin with what the session's memory holds of its source.
        likelihood: see ``Session.follow``.

    Raises:
        ConfigError: as ``Session.follow``.
    """

    def __init__(
        self,
        session: Session,
        goal: str,
        steps: Sequence[str] = (),
        *,
        alert_steps: bool = False,
        from_memory: bool = False,
        likelihood: bool = False,
    ) -> None:
        self._session, self._alert_steps = session, alert_steps
        self._follower = session.follow(goal, steps, likelihood=likelihood)
        self._has_steps = bool(steps)
        if from_memory:
            self._follower.push_all(session.newest_rows())
        self._shown = _changes(self.plan)

    @property
    def plan(self) -> Plan:
        """The plan as it stands, with every alert so far."""
        return self._follower.plan

    def after(self, event: Event) -> list[Alert | Plan]:
        """Take in what an event tells of; return alerts, and the plan where it has changed."""
        segment = None
        if isinstance(event, Segment):
            segment = event.id
        elif isinstance(event, Caption) and not self._has_steps:
            segment = event.segment
        if segment is None or (row := self._session.memory.get(segment)) is None:
            return []
        # Without steps a scene counts once it has a caption: of a long one when it closes.
        if not self._has_steps and isinstance(event, Segment) and not row.caption:
            return []
        plan = self._follower.push(row)
        changed = bool(plan.alerts) or _changes(plan) != self._shown
        self._shown = _changes(plan)
        told = plan.alerts if self._alert_steps else ()
        alerts = [Alert(text, plan.time, plan.certainty, row.segment) for text in told]
        return [*alerts, *([plan] if changed else [])]


def _changes(plan: Plan) -> list[tuple[str, str, int]]:
    """Return what a reader of the plan would see change."""
    return [(step.name, step.state, len(step.spans)) for step in plan.steps]
