"""Message classes as protoc would generate them from this file, made without it:

syntax = "proto3";
message Line { int32 quantity = 1; string note = 2; }
message Cart {
  map<string, Line> lines = 1;
  map<int64, bool> flags = 2;
  string note = 3;
  optional int64 total = 4;
  bytes raw = 5;
  repeated string tags = 6;
  Line last = 7;
  double weight = 8;
}
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

F = descriptor_pb2.FieldDescriptorProto


def _field(message: Any, name: str, number: int, kind: int, *, type_name: str = "", repeated: bool = False) -> Any:
    label = F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL
    return message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name or None)


def _map(message: Any, name: str, number: int, key: int, value: int, type_name: str = "") -> None:
    entry = message.nested_type.add(name=name.capitalize() + "Entry")
    entry.options.map_entry = True
    _field(entry, "key", 1, key)
    _field(entry, "value", 2, value, type_name=type_name)
    _field(message, name, number, F.TYPE_MESSAGE, type_name=f".shop.{message.name}.{entry.name}", repeated=True)


def _classes(package_file: str, *, newer: bool) -> tuple[Any, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=package_file, package="shop", syntax="proto3")
    line = file.message_type.add(name="Line")
    _field(line, "quantity", 1, F.TYPE_INT32)
    _field(line, "note", 2, F.TYPE_STRING)
    cart = file.message_type.add(name="Cart")
    _map(cart, "lines", 1, F.TYPE_STRING, F.TYPE_MESSAGE, ".shop.Line")
    _map(cart, "flags", 2, F.TYPE_INT64, F.TYPE_BOOL)
    _field(cart, "note", 3, F.TYPE_STRING)
    total = _field(cart, "total", 4, F.TYPE_INT64)
    cart.oneof_decl.add(name="_total")
    total.oneof_index, total.proto3_optional = 0, True
    _field(cart, "raw", 5, F.TYPE_BYTES)
    _field(cart, "tags", 6, F.TYPE_STRING, repeated=True)
    _field(cart, "last", 7, F.TYPE_MESSAGE, type_name=".shop.Line")
    _field(cart, "weight", 8, F.TYPE_DOUBLE)
    if newer:
        _field(cart, "coupon", 9, F.TYPE_STRING)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}")) for name in ("Cart", "Line")
    )  # type: ignore[return-value]


Cart, Line = _classes("cart.proto", newer=False)
NewerCart, NewerLine = _classes("newer.proto", newer=True)
