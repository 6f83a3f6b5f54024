/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between slimnet's control plane and its data paths.
 *
 * Every constant, layout and map name that crosses from Python to C (or back)
 * stands here and nowhere else. Python reads it from the generated module
 * src/slimnet/contract.py, which a generator makes from the BTF of this
 * header; CI fails when that module is stale.
 *
 * Conventions
 * - Fixed-width types and explicit padding only; every struct is the same
 *   for clang-BPF, gcc and kbuild (a test compares the three).
 * - An address is 16 bytes in network order; IPv4 is held v4-mapped
 *   (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2).
 * - Fields whose type is __be16/__be32 are in network order, all others in
 *   host order.
 * - Constants are enums because BTF carries enums and not macros.
 * - Numbers in an enum that reaches a user (reasons) are never used again.
 */
#ifndef SLIMNET_CONTRACT_H
#define SLIMNET_CONTRACT_H

#include <linux/types.h>

/* Raised whenever a layout or the meaning of a constant changes. */
enum slim_abi {
	SLIM_ABI_VERSION = 3,
};

/*
 * The maps of the eBPF data path. The map's name is the suffix in lower case
 * behind "slim_": SLIM_MAP_ENDPOINT is slim_endpoint.
 */
enum slim_map {
	SLIM_MAP_CONTROL,	/* array[1]: struct slim_control */
	SLIM_MAP_ACTIVE,	/* array[1]: __u64, generation << 1 | slot; 0: no tables yet */
	SLIM_MAP_ADDRESS,	/* [2] of hash: struct slim_address_key -> __u32 endpoint */
	SLIM_MAP_SERVICE,	/* [2] of hash: struct slim_service_key -> struct slim_service */
	SLIM_MAP_PUBLISH,	/* [2] of hash: struct slim_publish_key -> struct slim_publish */
	SLIM_MAP_ENDPOINT,	/* [2] of hash: __u32 endpoint -> struct slim_endpoint */
	SLIM_MAP_CIDR,		/* [2] of lpm: struct slim_cidr_key -> struct slim_cidr */
	SLIM_MAP_POLICY,	/* [2] of lpm: struct slim_policy_key -> struct slim_policy */
	SLIM_MAP_CGROUP,	/* cgroup storage: struct slim_local */
	SLIM_MAP_LOCAL,		/* array[SLIM_INDEX_MAX + 1]: struct slim_usage by index */
	SLIM_MAP_LIMIT,		/* array[SLIM_INDEX_MAX + 1]: struct slim_limit by index */
	SLIM_MAP_AFFINITY,	/* LRU hash: struct slim_affinity_key -> struct slim_affinity */
	SLIM_MAP_ACCOUNT,	/* hash: struct slim_account_key -> struct slim_account */
	SLIM_MAP_SOCKET,	/* socket storage: struct slim_socket */
	SLIM_MAP_LISTENER,	/* sockhash: struct slim_listener_key -> listening socket */
	SLIM_MAP_FLOW,		/* hash: struct slim_tuple -> struct slim_flow */
	SLIM_MAP_BOUND,		/* hash: struct slim_tuple -> struct slim_bound */
	SLIM_MAP_HELD,		/* hash: struct slim_listener_key -> struct slim_held */
	SLIM_MAP_SHIELD,	/* array[65536]: struct slim_shield by port of the host */
	SLIM_MAP_OPENING,	/* LRU hash: __u32 inner address -> __u32 records in SLIM_MAP_FLOW */
	SLIM_MAP_PORT,		/* array[65536]: struct slim_port by port of the host */
	SLIM_MAP_JOINED,	/* hash: __u32 index << 16 | port -> __u32 sockets beside another's */
	SLIM_MAP_OWN,		/* lpm: struct slim_cidr_key of vni 0 -> __u32 enum slim_own */
	SLIM_MAP_COUNTER,	/* per-CPU array[SLIM_REASON_COUNT]: __u64 */
	SLIM_MAP_EVENT,		/* ring buffer: struct slim_event */
	SLIM_MAP_DOOM,		/* ring buffer: __u32 enum slim_reason, of a socket to destroy */
	SLIM_MAP_REFUSAL,	/* array: struct slim_refusal by index, direction and reason */
	SLIM_MAP_COUNT,
};

