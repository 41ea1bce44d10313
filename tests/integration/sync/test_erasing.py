"""Erasing and exporting without `await`."""

from __future__ import annotations

import msgspec
import pytest

import omnistate.sync as omnistate
from omnistate.sync import Client, CustomerErased
from shop import Cart

WHO = {"actor": "the operator", "reason": "request 4711"}


def test_an_erasure_ends_watches_and_refuses_what_comes_later(omni: Client) -> None:
    ana = omni.customer("ana")
    ana.state(Cart).patch(note="x")
    carts = ana.state(Cart).watch()
    assert next(carts).value.note == "x"
    planned = omni.erase("ana", **WHO, dry_run=True)
    done = ana.erase(**WHO)
    assert done.counts == planned.counts == {"documents": 1, "events": 1}
    with pytest.raises(CustomerErased):
        next(carts)
    with pytest.raises(CustomerErased):
        ana.state(Cart).patch(note="y")
    assert [one.digest for one in omni.erasures()] == [done.digest]


def test_an_export_has_a_manifest(omni: Client) -> None:
    omni.customer("ana").state(Cart).patch(note="x")
    export: omnistate.CustomerExport = omni.customer("ana").export()
    kinds = [msgspec.json.decode(line)["kind"] for line in export.lines()]
    assert kinds == ["customer", "event", "state"]
    assert export.manifest is not None
    assert export.manifest.unchanged
