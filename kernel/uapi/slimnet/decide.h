/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * slim_decide(): may this flow exist?
 *
 * The one decision function, compiled unchanged into every data path. The
 * including file supplies the look-up, for its environment:
 *
 *   const struct slim_policy *slim_policy_lookup(void *env,
 *						  const struct slim_policy_key *key);
 *
 * which answers the longest match or NULL.
 *
 * The order of the decision:
 *  1. An endpoint to itself is always allowed.
 *  2. The subject's entry for this very peer, longest port prefix first.
 *  3. Egress: a host of the cluster is denied unless step 2 named it.
 *  4. The subject's entry for any peer.
 *  5. No entry: no policy selects the subject for this direction; allowed.
 *
 * Two look-ups at the most, whatever the number of rules. What precedence,
 * selectors and labels mean is settled by the compiler (slimnet.policy).
 */
#ifndef SLIMNET_DECIDE_H
#define SLIMNET_DECIDE_H

#include "byteorder.h"
#include "reason.h"
#include "tables.h"

/* One question: the subject is the endpoint whose policy is asked. */
struct slim_query {
	__u32 subject;			/* identity */
	__u32 peer;			/* identity */
	__u8 direction;			/* of the subject: enum slim_direction */
	__u8 protocol;			/* IPPROTO_* */
	__be16 port;			/* destination port */
	__u8 self;			/* both ends are one endpoint */
	__u8 host;			/* the peer is a host of the cluster (SLIM_CIDR_HOST) */
};

static __always_inline struct slim_verdict
slim_decide(void *env, const struct slim_query *query)
{
	struct slim_policy_key key = {
		.prefixlen = SLIM_PREFIX_PORT,
		.subject = slim_htobe32(query->subject),
		.peer = slim_htobe32(query->peer),
		.direction = query->direction,
		.protocol = query->protocol,
		.port = query->port,
	};
	const struct slim_policy *entry;

	if (query->self)
		return (struct slim_verdict){ SLIM_ALLOW, SLIM_REASON_SELF, 0 };

	entry = slim_policy_lookup(env, &key);
	if (!entry) {
		if (query->host && query->direction == SLIM_EGRESS)
			return (struct slim_verdict){ SLIM_DENY, SLIM_REASON_HOST_DENY, 0 };
		key.peer = SLIM_IDENTITY_ANY;
		entry = slim_policy_lookup(env, &key);
	}
	if (!entry)
		return (struct slim_verdict){ SLIM_ALLOW, SLIM_REASON_DEFAULT_ALLOW, 0 };
	return (struct slim_verdict){ entry->action, entry->reason, entry->rule };
}

#endif /* SLIMNET_DECIDE_H */
