"""How documents follow their class: `@migrate(1, 2)`."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from omnistate.errors import InvalidDeclaration, SchemaMismatch
from omnistate.state._options import Options, names_of

Fields = dict[str, Any]  # a document as JSON has it
Step = Callable[[Fields], Fields | None]


class Migration(staticmethod):  # type: ignore[type-arg]  # not subscriptable in Python 3.11
    """A function that brings a document from one version of its class to another."""

    def __init__(self, function: Step, before: int, after: int, mappings: frozenset[str] | None) -> None:
        super().__init__(function)
        self.versions, self.mappings = (before, after), mappings


def migrate(
    before: int, after: int, *, mappings: Collection[str] | None = None
) -> Callable[[Callable[..., Fields | None]], Migration]:
    """Marks the function that makes a document of version `after` of one of version `before`, inside its class.

        class Cart(State, version=2):
            lines: dict[str, Line] = {}

            @omnistate.migrate(1, 2)
            def lines_have_prices(fields: dict) -> None:
                fields["lines"] = {sku: {"quantity": n, "price": 0} for sku, n in fields.pop("items", {}).items()}

    It gets the stored fields as JSON has them (one that was never written is not there) and changes or returns them; it must do
    nothing else, as it runs at each reading until the document is written. `migrate(2, 1)` is the way back, for
    `writes=1`: while the processes of a deployment are being replaced, the new ones write what the old ones read.

    A mapping is stored entry by entry, so such a step says which fields are mappings in the version that it leads to:
    `migrate(2, 1, mappings={"items"})`. Without it they are those of this class, and what a step makes an object of
    otherwise is refused when it is to be written.
    """
    if type(before) is not int or type(after) is not int or before < 1 or after < 1 or before == after:
        raise InvalidDeclaration(f"migrate({before!r}, {after!r}) must name two different versions, 1 or higher")

    def mark(function: Step) -> Migration:
        if inspect.iscoroutinefunction(function):
            raise InvalidDeclaration(f"the migration {function.__name__} must not be async: it runs at each reading")
        parameters = list(inspect.signature(function).parameters)
        if len(parameters) != 1 or parameters == ["self"]:
            raise InvalidDeclaration(
                f"the migration {function.__name__} takes the stored fields and nothing else, there is no instance: "
                f"def {function.__name__}(fields)"
            )
        return Migration(
            function, before, after, None if mappings is None else names_of("migrate", "mappings", mappings)
        )

    return mark


class Migrations:
    """The steps that a class declares."""

    __slots__ = ("_mappings", "_name", "_steps")

    def __init__(self, name: str, kind: type, options: Options) -> None:
        self._name = name
        self._steps: dict[tuple[int, int], Step] = {}
        self._mappings: dict[Step, frozenset[str] | None] = {}
        for owner in reversed(kind.__mro__):
            for value in vars(owner).values():
                if isinstance(value, Migration):
                    self._steps[value.versions] = value.__func__
                    self._mappings[value.__func__] = value.mappings
        if options.writes != options.version:
            for before, after in ((options.version, options.writes), (options.writes, options.version)):
                try:
                    self._path(before, after)
                except SchemaMismatch:
                    raise InvalidDeclaration(
                        f"{name} writes version {options.writes} for older processes, so it needs the way there and back: "
                        f"declare @migrate({before}, {after})"
                    ) from None

    def apply(self, fields: Fields, before: int, after: int) -> Fields:
        """The fields as version `after` has them. Raises `SchemaMismatch`."""
        for step in self._path(before, after):
            try:
                changed = step(fields)
            except Exception as error:
                raise SchemaMismatch(
                    f"a stored {self._name} of version {before} cannot be migrated to {after}: "
                    f"{step.__name__} raised {type(error).__name__}. It was left as it is"
                ) from error
            fields = fields if changed is None else changed
        return fields

    def mappings(self, before: int, after: int) -> frozenset[str] | None:
        """The mappings of version `after`, where the step that leads there names them."""
        return self._mappings[self._path(before, after)[-1]]

    def _path(self, before: int, after: int) -> list[Step]:
        """The fewest steps from one version to another."""
        paths: dict[int, list[Step]] = {before: []}
        waiting = deque([before])
        while waiting:
            here = waiting.popleft()
            if here == after:
                return paths[here]
            for (start, end), step in self._steps.items():
                if start == here and end not in paths:
                    paths[end] = [*paths[here], step]
                    waiting.append(end)
        raise SchemaMismatch(
            f"a stored {self._name} has version {before}, and its class says no way to {after}: declare "
            f"@migrate({before}, {after}), or, if newer processes wrote it, let them write version {after} (writes={after})"
        )
