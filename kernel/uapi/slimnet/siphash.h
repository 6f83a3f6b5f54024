/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SipHash-2-4 of 24 to 31 bytes, which is what a tag covers.
 *
 * Source: Aumasson, Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012.
 */
#ifndef SLIMNET_SIPHASH_H
#define SLIMNET_SIPHASH_H

#include "byteorder.h"

#define SLIM_SIPHASH_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SLIM_SIPROUND								\
	do {									\
		v0 += v1; v1 = SLIM_SIPHASH_ROTL(v1, 13); v1 ^= v0;		\
		v0 = SLIM_SIPHASH_ROTL(v0, 32);					\
		v2 += v3; v3 = SLIM_SIPHASH_ROTL(v3, 16); v3 ^= v2;		\
		v0 += v3; v3 = SLIM_SIPHASH_ROTL(v3, 21); v3 ^= v0;		\
		v2 += v1; v1 = SLIM_SIPHASH_ROTL(v1, 17); v1 ^= v2;		\
		v2 = SLIM_SIPHASH_ROTL(v2, 32);					\
	} while (0)

/*
 * `key` is the key's 16 bytes as two little-endian numbers; `a`, `b` and `c` are
 * the message's first 24 bytes as three, and `last` the others, below the
 * message's length in the highest byte.
 */
static __always_inline __u64
slim_siphash(const __u64 *key, __u64 a, __u64 b, __u64 c, __u64 last)
{
	__u64 v0 = key[0] ^ 0x736f6d6570736575ULL;
	__u64 v1 = key[1] ^ 0x646f72616e646f6dULL;
	__u64 v2 = key[0] ^ 0x6c7967656e657261ULL;
	__u64 v3 = key[1] ^ 0x7465646279746573ULL;

	v3 ^= a; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= a;
	v3 ^= b; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= b;
	v3 ^= c; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= c;
	v3 ^= last; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= last;
	v2 ^= 0xff;
	SLIM_SIPROUND; SLIM_SIPROUND; SLIM_SIPROUND; SLIM_SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

#endif /* SLIMNET_SIPHASH_H */
