"""Servers that cannot be used, and what the error says to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

import omnistate
from machine import Server, TlsServer, free_port
from shop import Cart

SOON = timedelta(milliseconds=500)


async def test_an_unreachable_server(tenant: str) -> None:
    with pytest.raises(omnistate.StoreUnavailable, match="connection refused"):
        async with omnistate.connect(f"redis://127.0.0.1:{free_port()}", timeout=SOON):
            pass
    with pytest.raises(omnistate.StoreUnavailable, match="no such socket"):
        async with omnistate.connect("unix:///does/not/exist.sock", timeout=SOON):
            pass


@pytest.fixture
def guarded(valkey: Server) -> Iterator[Server]:
    server = Server(valkey.binary, "--requirepass", "correct horse")
    yield server
    server.stop()


async def test_a_wrong_password_and_none(guarded: Server) -> None:
    for url, words in (
        (f"redis://:wrong@127.0.0.1:{guarded.port}", "refused this user and password"),
        (f"redis://127.0.0.1:{guarded.port}", "wants a password"),
    ):
        with pytest.raises(omnistate.AuthenticationFailed, match=words) as caught:
            async with omnistate.connect(url, timeout=SOON):
                pass
        assert "wrong" not in str(caught.value)
    async with omnistate.connect(f"redis://:correct%20horse@127.0.0.1:{guarded.port}") as omni:
        await omni.customer("ana").state(Cart).update(Cart.add, "cup")
        assert "horse" not in omni.url + repr(omni)


async def test_a_password_for_a_server_that_has_none(valkey: Server) -> None:
    with pytest.raises(omnistate.AuthenticationFailed, match="remove it from the URL"):
        async with omnistate.connect(f"redis://:x@127.0.0.1:{valkey.port}", timeout=SOON):
            pass


async def test_a_server_without_functions(valkey: Server) -> None:
    server = Server(valkey.binary, "--rename-command", "FUNCTION", "", "--rename-command", "FCALL", "")
    try:
        with pytest.raises(omnistate.LibraryMissing, match="Redis >= 7.0"):
            async with omnistate.connect(server.url, timeout=SOON):
                pass
    finally:
        server.stop()


async def test_a_user_who_may_not_load_the_library(valkey: Server) -> None:
    operator = Redis.from_url(valkey.url)
    operator.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~omni:*", "&omni:*", "+@all", "-function")
    operator.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "&*", "+fcall", "+ping")
    operator.function_flush()
    with pytest.raises(omnistate.OmnistateError, match="may not load it|access list"):
        async with omnistate.connect(f"redis://limited:pw@127.0.0.1:{valkey.port}", timeout=SOON) as omni:
            await omni.customer("ana").state(Cart).get()
    async with omnistate.connect(valkey.url):
        pass  # an operator loads it
    async with omnistate.connect(f"redis://limited:pw@127.0.0.1:{valkey.port}", timeout=SOON) as omni:
        await omni.customer("acl").state(Cart).update(Cart.add, "cup")
    with pytest.raises(omnistate.PermissionRefused, match="ACL LOG"):
        async with omnistate.connect(f"redis://narrow:pw@127.0.0.1:{valkey.port}", timeout=SOON) as omni:
            await omni.customer("acl").state(Cart).update(Cart.add, "cup")
    operator.close()


async def test_functions_that_were_flushed_are_loaded_again(omni: omnistate.Client, raw: Any) -> None:
    cart = omni.customer("ana").state(Cart)
    await cart.update(Cart.add, "cup")
    raw.function_flush()
    assert (await cart.update(Cart.add, "cup")).result == 2


async def test_a_full_server_refuses_writes_and_changes_nothing(valkey: Server, tenant: str) -> None:
    server = Server(valkey.binary, "--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    try:
        async with omnistate.connect(server.url, tenant=tenant) as omni:
            cart = omni.customer("ana").state(Cart)
            await cart.update(Cart.add, "cup")
            with pytest.raises(omnistate.OutOfMemory, match="maxmemory"):
                for number in range(200):
                    await omni.customer(f"c{number}").state(Cart).patch(note="x" * 100_000)
            assert (await cart.get()).items == {"cup": 1}
    finally:
        server.stop()


async def test_data_of_a_new_epoch_is_not_mixed_with_old(omni: omnistate.Client, raw: Any) -> None:
    ana = omni.customer("ana")
    await ana.state(Cart).update(Cart.add, "cup")
    position = await ana.position()
    raw.delete(omni.keyspace.customer("ana").meta)  # evicted, or lost in a failover
    await ana.state(Cart).increment("visits")
    after = await ana.position()
    assert after.epoch != position.epoch
    assert after.offset == 1
    with pytest.raises(omnistate.PositionLost):
        await anext(ana.events(after=position))


@pytest.mark.parametrize("promoted", [False, True])
async def test_watchers_go_on_where_a_failover_has_lost_events(
    omni: omnistate.Client, raw: Any, promoted: bool
) -> None:
    ana = omni.customer("ana")
    cart, recent = ana.state(Cart), ana.collection(omnistate.List(str, name="recent"))
    await cart.increment("visits")
    await recent.append("a")
    values, lists = cart.watch(), recent.watch()
    assert ((await anext(values)).value.visits, (await anext(lists)).value) == (1, ["a"])
    before = await ana.position()
    if promoted:  # a primary that was a replica numbers on in its own epoch
        meta = omni.keyspace.customer("ana").meta
        epoch = raw.hget(meta, "s").split(b" ")[2]
        raw.hset(meta, "s", raw.hget(meta, "s").replace(epoch, epoch + b"0badcafe", 1))
    else:
        raw.delete(omni.keyspace.customer("ana").meta)
    await cart.increment("visits", by=5)
    await recent.append("b")
    assert (await ana.position()).epoch != before.epoch
    assert ((await ana.position()).offset > before.offset) == promoted
    async with asyncio.timeout(5):
        async for change in values:
            if change.value.visits == (6 if promoted else 5):
                break
        async for said in lists:
            if said.value == (["a", "b"] if promoted else ["b"]):
                break
    await values.aclose()
    await lists.aclose()


async def test_tls_checks_both_certificates_and_the_host(tls: TlsServer) -> None:
    async with omnistate.connect(tls.url) as omni:
        await omni.customer("ana").state(Cart).update(Cart.add, "cup")
    for url in (
        tls.trusting_url,  # no certificate of the client
        tls.url.replace("ca_file", "cert_file", 1),  # unknown certificate
        tls.url.replace("localhost", "127.0.0.1"),  # another name
        tls.url.replace(str(tls.tls_port), str(tls.port)),  # no TLS there
    ):
        with pytest.raises(omnistate.StoreUnavailable):
            async with omnistate.connect(url, timeout=SOON):
                pass
