/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What `make lint` compiles: every shared header, twice, so that a missing
 * guard shows, and a use of each inline function, for sparse skips unused ones.
 */
#include <stddef.h>

#include "slimnet/contract.h"
#include "slimnet/fingerprint.h"

const struct slim_policy *slim_policy_lookup(void *env, const struct slim_policy_key *key);

#include "slimnet/decide.h"

struct slim_affinity *slim_affinity_lookup(void *env, const struct slim_affinity_key *key);
void slim_affinity_store(void *env, const struct slim_affinity_key *key,
			 const struct slim_affinity *value);

#include "slimnet/service.h"
#include "slimnet/wire.h"

#include "slimnet/byteorder.h"
#include "slimnet/contract.h"
#include "slimnet/decide.h"
#include "slimnet/fingerprint.h"
#include "slimnet/service.h"
#include "slimnet/siphash.h"
#include "slimnet/wire.h"

int slim_lint_wire(const __u64 *key, const __u8 *bytes, struct slim_option *option);
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

int slim_lint_wire(const __u64 *key, const __u8 *bytes, struct slim_option *option)
{
	option->tag = slim_tag(key, 0, 0, 0, 0, option);
	return slim_option_find(bytes, SLIM_TCP_OPTIONS_MAX, option) +
	       slim_wire_has(4790, option->port) + slim_wire_has_bound(4790, option->port);
}
