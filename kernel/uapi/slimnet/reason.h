/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef SLIMNET_REASON_H
#define SLIMNET_REASON_H

/*
 * Why a data path answered as it did. Reasons are counted, carried by events
 * and printed to users. A number is never used again. Python has them as
 * slimnet.model.Reason.
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

#endif /* SLIMNET_REASON_H */
