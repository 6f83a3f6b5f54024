/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What `make lint` compiles, and kbuild in a test: every shared header, twice,
 * so that a missing guard shows, and a use of each inline function, for sparse
 * skips unused ones.
 */
#if defined(__KERNEL__)
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/socket.h>
#include <linux/stddef.h>
#include <linux/tcp.h>
#elif defined(__bpf__)
#include <asm/socket.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/stddef.h>
#include <linux/tcp.h>
#include <stddef.h>
#else
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>
#endif

#include "slimnet/announce.h"
#include "slimnet/event.h"
#include "slimnet/fingerprint.h"
#include "slimnet/netlink.h"
#include "slimnet/tables.h"

const struct slim_policy *slim_policy_lookup(void *env, const struct slim_policy_key *key);

#include "slimnet/decide.h"

struct slim_affinity *slim_affinity_lookup(void *env, const struct slim_affinity_key *key);
void slim_affinity_store(void *env, const struct slim_affinity_key *key,
			 const struct slim_affinity *value);

#include "slimnet/service.h"
#include "slimnet/keys.h"
#include "slimnet/wire.h"

__u32 slim_address_lookup(void *env, const struct slim_address_key *key);
const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id);
const struct slim_service *slim_service_lookup(void *env, const struct slim_service_key *key);
const struct slim_cidr *slim_cidr_lookup(void *env, __u32 vni, const __be32 *address);

#include "slimnet/account.h"
#include "slimnet/admit.h"
#include "slimnet/ask.h"
#include "slimnet/rate.h"
#include "slimnet/sockopt.h"

#include "slimnet/account.h"
#include "slimnet/address.h"
#include "slimnet/admit.h"
#include "slimnet/ask.h"
#include "slimnet/byteorder.h"
#include "slimnet/clock.h"
#include "slimnet/decide.h"
#include "slimnet/event.h"
#include "slimnet/fingerprint.h"
#include "slimnet/inner.h"
#include "slimnet/netlink.h"
#include "slimnet/rate.h"
#include "slimnet/reason.h"
#include "slimnet/resolver.h"
#include "slimnet/service.h"
#include "slimnet/siphash.h"
#include "slimnet/sockopt.h"
#include "slimnet/tables.h"
#include "slimnet/target.h"
#include "slimnet/way.h"
#include "slimnet/wire.h"

__u64 slim_lint_account(__u64 bytes, __u32 state);
int slim_lint_admit(void *env, const struct slim_keys *keys, const struct slim_tuple *tuple,
		    const struct slim_option *option, struct slim_admitted *admitted);
__u64 slim_lint_rate(__u64 next, __u64 now, __u32 own);
int slim_lint_sockopt(int level, int name);
void slim_lint_ask(void *env, const struct slim_inner_range *range, struct slim_question *question);
void slim_lint_way(void *env, const struct slim_inner_range *range,
		   const struct slim_dialled *dialled, struct slim_way *way);
void slim_lint_keys(struct slim_keys *keys, const __u64 *key);
int slim_lint_wire(const struct slim_keys *keys, const __u8 *bytes, struct slim_option *option);
struct slim_verdict slim_lint(void *env, const struct slim_query *query);
const struct slim_backend *slim_lint_pick(void *env, const struct slim_service *service);

struct slim_verdict slim_lint(void *env, const struct slim_query *query)
{
	return slim_decide(env, query);
}

const struct slim_backend *slim_lint_pick(void *env, const struct slim_service *service)
{
	return slim_service_pick(env, service, 1, 2, 3);
}

void slim_lint_keys(struct slim_keys *keys, const __u64 *key)
{
	slim_keys_set(keys, key, slim_keys_signing(keys));
}

int slim_lint_wire(const struct slim_keys *keys, const __u8 *bytes, struct slim_option *option)
{
	option->tag = slim_tag(slim_keys_signing(keys), 0, 0, 0, 0, option);
	return slim_option_find(bytes, SLIM_TCP_OPTIONS_MAX, option) +
	       slim_wire_has(4790, option->port) + slim_wire_has_bound(4790, option->port);
}

int slim_lint_admit(void *env, const struct slim_keys *keys, const struct slim_tuple *tuple,
		    const struct slim_option *option, struct slim_admitted *admitted)
{
	return slim_admit(env, keys, tuple, 0, option, admitted);
}

void slim_lint_way(void *env, const struct slim_inner_range *range,
		   const struct slim_dialled *dialled, struct slim_way *way)
{
	slim_way(env, range, 4790, dialled, way);
	way->peer_rule = slim_way_is_refused_later(way);
	way->rule = slim_inner_index((slim_force __u32)slim_inner_to_v4(
		range, slim_inner(1, 2, dialled->aim.port)));
}

void slim_lint_ask(void *env, const struct slim_inner_range *range, struct slim_question *question)
{
	slim_ask_refuse(question, SLIM_REASON_NO_TABLES);
	slim_answer(env, range, 4790, 1, question);
}

__u64 slim_lint_account(__u64 bytes, __u32 state)
{
	return slim_account_sent(bytes, state, 1) + slim_account_received(bytes, !state);
}

__u64 slim_lint_rate(__u64 next, __u64 now, __u32 own)
{
	return slim_rate_holds(next, now, SLIM_RATE_SEGMENT) +
	       slim_rate_pace(own, next, now, now) + slim_rate_window(own, own, own) +
	       slim_rate_own(own, 0, SLIM_NO_PACE);
}

int slim_lint_sockopt(int level, int name)
{
	return slim_option_forbidden(level, name) + slim_option_swallowed(level, name) +
	       slim_option_reveals(level, name);
}
