"""Laws of the kernels in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.kernels.laws NAME [PART]

A process of its own, as Triton reads the variable once, when it is imported.
"""

import itertools
import os
import sys

import numpy as np
import torch
from streammem_kernels import find_topk, ops
from streammem_kernels.reference import find_topk_reference

from streammem.models.tiny.bridge import Attention
from streammem.perception.scenetilling import SceneTilling, SceneTillingConfig, SceneTillingState


def forced(form, call, *arguments, **named):
    os.environ["STREAMMEM_KERNELS"] = form
    return call(*arguments, **named)


def exact_case(num_questions, num_rows, width, dtype, seed):
    """Questions of length 1 and small keys, so that any order of sums gives the same, with ties."""
    generator = torch.Generator().manual_seed(seed)
    questions = torch.zeros(num_questions, width)
    for row in questions:
        row[torch.randperm(width, generator=generator)[: 4 if width >= 4 else 1]] = 0.5
    keys = torch.randint(-5, 6, (num_rows, width), generator=generator).to(dtype)
    ranges = torch.randint(0, num_rows + 1, (num_questions, 2), generator=generator)
    ranges = ranges.sort(1).values
    ranges[0] = torch.tensor([0, num_rows])
    scales = 2.0 ** torch.randint(-3, 3, (num_rows,), generator=generator).float()
    return questions, keys, ranges, scales


def check_exact(num_questions, num_rows, width, k, dtype, has_scales=True):
    questions, keys, ranges, scales = exact_case(num_questions, num_rows, width, dtype, num_rows)
    if num_questions > 2:
        ranges[1] = torch.tensor([5, 5])
        ranges[2] = torch.tensor([7, 2])
    if num_questions > 3:
        # The last block has one row, and one question asks for few others.
        ranges[3] = torch.tensor([max(0, num_rows - 5), num_rows])
    scales = scales if has_scales else None
    rows, scores = forced("triton", ops.find_topk, questions, keys, ranges, k, scales=scales)
    unit = torch.nn.functional.normalize(questions, dim=1)
    wanted = find_topk_reference(unit, keys, ranges, k, scales)
    assert torch.equal(rows, wanted[0]) and torch.equal(scores, wanted[1])
    if num_rows < 2000:  # Python's dictionaries are slow
        check_groups(unit, keys, ranges, k, scales)
    # The reference itself, by a stable sort.
    exact = unit @ keys.float().T * (1 if scales is None else scales)
    for question, (start, stop) in enumerate(ranges.tolist()):
        best = start + (-exact[question, start:stop]).argsort(stable=True)[:k]
        filled = torch.full((k,), -1)
        filled[: len(best)] = best
        assert torch.equal(rows[question], filled)


