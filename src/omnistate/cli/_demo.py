"""`omnistate demo`"""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from omnistate.cli._common import Terminated, run
from omnistate.demo import Step, Story
from omnistate.demo import demo as serve_demo

COLOURS = {"web": "blue", "mobile": "magenta", "whatsapp": "green", "agent desk": "yellow"}


def demo(
    *,
    script: Annotated[bool, Parameter(negative="")] = False,
    port: int | None = None,
    url: str | None = None,
) -> int:
    """Show one customer on four channels at once: a page in the browser, on a real server.

    Parameters
    ----------
    script
        Play the story without a browser, print what each channel saw and when; exit 1 if a step is not seen within 2 s.
    port
        The port of the page; by default 8000, or a free one with --script.
    url
        A server to use instead of an embedded one.
    """
    if script:
        return run(_play(port or 0, url))
    with contextlib.suppress(Terminated):
        run(_serve(8000 if port is None else port, url))
    return 0


async def _serve(port: int, url: str | None) -> None:
    async with serve_demo(port, url=url) as (gateway, _, actual):
        here = f"http://127.0.0.1:{actual}/"
        console = Console(stderr=True)
        console.print()
        console.print("  [bold]omnistate[/bold]  one customer, four channels, one live state")
        console.print(f"  open    [bold cyan underline]{here}[/]", soft_wrap=True)
        console.print(f"  API     {here}docs")
        console.print(f"  store   {gateway.client.url} [dim](removed when you leave)[/dim]", soft_wrap=True)
        console.print("  [dim]Ctrl-C ends[/dim]\n")
        await gateway.until_closed()


async def _play(port: int, url: str | None) -> int:
    console = Console(highlight=False)
    console.print(
        "\n[bold]One customer, four channels[/bold]  [dim]the time until all the other channels had seen it[/dim]\n"
    )
    async with serve_demo(port, url=url) as (_, backend, actual):
        story = Story(backend, actual, lambda step: console.print(_line(step)))
        complete = await story.play()
    slowest = max((ms for step in story.steps for ms in step.seen.values() if ms is not None), default=0.0)
    if complete:
        console.print(
            f"\n[bold green]All {len(story.steps)} steps were seen by all[/], the slowest after {slowest:.1f} ms.\n"
        )
        return 0
    missed = sum(not step.complete for step in story.steps)
    print(f"omnistate: {missed} of {len(story.steps)} steps were not seen by all within 2 s", file=sys.stderr)
    return 1


def _line(step: Step) -> Text:
    """80 columns: who, what, how long, and who saw it, or who did not."""
    line = Text(" ")
    line.append(f"{step.channel:<11}", style=COLOURS[step.channel])
    line.append(f"{step.text:<35}")
    times = [milliseconds for milliseconds in step.seen.values() if milliseconds is not None]
    line.append(f"{max(times):6.1f} ms" if step.complete else " not seen", style="" if step.complete else "bold red")
    names = [name.removeprefix("agent ") for name, ms in step.seen.items() if step.complete or ms is None]
    line.append("  " + ", ".join(names), style="dim")
    return line
