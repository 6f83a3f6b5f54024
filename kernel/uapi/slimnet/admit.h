/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * slim_admit(): may this SYN come in?
 *
 * Compiled unchanged into every data path that speaks wire `syn`, over the
 * look-ups of target.h. Finding the listener and writing the flow record stay
 * the data path's.
 *
 * The order, for a SYN from tuple->source with an option:
 *  1. The tag is good by either key: only a host of the cluster can have made it, for
 *     this SYN.
 *  2. Both endpoints are known, and the called one lives here.
 *  3. The calling one lives on the host that the SYN comes from, in the same
 *     network.
 *  4. The called one's ingress policy.
 */
#ifndef SLIMNET_ADMIT_H
#define SLIMNET_ADMIT_H

#include "keys.h"
#include "target.h"
#include "wire.h"

enum slim_admit_answer {
	SLIM_ADMIT_YES = 0,
	SLIM_ADMIT_FORGED = 1,		/* nobody's word: it must change nothing */
	SLIM_ADMIT_LATER = 2,		/* our tables may be behind: say nothing, it comes again */
	SLIM_ADMIT_NO = 3,		/* refused */
};

struct slim_admitted {
	__u32 reason;
	__u32 rule;
	__u32 source_id;				/* as the option says */
	__u32 destination_id;
	const struct slim_endpoint *source;		/* as far as the SYN's word is good */
	const struct slim_endpoint *destination;
};

/*
 * The same without a tag, for who comes from `host` and says, on the cluster's word,
 * admitted->source_id and destination_id.
 */
static __always_inline enum slim_admit_answer
slim_admit_from(void *env, const __be32 *host, __be16 port, struct slim_admitted *admitted)
{
	struct slim_verdict verdict;
	struct slim_target opener;

	admitted->destination = slim_endpoint_lookup(env, admitted->destination_id);
	admitted->source = slim_endpoint_lookup(env, admitted->source_id);
	if (!admitted->destination || !admitted->source ||
	    !(admitted->destination->flags & SLIM_ENDPOINT_LOCAL)) {
		admitted->reason = SLIM_REASON_SYN_UNKNOWN;
		return SLIM_ADMIT_LATER;
	}
	if (!slim_same(admitted->source->host, host) ||
	    admitted->source->vni != admitted->destination->vni) {
		admitted->source = NULL;
		admitted->reason = SLIM_REASON_SYN_SOURCE;
		return SLIM_ADMIT_NO;
	}
	opener = (struct slim_target){
		.endpoint = admitted->source_id,
		.identity = admitted->source->identity,
		.port = port,
	};
	verdict = slim_target_decide(env, admitted->destination_id, admitted->destination->identity,
				     &opener, SLIM_INGRESS, IPPROTO_TCP);
	admitted->reason = verdict.reason;
	admitted->rule = verdict.rule;
	return verdict.action == SLIM_ALLOW ? SLIM_ADMIT_YES : SLIM_ADMIT_NO;
}

static __always_inline int
slim_tag_is_good(const __u64 *key, const struct slim_tuple *tuple, __be32 sequence,
		 const struct slim_option *option)
{
	return option->tag == slim_tag(key, tuple->source[3], tuple->destination[3],
				       tuple->source_port, sequence, option);
}

static __always_inline enum slim_admit_answer
slim_admit(void *env, const struct slim_keys *keys, const struct slim_tuple *tuple,
	   __be32 sequence, const struct slim_option *option, struct slim_admitted *admitted)
{
	admitted->source = NULL;
	admitted->destination = NULL;
	admitted->rule = 0;
	admitted->source_id = slim_be32toh(option->source);
	admitted->destination_id = slim_be32toh(option->destination);
	if (!slim_tag_is_good(keys->key[0], tuple, sequence, option) &&
	    !slim_tag_is_good(keys->key[1], tuple, sequence, option)) {
		admitted->reason = SLIM_REASON_SYN_TAG;
		return SLIM_ADMIT_FORGED;
	}
	return slim_admit_from(env, tuple->source, option->port, admitted);
}

#endif /* SLIMNET_ADMIT_H */
