import pickle

import numpy as np
import pytest

from streammem.perception.background import ABSORBED_S, SETTLED_S, Background
from streammem.perception.frames import GRID, Encoded, PixelGate

STILL = 6.0
ROOM = np.random.default_rng(0).integers(60, 190, (GRID, GRID, 3)).astype(np.uint8)
PLACE = np.s_[8:18, 4:12]
# A tenth of each side within the place.
BOX = pytest.approx((9 / GRID, 17 / GRID, 4.8 / GRID, 11.2 / GRID))


def thumbnail(*, thing=None, drift=0.0, number=0):
    picture = ROOM.astype(np.float64) + drift
    if thing is not None:
        picture[PLACE] = thing
    noise = np.random.default_rng(number).normal(0, 0.5, ROOM.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def watched(thumbnails, before=None, start=0.0):
    """The state after each thumbnail, one a second."""
    background, found = Background(STILL), []
    background.restore(before)
    for second, each in enumerate(thumbnails):
        box = background.push(each, start + second)
        found.append(background.snapshot())
        assert box == found[-1].changed
    return found


def quiet(seconds=int(SETTLED_S) + 1, **light):
    return [thumbnail(number=n, **light) for n in range(seconds)]


def test_a_thing_that_comes_is_framed_as_long_as_it_stands_there():
    room = watched(quiet())[-1]
    stays = watched([thumbnail(thing=250, number=n) for n in range(20)], room, 40.0)
    assert [each.changed for each in stays] == [BOX] * len(stays)
    gone = watched(quiet(5), stays[-1], 60.0)
    assert {each.changed for each in gone} == {None}


def test_nothing_is_framed_before_the_camera_has_looked_long_enough():
    early = watched([*quiet(5), thumbnail(thing=250)])
    assert early[-1].changed is None
    late = watched([*quiet(), thumbnail(thing=250)])
    assert late[-1].changed == BOX


def test_what_stands_very_long_belongs_to_the_place():
    room = watched(quiet())[-1]
    parked = watched(
        [thumbnail(thing=250, number=n) for n in range(int(ABSORBED_S) + 3)], room, 31.0
    )
    assert parked[int(ABSORBED_S) - 2].changed == BOX and parked[-1].changed is None
    leaves = watched(quiet(2), parked[-1], 215.0)
    assert leaves[-1].changed == BOX, "now the empty place is the event"


@pytest.mark.parametrize("kind", ["light", "noise", "strays", "a line", "a pole", "a speck"])
def test_slow_light_and_small_disturbances_are_no_event(kind):
    room = watched(quiet())[-1]
    thumbnails = [thumbnail(number=n, drift=n * 0.3 if kind == "light" else 0) for n in range(60)]
    for each in thumbnails:
        if kind == "strays":
            each[8:24:3, 8:24:3] = 255
        if kind == "a line":
            each[:, 10] = 255
        if kind == "a pole":
            each[:, 10:12] = 255
        if kind == "a speck":
            each[20:25, 20:25] = 255
    assert {each.changed for each in watched(thumbnails, room, 40.0)} == {None}


def test_what_was_hidden_need_not_come_back_to_the_level():
    room = watched(quiet())[-1]
    hides = watched([thumbnail(thing=250, drift=n * 0.35) for n in range(20)], room, 31.0)
    gone = watched([thumbnail(drift=7.0)] * 3, hides[-1], 51.0)
    assert {each.changed for each in gone} == {None}


def test_strays_beside_a_thing_do_not_stretch_its_frame():
    room = watched(quiet())[-1]
    disturbed = thumbnail(thing=250)
    disturbed[25:27, 25:29] = 255
    assert watched([disturbed], room, 31.0)[-1].changed == BOX


def test_a_thin_part_beside_a_thing_does_not_stretch_its_frame():
    room = watched(quiet())[-1]
    with_tail = thumbnail()
    with_tail[6:26, 4:24] = 250
    with_tail[10:14, 24:31] = 250
    inner = pytest.approx((8 / GRID, 24 / GRID, 6 / GRID, 22 / GRID))
    assert watched([with_tail], room, 31.0)[-1].changed == inner


def test_what_happens_all_over_the_picture_is_looked_at_in_the_whole():
    room = watched(quiet())[-1]
    around = np.full_like(ROOM, 250)
    around[4:-4, 4:-4] = thumbnail()[4:-4, 4:-4]
    assert watched([around], room, 31.0)[-1].changed is None


def test_another_place_is_looked_at_anew():
    room = watched(quiet())[-1]
    turned = watched([255 - each for each in quiet(10)], room, 40.0)
    assert {each.changed for each in turned} == {None} and turned[-1].since == 40.0


def test_a_box_that_trembles_stays_and_one_that_moves_on_follows():
    room = watched(quiet())[-1]
    first, trembling, moved = thumbnail(thing=250), thumbnail(), thumbnail()
    trembling[9:19, 4:12] = 250
    moved[20:30, 16:24] = 250
    boxes = [each.changed for each in watched([first, trembling, moved], room, 40.0)]
    assert boxes == [BOX, BOX, pytest.approx((21 / GRID, 29 / GRID, 16.8 / GRID, 23.2 / GRID))]


def test_restored_from_a_snapshot_it_goes_on_as_it_would_have():
    shown = [*quiet(), *[thumbnail(thing=250, number=n) for n in range(5)], *quiet(3)]
    whole = watched(shown)
    for cut in (1, 20, 33, 36):
        copy = pickle.loads(pickle.dumps(whole[cut - 1]))
        after = watched(shown[cut:], copy, float(cut))
        assert [s.changed for s in after] == [s.changed for s in whole[cut:]]
        assert np.array_equal(after[-1].cells, whole[-1].cells)
        assert np.array_equal(after[-1].moved_s, whole[-1].moved_s)


def test_a_part_is_encoded_as_that_part_of_the_picture_and_is_never_empty():
    picture = np.arange(64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8)
    gate = PixelGate(Pictures(), still=0.0)
    assert gate.encode(picture).perceived is picture
    part = gate.encode(picture, (0.25, 0.5, 1 / 3, 2 / 3)).perceived
    np.testing.assert_array_equal(part, picture[16:32, 32:64])
    assert gate.encode(picture[:2, :2], (0.1, 0.2, 0.1, 0.2)).perceived.size


class Pictures:
    def perceive(self, picture):
        return picture


class Shapes:
    def perceive(self, picture):
        return picture.shape


def test_the_part_is_encoded_and_again_the_whole_when_it_is_over():
    picture = np.full((64, 96, 3), 90, np.uint8)
    box = (0.25, 0.5, 0.0, 0.5)
    gate = PixelGate(Shapes(), STILL)
    whole = gate.encode(picture)
    part = gate.encode(picture, box)
    assert (whole.perceived, part.perceived, part.box) == ((64, 96, 3), (16, 48, 3), box)
    assert gate.encode(picture, box) is part
    after = gate.encode(picture)
    assert after.perceived == whole.perceived and isinstance(after, Encoded)
