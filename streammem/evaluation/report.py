"""Reports of a run: figures with their controls, what the harness itself objects to, and diffs.

    report = summarise(found, run)
    print(markdown(report))
    draw(report, Path("report.png"))
    print(diff_markdown(difference(Path("a"), Path("b"))))

A report never adds up what is not one kind, and prints each figure with how many it is of. Recall
stands beside what never happened: a gain on one that is lost on the other is shown as such.
"""

import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from streammem import __version__
from streammem.errors import DatasetError
from streammem.evaluation.asking import CONTEXTS, PREDICTIONS, SuiteRun, read_answers
from streammem.evaluation.questions import SUITES, QuestionSet, SuiteQuestion
from streammem.evaluation.scoring import (
    Share,
    fisher,
    mcnemar,
    paired_bootstrap,
    risk_coverage,
    share,
)

PACKAGES = ("torch", "transformers", "openvino", "numpy", "av")
AGES = ((10, "below 10 s"), (60, "below 1 min"), (600, "below 10 min"), (3600, "below 1 h"))
OLDEST, UNKNOWN = "1 h and more", "not stated"
LEAST = 20  # answers below which no check says anything
SAME, CLEAR = 0.9, 0.05
MOST_CATEGORIES = 40

ReportRow = dict[str, Any]


def summarise(found: QuestionSet, run: SuiteRun) -> dict[str, Any]:
    """Sum up a run.

    Args:
        found: the suite.
        run: its answers.

    Returns:
        The object for JSON: ``parts`` by name, each with accuracies by context, a guess's (the
        mean of 1 / options) and the best that one and the same letter reaches; ``categories``
        and ``asked`` of the first context; ``ages``, of its answers and of each control's;
        ``pair`` by context; ``timelines``, see ``_timelines``; ``checks``; ``cost``. A share is
        [value, low, high, count], the 95% interval between.
    """
    first, questions = run.settings["contexts"][0], run.questions
    by_context: dict[str, list[ReportRow]] = {name: [] for name in run.settings["contexts"]}
    for row in run.rows:
        by_context[row["context"]].append(row)
    main = by_context[first]
    parts: dict[str, Any] = {}
    for part in dict.fromkeys(question.part for question in questions.values()):
        own = {
            context: [row for row in rows if questions[row["id"]].part == part]
            for context, rows in by_context.items()
        }
        asked = [questions[row["id"]] for row in own[first]]
        chances = [question.chance for question in asked]
        guess = one_letter = None
        if chances and all(chances):  # each has options, of which one is right
            places = [question.answer[0] for question in asked]
            guess = round(float(np.mean(chances)), 4)
            one_letter = round(max(map(places.count, set(places))) / len(places), 4)
        parts[part or "all"] = {
            "chance": guess,
            "one letter": one_letter,
            "contexts": {context: _scores(rows) for context, rows in own.items() if rows},
        }
    drawn = run.settings["limit"] or len(found.questions)
    whole = drawn >= len(found.questions)
    return {
        "suite": found.suite,
        "subset": f"all {len(found.questions)} questions" if whole
        else f"{len(questions)} of {len(found.questions)} questions, drawn with seed "
        f"{run.settings['seed']}",
        "model": run.settings["model"],
        "fingerprint": run.fingerprint,
        "judge": _judge(run),
        "scorer": run.settings["scorer"],
        "layout": SUITES[found.suite].layout,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "versions": _versions(),
        "settings": run.settings,
        "missing": run.missing._asdict(),
        "notices": list(found.notices),
        "parts": parts,
        "categories": _by(main, lambda row: questions[row["id"]].categories),
        "ages": {
            context: _by(rows, lambda row: (_age(questions[row["id"]]),))
            for context, rows in by_context.items() if rows
        },
        "asked": _by(main, lambda row: (_bucket(questions[row["id"]].time),)),
        "pair": _pairs(by_context),
        "timelines": _timelines(by_context, questions),
        "risk": _risk(main),
        "evidence": _listed(_share([row for row in main if row["hit"] is not None], "hit")),
        "cost": _cost(main, run),
        "checks": [
            {"name": name, "holds": holds, "text": text}
            for name, holds, text in checks(by_context, questions)
        ],
    }  # fmt: skip


