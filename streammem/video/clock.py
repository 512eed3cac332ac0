"""Stream time of a live source: from its time stamps or from arrival, and never backward.

It reads no clock itself: callers pass the time at which a picture arrived.
"""

from fractions import Fraction

TRACKED_PICTURES = 32  # that are remembered until they are shown; codecs reorder at most 16
JUMP_BACK_S = 0.5  # time stamps of decoded pictures rise; one so much earlier is another clock's
JUMP_AHEAD_S = 10.0  # beyond what really passed
LOSSLESS_JUMP_AHEAD_S = 3600.0  # where nothing passes in real time, as in a pipe
# Sound comes so near the newest picture, or as much later as no picture has come.
BESIDE_S, LOSSLESS_BESIDE_S = 3.0, 30.0
# A camera's clock that is 50 millionths off is 4 s off after a day. Pictures that are late by less
# than the first, such as those of a network, do not count; of those that are late for a minute by
# more, because a computer is busy, half a second does.
WALL_APART_S, WALL_SLEW = 1.0, 0.01


class StreamClock:
    """Turns pictures' time stamps into seconds since the first picture.

    Within a connection time follows the stamps, over the wraps of their 32 or 33 bits. Where they
    jump, and at every new connection, it goes on where the last picture ended; in real time it
    goes on after as much time as really passed, so that an outage is as long as it was.

    Args:
        real_time: whether pictures come when they are taken; if not, arrival means nothing.
    """

    def __init__(self, *, real_time: bool = True) -> None:
        self._wrap_bits, self._real_time = 64, real_time
        self._first_arrival: float | None = None
        self._arrival = self._time = self._end = 0.0
        self._anchor_s, self._ticks = 0.0, 0  # time = anchor + ticks; exact, however long
        self._pts: int | None = None  # of the last picture that had one
        self._tick = Fraction(1)
        self._before: tuple[float, float] | None = None  # stamp and time before the last jump
        self._tracked: dict[int | None, float] = {}  # pts -> time

    @property
    def end(self) -> float:
        """Seconds at which the last picture ends."""
        return self._end

    def connect(self, wrap_bits: int) -> None:
        """Forget the stamps: the next picture's come from another clock.

        Args:
            wrap_bits: after 2 ** wrap_bits ticks they begin again at 0. 0: they mean nothing, as
                the frame counter of a motion JPEG, and pictures are shown when they arrive.
        """
        self._pts, self._before, self._wrap_bits = None, None, wrap_bits
        self._tracked.clear()

    def track(
        self, pts: int | None, tick: Fraction, duration: float, arrived: float, *, kept: bool
    ) -> None:
        """Follow a picture that has come and is not, or not yet, shown.

        Where most pictures are skipped, the stamps of those between two that are shown prove
        that no clock has jumped there. Each goes through here then, in the order in which it comes.

        Args:
            pts: this, and the next three, as for ``place``.
            tick: likewise.
            duration: likewise.
            arrived: likewise.
            kept: whether it will be shown: ``place`` gives it the time that it has now.
        """
        time = self._following(pts, tick, arrived)
        self._end, self._arrival = max(self._end, time + duration), arrived
        if kept:
            self._tracked[pts] = time
            if len(self._tracked) > TRACKED_PICTURES:
                del self._tracked[next(iter(self._tracked))]

    def place(self, pts: int | None, tick: Fraction, duration: float, arrived: float) -> float:
        """Place the next picture, in the order in which they are shown.

        Args:
            pts: its time stamp, if it has one; without, it is shown when it arrives.
            tick: seconds a unit of pts.
            duration: seconds that it is shown.
            arrived: seconds on a clock that never jumps.

        Returns:
            Seconds since the first picture, at least the last one's.
        """
        tracked = self._tracked.pop(pts, None)
        if tracked is not None:
            self._time = max(self._time, tracked)
            return self._time
        self._time = max(self._time, self._following(pts, tick, arrived))
        self._end, self._arrival = self._time + duration, arrived
        return self._time

    @property
    def has_stamps(self) -> bool:
        """Whether a picture of this connection has come with a stamp."""
        return self._pts is not None

    def beside(self, stamp: float, arrived: float) -> float | None:
        """Return the time of what comes beside the pictures, such as sound.

        Args:
            stamp: seconds on the container's clock.
            arrived: as for ``place``.

        Returns:
            Seconds since the first picture, below 0 before it; None where no picture near it has
            come in this connection, so that the stamp means nothing (yet).
        """
        if self._pts is None or not self._wrap_bits:
            return None
        near = since_jump = BESIDE_S if self._real_time else LOSSLESS_BESIDE_S
        if self._real_time:
            near += max(0.0, arrived - self._arrival)
        around = float((1 << self._wrap_bits) * self._tick)
        known = [(float(self._pts * self._tick), self._followed())]
        if self._before and self._followed() - self._anchor_s <= since_jump:
            known.append(self._before)
        apart = [(stamp - at - round((stamp - at) / around) * around, time) for at, time in known]
        distance, time = min(apart, key=lambda pair: abs(pair[0]))
        return time + distance if abs(distance) <= near else None

    def _following(self, pts: int | None, tick: Fraction, arrived: float) -> float:
        if self._first_arrival is None:
            self._first_arrival = self._arrival = arrived
        since = arrived - self._first_arrival
        if self._wrap_bits == 0:
            return since
        if pts is None:
            # A parser that was cut short by a time-out gives its picture without a stamp.
            return max(self._end, since) if self._real_time else self._end
        return self._follow(pts, tick, arrived)

    def _follow(self, pts: int, tick: Fraction, arrived: float) -> float:
        step = None if self._pts is None else self._unwrapped(pts - self._pts)
        last, self._pts, self._tick = self._pts, pts, tick
        if step is None or self._is_jump(float(step * tick), arrived):
            assert self._first_arrival is not None
            self._before = None if last is None else (float(last * tick), self._followed())
            since = arrived - self._first_arrival if self._real_time else 0.0
            self._anchor_s, self._ticks = max(self._end, since), 0
        else:
            self._ticks += step
        return self._followed()

    def _followed(self) -> float:
        """Return the time of the last stamp."""
        return self._anchor_s + self._ticks * self._tick.numerator / self._tick.denominator

    def _unwrapped(self, step: int) -> int:
        half = 1 << (self._wrap_bits - 1)
        return (step + half) % (2 * half) - half

    def _is_jump(self, step_s: float, arrived: float) -> bool:
        if self._real_time:
            return not -JUMP_BACK_S <= step_s <= arrived - self._arrival + JUMP_AHEAD_S
        return not -JUMP_BACK_S <= step_s <= LOSSLESS_JUMP_AHEAD_S


def follow_wall(zero: float, time: float, step_s: float, wall: float) -> float:
    """Return where stream time 0 lies on the wall clock, corrected by the newest picture.

    A camera's clock and this computer's drift apart. What lies further apart than WALL_APART_S is
    made up for by a small part of the time that passes, so that wall times never go backward.

    Args:
        zero: Unix seconds, as it was taken so far.
        time: stream time of the picture.
        step_s: seconds of stream time since the picture before, >= 0.
        wall: Unix seconds at which the picture came.

    Returns:
        Unix seconds, at most ``WALL_SLEW * step_s`` from ``zero``.
    """
    apart = wall - time - zero
    beyond = apart - min(max(apart, -WALL_APART_S), WALL_APART_S)
    most = WALL_SLEW * step_s
    return zero + min(max(beyond, -most), most)
