"""How a state class becomes a hash and comes back: one hash field per field, one per entry of a mapping field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from math import isfinite
from typing import Any, Generic, TypeVar, get_args

import msgspec
from msgspec import NODEFAULT, UNSET, Raw, UnsetType

from omnistate.errors import InvalidDeclaration, InvalidValue, SchemaMismatch, ValueTooDeep
from omnistate.state._copy import copier_of, is_plain
from omnistate.state._indexes import Indexes
from omnistate.state._migrate import Migrations
from omnistate.state._options import Options
from omnistate.state._seal import Keyring
from omnistate.state._stored import Packing

S = TypeVar("S")
Flat = dict[bytes, bytes]  # a document's hash fields

MAX_DEPTH = 64
_MOST_SUM = 2**53 - 1  # as in functions.lua

_encode = msgspec.json.Encoder().encode
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Schema(Generic[S]):
    """What is derived from a class once: its fields, which of them are mappings, and its decoders."""

    __slots__ = (
        "_compared",
        "_counters",
        "_decode",
        "_decode_parts",
        "_has_floats",
        "_is_shallow",
        "_kind",
        "_members",
        "_migrations",
        "_values",
        "compares",
        "copier",
        "copies",
        "fields",
        "history",
        "how_one",
        "indexes",
        "is_near",
        "known",
        "lifetime_ms",
        "mappings",
        "name",
        "packing",
        "ttl_ms",
        "version",
        "writes",
    )

    def __init__(self, kind: type[S], options: Options) -> None:
        name = options.name
        self._kind, self.name, self.ttl_ms, self.lifetime_ms = kind, name, options.ttl_ms, options.lifetime_ms
        self.version, self.writes, self.history = options.version, options.writes, options.history
        self._migrations = Migrations(name, kind, options)
        self.is_near = options.near_cache
        try:
            info = msgspec.inspect.type_info(kind)
            self._decode = msgspec.json.Decoder(kind).decode
        except (TypeError, NameError) as error:
            raise InvalidDeclaration(f"state {name}: a field's type cannot be used: {error}") from error
        assert isinstance(info, msgspec.inspect.StructType)
        self.fields = {field.name: field for field in info.fields}
        self.mappings = {field.encode_name for field in info.fields if isinstance(field.type, msgspec.inspect.DictType)}
        for field in info.fields:
            if ":" in field.encode_name or field.encode_name.startswith("!"):
                raise InvalidDeclaration(
                    f"{name}.{field.name} cannot be stored as {field.encode_name!r}: a name has no ':' and begins with no '!'"
                )
            if field.encode_name in self.mappings and (field.default_factory is NODEFAULT or field.default_factory()):
                raise InvalidDeclaration(f"{name}.{field.name} is a mapping: its default must be empty, = {{}}")
        self._check_defaults(kind)
        self.copier = copier_of(kind)
        self.known = frozenset(field.encode_name.encode() for field in info.fields)
        self._members = [_Member(field, field.encode_name in self.mappings) for field in info.fields]
        self.compares = all(member.is_exact for member in self._members)  # whether `diff_values` may be used
        self._compared = [(member.attribute, member.name, member.prefix) for member in self._members]
        self.copies = self.compares and is_plain(kind)  # whether `copier` is quicker than decoding, and as good
        self._is_shallow = _depth_of(info) <= MAX_DEPTH  # and then no value of the class can be too deep
        self._has_floats = _may_hold_floats(info)
        self._counters: dict[tuple[str, bool], bytes] = {}
        parts = [
            (field.name, dict[str, Raw] | UnsetType if field.encode_name in self.mappings else Raw | UnsetType, UNSET)
            for field in info.fields
        ]
        self._values = _values_of(kind, self.mappings)
        self.packing = self._packing(options)
        plain = {
            field.name: field.encode_name.encode() for field in info.fields if field.encode_name not in self.mappings
        }
        self.indexes = Indexes(kind, options, plain)
        is_brief = self.writes == 1 and self.packing.is_plain and self.history is None
        self.how_one = (self.how("patch", 1, 0, 0), self.how("patch", 0, 0, 1)) if is_brief else None
        for index in self.indexes.names:
            if self.packing.encrypted is True or (index in plain and self.packing.is_sealed(plain[index])):
                raise InvalidDeclaration(f"{name}.{index} is encrypted, and an index would tell its value")
        renamed = {field.name: field.encode_name for field in info.fields}
        self._decode_parts = msgspec.json.Decoder(msgspec.defstruct(f"{name}Parts", parts, rename=renamed)).decode

    def how(
        self, mode: str, sets: int, drops: int, steps: int, *, ttl_ms: int | None = None, has_turn: bool = False
    ) -> str:
        """How a write of the class is done, as functions.lua reads it; so many fields are set, dropped and added to."""
        ttl_ms = self.ttl_ms if ttl_ms is None else ttl_ms
        counts = f"{sets} {drops} {steps} {1 if has_turn else 0}"
        return f"{mode} {ttl_ms} {self.lifetime_ms} {self.packing.name} {self.writes} {counts}"

    def default(self) -> S:
        return self._kind()

    # value <-> JSON

    def encode(self, value: S) -> bytes:
        """The value as JSON. Raises `InvalidValue` when it does not fit the class, `ValueTooDeep` when it nests too deep."""
        if type(value) is not self._kind:
            raise InvalidValue(f"expected a {self.name}, got {type(value).__name__}")
        try:
            encoded = _encode(value)
        except RecursionError:
            raise ValueTooDeep(self.name, limit=MAX_DEPTH) from None
        except (TypeError, ValueError, UnicodeEncodeError) as error:
            raise InvalidValue(f"{self.name} cannot be stored: {error}") from error
        if not self._is_shallow:
            check_depth(self.name, encoded)
        if self._has_floats and b"null" in encoded:
            check_numbers(self.name, value)
        return encoded

    def check_others(self, others: dict[str, bytes]) -> Flat:
        """Fields that the class does not know, as hash fields. Raises `InvalidValue` for those that it does."""
        for name, value in others.items():
            check_depth(self.name, value)
            if name.partition(":")[0].encode() in self.known or not name or name.startswith("!"):
                raise InvalidValue(f"{self.name}: {name[:40]!r} is no field that the class does not know")
        return {name.encode(): value for name, value in others.items()}

    def validate(self, encoded: bytes) -> S:
        """The value that JSON holds, with every type checked. Raises `InvalidValue` and says where."""
        try:
            return self._decode(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidValue(f"{self.name}: {error}") from error

    def _check_defaults(self, kind: type[S]) -> None:
        """A default that is not of its field's type would be told only when it had been written and is read."""
        try:
            default = kind()
        except Exception as error:
            raise InvalidDeclaration(f"{self.name}: its defaults cannot be made: {error}") from error
        for name, field in self.fields.items():
            try:
                self._decode(b'{"%b":%b}' % (_encode(field.encode_name)[1:-1], _encode(getattr(default, name))))
            except (msgspec.MsgspecError, TypeError, OverflowError) as error:
                raise InvalidDeclaration(f"the default of {self.name}.{name} does not fit its type: {error}") from error

    def parse(self, text: bytes) -> S:
        """A value from somebody's JSON, where a field that the class does not have is an error."""
        check_depth(self.name, text)
        value = self.validate(text)
        for field in msgspec.json.decode(text):
            if all(field != known.encode_name for known in self.fields.values()):
                self.field(field)
        return value

    def decode(self, encoded: bytes) -> S:
        """The stored value. Raises `SchemaMismatch` when it no longer fits the class."""
        try:
            return self._decode(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            fields = self._unreadable(encoded)
            raise SchemaMismatch(
                f"the stored {self.name} cannot be read as its class: {error}", fields=fields
            ) from error

    def to_json(self, encoded: bytes) -> bytes:
        """A document as JSON."""
        return encoded

    # JSON <-> hash fields

    def split(self, encoded: bytes) -> Flat:
        """The hash fields of a document. An empty mapping has none."""
        parts = self._decode_parts(encoded)
        flat: Flat = {}
        for member in self._members:
            part = getattr(parts, member.attribute)
            if part is UNSET:
                continue
            if member.prefix:
                for key, raw in part.items():
                    flat[member.prefix + key.encode()] = bytes(raw)
            else:
                flat[member.name] = bytes(part)
        return flat

    def diff(self, old: Flat, new: Flat) -> tuple[Flat, list[bytes]]:
        """What to set and what to drop to make `new` of `old`. Fields that the class does not know stay."""
        sets = {name: value for name, value in new.items() if old.get(name) != value}
        if old.keys() <= new.keys():
            return sets, []
        return sets, [name for name in old if name not in new and name.partition(b":")[0] in self.known]

    def diff_values(self, old: S, new: S) -> tuple[Flat, list[bytes]]:
        """`diff` of two values, of which `old` is stored as a whole, where equal values have equal JSON."""
        sets: Flat = {}
        drops: list[bytes] = []
        for attribute, name, prefix in self._compared:
            before, after = getattr(old, attribute), getattr(new, attribute)
            if before == after:
                continue
            if not prefix:
                sets[name] = _encode(after)
                continue
            for key, value in after.items():
                if before.get(key, UNSET) != value:
                    sets[prefix + key.encode()] = _encode(value)
            if not before.keys() <= after.keys():
                drops += [prefix + key.encode() for key in before if key not in after]
        return sets, drops

    def join(self, flat: Flat) -> bytes:
        """The JSON of a document's hash fields. Fields that the class does not know stay where they are, unread."""
        parts: dict[bytes, bytes | list[bytes]] = {}
        for name, value in flat.items():
            field, entry, key = name.partition(b":")
            if entry:
                found = parts.setdefault(field, [])
                if type(found) is bytes:  # another version of the class had the mapping as one value
                    found = parts[field] = _entries_of(found)
                found.append(_encode(key.decode()) + b":" + value)  # type: ignore[union-attr]
            elif field in parts:
                parts[field] = _entries_of(value) + parts[field]  # type: ignore[operator]
            else:
                parts[field] = value
        return b"{" + b",".join([_member(field, part) for field, part in parts.items()]) + b"}"

    # JSON <-> what is stored and what is in events

    def pack(self, sets: Flat, document: bytes, keyring: Keyring | None) -> Flat:
        """The stored form of these fields of the document with this key."""
        packing = self.packing
        if packing.is_plain:
            return sets
        return {name: packing.pack(name, value, document, keyring) for name, value in sets.items()}

    def unpack(self, stored: Flat, document: bytes, keyring: Keyring | None) -> tuple[Flat, dict[str, str]]:
        """The fields of a document, and the reasons of those that cannot be read."""
        if self.packing.is_plain and min(stored.values(), default=b" ") >= b" " and _is_text(stored):
            return stored, {}
        flat: Flat = {}
        damaged: dict[str, str] = {}
        for name, value in stored.items():
            if not _is_text((name,)):
                damaged[name.decode(errors="replace")] = "the name is damaged: it is no text"
                continue
            try:
                flat[name] = self.packing.unpack(name, value, document, keyring)
            except SchemaMismatch as error:
                damaged[name.decode(errors="replace")] = str(error)
        return flat, damaged

    def event_value(self, name: bytes, value: bytes) -> bytes:  # noqa: ARG002 - other codecs need the name
        """The JSON of a field's value, for an event."""
        return value

    def value_of_event(self, name: bytes, value: bytes) -> bytes:  # noqa: ARG002
        """The value of a field whose JSON was in an event."""
        return value

    # versions

    @property
    def rewrites(self) -> bool:
        """Whether each write has to bring the whole document into another shape."""
        return self.writes != self.version

    def upgrade(self, flat: Flat, version: int) -> Flat:
        """A document of this version of the class as the present one has it. Raises `SchemaMismatch`."""
        return flat if version == self.version else self._migrate(flat, version, self.version)

    def downgrade(self, flat: Flat) -> Flat:
        """A document in the version that is written."""
        return self._migrate(flat, self.version, self.writes) if self.rewrites else flat

    def _migrate(self, flat: Flat, before: int, after: int) -> Flat:
        try:
            fields = msgspec.json.decode(self.join(flat), type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SchemaMismatch(f"a stored {self.name} is damaged: {error}") from error
        declared = None if after == self.version else self._migrations.mappings(before, after)
        by_entry = {
            name.partition(b":")[0].decode()
            for name in flat
            if b":" in name and name.partition(b":")[0] not in self.known
        }
        mappings = self.mappings | by_entry if declared is None else declared
        objects = {field for field, value in fields.items() if isinstance(value, dict)}
        migrated: Flat = {}
        for field, value in self._migrations.apply(fields, before, after).items():
            if isinstance(value, dict) and field in mappings:
                for key, one in value.items():
                    migrated[f"{field}:{key}".encode()] = _encode(one)
            elif isinstance(value, dict) and field not in objects and declared is None and after != self.version:
                raise InvalidDeclaration(
                    f"{self.name}: the step to version {after} makes the object {field!r}, and nobody knows whether it is a "
                    f"mapping there: say @migrate({before}, {after}, mappings={{{field!r}}}), or mappings=() for none"
                )
            else:
                migrated[field.encode()] = _encode(value)
        return migrated

    def indexes_of(self, flat: Flat) -> list[tuple[str, str]]:
        """The index entries of a document."""
        return self.indexes.of(self.decode(self.join(flat))) if self.indexes.names else []

    def salvage(self, flat: Flat) -> tuple[Flat, dict[str, str]]:
        """The fields that can be read, and the reasons of those that cannot."""
        broken: dict[str, str] = {}
        for name, value in flat.items():
            try:
                msgspec.json.decode(value, type=Raw)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                broken[name.decode()] = str(error)
        whole = {name: value for name, value in flat.items() if name.decode() not in broken}
        unreadable = self._unreadable(self.join(whole))
        good = {name: value for name, value in whole.items() if name.partition(b":")[0].decode() not in unreadable}
        return good, broken | unreadable

    def _unreadable(self, encoded: bytes) -> dict[str, str]:
        try:
            parts = msgspec.json.decode(encoded, type=dict[str, Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return {field.encode_name: str(error) for field in self.fields.values()}
        found = {}
        for field, part in parts.items():
            if field in self._values.whole:
                try:
                    msgspec.json.decode(part, type=self._values.whole[field])
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    found[field] = str(error)
        return found

    def _packing(self, options: Options) -> Packing:
        encrypted: frozenset[bytes] | bool = options.encrypted is True
        if not isinstance(options.encrypted, bool):
            encrypted = frozenset(self.field_of_option("encrypted", name) for name in options.encrypted)
        return Packing(
            options.codec,
            compress_over=options.compress_over,
            encrypted=encrypted,
            from_json=self._values.to_msgpack,
            to_json=self._values.of_msgpack,
        )

    def field_of_option(self, option: str, name: str) -> bytes:
        """The stored name of a field that an option names. Raises `InvalidDeclaration`."""
        if name not in self.fields:
            known = ", ".join(self.fields)
            raise InvalidDeclaration(f"{self.name}: {option} names {name!r}, which is no field; it has {known}")
        return self.fields[name].encode_name.encode()

    # names

    def field(self, name: str) -> msgspec.inspect.Field:
        """The field of this name. Raises `InvalidValue` with a guess."""
        if (found := self.fields.get(name)) is not None:
            return found
        guess = get_close_matches(name, self.fields, n=1)
        hint = f": did you mean {guess[0]!r}?" if guess else f"; it has {', '.join(self.fields)}"
        raise InvalidValue(f"{self.name} has no field {name[:40]!r}{hint}")

    def plain(self, values: dict[str, Any]) -> Flat:
        """Hash fields for whole plain fields, each checked against its type."""
        for name in values:
            if self.field(name).encode_name in self.mappings:
                raise InvalidValue(f"{self.name}.{name} is a mapping: use put and remove for its entries")
        return self.split(self._checked({self.fields[name].encode_name: value for name, value in values.items()}))

    def entry(self, name: str, key: Any, value: Any) -> tuple[bytes, bytes]:
        """Hash field and value for one entry of a mapping field, checked against its types."""
        field = self._mapping(name)
        assert isinstance(field.type, msgspec.inspect.DictType)
        if isinstance(field.type.key_type, msgspec.inspect.StrType) and not isinstance(key, str):
            raise InvalidValue(f"a key of {self.name}.{name} must be a str, not {type(key).__name__}")
        return next(iter(self.split(self._checked({field.encode_name: {key: value}})).items()))

    def entry_name(self, name: str, key: Any) -> bytes:
        """The hash field of an entry that is to be removed."""
        field = self._mapping(name)
        assert isinstance(field.type, msgspec.inspect.DictType)
        if key is None or (isinstance(field.type.key_type, msgspec.inspect.StrType) and not isinstance(key, str)):
            raise InvalidValue(f"{self.name}.{name} cannot have the key {key!r}")
        try:
            spelled: str = next(iter(msgspec.json.decode(_encode({key: None}))))
        except (TypeError, ValueError) as error:  # UnicodeEncodeError too
            raise InvalidValue(f"{self.name}.{name} cannot have this key: {error}") from error
        return field.encode_name.encode() + b":" + spelled.encode()

    def counter(self, name: str, key: Any | None) -> bytes:
        """The hash field of an integer that may be incremented on the server."""
        if self.packing.encrypted and self.packing.is_sealed(self.field(name).encode_name.encode()):
            raise InvalidValue(f"{self.name}.{name} is encrypted, so the server cannot count with it: use update")
        found = self._counters.get((name, type(key) is str))
        if found is not None and (type(key) is str or key is None):
            try:
                return found if key is None else found + key.encode()
            except UnicodeEncodeError:
                pass  # `entry` says what is wrong
        type_ = self.field(name).type
        if key is not None:
            self._mapping(name)
            assert isinstance(type_, msgspec.inspect.DictType)
            keys, type_ = type_.key_type, type_.value_type
        elif isinstance(type_, msgspec.inspect.DictType):
            raise InvalidValue(f"{self.name}.{name} is a mapping: say which entry, increment({name!r}, key)")
        if not isinstance(type_, msgspec.inspect.IntType):
            raise InvalidValue(f"{self.name}.{name} is not an integer: use update")
        if any(bound is not None for bound in (type_.ge, type_.gt, type_.le, type_.lt, type_.multiple_of)):
            raise InvalidValue(f"{self.name}.{name} has bounds that only `update` can check: use update")
        field = self.fields[name].encode_name.encode()
        if key is None:
            self._counters[name, False] = field
            return field
        if keys == msgspec.inspect.StrType():
            self._counters[name, True] = field + b":"
        return self.entry(name, key, 0)[0]

    def deadline_name(self, name: str, key: Any) -> bytes:
        """The hash field of what is to have a deadline of its own. Raises `InvalidValue`."""
        if key is not None:
            return self.entry_name(name, key)
        if self.field(name).encode_name in self.mappings:
            raise InvalidValue(f"{self.name}.{name} is a mapping: say which entry, expire({name!r}, key, after=...)")
        if name in self.indexes.names:
            raise InvalidValue(f"{self.name}.{name} is indexed, so it cannot expire by itself: set it to None instead")
        return self.field(name).encode_name.encode()

    def check_step(self, name: str, by: int) -> None:
        """Raises `InvalidValue` for what cannot be added to an integer on the server."""
        if type(by) is not int or not -_MOST_SUM <= by <= _MOST_SUM:
            raise InvalidValue(f"cannot add {by!r} to {self.name}.{name}: it must be an int within 2^53")

    def _mapping(self, name: str) -> msgspec.inspect.Field:
        field = self.field(name)
        if field.encode_name not in self.mappings:
            raise InvalidValue(f"{self.name}.{name} is not a mapping: use patch or update")
        return field

    def _checked(self, values: dict[str, Any]) -> bytes:
        try:
            encoded = _encode(values)
        except RecursionError:
            raise ValueTooDeep(self.name, limit=MAX_DEPTH) from None
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"{self.name} cannot be stored: {error}") from error
        check_depth(self.name, encoded)
        if self._has_floats and b"null" in encoded:
            check_numbers(self.name, values)
        return _encode(self._only(self.validate(encoded), values))

    def _only(self, value: S, names: dict[str, Any]) -> dict[str, Any]:
        """The given fields as the class normalises them, without the defaults of the others."""
        return {
            field.encode_name: getattr(value, field.name)
            for field in self.fields.values()
            if field.encode_name in names
        }


class _Values:
    """The types of the fields, to transcode and check one value at a time."""

    __slots__ = ("_decoders", "whole")

    def __init__(self, whole: dict[str, Any], entries: dict[str, Any]) -> None:
        self.whole = whole  # by stored name
        types = whole | entries
        self._decoders = {
            field.encode(): (msgspec.json.Decoder(type_).decode, msgspec.msgpack.Decoder(type_).decode)
            for field, type_ in types.items()
        }

    def to_msgpack(self, name: bytes, value: bytes) -> bytes | None:
        """The value as MessagePack; None where it would not come back as it is (a time zone, for one)."""
        typed = self._decoders.get(name.partition(b":")[0], _ANY)[0]
        for decode in (typed, _ANY[0]):
            try:
                packed = _pack(decode(value))
            except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):  # not what the class says
                continue
            if self.of_msgpack(name, packed) == value:
                return packed
        return None

    def of_msgpack(self, name: bytes, value: bytes) -> bytes:
        decode = self._decoders.get(name.partition(b":")[0], _ANY)[1]
        try:
            return _encode(decode(value))
        except msgspec.ValidationError:
            try:
                return _encode(msgspec.msgpack.decode(value))
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as error:
                raise SchemaMismatch(f"a stored value cannot be read: {error}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SchemaMismatch(f"a stored value is damaged: {error}") from error


_pack = msgspec.msgpack.Encoder().encode
_ANY = (msgspec.json.Decoder().decode, msgspec.msgpack.Decoder().decode)


def _values_of(kind: Any, mappings: set[str]) -> _Values:
    whole = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    entries = {}
    for name in mappings:
        arguments = get_args(whole[name])
        entries[name] = arguments[1] if len(arguments) == 2 else Any
    return _Values(whole, entries)


def _is_text(names: Iterable[bytes]) -> bool:
    try:
        b"\n".join(names).decode()
    except UnicodeDecodeError:
        return False
    return True


def _entries_of(value: bytes) -> list[bytes]:
    inner = value.strip()[1:-1].strip()
    return [inner] if inner else []


class _Member:
    """What is asked of a field at each write. `prefix`: of the hash fields of a mapping's entries, else empty."""

    __slots__ = ("attribute", "is_exact", "name", "prefix")

    def __init__(self, field: msgspec.inspect.Field, is_mapping: bool) -> None:
        self.attribute, self.name = field.name, field.encode_name.encode()
        self.prefix = self.name + b":" if is_mapping else b""
        type_ = field.type
        if isinstance(type_, msgspec.inspect.DictType) and is_mapping:
            self.is_exact = isinstance(type_.key_type, msgspec.inspect.StrType) and _is_exact(type_.value_type)
        else:
            self.is_exact = _is_exact(type_)


def _depth_of(type_: msgspec.inspect.Type, above: tuple[type, ...] = ()) -> float:
    """How deep the JSON of a type can nest: endless for `Any` and for types that hold themselves."""
    inspect = msgspec.inspect
    inner: list[msgspec.inspect.Type] = []
    match type_:
        case inspect.UnionType():
            return max(_depth_of(one, above) for one in type_.types)
        case inspect.DictType():
            inner = [type_.value_type]
        case inspect.CollectionType() | inspect.VarTupleType():
            inner = [type_.item_type]
        case inspect.TupleType():
            inner = list(type_.item_types)
        case inspect.StructType() | inspect.DataclassType() | inspect.TypedDictType() | inspect.NamedTupleType():
            if type_.cls in above:
                return float("inf")
            above = (*above, type_.cls)
            inner = [field.type for field in type_.fields]
        case (
            inspect.NoneType() | inspect.BoolType() | inspect.IntType() | inspect.FloatType() | inspect.StrType()
            | inspect.BytesType() | inspect.EnumType() | inspect.LiteralType() | inspect.UUIDType() | inspect.DecimalType()
            | inspect.DateTimeType() | inspect.DateType() | inspect.TimeType() | inspect.TimeDeltaType()
        ):  # fmt: skip
            return 0
        case _:
            return float("inf")
    return 1 + max((_depth_of(one, above) for one in inner), default=0)


def _may_hold_floats(type_: msgspec.inspect.Type) -> bool:
    inspect = msgspec.inspect
    match type_:
        case inspect.NoneType() | inspect.BoolType() | inspect.IntType() | inspect.StrType() | inspect.BytesType():
            return False
        case inspect.DictType():
            return _may_hold_floats(type_.value_type)
        case inspect.CollectionType() | inspect.VarTupleType():
            return _may_hold_floats(type_.item_type)
        case inspect.UnionType():
            return any(_may_hold_floats(one) for one in type_.types)
        case inspect.StructType() if _depth_of(type_) < float("inf"):
            return any(_may_hold_floats(field.type) for field in type_.fields)
        case _:
            return True


def _is_exact(type_: msgspec.inspect.Type) -> bool:
    """Whether values that are equal have the same JSON. 1 == True == 1.0, so of these a field may allow one only."""
    inspect = msgspec.inspect
    if isinstance(type_, inspect.UnionType):
        kinds = [one for one in type_.types if not isinstance(one, inspect.NoneType)]
        return len(kinds) == 1 and _is_exact(kinds[0])
    return isinstance(type_, inspect.IntType | inspect.BoolType | inspect.StrType | inspect.BytesType)


def check_numbers(what: str, value: object) -> None:
    """Raises `InvalidValue` for NaN and infinity anywhere in it: JSON has no spelling for them, and null is another value."""
    for number in _floats(msgspec.to_builtins(value, builtin_types=(bytes,))):
        if not isfinite(number):
            raise InvalidValue(f"{what} cannot hold {number}: JSON has no such number; use None where it means unknown")


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _floats(one)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from _floats(one)


def _member(field: bytes, part: bytes | list[bytes]) -> bytes:
    value = b"{" + b",".join(part) + b"}" if type(part) is list else part
    return b'"' + field + b'":' + value  # type: ignore[operator]


def check_depth(what: str, encoded: bytes) -> None:
    """Raises `ValueTooDeep` for JSON that nests deeper than the limit; looks closely only where it could."""
    if encoded.count(b"{") + encoded.count(b"[") > MAX_DEPTH and _depth(encoded) > MAX_DEPTH:
        raise ValueTooDeep(what, limit=MAX_DEPTH)


def _depth(encoded: bytes) -> int:
    depth = deepest = 0
    for bracket in _STRINGS.sub(b"", encoded).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