/* The wire (design 4.1): TCP option, wire ports, and where inner sockets live. */
enum slim_wire {
	SLIM_OPTION_KIND = 253,		/* RFC 3692 experiment; 254 is read by Linux itself */
	SLIM_OPTION_LENGTH = 16,
	SLIM_INNER_PORT = 473,		/* below 512: out of reach of every local user and rresvport() */
	SLIM_WIRE_PORTS = 64,		/* a power of two */
	SLIM_WIRE_TURN = 8192,		/* the most connects of an endpoint before the next wire port */
	SLIM_BOUND_PORTS = 32,		/* a power of two; right behind, for source-bound sockets */
	SLIM_INDEX_MAX = 2046,		/* 11 bits; 0 is nobody, 2047 would end in the broadcast address */
	SLIM_HANDSHAKE_SECONDS = 130,	/* no SYN of Linux's default retry schedule is older */
	SLIM_ANSWER_SECONDS = 5,	/* a handshake that the kernel has no request socket for */
	SLIM_LINGER_SECONDS = 60,	/* TIME_WAIT: how long a closed source-bound tuple is kept */
};

/* What the endpoints of one host share; what each may have of it, share.h says. */
enum slim_room {
	SLIM_FLOW_ROOM = 65536,		/* records of handshakes */
	SLIM_BOUND_ROOM = 87380,	/* source-bound connections, live or kept */
	SLIM_BOUND_RECORDS = 3,		/* of each such connection, while it lives */
	SLIM_HELD_ROOM = 262144,	/* records of bound ports */
	SLIM_LISTENER_ROOM = 262144,
};

/* How the lower 28 bits of an inner address are cut (inner.h). */
enum slim_inner_bits {
	SLIM_INNER_PORT_BITS = 16,
	SLIM_INNER_INDEX_BITS = 11,
	SLIM_INNER_LOOPBACK_BIT = 27,
};

enum slim_direction {
	SLIM_INGRESS = 0,
	SLIM_EGRESS = 1,
};

enum slim_action {
	SLIM_DENY = 0,
	SLIM_ALLOW = 1,
};

/* In place of an endpoint's id, which the store gives out from 1 on. */
enum slim_address_owner {
	SLIM_ADDRESS_SERVICE = 0x7fffffff,	/* the address is a service's: ask SLIM_MAP_SERVICE */
};

enum slim_service_table {
	SLIM_SERVICE_SLOTS = 1021,	/* a prime, as Maglev wants it */
};

/* Identities below SLIM_IDENTITY_FIRST have a fixed meaning. */
enum slim_identity {
	SLIM_IDENTITY_ANY = 0,		/* in a policy key: any peer */
	SLIM_IDENTITY_WORLD = 1,	/* outside of every overlay and no host of the cluster */
	SLIM_IDENTITY_HOST = 2,		/* an underlay address of a host of the cluster */
	SLIM_IDENTITY_FIRST = 256,
};

/*
 * Why the data path answered as it did. Reasons are counted, carried by
 * events and printed to users. A number is never used again.
 */
