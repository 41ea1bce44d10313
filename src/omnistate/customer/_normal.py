"""Addresses as they are compared: two spellings of one telephone number or mailbox are one identity. No IO."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from omnistate.errors import InvalidInput, MissingExtra

AddressKind = Literal["phone", "phone or name", "email", "text"]
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_DIGITS = re.compile(r"[1-9][0-9]{6,14}")
_PLAIN_EMAIL = re.compile(r"[a-z0-9_+-]+(\.[a-z0-9_+-]+)*@([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SCHEME = re.compile(r"(whatsapp|tel|sms):", re.IGNORECASE)  # as providers write numbers
_NO_MAIL = ("arpa", "invalid", "local", "localhost", "onion", "test")  # as email-validator has it
_FOLD = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
)  # no other letters: look-alikes stay apart


@lru_cache(4096)
def normal(kind: AddressKind, address: str, region: str | None) -> str:
    """Raises `InvalidInput`, and `MissingExtra` for what takes a library that is not installed."""
    given = address.strip()
    text = unicodedata.normalize("NFC", given)
    if not text:
        raise InvalidInput("an address that is nothing but spaces belongs to nobody: leave it out")
    if kind == "email" and text.isascii() and not given.isascii():
        raise InvalidInput(
            "this e-mail address holds a sign that becomes a plain letter, of another address: write it plainly"
        )
    return _KINDS[kind](text, region)


def _phone(text: str, region: str | None) -> str:
    text = _SCHEME.sub("", text, count=1) if _SCHEME.match(text) else text
    try:
        import phonenumbers  # noqa: PLC0415 - an extra
    except ImportError:
        if _E164.fullmatch(text):
            return text
        raise MissingExtra("a telephone number that is not written as + and digits", extra="identities") from None
    return _e164(phonenumbers, text, region)


def _e164(phonenumbers: Any, text: str, region: str | None) -> str:
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException as error:
        needs_region = error.error_type == error.INVALID_COUNTRY_CODE and not text.startswith("+") and region is None
        raise InvalidInput(
            "a telephone number without a country code: write it with one (+44...), or say where it is from, "
            "connect(channels={...: ChannelPolicy(region='GB')})"
            if needs_region
            else "this is no telephone number: write it as + country code and number (+447700900123)"
        ) from None
    if number.extension:
        raise InvalidInput(
            "a telephone number with an extension is shared by many: leave the extension out, or use another channel"
        )
    if not phonenumbers.is_possible_number(number):
        raise InvalidInput(
            "a telephone number of this length cannot be: write it as + country code and number (+447700900123)"
        )
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def _phone_or_name(text: str, region: str | None) -> str:
    """What holds a letter is a user name or id of the messenger. Digits alone are what WhatsApp gives for a number."""
    number = _SCHEME.sub("", text, count=1) if _SCHEME.match(text) else text
    if any(one.isalpha() for one in number) or _UUID.fullmatch(number):
        return text
    return _phone("+" + number if _DIGITS.fullmatch(number) else number, region)


def _email(text: str, _: str | None) -> str:
    """The mailbox in lower case, since no provider tells case apart, and the domain as it is in the DNS."""
    try:
        import email_validator  # noqa: PLC0415 - an extra
    except ImportError:
        if _PLAIN_EMAIL.fullmatch(text) and text.rpartition(".")[2].lower() not in _NO_MAIL:
            return text.translate(_FOLD)
        raise MissingExtra("this e-mail address", extra="identities") from None
    try:
        found = email_validator.validate_email(text, check_deliverability=False)
    except email_validator.EmailNotValidError as error:
        raise InvalidInput(
            f"this is no e-mail address: {_without(text, str(error))} Mend it, or leave it out"
        ) from None
    return f"{found.local_part.translate(_FOLD)}@{found.ascii_domain}"


def _without(text: str, reason: str) -> str:
    """An address is personal, so a message holds no part of one."""
    parts = [text, *text.split("@")]
    return "it cannot be read." if any(part and part in reason for part in parts) else reason


_KINDS: dict[str, Callable[[str, str | None], str]] = {
    "phone": _phone,
    "phone or name": _phone_or_name,
    "email": _email,
    "text": lambda text, _: text,
}