def check_groups(questions, keys, ranges, k, scales):
    """Groups and masks of tenants, in both forms, against a dictionary."""
    generator = torch.Generator().manual_seed(len(keys))
    num_rows, num_tenants = len(keys), 5
    shape = (len(questions), num_tenants)
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[-1] = len(questions) == 1  # one may see none, unless it is alone
    tenants = torch.randint(0, num_tenants, (num_rows,), generator=generator).int()
    # Rows of one group lie near each other and far apart.
    groups = torch.randint(0, num_rows // 3 + 1, (num_rows,), generator=generator).int() + 7
    find_topk.SHARES = 2  # so that a program reads several blocks
    # A mask of rows instead of tenants, and neither, take the same path of the reference.
    for held_mask, held_tenants in ((mask, tenants), (mask[:, tenants.long()], None), (None, None)):
        results = [
            forced(
                form, ops.find_topk, questions, keys, ranges, k, scales=scales, mask=held_mask,
                tenants=held_tenants, groups=groups,
            )
            for form in ("triton", "torch")
        ]  # fmt: skip
        assert all(map(torch.equal, *results))
        exact = questions @ keys.float().T * (1 if scales is None else scales)
        for question, (start, stop) in enumerate(ranges.tolist()):
            best: dict[int, float] = {}
            for row in range(start, stop):
                if held_mask is None or mask[question, tenants[row]]:
                    group, score = int(groups[row]), float(exact[question, row])
                    best[group] = max(score, best.get(group, score))
            wanted = sorted(best, key=lambda group: (-best[group], group))[:k]
            found = results[0][0][question]
            assert found.tolist() == wanted + [-1] * (k - len(wanted))
            assert results[0][1][question, : len(wanted)].tolist() == [best[g] for g in wanted]


def topk():
    check_exact(3, 300, 40, 5, torch.int8)
    check_exact(17, 129, 70, 8, torch.bfloat16, has_scales=False)


def topk_more():
    for dtype in (torch.int8, torch.float16, torch.bfloat16, torch.float32):
        check_exact(1, 1, 1, 1, dtype)
        check_exact(1, 5, 3, 8, dtype)  # more than there are rows
        check_exact(16, 128, 64, 1, dtype)
        check_exact(33, 1037, 129, 64, dtype)
        check_exact(5, 40_000, 8, 7, dtype, has_scales=False)
    topk_of_real_numbers()


def topk_of_real_numbers():
    """Scores within 1e-6 of float64's, for types that are exact in bfloat16 and for float32."""
    generator = torch.Generator().manual_seed(0)
    questions = torch.randn(9, 256, generator=generator)
    keys = torch.nn.functional.normalize(torch.randn(500, 256, generator=generator), dim=1)
    scales = keys.abs().amax(1) / 127
    ranges = torch.tensor([[0, 500]] * 9)
    for held, by in (
        ((keys / scales[:, None]).round().to(torch.int8), scales),
        (keys.bfloat16(), None),
        (keys.half(), None),
        (keys, None),
    ):
        rows, scores = forced("triton", ops.find_topk, questions, held, ranges, 500 // 8, scales=by)
        unit = torch.nn.functional.normalize(questions.double(), dim=1)
        exact = unit @ held.double().T * (1 if by is None else by.double())
        assert (scores - exact.topk(500 // 8).values).abs().max() < 1e-6
        assert (scores - exact.gather(1, rows)).abs().max() < 1e-6


def random_options(rng):
    least = int(rng.integers(1, 4))
    return {
        "alpha": float(rng.uniform(0, 2)),
        "floor": float(rng.uniform(0, 0.8)),
        "half_life": float(rng.uniform(2, 60)),
        "min_frames": least,
        "max_frames": least + int(rng.integers(1, 25)),
        "max_lag": int(rng.integers(1, 7)),
        "flash_frames": int(rng.integers(0, 3)),
        "peak": float(rng.choice([-1.0, 0.3])),
    }


def check_tilling(form, seeds, streams, steps, change=0.15, **fixed):
    """Boundaries at every step, and the state after the last, equal `SceneTilling`'s.

    Streams have patches of different numbers, rest now and then, and end and go on.
    """
    found = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        width = int(rng.integers(4, 140 if seed % 8 == 0 else 40))
        options = random_options(rng) | fixed
        state = ops.TillingState(streams, width, ops.TillingOptions(**options))
        python = [SceneTilling(SceneTillingConfig(**options)) for _ in range(streams)]
        center = torch.tensor(rng.normal(size=width), dtype=torch.float32)
        scene = rng.normal(size=(streams, 1, width))
        for _ in range(steps):
            changes = rng.random(streams) < change
            scene[changes] = rng.normal(size=(changes.sum(), 1, width))
            active = rng.random(streams) < 0.85
            is_whole = rng.random() < 0.3
            sizes = rng.integers(1, 40 if seed % 8 == 1 else 5, streams)
            if is_whole:
                sizes[:] = sizes[0]
            # A stream without patches rests; with patches but not active, they are not read.
            if not is_whole:
                sizes[~active & (rng.random(streams) < 0.5)] = 0
            active = torch.from_numpy(active)
            frames = [
                torch.tensor(scene[i] + 0.3 * rng.normal(size=(size, width))).float()
                for i, size in enumerate(sizes.tolist())
            ]
            pooled = [(frame.mean(0) - center).numpy() for frame in frames]
            for frame, is_active in zip(frames, active, strict=True):
                frame[:] = frame if is_active else np.nan
            if is_whole:
                forced(form, ops.tilling_step, state, torch.stack(frames), center, active)
            else:
                offsets = torch.tensor([0, *sizes]).cumsum(0)
                patches = torch.cat(frames)
                forced(form, ops.tilling_step, state, patches, center, active, offsets=offsets)
            found += compare(
                state,
                python,
                [
                    tilling.push(row).boundaries if on else ()
                    for tilling, row, on in zip(python, pooled, active, strict=True)
                ],
            )
            if rng.random() < 0.1:
                ends = torch.tensor(rng.random(streams) < 0.5)
                forced(form, ops.tilling_flush, state, ends)
                wanted = [
                    tilling.flush().boundaries if on else ()
                    for tilling, on in zip(python, ends, strict=True)
                ]
                found += compare(state, python, wanted)
        for stream, tilling in enumerate(python):
            check_state(state, stream, tilling.snapshot())
        forced(form, ops.tilling_flush, state)
        found += compare(state, python, [tilling.flush().boundaries for tilling in python])
    assert found >= 0.02 * len(seeds) * streams * steps, found


def compare(state, python, wanted):
    """Compare what the last step found in each stream; give how much that was."""
    found = 0
    for stream in range(len(python)):
        got = state.boundaries(stream)
        assert [index for index, _ in got] == [boundary.index for boundary in wanted[stream]]
        depths = [np.nan if b.depth is None else b.depth for b in wanted[stream]]
        assert np.allclose([depth for _, depth in got], depths, atol=1e-5, equal_nan=True)
        found += len(got)
    return found


def check_state(state: ops.TillingState, stream: int, wanted: SceneTillingState) -> None:
    frames, start, scene, first, length = state.numbers[stream].tolist()
    assert (frames, start, scene) == (wanted.frames, wanted.start, wanted.scene_start)
    assert length == len(wanted.climb)
    assert not length or first == wanted.climb[0].frame
    learned = [wanted.weight, wanted.mean, wanted.square]
    assert np.allclose(state.learned[stream], learned, atol=1e-4)
    for gap in wanted.climb:
        held = state.climb[stream, gap.frame % state.options.max_lag]
        assert np.allclose(held, [gap.similarity, gap.left_peak, gap.bridged], atol=1e-5)


def tilling():
    check_tilling("torch", range(10), 10, 12)
    check_tilling("triton", range(1), 6, 12)
    shared()


def shared():
    """Sessions of one model that share a device: the kernel behind the seam that they use."""
    from streammem.captioning.shared_tilling import SharedTilling, StreamTilling

    os.environ["STREAMMEM_KERNELS"] = "triton"
    config = SceneTillingConfig(floor=0.3, alpha=1.0, max_lag=3, flash_frames=1)
    streams = SharedTilling("cpu")
    shared, alone = streams.open(config), SceneTilling(config)
    assert type(shared) is StreamTilling
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(4, 9)), 4, 0) + 0.1 * rng.normal(size=(16, 9))
    for row in rows:
        found = shared.push(row).boundaries, alone.push(row).boundaries
        assert [[b.index for b in each] for each in found[:1]] == [[b.index for b in found[1]]]
    assert alone.snapshot()[:3] == shared.snapshot()[:3] and alone.snapshot().scene_start


def tilling_some():
    check_tilling("triton", range(8), 4, 16)
    # No two frames alike: none of the last is a cut, as it may be a flash.
    restless = {"alpha": 0.0, "floor": 0.05, "min_frames": 1, "flash_frames": 1, "peak": 0.3}
    check_tilling("triton", range(2), 4, 8, change=1, **restless)


def tilling_more(part):
    """250 of 3,000 sequences; the interpreter takes 16 ms a frame."""
    seeds = range(10 * int(part), 10 * int(part) + 10)
    check_tilling("torch", seeds, 25, 40)
    check_tilling("triton", seeds, 25, 12)


def tilling_of_bad_frames():
    """A frame that is not finite is refused by its own stream and changes nothing there."""
    for form in ("torch", "triton"):
        state = ops.TillingState(2, 5)
        patches = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
        forced(form, ops.tilling_step, state, patches, torch.zeros(5))
        patches[1, 0, 0] = np.inf
        before = state.rows[1].clone()
        forced(form, ops.tilling_step, state, patches, torch.zeros(5))
        assert state.count.tolist() == [0, -1]
        assert state.numbers[:, 0].tolist() == [2, 1]
        assert torch.equal(state.rows[1], before)
        patches[1, 0, 0] = 1  # and goes on
        forced(form, ops.tilling_step, state, patches, torch.zeros(5))
        assert state.numbers[:, 0].tolist() == [3, 2]


def read_case(generator, sizes, width, heads, num_own, num_past, groups, num_rows=9):
    """Float64 tensors of `ops.memory_read`, segments of ``sizes`` patches, some past rows none."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    segments = len(sizes)
    past = torch.randint(-1, num_rows, (segments, num_past), generator=generator)
    if segments > 1:
        past[1] = -1
    return {
        "queries": normal(segments, 3, heads, width),
        "patches": normal(sum(sizes), width),
        "offsets": torch.tensor([0, *sizes]).cumsum(0),
        "own": normal(segments, num_own, width),
        "store": torch.randint(-127, 128, (num_rows, width), generator=generator).to(torch.int8),
        "scales": 0.02 * normal(num_rows, groups).abs().float(),
        "past": past,
    }


def check_read(seed, sizes, width, heads, num_own, num_past, groups, dtype, atol):
    """What is read, and the gradients, against float64's."""
    generator = torch.Generator().manual_seed(seed)
    case = read_case(generator, sizes, width, heads, num_own, num_past, groups)
    learned = ("queries", "patches", "own")
    for name in learned:
        case[name] = case[name].to(dtype)
    exact = case | {name: case[name].double().requires_grad_() for name in learned}
    case |= {name: case[name].requires_grad_() for name in learned}
    gradient = torch.randn(case["queries"].shape, generator=generator).to(dtype)
    results = []
    for form, tensors in (("torch", exact), ("triton", case)):
        read, lse = forced(form, ops.memory_read, **tensors, scale=width**-0.5)
        read.backward(gradient.to(read))
        results.append([read, lse, *(tensors[name].grad for name in learned)])
    assert not results[1][1].requires_grad
    for wanted, got in zip(*results, strict=True):
        assert torch.equal(wanted.isneginf(), got.isneginf())
        difference = (wanted.nan_to_num(neginf=0) - got.double().nan_to_num(neginf=0)).abs()
        assert difference.max() <= atol if difference.numel() else True, difference.max()
    # By torch's own attention, of the whole of each segment's keys.
    with torch.no_grad():
        for segment, size in enumerate(sizes):
            rows = case["past"][segment][case["past"][segment] >= 0]
            repeated = case["scales"].repeat_interleave(width // groups, dim=1)
            start = int(exact["offsets"][segment])
            keys = [exact["own"][segment], exact["patches"][start : start + size]]
            keys = torch.cat([*keys, case["store"][rows].double() * repeated[rows].double()])
            queries = exact["queries"][segment].flatten(0, 1)
            if len(keys):
                wanted = torch.nn.functional.scaled_dot_product_attention(
                    queries[None], keys[None], keys[None], scale=width**-0.5
                )[0]
                assert torch.allclose(results[0][0][segment].flatten(0, 1), wanted, atol=1e-9)


# float32 sums of hundreds of products of size one; bfloat16 keeps 8 bits of each weight.
FLOAT32, BFLOAT16 = (torch.float32, 2e-5), (torch.bfloat16, 0.06)


def check_bridge(dim, heads, queries, rows, dropout, masked):
    """`Attention` by the kernel is `Attention` in torch, its gradients too where it is trained."""
    torch.manual_seed(0)
    layer = Attention(dim, heads, dropout)
    torch.nn.init.normal_(layer.key_value.bias)
    masks = [None]
    if masked:  # ragged, and one that reads all
        masks = [torch.tensor([[True] * 2 + [False] * (rows - 2), [True] * rows])]
    for mask, is_training in itertools.product(masks, (False, True)):
        layer.train(is_training)
        results = []
        for form in ("torch", "triton"):
            x, context = (torch.randn(2, n, dim, generator=torch.Generator().manual_seed(n))
                          for n in (queries, rows))  # fmt: skip
            given = [*layer.parameters(), x.requires_grad_(), context.requires_grad_()]
            torch.manual_seed(1)  # of the dropout, where there is any
            with torch.inference_mode(not is_training):  # as sessions run it
                out = forced(form, layer, x, context, mask)
            found = torch.autograd.grad(out.square().sum(), given) if is_training else ()
            results.append([out, *found])
        for wanted, got in zip(*results, strict=True):
            assert torch.allclose(wanted, got, atol=1e-5 * float(wanted.detach().abs().max() + 1))


def count_reads(call):
    """Count how often a call launches the kernel."""
    from streammem_kernels import memory_read

    launch, launches = memory_read.launch_scores, []
    memory_read.launch_scores = lambda *a, **n: (launches.append(1), launch(*a, **n))[1]
    call()
    memory_read.launch_scores = launch
    return len(launches)


def bridge():
    # Forward, then forward and back.
    assert count_reads(lambda: check_bridge(32, 2, 3, 9, 0.0, True)) == 3
    # With dropout of weights none of the training is the kernel's; few rows are none of its either.
    assert count_reads(lambda: check_bridge(32, 2, 3, 9, 0.2, False)) == 1
    assert count_reads(lambda: check_bridge(32, 8, 8, 2, 0.0, False)) == 0


def read():
    check_read(0, [70, 0, 5], 72, 2, 3, 4, 9, *FLOAT32)
    check_read(3, [0, 2], 16, 2, 0, 0, 1, *FLOAT32)
    bridge()


def read_more():
    # No key at all for a segment; one key; more than a block of everything.
    check_read(1, [0, 0, 1], 33, 1, 0, 3, 1, *FLOAT32)
    check_read(2, [1], 1, 1, 0, 0, 1, *FLOAT32)
    check_read(4, [130, 64, 65], 160, 23, 66, 70, 5, *FLOAT32)
    check_read(5, [129, 0, 64], 96, 5, 2, 7, 3, *BFLOAT16)
    check_read(6, [7, 300], 130, 24, 1, 0, 1, *BFLOAT16)
    check_read(7, [5], 64, 2, 0, 1, 2, *BFLOAT16)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](*sys.argv[2:])