enum slim_reason {
	SLIM_REASON_NONE = 0,
	SLIM_REASON_RULE_ALLOW = 1,		/* a rule allows it */
	SLIM_REASON_RULE_DENY = 2,		/* a rule denies it */
	SLIM_REASON_DEFAULT_ALLOW = 3,		/* no policy selects the subject */
	SLIM_REASON_DEFAULT_DENY = 4,		/* selected, and no rule allows it */
	SLIM_REASON_SELF = 5,			/* an endpoint to itself */
	SLIM_REASON_HOST_DENY = 6,		/* a host of the cluster, not allowed by name */
	SLIM_REASON_NO_TABLES = 7,		/* before the first tables: fail closed */
	SLIM_REASON_NO_ENDPOINT = 8,		/* overlay address that nobody has */
	SLIM_REASON_UNREACHABLE = 9,		/* no wire in common with its host */
	SLIM_REASON_INNER_ADDRESS = 10,		/* connect or bind to an inner address */
	SLIM_REASON_WIRE_PORT = 11,		/* connect straight to a wire port */
	SLIM_REASON_FOREIGN_ADDRESS = 12,	/* bind to an address that is not the endpoint's */
	SLIM_REASON_PORT_IN_USE = 13,		/* explicit bind to a port held by bind(0) */
	SLIM_REASON_PORT_LIMIT = 14,		/* no share left of ports, bound ports or listeners */
	SLIM_REASON_BOUND_OUTSIDE = 15,		/* bound source port, destination outside the overlay */
	SLIM_REASON_BOUND_FULL = 16,		/* every source-bound wire port is taken */
	SLIM_REASON_PROTOCOL = 17,		/* socket of a protocol that is not virtualized */
	SLIM_REASON_DATAGRAM = 18,		/* UDP to an overlay or loopback address, explicit UDP bind */
	SLIM_REASON_OPTION = 19,		/* socket option refused to endpoints */
	SLIM_REASON_SYN_NO_OPTION = 20,		/* SYN to a wire port without a valid option */
	SLIM_REASON_SYN_TAG = 21,		/* wrong tag */
	SLIM_REASON_SYN_SOURCE = 22,		/* source endpoint does not live on that host */
	SLIM_REASON_SYN_UNKNOWN = 23,		/* valid tag, endpoint not known (yet): dropped */
	SLIM_REASON_SYN_NO_LISTENER = 24,	/* nobody listens */
	SLIM_REASON_MALFORMED = 25,		/* IP options, fragment or short header to a wire port */
	SLIM_REASON_SHIELD = 26,		/* packet for an endpoint's socket without a flow record */
	SLIM_REASON_NO_FLOW = 27,		/* child without a flow record: destroyed */
	SLIM_REASON_FLOW_FULL = 28,		/* no share left for a flow record, or accept queue full: SYN dropped */
	SLIM_REASON_GENERATION = 29,		/* the newer generation forbids what the SYN's allowed */
	SLIM_REASON_RESERVED_RANGE = 30,	/* packet to or from the inner range on the underlay */
	SLIM_REASON_FAMILY = 31,		/* IPv6 destinations: not yet */
	SLIM_REASON_NO_BACKEND = 32,		/* a service without a ready endpoint */
	SLIM_REASON_NO_SERVICE_PORT = 33,	/* a service's address, but not one of its ports */
	SLIM_REASON_REVOKED = 34,		/* live, and forbidden by new tables: closed */
	SLIM_REASON_RATE = 35,			/* packet held back: over the endpoint's rate */
	SLIM_REASON_COUNT = 36,
};

enum slim_endpoint_flag {
	SLIM_ENDPOINT_LOCAL = 1,	/* lives on this host */
	SLIM_ENDPOINT_WIRE_SYN = 2,	/* its host speaks wire syn */
};

enum slim_cidr_flag {
	SLIM_CIDR_OVERLAY = 1,		/* inside a network's CIDR */
	SLIM_CIDR_HOST = 2,		/* an underlay address of a host of the cluster */
	SLIM_CIDR_BROADCAST = 4,	/* everybody on a link of this host; in no table */
};

/* What an address is by the routes of this host. */
enum slim_own {
	SLIM_OWN_LOCAL = 1,		/* delivered to itself */
	SLIM_OWN_BROADCAST = 2,
};

/* The state of one socket of an endpoint, in its socket storage. */
enum slim_socket_flag {
	SLIM_SOCKET_BOUND = 1,		/* explicit port: sits on an inner address */
	SLIM_SOCKET_ANY_PORT = 2,	/* sits on a port of the host: bind(0), or none */
	SLIM_SOCKET_WILDCARD = 4,	/* bound to 0.0.0.0 or :: */
	SLIM_SOCKET_LOOPBACK = 8,	/* bound to the endpoint's loopback */
	SLIM_SOCKET_HELD = 16,		/* counted in slim_held, and on a port of the host in slim_local */
	SLIM_SOCKET_SHIELDED_V6 = 32,	/* counted in slim_shield, of that family */
	SLIM_SOCKET_SHIELDED_V4 = 64,
	SLIM_SOCKET_WIRE = 128,		/* connects over the wire: the SYN gets the option */
	SLIM_SOCKET_SAME_HOST = 256,	/* connects on this host: CONNECT_CB writes the flow */
	SLIM_SOCKET_SOURCE_BOUND = 512,	/* connects with an inner source: tc rewrites */
	SLIM_SOCKET_ACCEPTED = 1024,
	SLIM_SOCKET_OUTSIDE = 2048,	/* connects to an address outside of every overlay */
	SLIM_SOCKET_ESTABLISHED = 4096,
	SLIM_SOCKET_V6ONLY = 8192,	/* :: with IPV6_V6ONLY, or ::1: sits on a port of the host */
	SLIM_SOCKET_REUSE_ADDRESS = 16384,
	SLIM_SOCKET_REUSE_PORT = 32768,
	SLIM_SOCKET_DUAL = 65536,	/* bound to ::, and IPv4 comes in as well */
	SLIM_SOCKET_SERVICE = 131072,	/* dialled a service */
	SLIM_SOCKET_PUBLISHED = 262144,	/* accepted through a published port */
	SLIM_SOCKET_DOOMED = 524288,	/* may not be: dead already, and to be destroyed */
};

