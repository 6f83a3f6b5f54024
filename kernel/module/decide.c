// SPDX-License-Identifier: GPL-2.0-only
/* The brain of all data paths, over the tables in force. */
#include <linux/errno.h>
#include <linux/ktime.h>
#include <linux/random.h>
#include <linux/rcupdate.h>

#include "slimnet.h"

/* What the look-ups of the shared headers are given. */
struct slim_env {
	struct slim_host *host;
	const struct slim_tables *tables;
	struct slim_affinity affinity;
	bool quiet;			/* a question: nothing is kept */
};

static const struct slim_policy *slim_policy_lookup(void *env, const struct slim_policy_key *key)
{
	return slim_table_match(((struct slim_env *)env)->tables, SLIM_NL_POLICY, key);
}

#include <slimnet/decide.h>

static struct slim_seen *slim_seen(struct slim_host *host, const struct slim_affinity_key *key)
{
	return &host->affinities[hash_32(key->service * 31 + key->client, 32) &
				 (SLIM_AFFINITIES - 1)];
}

static struct slim_affinity *slim_affinity_lookup(void *data, const struct slim_affinity_key *key)
{
	struct slim_env *env = data;
	struct slim_seen *seen = slim_seen(env->host, key);
	bool found;

	spin_lock_bh(&env->host->affinity_lock);
	found = seen->service == key->service && seen->client == key->client;
	env->affinity = seen->affinity;
	spin_unlock_bh(&env->host->affinity_lock);
	return found ? &env->affinity : NULL;
}

static void slim_affinity_store(void *data, const struct slim_affinity_key *key,
				const struct slim_affinity *value)
{
	struct slim_env *env = data;
	struct slim_seen *seen = slim_seen(env->host, key);

	if (env->quiet)
		return;
	spin_lock_bh(&env->host->affinity_lock);
	seen->service = key->service;
	seen->client = key->client;
	seen->affinity = *value;
	spin_unlock_bh(&env->host->affinity_lock);
}

#include <slimnet/service.h>

static __u32 slim_address_lookup(void *env, const struct slim_address_key *key)
{
	const u32 *found = slim_table_get(((struct slim_env *)env)->tables, SLIM_NL_ADDRESSES, key);

	return found ? *found : 0;
}

static const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id)
{
	return slim_table_get(((struct slim_env *)env)->tables, SLIM_NL_ENDPOINTS, &id);
}

static const struct slim_service *slim_service_lookup(void *env, const struct slim_service_key *key)
{
	return slim_table_get(((struct slim_env *)env)->tables, SLIM_NL_SERVICES, key);
}

static const struct slim_cidr *slim_cidr_lookup(void *env, __u32 vni, const __be32 *address)
{
	struct slim_cidr_key key = { .prefixlen = 160, .vni = slim_htobe32(vni) };

	slim_copy(key.address, address);
	return slim_table_match(((struct slim_env *)env)->tables, SLIM_NL_CIDRS, &key);
}

#include <slimnet/admit.h>
#include <slimnet/ask.h>

static bool slim_env_get(struct slim_env *env, struct slim_host *host)
{
	env->host = host;
	env->tables = rcu_dereference(host->tables);
	env->quiet = false;
	return env->tables;
}

/* slim_way(): 0, or a positive errno. */
int slim_host_dial(struct slim_host *host, u32 endpoint, u32 vni, const __be32 *address,
		   __be16 port, bool from_loopback, struct slim_dial *dial)
{
	const struct slim_dialled dialled = {
		.aim = {
			.now = ktime_get_ns(),
			.vni = vni,
			.client = endpoint,
			.address = { address[0], address[1], address[2], address[3] },
			.port = port,
			.protocol = IPPROTO_TCP,
			.dialled = 1,
			.random = get_random_u32(),
		},
		.stream = 1,
		.source = from_loopback ? SLIM_SOURCE_LOOPBACK : SLIM_SOURCE_ANY,
	};
	struct slim_way way = { .direction = SLIM_EGRESS };
	struct slim_env env;
	int error;

	memset(dial, 0, sizeof(*dial));
	if (slim_env_get(&env, host)) {
		dial->generation = env.tables->generation;
		error = slim_way(&env, &host->range, host->wire_port, &dialled, &way);
	} else {
		error = slim_way_refuse(&way, SLIM_REASON_NO_TABLES, EACCES);
	}
	dial->kind = way.kind;
	dial->reason = way.reason;
	dial->direction = way.direction;
	dial->rule = way.rule;
	dial->peer_reason = way.peer_reason;
	dial->endpoint = way.target.endpoint;
	dial->service = way.target.service;
	dial->port = way.target.port;
	if (way.target.peer)
		dial->host = way.target.peer->host[3];
	return error;
}

