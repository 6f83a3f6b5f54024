/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * slim_service_pick(): which endpoint serves a connect to a service?
 *
 * Compiled unchanged into every data path, as decide.h. The including file
 * supplies two look-ups, for its environment:
 *
 *   struct slim_affinity *slim_affinity_lookup(void *env,
 *						const struct slim_affinity_key *key);
 *   void slim_affinity_store(void *env, const struct slim_affinity_key *key,
 *			      const struct slim_affinity *value);
 *
 * Without session affinity a random number chooses the slot, and so an
 * endpoint by its weight. With it the client does: it comes back to the same
 * endpoint from wherever it lives, and because the slots are Maglev's, a
 * backend that joins or leaves moves few others. A client of the last
 * `affinity` seconds is not moved at all while its endpoint is there.
 */
#ifndef SLIMNET_SERVICE_H
#define SLIMNET_SERVICE_H

#include "clock.h"
#include "decide.h"


#ifndef slim_service_outline
#define slim_service_outline static inline
#endif

/* Every bit of the input moves every bit of the result (the finalizer of MurmurHash3). */
static __always_inline __u32 slim_service_mix(__u32 x)
{
	x ^= x >> 16;
	x *= 0x85ebca6b;
	x ^= x >> 13;
	x *= 0xc2b2ae35;
	return x ^ x >> 16;
}

/*
 * Below SLIM_SERVICE_SLOTS in any case. The empty asm hides that from the
 * compiler, so that it keeps the comparison, which the BPF verifier of older
 * kernels needs to see.
 */
static __always_inline __u64 slim_service_slot(__u32 service, __u32 client, __u32 random)
{
	__u64 slot = slim_service_mix(slim_service_mix(service ^ random) + client);

	slot = (slot * SLIM_SERVICE_SLOTS) >> 32;
	__asm__("" : "+r"(slot));
	return slot < SLIM_SERVICE_SLOTS ? slot : 0;
}

/*
 * The slot of an endpoint; SLIM_SERVICE_SLOTS if it has none. In BPF a function
 * that the verifier goes through once, not at each call.
 */
slim_service_outline __u32
slim_service_find(const struct slim_service *service, __u32 endpoint)
{
	__u32 slot = SLIM_SERVICE_SLOTS;

	if (service)
		for (slot = 0; slot < SLIM_SERVICE_SLOTS; slot++)
			if (service->slots[slot].endpoint == endpoint)
				break;
	return slot;
}

/*
 * The backend for a client (an endpoint's id) at `now`, in nanoseconds of a
 * clock that never steps; NULL where no endpoint is ready.
 */
static __always_inline const struct slim_backend *
slim_service_pick(void *env, const struct slim_service *service, __u32 client, __u64 now,
		  __u32 random)
{
	const struct slim_affinity_key key = { .service = service->id, .client = client };
	const struct slim_backend *backend;
	struct slim_affinity fresh = { .time = now };
	const struct slim_affinity *held;
	__u32 last;

	if (!service->size)
		return NULL;
	if (!service->affinity)
		return &service->slots[slim_service_slot(service->id, client, random)];
	backend = &service->slots[slim_service_slot(service->id, client, 0)];
	held = slim_affinity_lookup(env, &key);
	/* Another CPU may have stored a later time: no difference, it would wrap. */
	if (held && held->endpoint != backend->endpoint &&
	    held->time + service->affinity * SLIM_SECOND >= now) {
		last = slim_service_find(service, held->endpoint);
		if (last < SLIM_SERVICE_SLOTS)
			backend = &service->slots[last];
	}
	fresh.endpoint = backend->endpoint;
	slim_affinity_store(env, &key, &fresh);
	return backend;
}

#endif /* SLIMNET_SERVICE_H */
