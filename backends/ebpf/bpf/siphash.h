/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SipHash-2-4 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012)
 * over three 64-bit words: all that a tag covers.
 */
#ifndef SLIMNET_SIPHASH_H
#define SLIMNET_SIPHASH_H

#include <slimnet/contract.h>

#define SLIM_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SLIM_SIPROUND							\
	do {								\
		v0 += v1; v1 = SLIM_ROTL(v1, 13); v1 ^= v0;		\
		v0 = SLIM_ROTL(v0, 32);					\
		v2 += v3; v3 = SLIM_ROTL(v3, 16); v3 ^= v2;		\
		v0 += v3; v3 = SLIM_ROTL(v3, 21); v3 ^= v0;		\
		v2 += v1; v1 = SLIM_ROTL(v1, 17); v1 ^= v2;		\
		v2 = SLIM_ROTL(v2, 32);					\
	} while (0)

static __always_inline __u64
slim_siphash(const __u64 *key, __u64 a, __u64 b, __u64 c)
{
	__u64 v0 = key[0] ^ 0x736f6d6570736575ULL;
	__u64 v1 = key[1] ^ 0x646f72616e646f6dULL;
	__u64 v2 = key[0] ^ 0x6c7967656e657261ULL;
	__u64 v3 = key[1] ^ 0x7465646279746573ULL;
	__u64 last = 24ULL << 56;

	v3 ^= a; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= a;
	v3 ^= b; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= b;
	v3 ^= c; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= c;
	v3 ^= last; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= last;
	v2 ^= 0xff;
	SLIM_SIPROUND; SLIM_SIPROUND; SLIM_SIPROUND; SLIM_SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/*
 * The SYN option (design 4.1). The tag covers the sequence number as well, so
 * that an option taken from the wire is of no use for another SYN.
 */
struct slim_option {
	__u8 kind;
	__u8 length;
	__be16 port;
	__be32 destination;
	__be32 source;
	__be32 tag;
} __attribute__((packed));

_Static_assert(sizeof(struct slim_option) == SLIM_OPTION_LENGTH, "the option's length");

static __always_inline __be32
slim_tag(const struct slim_control *control, __be32 source, __be32 destination,
	 __be16 source_port, __be32 sequence, const struct slim_option *option)
{
	__u64 a = (__u64)source << 32 | destination;
	__u64 b = (__u64)sequence << 32 | (__u32)source_port << 16 | option->port;
	__u64 c = (__u64)option->destination << 32 | option->source;

	return (__be32)slim_siphash(control->key, a, b, c);
}

#endif /* SLIMNET_SIPHASH_H */
