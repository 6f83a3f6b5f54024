/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * slim_decide() and slim_service_pick() as a shared library, for tests:
 * decide.h and service.h unchanged over look-ups in user space that answer as
 * the kernel's LPM trie and its LRU hash do.
 *
 * cc -shared -fPIC -I../uapi -o libslimdecide.so decide.c
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "slimnet/contract.h"

static const struct slim_policy *
slim_policy_lookup(void *env, const struct slim_policy_key *key);

#include "slimnet/decide.h"

static struct slim_affinity *
slim_affinity_lookup(void *env, const struct slim_affinity_key *key);
static void slim_affinity_store(void *env, const struct slim_affinity_key *key,
				const struct slim_affinity *value);

#include "slimnet/service.h"

#define CLIENTS 1024

#define KEY_BYTES (sizeof(struct slim_policy_key) - sizeof(__u32))
#define KEY_BITS (KEY_BYTES * 8)

struct slot {
	struct slim_policy_key key;
	struct slim_policy value;
	int used;
};

struct client {
	struct slim_affinity_key key;
	struct slim_affinity value;
};

/*
 * A hash of masked keys, and how many there are of each prefix length; and the
 * clients of services, of whom the first are forgotten first.
 */
struct slim_test {
	size_t size, used;
	size_t lengths[KEY_BITS + 1];
	struct slot *slots;
	size_t stored;
	struct client clients[CLIENTS];
};

static void mask(struct slim_policy_key *key)
{
	unsigned char *data = (unsigned char *)key + sizeof(key->prefixlen);
	size_t whole = key->prefixlen / 8;

	if (key->prefixlen % 8) {
		data[whole] &= 0xff << (8 - key->prefixlen % 8);
		whole++;
	}
	memset(data + whole, 0, KEY_BYTES - whole);
}

static struct slot *find(const struct slim_test *test, const struct slim_policy_key *key)
{
	const unsigned char *data = (const unsigned char *)key;
	size_t hash = 14695981039346656037u, index;

	for (index = 0; index < sizeof(*key); index++)
		hash = (hash ^ data[index]) * 1099511628211u;
	for (index = hash % test->size; test->slots[index].used; index = (index + 1) % test->size)
		if (!memcmp(&test->slots[index].key, key, sizeof(*key)))
			break;
	return &test->slots[index];
}

static const struct slim_policy *
slim_policy_lookup(void *env, const struct slim_policy_key *key)
{
	const struct slim_test *test = env;
	struct slim_policy_key cut = *key;
	int length;

	for (length = key->prefixlen; length >= 0; length--) {
		const struct slot *slot;

		if (!test->lengths[length])
			continue;
		cut.prefixlen = length;
		mask(&cut);
		slot = find(test, &cut);
		if (slot->used)
			return &slot->value;
	}
	return NULL;
}

static struct slim_affinity *
slim_affinity_lookup(void *env, const struct slim_affinity_key *key)
{
	struct slim_test *test = env;
	size_t index;

	for (index = 0; index < test->stored && index < CLIENTS; index++)
		if (!memcmp(&test->clients[index].key, key, sizeof(*key)))
			return &test->clients[index].value;
	return NULL;
}

static void slim_affinity_store(void *env, const struct slim_affinity_key *key,
				const struct slim_affinity *value)
{
	struct slim_affinity *known = slim_affinity_lookup(env, key);
	struct slim_test *test = env;

	if (known)
		*known = *value;
	else
		test->clients[test->stored++ % CLIENTS] = (struct client){ *key, *value };
}

/* Room for this many entries; NULL where there is no memory. */
struct slim_test *slim_test_open(size_t entries)
{
	struct slim_test *test = calloc(1, sizeof(*test));

	if (!test)
		return NULL;
	test->size = 2 * entries + 1;
	test->slots = calloc(test->size, sizeof(*test->slots));
	if (!test->slots) {
		free(test);
		return NULL;
	}
	return test;
}

void slim_test_close(struct slim_test *test)
{
	free(test->slots);
	free(test);
}

/* Identities and port in host order. 0, or -1 where there is no room. */
int slim_test_set(struct slim_test *test, __u32 prefixlen, __u32 subject, __u32 peer,
		  __u8 direction, __u8 protocol, __u16 port, __u8 action, __u8 reason, __u32 rule)
{
	struct slim_policy_key key = {
		.prefixlen = prefixlen,
		.subject = htonl(subject),
		.peer = htonl(peer),
		.direction = direction,
		.protocol = protocol,
		.port = htons(port),
	};
	struct slot *slot;

	if (prefixlen > KEY_BITS || 2 * test->used >= test->size)
		return -1;
	mask(&key);
	slot = find(test, &key);
	test->lengths[prefixlen] += !slot->used;
	test->used += !slot->used;
	*slot = (struct slot){ key, { .action = action, .reason = reason, .rule = rule }, 1 };
	return 0;
}

/* Identities and port in host order. */
void slim_test_decide(struct slim_test *test, __u32 subject, __u32 peer, __u8 direction,
		      __u8 protocol, __u16 port, __u8 self, __u8 host, struct slim_verdict *verdict)
{
	const struct slim_query query = {
		.subject = subject,
		.peer = peer,
		.direction = direction,
		.protocol = protocol,
		.port = htons(port),
		.self = self,
		.host = host,
	};

	*verdict = slim_decide(test, &query);
}

/* 0: nobody serves it. */
int slim_test_pick(struct slim_test *test, const struct slim_service *service, __u32 client,
		   __u64 now, __u32 random, struct slim_backend *backend)
{
	const struct slim_backend *found = slim_service_pick(test, service, client, now, random);

	if (found)
		*backend = *found;
	return found != NULL;
}
