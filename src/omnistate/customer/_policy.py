"""What is allowed on each channel. No IO."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, get_args

from omnistate.customer._normal import AddressKind, normal
from omnistate.errors import IdentityBlocked, InvalidInput
from omnistate.store import Keyspace, check_duration, encode_id

PLACEHOLDERS = frozenset(
    {
        "-1", "0", "123456789", "1234567890", "[object object]", "anonymous", "distinct_id", "distinctid", "email",
        "example", "false", "guest", "id", "n/a", "na", "nan", "nil", "none", "not_authenticated", "null", "test",
        "true", "undefined", "unknown",
        "anonymous@", "no-reply@", "none@", "noreply@", "null@", "test@", "undefined@", "unknown@",
    }
)  # fmt: skip
_ZEROS = re.compile(r"[0-]*0[0-]*")
_ZERO_PHONE = re.compile(r"\+[1-9]\d{0,7}?0{7,}")
_SEQUENCE = re.compile(r"\+?1?1234567890?")
Taking = Literal["never", "asserted", "always"]
_SHORTEST, _LONGEST = timedelta(seconds=1), timedelta(days=3650)
MOST = 1000  # identities of a customer on one channel


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPolicy:
    """What holds for identities on one channel: `omnistate.connect(channels={"sms": ChannelPolicy(region="GB")})`.

    `address`: how addresses are compared. "phone": as international numbers; "phone or name": that too, but what holds a letter
    is a user name; "email"; "text": as they are. `region`: where numbers without a country code are from ("GB").
    `device`: an address here is a device that several people may use, not a person.
    `blocked`: values that stand for nobody, in any case of letters; "0" is any number of zeros, "noreply@" this mailbox
    anywhere, "@example.com" a whole domain.
    `limit`: how many identities on this channel a customer may have. `priority`: `identify_all` believes the highest.
    `take`: when `link(take=True)` may take an address from somebody else, with proof: "never", while it was only "asserted",
    "always". `ttl`: how long an identity is kept that nobody comes with; None: for ever.

    What is None is as usual on a channel of that name: sms, phone and voice are "phone", whatsapp and signal "phone or name",
    email is "email", web, cookie, device and push are devices.
    """

    address: AddressKind | None = None
    region: str | None = None
    device: bool | None = None
    blocked: Collection[str] = PLACEHOLDERS
    limit: int = 100
    priority: int = 0
    take: Taking = "asserted"
    ttl: timedelta | None = None

    @property
    def lifetime(self) -> int:
        """In milliseconds, 0 for ever."""
        return 0 if self.ttl is None else int(self.ttl / timedelta(milliseconds=1))


_USUAL: dict[str, ChannelPolicy] = {
    **dict.fromkeys(("sms", "phone", "voice"), ChannelPolicy(address="phone")),
    **dict.fromkeys(("whatsapp", "signal"), ChannelPolicy(address="phone or name")),
    "email": ChannelPolicy(address="email"),
    **dict.fromkeys(("web", "cookie", "device", "push"), ChannelPolicy(device=True)),
}


class Policies:
    """The policy of each channel, and which addresses on it are one. Raises `InvalidInput` for what cannot be one."""

    __slots__ = ("_known",)

    def __init__(self, channels: Mapping[str, ChannelPolicy] | None = None) -> None:
        self._known = {name: _completed(name, one) for name, one in _USUAL.items()}
        for name, policy in (channels or {}).items():
            encode_id(name, "channel")
            if not isinstance(policy, ChannelPolicy):
                raise InvalidInput(
                    f"channels holds a {type(policy).__name__} for {name!r}: channels={{{name!r}: ChannelPolicy(...)}}"
                )
            _check(name, policy)
            self._known[name] = _completed(name, policy)

    def of(self, channel: str) -> ChannelPolicy:
        return self._known.get(channel, _OTHERS)

    def normal(self, channel: str, address: str) -> str:
        """How an address is spelled where it is compared. Raises `InvalidInput`, `MissingExtra`."""
        policy = self.of(channel)
        assert policy.address is not None
        return normal(policy.address, address, policy.region)

    def check(self, channel: str, address: str) -> None:
        """Raises `IdentityBlocked` for an address that stands for nobody in particular."""
        spelled = self.normal(channel, address)
        if _is_blocked(self.of(channel), address, spelled):
            raise IdentityBlocked(channel)


def policies_of(keyspace: Keyspace) -> Policies:
    return keyspace.spelling if isinstance(keyspace.spelling, Policies) else _DEFAULT


def _is_blocked(policy: ChannelPolicy, address: str, spelled: str) -> bool:
    words = {address.strip().casefold(), spelled.casefold()}
    if policy.address == "email":
        mailbox, _, domain = spelled.casefold().rpartition("@")
        words |= {mailbox + "@", "@" + domain}
    if policy.address in ("phone", "phone or name") and (
        _ZERO_PHONE.fullmatch(spelled) or _SEQUENCE.fullmatch(spelled)
    ):
        words.add("0")
    words |= {"0" for one in words if _ZEROS.fullmatch(one)}
    return not words.isdisjoint(policy.blocked)


def _completed(name: str, policy: ChannelPolicy) -> ChannelPolicy:
    usual = _USUAL.get(name, ChannelPolicy())
    address = policy.address or usual.address or "text"
    device = policy.device if policy.device is not None else bool(usual.device)
    return replace(policy, address=address, device=device, blocked=frozenset(one.casefold() for one in policy.blocked))


def _check(name: str, policy: ChannelPolicy) -> None:
    if policy.address is not None and policy.address not in get_args(AddressKind):
        raise InvalidInput(f"address of {name!r} must be one of {', '.join(get_args(AddressKind))}")
    if policy.take not in get_args(Taking):
        raise InvalidInput(f"take of {name!r} must be one of {', '.join(get_args(Taking))}")
    if isinstance(policy.blocked, str) or not all(isinstance(one, str) for one in policy.blocked):
        raise InvalidInput(f"blocked of {name!r} must be a set of values: omnistate.PLACEHOLDERS | {{'demo'}}")
    if type(policy.limit) is not int or not 1 <= policy.limit <= MOST:
        raise InvalidInput(f"limit of {name!r} must be between 1 and {MOST:,}")
    if policy.region is not None and not re.fullmatch("[A-Z]{2}", policy.region):
        raise InvalidInput(f"region of {name!r} must be a country as two capital letters, such as 'GB'")
    if policy.ttl is not None:
        check_duration(f"ttl of {name!r}", policy.ttl, _SHORTEST, _LONGEST)


_OTHERS = _completed("", ChannelPolicy())
_DEFAULT = Policies()
