/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The cluster's key, which is two keys while it rotates: either is good for what comes in,
 * and one of the two signs what goes out. Where there is one, both are that one: no key is
 * ever one that nobody has.
 */
#ifndef SLIMNET_KEYS_H
#define SLIMNET_KEYS_H

#include "byteorder.h"

struct slim_keys {
	__u64 key[2][2];		/* of SipHash */
	__u32 signs;			/* which of the two: 0 or 1 */
	__u32 pad;
};

static __always_inline const __u64 *slim_keys_signing(const struct slim_keys *keys)
{
	return keys->key[*(const volatile __u32 *)&keys->signs & 1];
}

/*
 * From now on `key` signs, and `other` is good as well. One caller at a time; whoever signs or
 * checks meanwhile never sees half of a key that anybody signs with.
 */
static __always_inline void
slim_keys_set(struct slim_keys *keys, const __u64 *key, const __u64 *other)
{
	__u64 *spare = keys->key[!(keys->signs & 1)];

	if (__builtin_memcmp(keys->key[keys->signs & 1], key, sizeof(keys->key[0]))) {
		spare[0] = key[0];
		spare[1] = key[1];
		__atomic_store_n(&keys->signs, !(keys->signs & 1), __ATOMIC_RELEASE);
		spare = keys->key[!keys->signs];
	}
	spare[0] = other[0];
	spare[1] = other[1];
}

#endif /* SLIMNET_KEYS_H */