/* What a doomed socket is bound to (SO_BINDTOIFINDEX): the last interface number there can be. */
enum slim_interface {
	SLIM_NOWHERE = 0x7fffffff,
};

/* What a socket is counted in. Apart from its flags: no connect and no bind forgets it. */
enum slim_counted {
	SLIM_COUNTED_LISTENER = 1,	/* a listener, until its last close */
	SLIM_COUNTED_PORT = 2,		/* on a port of the host */
	SLIM_COUNTED_JOINED = 4,	/* where another endpoint was first */
	SLIM_COUNTED_FOLLOWED = 8,	/* STATE_CB will say when it leaves that port */
};

enum slim_event_kind {
	SLIM_EVENT_OPENED = 1,
	SLIM_EVENT_REFUSED = 2,
	SLIM_EVENT_CLOSED = 3,
};

/* Bits of slim_control.observe: what is worth an event. Refusals always are. */
enum slim_observe {
	SLIM_OBSERVE_OPENED = 1,
	SLIM_OBSERVE_CLOSED = 2,
};

/* What the data path of one host must know besides the tables. */
struct slim_control {
	__u32 abi_version;
	__u32 observe;			/* enum slim_observe */
	__u32 ifindex;			/* the underlay interface */
	__be32 range;			/* IPv4 inner range, a /4: 240.0.0.0 */
	__be32 range6[4];		/* IPv6 inner range, a /64 */
	__be32 underlay[4];		/* this host's underlay address */
	__u16 wire_port;		/* the first of SLIM_WIRE_PORTS */
	__u16 pad;
	__u32 held_limit;		/* an endpoint's sockets on bind(0), and its UDP sockets */
	__u32 wire_turn;		/* connects of an endpoint before it takes the next wire port */
	__u32 port_room;		/* ports of the host that all endpoints may have, of either kind */
	__u64 key[2];			/* the cluster's SipHash key */
	__u64 netns;			/* cookie of the host's network namespace; 0: not known */
};

/* Tables. One slot of each pair is active (SLIM_MAP_ACTIVE), the other is being written. */

struct slim_address_key {
	__u32 vni;
	__be32 address[4];
};

struct slim_endpoint {
	__be32 address[4];		/* overlay */
	__be32 host[4];			/* underlay */
	__u32 vni;
	__u32 identity;
	__u32 index;			/* local endpoints only, else 0 */
	__u32 flags;			/* enum slim_endpoint_flag */
};

