"""`plan`: how far a goal has come, of a memory or while a source is watched."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from streammem.commands.opening import exit_code, open_session, watch_source
from streammem.commands.options import (
    EVENTS,
    PLANNING,
    TIMEZONE,
    add_between,
    add_command,
    add_flags,
    add_source_options,
    between_of,
    watch_options,
)
from streammem.errors import ConfigError
from streammem.output.results import output
from streammem.output.terminal import note
from streammem.types import Notice


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
        'streammem plan day --goal "make coffee" --steps coffee.txt --likelihood',
        'streammem plan day --goal "make coffee" --planning kitchen      without steps',
    )
    add_source_options(parser, asks=True, reconnects=True, answers=False, formats=EVENTS)
    parser.add_argument("--goal", required=True, help='in your words, as in "make coffee"')
    steps = (
        "file with what each step shows, one a line, in their order; without it what comes next "
        "is guessed from past actions, which are read off captions and speech"
    )
    # Not `steps`, which is an option of answers.
    recipe: dict[str, Any] = {"dest": "recipe", "type": Path, "metavar": "FILE"}
    parser.add_argument("--steps", help=steps, **recipe)
    told = "tell a step that was left out or came out of order, once, as an alert"
    parser.add_argument("--alert-steps", action="store_true", help=told)
    weighed = (
        "weigh steps also by how likely the language model finds their words as a scene's caption: "
        "a little surer, and slower"
    )
    parser.add_argument("--likelihood", action="store_true", help=weighed)
    add_between(parser, "of a memory: only what overlaps A to B")
    add_flags(parser, (PLANNING, TIMEZONE))


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the plan: of a source each time that it changes."""
    from streammem.engine.plans import FollowedPlan
    from streammem.memory.folder import is_memory
    from streammem.qa.plan import PlanTracker, checked_goal

    # 1. Check all that can be checked before a model is opened.
    goal, steps = checked_goal(arguments.goal), _steps_of(arguments)
    if steps:
        PlanTracker(goal, steps)
        if arguments.planning:
            raise ConfigError("--planning: is for a plan without --steps; leave one of them out")
    elif arguments.alert_steps:
        raise ConfigError("--alert-steps: tells of steps that are given; give --steps FILE, too")
    elif arguments.likelihood:
        raise ConfigError("--likelihood: is of steps that are given; give --steps FILE, too")
    between = between_of(arguments)
    if between is not None and not is_memory(arguments.source):
        raise ConfigError("--between: is for a memory; give --start and --end of a source")
    # 2. Follow it: steps as scenes close, past actions as scenes get their captions.
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        if session.read_only:
            results.write(session.plan(goal, steps, between, likelihood=arguments.likelihood))
            return 0
        alerts, likelihood = arguments.alert_steps, arguments.likelihood
        followed = FollowedPlan(session, goal, steps, alert_steps=alerts, likelihood=likelihood)
        broken, written = False, None
        options = replace(watch_options(arguments), captions=not steps)
        for event, _ in watch_source(session, arguments, options, progress=True):
            if isinstance(event, Notice):
                note(str(event))
                broken |= event.is_failure
            for told in followed.after(event):
                results.write(told)
                written = told
        if (last := followed.plan) != written:  # it has every alert
            results.write(last)
    return exit_code(arguments, broken)


def _steps_of(arguments: argparse.Namespace) -> list[str]:
    """Return the steps that --steps gives; none without it.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    from streammem.qa.plan import read_steps

    if arguments.recipe is None:
        return []
    try:
        steps = read_steps(arguments.recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{arguments.recipe}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{arguments.recipe}: is no UTF-8 text; give a step a line") from error
    if not steps:
        raise ConfigError(f"{arguments.recipe}: holds no step; give one a line")
    return steps
