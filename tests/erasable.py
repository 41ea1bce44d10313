"""A customer with something in every place that omnistate has, and a search through all that a server holds."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta
from typing import Any

from redis import Redis

import omnistate
from omnistate import CUSTOMER, ChannelPolicy, Client, Customer, Keyring, SessionPolicy
from omnistate.web._data import WebSession

DAY = timedelta(days=1)
KEYRING = Keyring({"k": b"k" * 32}, current="k")
BRIEF = "visitor"  # a channel whose identities end
CHANNELS = {BRIEF: ChannelPolicy(device=True, ttl=DAY)}


class Planted(omnistate.State, name="ErasePlanted", history=20, indexes={"word", omnistate.UPDATED}):
    word: str = ""
    notes: dict[str, str] = {}

    def merge(self, other: Planted) -> None:
        self.notes.update(other.notes)


class Dropped(omnistate.State, name="EraseDropped", history=20):
    word: str = ""


class Sealed(omnistate.State, name="EraseSealed", encrypted={"word"}):
    word: str = ""
    plain: str = ""


class Visited(omnistate.State, name="EraseVisited", ttl=DAY, indexes={"word"}):
    word: str = ""


LISTED = omnistate.List(str, name="erase_listed")
MAPPED = omnistate.Map(str, str, name="erase_mapped")
TAGGED = omnistate.Set(str, name="erase_tagged")
RANKED = omnistate.SortedSet(str, name="erase_ranked")
COUNTED = omnistate.Counter(name="erase_counted")
UNIQUE = omnistate.UniqueCounter(str, name="erase_unique")
QUEUED = omnistate.WorkQueue(str, name="erase_queued")
COLLECTIONS = (LISTED, MAPPED, TAGGED, RANKED, COUNTED, UNIQUE, QUEUED)
STATES = (Planted, Dropped, Sealed, Visited)


class Canaries:
    """Words that are nowhere else, one for each place."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        return self.words.setdefault(place, f"canary-{place}-{secrets.token_hex(4)}")


async def plant(omni: Client, word: Canaries, *, queue: str = "agents") -> Customer:
    """A customer whose every place holds a word."""
    ana = omni.customer(word("id")).via(word("channel"), actor=word("actor"))
    await ana.link("web", word("address"))
    await ana.link("mail", word("other-address") + "@example.com")
    word.words["as-it-was-given"] = (
        f"Canary-Given-{secrets.token_hex(4)}"  # compared in small letters, and kept as it was given
    )
    await ana.link("email", word("as-it-was-given") + "@Example.com", proof=omnistate.VERIFIED)
    await ana.link(BRIEF, word("visitor"))
    await ana.link("web", f"{ana.id}-unlinked")
    assert await ana.unlink("web", f"{ana.id}-unlinked")
    planted = ana.state(Planted)
    await planted.patch(word=word("before"))
    await planted.patch(word=word("value"))
    await planted.put("notes", word("entry-key"), word("entry-value"))
    await planted.put("notes", word("short-key"), word("short-value"), ttl=DAY)
    await planted.update_once(word("operation"), lambda value: value.notes.update(more="x"))
    await ana.state(Dropped).patch(word=word("dropped"))
    await ana.state(Dropped).delete()
    await ana.state(Sealed).patch(word="sealed away", plain=word("beside-sealed"))
    await ana.collection(LISTED).append(word("listed"))
    await ana.collection(MAPPED).put(word("mapped-key"), word("mapped-value"), ttl=DAY)
    await ana.collection(TAGGED).add(word("tagged"))
    await ana.collection(RANKED).put(word("ranked"), 1)
    await ana.collection(COUNTED).add(3)
    await ana.collection(UNIQUE).add("someone")
    await ana.collection(QUEUED).put(word("queued"), word("claimed"))
    await ana.collection(QUEUED).put(word("delayed"), delay=DAY)
    await ana.collection(QUEUED).claim()
    agent, device = word("user-agent"), word("device")
    session = await ana.start_session(
        word("session-channel"), user_agent=agent, device=device, policy=SessionPolicy(at_most=1)
    )
    await session.state(WebSession).put("data", word("web-key"), word("web-value"))
    ended = await ana.start_session(word("ended-channel"), user_agent="an agent", device=word("ended-device"))
    await ended.rotate()
    await ended.end(reason=word("ended-because"))
    await session.state(Visited).patch(word=word("session-state"))
    talk = await ana.start_conversation(word("talk-channel"), owner=word("bot"))
    await talk.say(CUSTOMER, word("said"), operation_id=word("message-id"))
    await talk.state(Planted).patch(word=word("talk-state"))
    await talk.collection(LISTED).append(word("talk-listed"))
    await talk.hand_off(queue, reason=word("waits-because"))
    claimed = await ana.start_conversation("web")
    await claimed.hand_off(queue + "-2", reason=word("waited-because"))
    assert await omni.queue(queue + "-2").claim("maria") is not None
    return ana


async def plant_merged(omni: Client, word: Canaries, into: Customer) -> Customer:
    """Somebody who was merged into a customer, and has a conversation and a session of their own."""
    ben = omni.customer(word("merged-id")).via("web")
    await ben.link("web", word("merged-address"))
    await ben.state(Planted).put("notes", word("merged-key"), word("merged-value"))
    await ben.start_session(word("merged-session"), user_agent=word("merged-agent"), device=word("merged-device"))
    talk = await ben.start_conversation("web")
    await talk.say(CUSTOMER, word("merged-said"))
    await talk.hand_off("agents", reason=word("merged-waits"))
    await into.merge(ben)
    return ben


def keys_of_tenant(raw: Redis, tenant: str) -> list[bytes]:
    """Every key of the tenant, on every primary."""
    return sorted(raw.scan_iter(f"omni:{tenant}:*", count=1000))


def content(raw: Redis, key: bytes) -> bytes:
    """All that a key holds."""
    held: Any
    match raw.type(key):
        case b"hash":
            held = raw.hgetall(key)
        case b"list":
            held = raw.lrange(key, 0, -1)
        case b"set":
            held = raw.smembers(key)
        case b"zset":
            held = raw.zrange(key, 0, -1, withscores=True)
        case b"string":
            held = raw.get(key)
        case b"none":
            held = b""
        case kind:
            raise AssertionError(f"there is a new type of key, {kind!r}: search it too")
    return repr(held).encode()


def found(raw: Redis, tenant: str, words: dict[str, str]) -> dict[str, set[bytes]]:
    """Where the words are: the keys whose name or content has them."""
    everything = {key: key + b" " + content(raw, key) for key in keys_of_tenant(raw, tenant)}
    return {place: {key for key, text in everything.items() if word.encode() in text} for place, word in words.items()}


def kind_of(key: bytes, customer_id: str) -> str:
    """What a key is called, without what differs from customer to customer and from place to place."""
    tail = re.sub(r"^omni:[^:]+:\{[^}]+\}:", "", key.decode())
    tail = tail.replace(f"c.{customer_id}:", "<customer>:")
    tail = re.sub(r"^(q)\.[^:]+", r"\1.<queue>", tail)
    tail = re.sub(r"(session|conversation):[A-Za-z0-9_-]+", r"\1:<id>", tail)
    tail = re.sub(r"doc:\w+", "doc:<name>", tail)
    return re.sub(r"index:[^:]+", "index:<name>", tail)
