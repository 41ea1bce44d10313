"""The commands, one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cyclopts
from cyclopts import CycloptsError

import omnistate
from omnistate.cli import (
    _cluster,
    _customer,
    _demo,
    _export,
    _get,
    _import,
    _migrate,
    _serve,
    _set,
    _sweep,
    _version,
    _watch,
)
from omnistate.cli._common import UsageError


def make_cli() -> Callable[[Any], int | None]:
    cli = cyclopts.App(
        name="omnistate",
        help="One live, consistent state of a customer on every channel.",
        help_epilogue="Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted, 143 terminated.",
        version=omnistate.__version__,
        result_action="return_value",
    )
    commands = (
        *(_demo.demo, _serve.serve, _get.get, _set.set_, _watch.watch),
        *(_export.export, _import.import_, _migrate.migrate, _sweep.sweep, _version.version),
    )
    for command in commands:
        cli.command(command, name=command.__name__.rstrip("_"))
    cli.command(_cluster.cluster)
    cli.command(_customer.customer)

    def run(arguments: Any) -> int | None:
        try:
            result: int | None = cli(arguments, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            raise UsageError(f"{_one_line(error)}; see: omnistate --help") from error
        return result

    return run


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split()).rstrip(".")
