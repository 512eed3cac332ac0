"""`plan`: how far a goal has come, of a memory or while a source is watched."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from streammem.commands.opening import exit_code, open_session, watch_source
from streammem.commands.options import (
    TIMEZONE,
    add_between,
    add_command,
    add_flags,
    add_source_options,
    between_of,
    check_formats,
    watch_options,
)
from streammem.errors import ConfigError
from streammem.output.results import output
from streammem.output.terminal import note
from streammem.types import Alert, Notice, Plan, Segment


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "plan",
        run_plan,
        "which steps of a goal were done, which is in progress, which comes next",
        'streammem plan kitchen.mp4 --goal "make coffee" --steps coffee.txt',
        'streammem plan day --goal "make coffee" --steps coffee.txt      of a memory',
        'streammem plan webcam:0 --goal "pack the bag" --steps bag.txt --alert-steps',
    )
    add_source_options(parser, asks=True, reconnects=True, answers=False)
    parser.add_argument("--goal", required=True, help='in your words, as in "make coffee"')
    steps = "file with what each step shows, one a line, in their order"
    # Not `steps`, which is an option of answers.
    recipe: dict[str, Any] = {"dest": "recipe", "type": Path, "metavar": "FILE", "required": True}
    parser.add_argument("--steps", help=steps, **recipe)
    told = "tell a step that was left out or came out of order, once, as an alert"
    parser.add_argument("--alert-steps", action="store_true", help=told)
    add_between(parser, "of a memory: only what overlaps A to B")
    add_flags(parser, (TIMEZONE,))


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the plan: of a source each time that it changes."""
    from streammem.qa.plan import PlanFollower, PlanTracker, read_steps

    check_formats(arguments, "text", "jsonl")
    try:
        steps = read_steps(arguments.recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{arguments.recipe}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{arguments.recipe}: is no UTF-8 text; give a step a line") from error
    PlanTracker(arguments.goal, steps)  # which refuses steps before a model is opened
    between = between_of(arguments)
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        if session.read_only:
            results.write(session.plan(arguments.goal, steps, between))
            return 0
        if between is not None:
            raise ConfigError("--between: is for a memory; give --start and --end of a source")
        follower, broken = PlanFollower(session.model.text_encoder, arguments.goal, steps), False
        shown, written = list[tuple[str, int]](), None
        options = replace(watch_options(arguments), captions=False)
        for event, _ in watch_source(session, arguments, options, progress=True):
            if isinstance(event, Notice):
                note(str(event))
                broken |= event.is_failure
            if not isinstance(event, Segment) or (row := session.memory.get(event.id)) is None:
                continue
            plan = follower.push(row)
            if arguments.alert_steps:
                for text in plan.alerts:
                    results.write(Alert(text, plan.time, plan.certainty, event.id))
            if plan.alerts or _states(plan) != shown:
                results.write(plan)
                written = plan
            shown = _states(plan)
        if (last := follower.plan) != written:  # it has every alert
            results.write(last)
    return exit_code(arguments, broken)


def _states(plan: Plan) -> list[tuple[str, int]]:
    """Return what a reader of the plan would see change."""
    return [(step.state, len(step.spans)) for step in plan.steps]
