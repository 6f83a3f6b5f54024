# SPDX-License-Identifier: Apache-2.0
"""What is said to etcd and what it answers: the part of its gRPC interface that a store
needs.

Names, numbers and types of the fields are those of etcd's ``api/etcdserverpb/rpc.proto`` and
``api/mvccpb/kv.proto`` (https://github.com/etcd-io/etcd, Apache-2.0), which are the same from
3.4 on. The classes are made from this table when it is imported: code that protoc generates
would bind us to the release of protobuf that it was generated for. An enumeration stands here
as the integer that it is on the wire, and a member of a ``oneof`` as a field.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["DELETED", "MOD", "VERSION", "new"]

_PACKAGE = "slimnet.etcd"

#: ``Event.type`` of a key that went.
DELETED = 1
#: ``Compare.target``: how often a key was put since it was made; the revision that changed it.
VERSION, MOD = 0, 2

_TABLE = """
KeyValue: bytes key 1, int64 create_revision 2, int64 mod_revision 3, int64 version 4,
    bytes value 5, int64 lease 6
Event: int32 type 1, KeyValue kv 2
ResponseHeader: uint64 cluster_id 1, uint64 member_id 2, int64 revision 3, uint64 raft_term 4
RangeRequest: bytes key 1, bytes range_end 2, int64 revision 4, bool keys_only 8
RangeResponse: ResponseHeader header 1, KeyValue* kvs 2
PutRequest: bytes key 1, bytes value 2, int64 lease 3
DeleteRangeRequest: bytes key 1, bytes range_end 2
RequestOp: RangeRequest request_range 1, PutRequest request_put 2,
    DeleteRangeRequest request_delete_range 3, TxnRequest request_txn 4
ResponseOp: RangeResponse response_range 1
Compare: int32 result 1, int32 target 2, bytes key 3, int64 version 4, int64 mod_revision 6
TxnRequest: Compare* compare 1, RequestOp* success 2, RequestOp* failure 3
TxnResponse: ResponseHeader header 1, bool succeeded 2, ResponseOp* responses 3
WatchCreateRequest: bytes key 1, bytes range_end 2, int64 start_revision 3
WatchRequest: WatchCreateRequest create_request 1
WatchResponse: ResponseHeader header 1, int64 watch_id 2, bool created 3, bool canceled 4,
    int64 compact_revision 5, string cancel_reason 6, Event* events 11
LeaseGrantRequest: int64 TTL 1
LeaseGrantResponse: ResponseHeader header 1, int64 ID 2, int64 TTL 3
LeaseKeepAliveRequest: int64 ID 1
LeaseKeepAliveResponse: ResponseHeader header 1, int64 ID 2, int64 TTL 3
AuthenticateRequest: string name 1, string password 2
AuthenticateResponse: ResponseHeader header 1, string token 2
"""


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="slimnet/etcd.proto", package=_PACKAGE, syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for line in _TABLE.replace(",\n   ", ",").strip().splitlines():
        name, _, fields = line.partition(": ")
        message = file.message_type.add(name=name)
        for each in fields.split(", "):
            kind, field, number = each.split()
            made = message.field.add(name=field, number=int(number), label=kinds.LABEL_OPTIONAL)
            if kind.endswith("*"):
                made.label = kinds.LABEL_REPEATED
            if kind[0].isupper():
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind.rstrip('*')}"
            else:
                made.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{message.name}")
        )
        for message in file.message_type
    }


_CLASSES = _classes()


def new(kind: str, **fields: Any) -> Any:
    """A message of that kind, such as ``new("PutRequest", key=b"a")``."""
    return _CLASSES[kind](**fields)


def reader(kind: str) -> Any:
    """What makes a message of that kind out of bytes."""
    return _CLASSES[kind].FromString
