/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The core as a shared library, for tests: its headers unchanged over look-ups
 * in user space that answer as the kernel's LPM tries and hashes do.
 *
 * cc -shared -fPIC -I../uapi -o libslimcore.so core.c
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "slimnet/tables.h"

static const struct slim_policy *
slim_policy_lookup(void *env, const struct slim_policy_key *key);

#include "slimnet/decide.h"

static struct slim_affinity *
slim_affinity_lookup(void *env, const struct slim_affinity_key *key);
static void slim_affinity_store(void *env, const struct slim_affinity_key *key,
				const struct slim_affinity *value);

#include "slimnet/service.h"

static __u32 slim_address_lookup(void *env, const struct slim_address_key *key);
static const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id);
static const struct slim_service *slim_service_lookup(void *env,
						      const struct slim_service_key *key);
static const struct slim_cidr *slim_cidr_lookup(void *env, __u32 vni, const __be32 *address);

#include "slimnet/admit.h"
#include "slimnet/way.h"

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

/* The other tables are lists: those of tests are short. */
struct place {
	struct place *next;
	struct slim_address_key key;
	__u32 id;
	struct slim_endpoint endpoint;
};

struct service {
	struct service *next;
	struct slim_service_key key;
	struct slim_service value;
};

struct range {
	struct range *next;
	struct slim_cidr_key key;
	struct slim_cidr value;
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
	struct place *places;
	struct service *services;
	struct range *ranges;
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

static __u32 slim_address_lookup(void *env, const struct slim_address_key *key)
{
	const struct slim_test *test = env;
	const struct place *place;

	for (place = test->places; place; place = place->next)
		if (!memcmp(&place->key, key, sizeof(*key)))
			return place->id;
	return 0;
}

static const struct slim_endpoint *slim_endpoint_lookup(void *env, __u32 id)
{
	const struct slim_test *test = env;
	const struct place *place;

	for (place = test->places; place; place = place->next)
		if (place->id == id && id != SLIM_ADDRESS_SERVICE)
			return &place->endpoint;
	return NULL;
}

static const struct slim_service *
slim_service_lookup(void *env, const struct slim_service_key *key)
{
	const struct slim_test *test = env;
	const struct service *service;

	for (service = test->services; service; service = service->next)
		if (!memcmp(&service->key, key, sizeof(*key)))
			return &service->value;
	return NULL;
}

static int within(const struct slim_cidr_key *range, __u32 vni, const __be32 *address)
{
	const unsigned char *a = (const unsigned char *)range->address;
	const unsigned char *b = (const unsigned char *)address;
	size_t bits = range->prefixlen - 32, whole = bits / 8;

	if (range->vni != htonl(vni) || memcmp(a, b, whole))
		return 0;
	return !(bits % 8) || !((a[whole] ^ b[whole]) >> (8 - bits % 8));
}

static const struct slim_cidr *slim_cidr_lookup(void *env, __u32 vni, const __be32 *address)
{
	const struct slim_test *test = env;
	const struct range *range, *best = NULL;

	for (range = test->ranges; range; range = range->next)
		if (within(&range->key, vni, address) &&
		    (!best || range->key.prefixlen > best->key.prefixlen))
			best = range;
	return best ? &best->value : NULL;
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

#define FREE_LIST(list)				\
	while (list) {				\
		void *next = (list)->next;	\
						\
		free(list);			\
		(list) = next;			\
	}

void slim_test_close(struct slim_test *test)
{
	FREE_LIST(test->places);
	FREE_LIST(test->services);
	FREE_LIST(test->ranges);
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

/* An endpoint's address, or for SLIM_ADDRESS_SERVICE a service's. 0, or -1 without memory. */
int slim_test_place(struct slim_test *test, const struct slim_address_key *key, __u32 id,
		    const struct slim_endpoint *endpoint)
{
	struct place *place = calloc(1, sizeof(*place));

	if (!place)
		return -1;
	*place = (struct place){ test->places, *key, id, *endpoint };
	test->places = place;
	return 0;
}

int slim_test_service(struct slim_test *test, const struct slim_service_key *key,
		      const struct slim_service *value)
{
	struct service *service = malloc(sizeof(*service));

	if (!service)
		return -1;
	service->next = test->services;
	service->key = *key;
	service->value = *value;
	test->services = service;
	return 0;
}

int slim_test_range(struct slim_test *test, const struct slim_cidr_key *key,
		    const struct slim_cidr *value)
{
	struct range *range = malloc(sizeof(*range));

	if (!range)
		return -1;
	*range = (struct range){ test->ranges, *key, *value };
	test->ranges = range;
	return 0;
}

/* What becomes of it, as numbers: those of enum slim_way_kind, reason, errno and so on. */
struct slim_test_way {
	__u32 kind, reason, error, direction, rule, peer_rule, endpoint, port, later;
};

/* Ports in host order; the inner range and the wire ports are the defaults. */
void slim_test_way(struct slim_test *test, __u32 vni, __u32 client, const __be32 *address,
		   __u16 port, __u8 protocol, __u8 stream, __u8 source, __u32 random,
		   struct slim_test_way *answer)
{
	const struct slim_inner_range range = {
		.v4 = htonl(0xf0000000),
		.v6 = { htonl(0xfd736c69), htonl(0x6d6e6574) },
	};
	struct slim_dialled dialled = {
		.aim = {
			.now = 1,
			.vni = vni,
			.client = client,
			.port = htons(port),
			.protocol = protocol,
			.dialled = 1,
			.random = random,
		},
		.stream = stream,
		.source = source,
	};
	struct slim_way way = {};

	slim_copy(dialled.aim.address, address);
	slim_way(test, &range, 4790, &dialled, &way);
	*answer = (struct slim_test_way){
		.kind = way.kind,
		.reason = way.reason,
		.error = (__u32)way.error,
		.direction = way.direction,
		.rule = way.rule,
		.peer_rule = way.peer_rule,
		.endpoint = way.target.endpoint,
		.port = ntohs(way.target.port),
		.later = way.error && slim_way_is_refused_later(&way),
	};
}

/* `option` as it is in the SYN. Answers enum slim_admit_answer. */
int slim_test_admit(struct slim_test *test, const struct slim_keys *keys,
		    const struct slim_tuple *tuple, __be32 sequence,
		    const struct slim_option *option, __u32 *reason, __u32 *rule)
{
	struct slim_admitted admitted;
	int answer = slim_admit(test, keys, tuple, sequence, option, &admitted);

	*reason = admitted.reason;
	*rule = admitted.rule;
	return answer;
}