def _judge(run: SuiteRun) -> ReportRow | None:
    """Who judged open answers, when, and how many it gave no plain verdict on."""
    if "judge" not in run.settings:
        return None
    asked = [row["judged"] for row in run.rows if "judged" in row]
    return {
        "name": run.settings["judge"],
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "asked": len(asked),
        "no verdict": sum(verdict is None for verdict in asked),
    }


def _share(rows: Sequence[ReportRow], name: str) -> Share | None:
    return share([float(row[name]) for row in rows], [_cluster(row) for row in rows])


def _cluster(row: ReportRow) -> str:
    return str(row.get("cluster", row["video"]))  # runs that began earlier have the video alone


def _listed(found: Share | None) -> list[float] | None:
    return None if found is None else [*(round(value, 4) for value in found[:3]), found.of]


def _scores(rows: Sequence[ReportRow]) -> ReportRow:
    open_rows = [row for row in rows if row["f1"] is not None]
    figures = {name: _listed(_share(rows, name)) for name in ("strict", "official")}
    figures |= {"f1": _listed(_share(open_rows, "f1"))} if open_rows else {}
    judged = [row for row in rows if row.get("judged") is not None]
    return figures | ({"judged": _listed(_share(judged, "judged"))} if judged else {})


def _by(rows: Sequence[ReportRow], names: Callable[[ReportRow], Sequence[str]]) -> ReportRow:
    groups: dict[str, list[ReportRow]] = {}
    for row in rows:
        for name in names(row):
            groups.setdefault(name, []).append(row)
    order = [*(label for _, label in AGES), OLDEST, UNKNOWN]
    known = sorted(groups, key=lambda name: (order.index(name) if name in order else -1, name))
    return {name: _listed(_share(groups[name], "strict")) for name in known}


