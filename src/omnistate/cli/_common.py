"""What commands share: where the store is, how an app is found, how an error is told."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from cyclopts import Parameter

import omnistate
from omnistate.store import running_url

T = TypeVar("T")


class UsageError(omnistate.OmnistateError):
    """The command line cannot be followed: the message shows a line to try."""

    code = "usage"


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Store:
    """Where the customers are."""

    url: str | None = None
    """The server; by default OMNISTATE_URL, else the embedded one."""
    data_dir: Path | None = None
    """The embedded server's directory."""
    tenant: str = "default"
    """The tenant."""

    def connect(
        self,
        *,
        sweep: bool | None = None,
        keyring: omnistate.Keyring | None = None,
        channels: Mapping[str, omnistate.ChannelPolicy] | None = None,
    ) -> omnistate.Client:
        """The store that is named. When another process runs the embedded server of that directory, its server is used."""
        url = self.url or os.environ.get("OMNISTATE_URL") or running_url(self.data_dir)
        if url is not None:
            return omnistate.connect(url, tenant=self.tenant, sweep=sweep, keyring=keyring, channels=channels)
        return omnistate.connect(
            data_dir=self.data_dir, tenant=self.tenant, sweep=sweep, keyring=keyring, channels=channels
        )


EMBEDDED = Store()
Json = Annotated[bool, Parameter(name="--json", negative="")]


def described(snapshot: omnistate.Snapshot[Any]) -> str:
    """A snapshot as JSON: version and position are spelled as `--expect` and `--after` take them."""
    version = snapshot.precondition
    return json.dumps(
        {
            "value": plain(snapshot.value),
            "version": str(version) if isinstance(version, omnistate.Position) else None,
            "position": str(snapshot.position),
        }
    )


def plain(value: omnistate.State) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def load_app(target: str) -> omnistate.App:
    """The app that `module:name` names, from the current directory too. Raises `UsageError`."""
    module_name, _, name = target.partition(":")
    if not module_name:
        raise UsageError(f"{target!r} names no module: write it as module:app, for example shop:app")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - the path as Python itself would have put it there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name.partition(".")[0]:
            here = os.getcwd()  # noqa: PTH109
            raise UsageError(
                f"there is no module {module_name!r} in {here}: run this where {module_name}.py is"
            ) from None
        raise UsageError(f"{module_name} cannot be imported: {error}") from error
    except omnistate.InvalidDeclaration:
        raise
    except Exception as error:
        raise UsageError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name or "app", None)
    if not isinstance(found, omnistate.App):
        apps = [key for key, value in vars(module).items() if isinstance(value, omnistate.App)]
        hint = f"did you mean {module_name}:{apps[0]}?" if apps else "declare one: app = omnistate.App(Cart)"
        raise UsageError(f"{module_name} has no omnistate.App called {name or 'app'!r}: {hint}")
    return found


def state_of(app: omnistate.App, name: str) -> type[omnistate.State]:
    kind = app.states.get(name)
    if kind is None:
        raise UsageError(f"the app has no state {name!r}; it has {', '.join(app.states)}")
    return kind


class Terminated(Exception):
    """SIGTERM came, and what was running has ended in order."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command. Ctrl-C and SIGTERM end it in order, so that servers are stopped and sockets closed.

    Raises `Terminated` after SIGTERM.
    """
    signals: list[int] = []

    def end(number: int) -> None:
        signals.append(number)
        task.cancel()

    try:
        import uvloop  # noqa: PLC0415 - used where present, never needed

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        loop = runner.get_loop()
        task = loop.create_task(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, number)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            if signal.SIGTERM in signals:
                raise Terminated from None
            raise