/*
 * slim_admit(): 0; -EBADMSG: forged; -EAGAIN: our tables may be behind; -EACCES:
 * refused.
 */
int slim_host_syn(struct slim_host *host, const struct slim_tuple *tuple, __be32 sequence,
		  const struct slim_option *option, struct slim_syn *syn)
{
	struct slim_admitted admitted;
	struct slim_env env;
	int answer;

	memset(syn, 0, sizeof(*syn));
	if (!slim_env_get(&env, host)) {
		syn->reason = SLIM_REASON_NO_TABLES;
		return -EAGAIN;
	}
	answer = slim_admit(&env, &host->keys, tuple, sequence, option, &admitted);
	syn->reason = admitted.reason;
	syn->rule = admitted.rule;
	syn->source_endpoint = admitted.source_id;
	syn->destination_endpoint = admitted.destination_id;
	syn->generation = env.tables->generation;
	syn->known = admitted.source && admitted.destination;
	if (syn->known) {
		slim_copy(syn->source, admitted.source->address);
		slim_copy(syn->destination, admitted.destination->address);
	}
	switch (answer) {
	case SLIM_ADMIT_YES:
		return 0;
	case SLIM_ADMIT_FORGED:
		return -EBADMSG;
	case SLIM_ADMIT_LATER:
		return -EAGAIN;
	}
	return -EACCES;
}

/* Of the tables in force; 0 before the first. */
u64 slim_host_generation(struct slim_host *host)
{
	const struct slim_tables *tables = rcu_dereference(host->tables);

	return tables ? tables->generation : 0;
}

/* slim_answer(); false: no tables yet. */
bool slim_host_answer(struct slim_host *host, struct slim_question *question)
{
	struct slim_env env;

	if (!slim_env_get(&env, host))
		return false;
	env.quiet = true;
	slim_answer(&env, &host->range, host->wire_port, ktime_get_ns(), question);
	question->generation = env.tables->generation;
	return true;
}

/*
 * Whether a connection may still be: of an endpoint of this host with a peer, in
 * the direction that it was opened in. `*generation` is the one that it was decided
 * by, and becomes the one that it is decided by now; `*rule` likewise. If it may not,
 * `*forbids` is the rule that says so.
 */
bool slim_host_still(struct slim_host *host, u32 endpoint, u32 peer, __be16 port, u32 direction,
		     u64 *generation, u32 *rule, u32 *forbids)
{
	const struct slim_endpoint *me, *other;
	struct slim_target target = { .endpoint = peer, .port = port };
	struct slim_verdict verdict;
	struct slim_env env;

	*forbids = 0;
	if (!slim_env_get(&env, host))
		return false;
	if (*generation == env.tables->generation)
		return true;
	me = slim_endpoint_lookup(&env, endpoint);
	other = slim_endpoint_lookup(&env, peer);
	/* One that the tables lost, with its host's lease say, is no policy: it is asked anew. */
	if (!me || !other)
		return true;
	if (me->vni != other->vni)
		return false;
	target.identity = other->identity;
	verdict = slim_target_decide(&env, endpoint, me->identity, &target, (u8)direction,
				     IPPROTO_TCP);
	if (verdict.action != SLIM_ALLOW) {
		*forbids = verdict.rule;
		return false;
	}
	*generation = env.tables->generation;
	*rule = verdict.rule;
	return true;
}