def _bucket(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return next((label for limit, label in AGES if seconds < limit), OLDEST)


def _age(question: SuiteQuestion) -> str:
    """How long before the question its last evidence ended."""
    if question.time is None or not question.evidence:
        return UNKNOWN
    return _bucket(max(0.0, question.time - max(span.end for span in question.evidence)))


def _pairs(by_context: dict[str, list[ReportRow]]) -> ReportRow:
    """Recall and never-happened, by context, where a suite has both."""
    found = {}
    for context, rows in by_context.items():
        kinds = {k: [row for row in rows if row["kind"] == k] for k in ("recall", "never")}
        if all(kinds.values()):
            found[context] = {k: _listed(_share(own, "strict")) for k, own in kinds.items()}
    return found


def _timelines(
    by_context: dict[str, list[ReportRow]], questions: dict[str, SuiteQuestion]
) -> ReportRow:
    """What answers over a timeline get wrong, and how: of the first context by operator, of all.

    Returns:
        By operator, by everyday things and descriptions, and by context: ``questions``, and
        shares: ``right``; ``right, there`` and ``refused`` of what was there; ``claimed`` of what
        was not; ``evidence`` that shows the truth, of what was there, and of that what is
        answered wrong.
    """

    def figures(rows: Sequence[ReportRow]) -> ReportRow:
        rows = [
            {**row, "no": not row["seen"], "shown": bool(row["hit"])}
            for row in rows if row["seen"] is not None
        ]  # fmt: skip
        there = [row for row in rows if row["kind"] == "recall"]
        absent = [row for row in rows if row["kind"] == "never"]
        return {"questions": len(rows)} | {
            name: _listed(_share(own, key))
            for name, own, key in (
                ("right", rows, "strict"), ("right, there", there, "strict"),
                ("refused", there, "no"), ("claimed", absent, "seen"),
                ("evidence", there, "shown"),
                ("evidence, wrong", [row for row in there if not row["strict"]], "shown"),
            )
        }  # fmt: skip

    timed = {
        context: [row for row in rows if questions[row["id"]].check == "timeline"]
        for context, rows in by_context.items()
    }
    first, *_ = timed.values()
    groups: dict[str, list[ReportRow]] = {}
    for row in first:
        asked, _ = questions[row["id"]].truth
        groups.setdefault(asked.operator, []).append(row)
    operators = {name: figures(groups[name]) for name in sorted(groups)}
    for name, common in (("everyday things", True), ("descriptions", False)):
        if own := [row for row in first if questions[row["id"]].truth[0].common is common]:
            operators[name] = figures(own)
    return {
        "operators": operators,
        "contexts": {context: figures(rows) for context, rows in timed.items() if rows},
    }


def _risk(rows: Sequence[ReportRow]) -> list[list[float]]:
    """(coverage, risk) at every tenth, of answers that say what they rest on; none of the others.

    An answer is as sure as its best evidence is likely, one that nothing was seen as it is not.
    """
    told = [row for row in rows if row["seen"] is not None and row["score"] is not None]
    if len(told) < LEAST:
        return []
    sure = [row["score"] if row["seen"] else 1 - row["score"] for row in told]
    curve = risk_coverage(sure, [row["strict"] == 1 for row in told])
    tenths = [curve[max(0, round(len(curve) * n / 10) - 1)] for n in range(1, 11)]
    return [[round(coverage, 3), round(risk, 3)] for coverage, risk in tenths]


def _cost(rows: Sequence[ReportRow], run: SuiteRun) -> ReportRow:
    def mean(name: str) -> float | None:
        return round(float(np.mean([row[name] for row in rows])), 3) if rows else None

    minutes = run.watched_s / 60
    return {
        "seconds a question": mean("seconds"),
        "tokens a question": mean("tokens"),
        "bytes kept": mean("bytes"),
        "watched, minutes": round(minutes, 2),
        "seconds a minute watched": round(run.watching_s / minutes, 2) if minutes else None,
    }


# -- what the harness objects to --


def checks(
    by_context: dict[str, list[ReportRow]], questions: dict[str, SuiteQuestion]
) -> Iterator[tuple[str, bool, str]]:
    """Yield (name, whether it holds, what was found) of each check that there is data for."""
    first, *others = by_context
    main = by_context[first]
    if len(main) < LEAST:
        return
    late = [row["id"] for row in main if row["late"]]
    yield "past only", not late, f"{len(late)} answers cite what comes after their question"
    if first == "memory":
        for control in ("blind", "other"):
            if control in others and (found := _paired(main, by_context[control])):
                ours, theirs, p = found
                yield (
                    f"beats {control}", ours > theirs and p < CLEAR,
                    f"{ours} right only by {CONTEXTS[first]}, {theirs} only by {CONTEXTS[control]} "
                    f"(p = {p:.2g}): else the video adds nothing",
                )  # fmt: skip
    if "shuffled" in others and (found := _paired(main, by_context["shuffled"])):
        ours, theirs, p = found
        yield (
            "order of options", not (ours > theirs and p < CLEAR),
            f"{ours} right in the file's order alone, {theirs} in another alone "
            f"(p = {p:.2g}): else places are known, not answers",
        )  # fmt: skip
    said = [row["text"] if row["choice"] is None else row["choice"] for row in main]
    most = max(set(said), key=said.count)
    yield (
        "not one reply", said.count(most) / len(said) < SAME,
        f"the most frequent reply is given to {said.count(most)} of {len(said)} questions",
    )  # fmt: skip
    yield from _claims(main, questions)


def _claims(
    main: Sequence[ReportRow], questions: dict[str, SuiteQuestion]
) -> Iterator[tuple[str, bool, str]]:
    """Check what is said to be there: of what was, never comes, and comes only later."""
    told = [
        row for row in main if row["seen"] is not None and questions[row["id"]].check == "timeline"
    ]
    there = [row["seen"] for row in told if row["kind"] == "recall"]
    never = [row for row in told if row["kind"] == "never"]
    if len(there) >= LEAST and len(never) >= LEAST:
        claimed = sum(row["seen"] for row in never)
        p = fisher(sum(there), len(there), claimed, len(never))
        yield (
            "tells there from not there", p < CLEAR,
            f"{sum(there)} of {len(there)} that happened are said to be there, and {claimed} of "
            f"{len(never)} that did not (p = {p:.2g})",
        )  # fmt: skip
    later = [row["seen"] for row in never if questions[row["id"]].later]
    rest = [row["seen"] for row in never if not questions[row["id"]].later]
    if len(later) >= LEAST and len(rest) >= LEAST:
        p = fisher(sum(later), len(later), sum(rest), len(rest))
        yield (
            "knows no future", p >= CLEAR / 5,
            f"{sum(later)} of {len(later)} that come only later are said to be there, and "
            f"{sum(rest)} of {len(rest)} that never come (p = {p:.2g})",
        )  # fmt: skip


def _paired(
    rows: Sequence[ReportRow], others: Sequence[ReportRow]
) -> tuple[int, int, float] | None:
    """Return how often either alone is right, and McNemar's p."""
    theirs = {row["id"]: row["strict"] for row in others}
    both = [(row["strict"], theirs[row["id"]]) for row in rows if row["id"] in theirs]
    if len(both) < LEAST:
        return None
    a, b = sum(x > y for x, y in both), sum(y > x for x, y in both)
    return a, b, mcnemar(a, b)


# -- how it is shown --


def markdown(report: dict[str, Any]) -> str:
    """Write a report as Markdown."""
    missing = report["missing"]
    lines = [
        f"# {report['suite']}: {report['model']}",
        "",
        f"{report['date']} · {report['subset']} · options by {report['scorer']} · commit "
        f"{report['commit']}",
        "",
    ]
    if missing["questions"]:
        lines += [
            f"**{missing['questions']} questions about {missing['videos']} videos that are not "
            "here are not in these figures.**",
            "",
        ]
    failed = [check for check in report["checks"] if not check["holds"]]
    if failed:
        names = ", ".join(check["name"] for check in failed)
        lines += [f"**Checks that do not hold: {names}.** See below.", ""]
    # 1. Recall beside never-happened is the headline where there are both.
    if report["pair"]:
        rows = [
            [CONTEXTS[context], _cell(pair["recall"]), _cell(pair["never"])]
            for context, pair in report["pair"].items()
        ]
        lines += _table(["answered from", "what happened", "what never happened"], rows)
        lines += [*_paid_back(report["pair"]), ""]
    # 2. Accuracy, each part by itself.
    for name, part in report["parts"].items():
        title = "Accuracy" if name == "all" else f"Accuracy, {name}"
        chance = ""
        if part["chance"] is not None:
            same = f"always the same letter: {part['one letter']:.3f} at most"
            chance = f" (a guess: {part['chance']:.3f}; {same})"
        lines += [f"## {title}{chance}", ""]
        extra = {
            key: title
            for key, title in (("f1", "token F1"), ("judged", "judged right"))
            if any(key in scores for scores in part["contexts"].values())
        }
        rows = [
            [CONTEXTS[context], _cell(scores["strict"]), _cell(scores["official"])]
            + [_cell(scores.get(key)) for key in extra]
            for context, scores in part["contexts"].items()
        ]
        heads = ["answered from", "strict", "official rule", *extra.values()]
        lines += [*_table(heads, rows), ""]
    if judge := report["judge"]:
        lines += [
            f"Judged by {judge['name']} on {judge['date']}: another model's opinion of open "
            f"answers; {judge['no verdict']} of {judge['asked']} replies of it were no verdict.",
            "",
        ]
    if len(report["parts"]) > 1:
        lines += ["Parts of unlike questions: there is no total.", ""]
    # 3. What it is made of.
    for title, name in (
        ("By category", "categories"),
        ("By time of the question", "asked"),
    ):
        shares = report[name]
        if len(shares) > 1 or (shares and UNKNOWN not in shares):
            rows = [[group, _cell(found)] for group, found in [*shares.items()][:MOST_CATEGORIES]]
            lines += [f"## {title}", "", *_table(["", "strict"], rows), ""]
    ages = report["ages"]
    known = list(next(iter(ages.values()), {}))
    if len(known) > 1 or (known and UNKNOWN not in known):
        rows = [[age, *(_cell(own.get(age)) for own in ages.values())] for age in known]
        heads = ["strict", *(CONTEXTS[context] for context in ages)]
        lines += ["## By age of the evidence", "", *_table(heads, rows), ""]
    lines += _timelines_shown(report["timelines"])
    if report["evidence"]:
        lines += [f"Evidence that is cited shows the truth: {_cell(report['evidence'])}", ""]
    if report["risk"]:
        risks = " ".join(f"{risk:.2f}" for _, risk in report["risk"])
        lines += [f"Wrong, of the surest tenth, two tenths ... all: {risks}", ""]
    # 4. Checks, cost, and what it was made with.
    if report["checks"]:
        rows = [[c["name"], "holds" if c["holds"] else "**no**", c["text"]]
                for c in report["checks"]]  # fmt: skip
        lines += ["## Checks", "", *_table(["check", "", "found"], rows), ""]
    cost = [
        [name, "-" if value is None else f"{value:g}"] for name, value in report["cost"].items()
    ]
    lines += ["## Cost", "", *_table(["", ""], cost), ""]
    if report["notices"]:
        shown = [f"- {notice}" for notice in report["notices"][:MOST_CATEGORIES]]
        more = len(report["notices"]) - len(shown)
        lines += ["## Rows", "", *shown, *([f"- and {more} more"] if more > 0 else []), ""]
    made = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    settings = report["settings"]
    lines += [
        f"Question files {settings['digest']}, their layout from a {report['layout']}; seed "
        f"{settings['seed']}, {settings['fps']:g} frames a second; model "
        f"{report['fingerprint'][:12] or 'unknown'}; {made}.",
    ]
    return "\n".join(lines) + "\n"


def _timelines_shown(timelines: ReportRow) -> list[str]:
    """Show how answers over a timeline are wrong."""
    lines: list[str] = []
    of_contexts = {CONTEXTS[name]: found for name, found in timelines["contexts"].items()}
    for title, groups in (("By operator", timelines["operators"]), ("By context", of_contexts)):
        if not groups:
            continue
        rows = [
            [name, *(str(each) if isinstance(each, int) else _cell(each)
                     for each in found.values())]
            for name, found in groups.items()
        ]  # fmt: skip
        heads = [
            "", "asked", "right", "right, of what is there", "refused though there",
            "claimed though absent", "evidence shows the truth", "likewise, answered wrong",
        ]  # fmt: skip
        lines += [f"## {title}", "", *_table(heads, rows), ""]
    return lines


def _paid_back(pairs: ReportRow) -> list[str]:
    """Say what memory gains and loses against the last frames."""
    if not {"memory", "now"} <= set(pairs):
        return []
    gains = {k: pairs["memory"][k][0] - pairs["now"][k][0] for k in ("recall", "never")}
    text = (
        f"Against the last 4 frames, memory gives {gains['recall']:+.3f} of what happened and "
        f"{gains['never']:+.3f} of what never happened"
    )
    if min(gains.values()) < 0 < max(gains.values()):
        text += ": **a gain on one is paid with the other**"
    return ["", f"{text}."]


def _cell(found: Sequence[float] | None) -> str:
    if not found:
        return "-"
    value, low, high, count = found
    return f"{value:.3f} [{low:.3f}, {high:.3f}] of {count:.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *cells)]


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw accuracy by context with its interval as a PNG, a group a part, pairs first."""
    from PIL import Image, ImageDraw

    groups = {
        f"{kind}: {context}": pair[kind]
        for kind in ("recall", "never")
        for context, pair in report["pair"].items()
    }
    for name, part in report["parts"].items():
        groups |= {f"{name}: {c}": scores["strict"] for c, scores in part["contexts"].items()}
    left, width, height = 220, 400, 22
    size = (left + width + 140, height * (len(groups) + 2))
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.text((8, 4), f"{report['suite']}: {report['model']}, {report['subset']}", fill="black")
    for tenth in range(0, 11, 2):
        x = left + width * tenth / 10
        pen.line([(x, height), (x, size[1] - height)], fill=(225, 225, 225))
        pen.text((x - 8, size[1] - height + 4), f"{tenth / 10:.1f}", fill="black")
    for number, (name, (value, low, high, count)) in enumerate(groups.items()):
        y = height * (number + 1) + 4
        colour = (60, 90, 200) if name.endswith(": memory") else (165, 165, 175)
        pen.text((8, y), name, fill="black")
        pen.rectangle([left, y, left + width * value, y + height - 9], fill=colour)
        middle = y + (height - 9) / 2
        pen.line([(left + width * low, middle), (left + width * high, middle)], fill="black")
        pen.text((left + width + 8, y), f"{value:.3f} of {count:.0f}", fill="black")
    picture.save(path)


# -- two runs --


def difference(first: Path, second: Path, *, context: str | None = None) -> dict[str, Any]:
    """Compare two runs question by question.

    Args:
        first: folder of a run, or its file of answers.
        second: likewise.
        context: of both, or of the second alone where both are the same run; None takes the first
            of each.

    Returns:
        The object for JSON: ``all``, ``recall`` and ``never``, each with both shares, the
        difference with its 95% interval by bootstrap over clusters, and McNemar's p.

    Raises:
        DatasetError: a folder holds no run, or they are of other questions.
    """
    logs = [read_answers(path / PREDICTIONS if path.is_dir() else path) for path in (first, second)]
    settings = [log.settings for log in logs]
    if any(settings[0][key] != settings[1][key] for key in ("suite", "digest")):
        raise DatasetError(f"{first} and {second} are runs of other questions")
    chosen = [context or each["contexts"][0] for each in settings]
    if first == second:
        chosen[0] = settings[0]["contexts"][0]
    for path, each, name in zip((first, second), settings, chosen, strict=True):
        if name not in each["contexts"]:
            known = ", ".join(each["contexts"])
            raise DatasetError(f"{path}: was not asked with --context {name}, but with: {known}")
    rows = [
        {row["id"]: row for _, unit, _ in log.units for row in unit if row["context"] == name}
        for log, name in zip(logs, chosen, strict=True)
    ]
    common = [name for name in rows[0] if name in rows[1]]
    if not common:
        raise DatasetError(f"{first} and {second} have no answered question in common")
    found: dict[str, Any] = {
        "suite": settings[0]["suite"],
        "runs": [f"{s['model']}, {name}" for s, name in zip(settings, chosen, strict=True)],
        "only": [len(own) - len(common) for own in rows],
        "unfinished": [
            str(path) for path, log in zip((first, second), logs, strict=True) if not log.finished
        ],
        "unlike": {
            key: [s.get(key) for s in settings]
            for key in settings[0]
            if settings[0][key] != settings[1].get(key) and key not in ("model", "contexts")
        },
    }
    for kind in ("", "recall", "never"):
        pairs = [
            (rows[0][name], rows[1][name])
            for name in common
            if not kind or rows[0][name]["kind"] == kind
        ]
        if pairs:
            found[kind or "all"] = _compared(pairs)
    return found


def _compared(pairs: Sequence[tuple[ReportRow, ReportRow]]) -> ReportRow:
    clusters = [_cluster(a) for a, _ in pairs]
    changes = [b["strict"] - a["strict"] for a, b in pairs]
    gained, lost = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    low, high = paired_bootstrap(changes, clusters)
    return {
        "first": _listed(_share([a for a, _ in pairs], "strict")),
        "second": _listed(_share([b for _, b in pairs], "strict")),
        "difference": [round(float(np.mean(changes)), 4), round(low, 4), round(high, 4)],
        "only first right": lost,
        "only second right": gained,
        "p": mcnemar(gained, lost),
    }


def diff_markdown(found: dict[str, Any]) -> str:
    """Write a comparison as Markdown."""
    names = found["runs"]
    lines = [f"# {found['suite']}: {names[0]} → {names[1]}", ""]
    rows = []
    for kind, title in (("all", "all"), ("recall", "what happened"), ("never", "what did not")):
        if kind in found:
            each = found[kind]
            value, low, high = each["difference"]
            rows.append([
                title, _cell(each["first"]), _cell(each["second"]),
                f"{value:+.3f} [{low:+.3f}, {high:+.3f}]",
                f"{each['only first right']} / {each['only second right']}", f"{each['p']:.2g}",
            ])  # fmt: skip
    heads = ["strict", "first", "second", "difference", "right in one alone", "p (McNemar)"]
    lines += [*_table(heads, rows), ""]
    if any(found["only"]):
        lines.append(f"Answered in one run alone: {found['only'][0]} and {found['only'][1]}.")
    lines += [
        f"{path} is not finished: give its command once more." for path in found["unfinished"]
    ]
    for key, (a, b) in found["unlike"].items():
        lines.append(f"They differ in {key}: {a} and {b}.")
    return "\n".join(lines).rstrip() + "\n"


# -- what it was made with --


def commit() -> str:
    """Return the commit of the clone that this package lies in; ``unknown`` of an installed one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=12"], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    found = {"streammem": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