struct slim_service_key {
	__u32 vni;
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

struct slim_backend {
	__u32 endpoint;
	__be16 port;
	__u16 pad;
};

/*
 * One port of a service. The slots are a Maglev table (Eisenbud et al., NSDI
 * 2016, section 3.4) over its ready endpoints, by weight: each slot has one,
 * or, where there is none (size 0), none has.
 */
struct slim_service {
	__u32 id;
	__u32 affinity;			/* seconds that a client stays where it was; 0: none */
	__u32 size;			/* ready endpoints */
	__u32 pad;
	struct slim_backend slots[SLIM_SERVICE_SLOTS];
};

/* A port of this host that is an endpoint's. */
struct slim_publish_key {
	__be32 address[4];		/* of the host; zero: all of them */
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

struct slim_publish {
	__u32 endpoint;
	__be16 port;
	__u16 pad;
};

struct slim_cidr_key {
	__u32 prefixlen;		/* 32 for the vni + 0..128 */
	__be32 vni;
	__be32 address[4];
};

struct slim_cidr {
	__u32 identity;
	__u32 flags;			/* enum slim_cidr_flag */
};

/*
 * subject, peer and direction are always matched whole; protocol and port may
 * be cut: prefixlen 72 is any protocol, 80 any port of a protocol, 81..96 a
 * port prefix. The compiler has settled precedence: the longest match is the
 * answer, and a key that names its peer hides those of SLIM_IDENTITY_ANY.
 */
struct slim_policy_key {
	__u32 prefixlen;
	__be32 subject;
	__be32 peer;
	__u8 direction;
	__u8 protocol;
	__be16 port;
};

enum slim_policy_prefix {
	SLIM_PREFIX_ANY_PROTOCOL = 72,
	SLIM_PREFIX_ANY_PORT = 80,
	SLIM_PREFIX_PORT = 96,
};

struct slim_policy {
	__u8 action;			/* enum slim_action */
	__u8 reason;			/* enum slim_reason */
	__u16 pad;
	__u32 rule;			/* the rule's id, 0 where there is none */
};

struct slim_verdict {
	__u32 action;
	__u32 reason;
	__u32 rule;
};

/* What becomes of a connect, or of a datagram (way.h). */
enum slim_way_kind {
	SLIM_WAY_REFUSED = 0,
	SLIM_WAY_SELF = 1,		/* the endpoint's own loopback */
	SLIM_WAY_SAME_HOST = 2,		/* straight to a listener on this host */
	SLIM_WAY_WIRE = 3,		/* to a wire port of the peer's host */
	SLIM_WAY_OUTSIDE = 4,		/* as the host itself would */
};

/*
 * A flow put to the data path itself (ask.h), and what it answers. The subject
 * is the source for SLIM_EGRESS, the destination for SLIM_INGRESS.
 */
struct slim_question {
	__u32 vni;
	__u32 direction;		/* enum slim_direction */
	__be32 source[4];
	__be32 destination[4];
	__be16 port;
	__u8 protocol;
	__u8 pad;
	__u32 random;			/* which backend of a service without affinity */
	struct slim_verdict verdict;	/* from here on the answer: the subject's policy */
	__u32 way;			/* SLIM_EGRESS: enum slim_way_kind */
	__u32 way_reason;		/* refused: why; else the policy's */
	__u32 way_error;		/* refused: a positive errno */
	__u32 way_direction;		/* refused by policy: enum slim_direction, whose */
	__u32 subject;			/* identities */
	__u32 peer;
	__u32 endpoint;			/* the peer's, 0 where it is none */
	__u32 service;			/* its id, 0 where the destination is none */
	__be16 target_port;		/* as policy was asked */
	__u16 pad2;
	__be32 target[4];		/* the destination behind a service */
	__be32 host[4];			/* underlay address of the peer's host, or zero */
	__u64 generation;
};

/* State of one host's data path. */

/* Written once, when the endpoint is attached to its cgroup. */
struct slim_local {
	__u32 endpoint;			/* 0: not ready, refuse everything */
	__u32 index;
	__u32 vni;
	__u32 pad;
	__be32 address[4];
};

/* What one endpoint holds of the host, by index; at index 0, which is nobody's, what all hold. */
struct slim_usage {
	__u64 epoch;			/* the minute that waiting[epoch & 1] counts */
	__u32 held;			/* live sockets on bind(0) */
	__u32 waiting[2];		/* such sockets that went into TIME_WAIT, by minute */
	__u32 connects;			/* over the wire, from the first on */
	__u32 flows;			/* records of handshakes that are charged to it */
	__u32 bound;			/* its source-bound connections, live or kept */
	__u32 places;			/* its records in SLIM_MAP_HELD */
	__u32 listeners;
	__u32 datagrams;		/* UDP sockets */
	__u32 ports;			/* distinct ports of the host that its TCP sockets are on */
	__u64 next;			/* bpf_ktime_get_ns() at which the rate lets more through */
};

/* What an endpoint may send, in bytes a second; 0: as much as it likes. */
struct slim_limit {
	__u64 rate;			/* all its connections together */
	__u64 connection_rate;		/* each of them */
};

struct slim_affinity_key {
	__u32 service;
	__u32 client;			/* endpoint */
};

struct slim_affinity {
	__u64 time;			/* bpf_ktime_get_ns() of the last connect */
	__u32 endpoint;
	__u32 pad;
};

/* Who sent how much by which rule. A rule of 0: none was needed. */
struct slim_account_key {
	__u32 endpoint;			/* the local one */
	__u32 rule;
	__u32 direction;		/* enum slim_direction */
};

struct slim_account {
	__u64 connections;		/* that ended */
	__u64 refused;
	__u64 sent;			/* bytes, of connections that ended */
	__u64 received;
};

enum slim_refusal_limit {
	SLIM_REFUSALS_TOLD = 64,	/* events a second, of one slim_refusal */
};

/* The events of one endpoint's refusals in one direction for one reason. */
struct slim_refusal {
	__u32 second;			/* about a second of bpf_ktime_get_ns() */
	__u32 told;			/* events in that second */
	__u32 omitted;			/* refusals since the last event: counted, not told */
	__u32 pad;
};

struct slim_tuple {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
};

/* A capability for one handshake (design 4.1). */
struct slim_flow {
	__u64 time;			/* bpf_ktime_get_ns() when written */
	__u64 generation;
	__be32 source[4];		/* what getpeername() says at the acceptor */
	__be32 destination[4];		/* what getsockname() says at the acceptor */
	__be16 source_port;
	__be16 destination_port;
	__u32 source_endpoint;
	__u32 destination_endpoint;
	__u32 inner;			/* the listener's inner address: loopback, index, port */
	__u32 rule;
	__u32 flags;			/* enum slim_flow_flag */
	__u32 charged;			/* an inner address: whose room this takes */
	__u32 pad;
};

enum slim_flow_flag {
	SLIM_FLOW_LOOPBACK = 1,		/* within one endpoint */
	SLIM_FLOW_V6ONLY = 2,		/* to the listener on the IPv6 inner address */
	SLIM_FLOW_DIRECT = 4,		/* same host: the kernel's own look-up finds the listener */
	SLIM_FLOW_SAME_HOST = 8,
	SLIM_FLOW_MINE = 16,		/* of a socket: the record is the one that it wrote */
};

struct slim_listener_key {
	__u32 inner;
	__u32 v6only;
};

/*
 * The bound sockets of one endpoint at one port, by half (loopback or not):
 * for the conflicts that inner addresses do not show to the kernel.
 */
struct slim_held {
	__u32 sockets;
	__u32 host;			/* of these on a port of the host */
	__u32 reuse_address;		/* of these with SO_REUSEADDR */
	__u32 reuse_port;		/* of these with SO_REUSEPORT */
	__u32 dual;			/* of these on both families */
};

/* Listeners of endpoints on a port of the host, by the family that they listen for. */
struct slim_shield {
	__u32 v4;
	__u32 v6;
};

/* TCP sockets of endpoints on a port of the host. */
struct slim_port {
	__u64 owner;			/* index << 32 | sockets of that endpoint */
	__u32 sockets;
	__u32 pad;
};

/* A source-bound connection: underlay tuple -> inner source, and back. */
struct slim_bound {
	__be32 address;			/* to write in place of the one found */
	__be16 port;
	__u16 waiting;			/* closed from here: TIME_WAIT is on this host */
	__u64 closed;			/* bpf_ktime_get_ns() of the close, 0 while open */
};

struct slim_socket {
	__u32 endpoint;
	__u32 peer_endpoint;
	__be32 local[4];		/* overlay, as bound or as connected from */
	__be32 peer[4];			/* overlay, as dialled or as accepted */
	__be16 local_port;		/* 0: the real one */
	__be16 peer_port;
	__u32 index;
	__u32 inner;			/* its own inner address, once it is bound */
	__u32 flags;			/* enum slim_socket_flag */
	__u32 rule;			/* of its own endpoint's policy */
	__u32 peer_rule;		/* on this host: of the listener's */
	__u32 flow_flags;		/* enum slim_flow_flag, for CONNECT_CB */
	__be32 underlay[4];		/* destination as rewritten */
	__be16 underlay_port;
	__be16 bound_port;
	__be16 target_port;		/* as policy was asked: behind a service another than dialled */
	__u16 host_port;		/* in host order: SLIM_COUNTED_PORT */
	__u32 pace;			/* what the kernel was told for a limit; 0: nothing */
	__u32 dialled;			/* the inner address that a connect on this host goes to */
	__u32 counted;			/* enum slim_counted */
	__u64 generation;
	__u64 opened;			/* bpf_ktime_get_ns(), 0 before */
};

struct slim_event {
	__u64 time;			/* bpf_ktime_get_ns() */
	__u32 kind;			/* enum slim_event_kind */
	__u32 reason;			/* enum slim_reason */
	__u32 rule;
	__u32 direction;		/* enum slim_direction */
	__u32 endpoint;			/* the local one */
	__u32 peer_endpoint;
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
	__u64 sent;			/* bytes; CLOSED only */
	__u64 received;
	__u64 duration;			/* ns; CLOSED only */
	__u32 omitted;			/* REFUSED: like it, and not told, since the event before */
	__u32 pad;
};

#endif /* SLIMNET_CONTRACT_H */
