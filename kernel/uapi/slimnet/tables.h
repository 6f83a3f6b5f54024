/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between slimnet's control plane and its data paths: the tables
 * that are compiled from the desired state, and questions put to them.
 *
 * Every constant and layout that crosses from Python to C (or back), whatever
 * the data path, stands here, in reason.h, event.h, wire.h, inner.h and resolver.h, and
 * nowhere else. Python reads them from the generated module
 * src/slimnet/contract.py, which a generator makes from the BTF of these
 * headers; CI fails when that module is stale. What only one data path keeps
 * for itself has a contract of its own (backends/ebpf/bpf/contract.h).
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
#ifndef SLIMNET_TABLES_H
#define SLIMNET_TABLES_H

#include <linux/types.h>

/* Raised whenever a layout or the meaning of a constant changes. */
enum slim_abi {
	SLIM_ABI_VERSION = 4,
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
	SLIM_ADDRESS_SERVICE = 0x7fffffff,	/* the address is a service's */
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

enum slim_endpoint_flag {
	SLIM_ENDPOINT_LOCAL = 1,	/* lives on this host */
	SLIM_ENDPOINT_WIRE_SYN = 2,	/* a connection to it travels by wire syn */
	SLIM_ENDPOINT_WIRE_ANNOUNCE = 4,	/* or by wire announce, if this data path speaks it */
	/*
	 * Its ingress policy is in these tables too, and is asked where the connect is: its own
	 * host hears of connections only when they are made.
	 */
	SLIM_ENDPOINT_JUDGED = 8,
};

enum slim_cidr_flag {
	SLIM_CIDR_OVERLAY = 1,		/* inside a network's CIDR */
	SLIM_CIDR_HOST = 2,		/* an underlay address of a host of the cluster */
	SLIM_CIDR_BROADCAST = 4,	/* everybody on a link of this host; in no table */
};

/*
 * Tables. A data path keeps two generations of them: one is in force, the other
 * is being written.
 */

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

/* Questions. */

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

#endif /* SLIMNET_TABLES_H */
