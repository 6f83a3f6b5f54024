// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* SipHash-2-4, and with it the keys and tags of links. */
#include "mac.h"

#include <endian.h>
#include <string.h>

#include <slimnet/siphash.h>

uint64_t mac_siphash(const uint64_t key[2], const void *bytes, size_t size)
{
	uint64_t v0 = key[0] ^ 0x736f6d6570736575ULL;
	uint64_t v1 = key[1] ^ 0x646f72616e646f6dULL;
	uint64_t v2 = key[0] ^ 0x6c7967656e657261ULL;
	uint64_t v3 = key[1] ^ 0x7465646279746573ULL;
	const unsigned char *at = bytes;
	uint64_t last = (uint64_t)size << 56, word;
	size_t left;

	for (left = size; left >= 8; left -= 8, at += 8) {
		memcpy(&word, at, 8);
		word = le64toh(word);
		v3 ^= word; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= word;
	}
	while (left--)
		last |= (uint64_t)at[left] << (8 * left);
	v3 ^= last; SLIM_SIPROUND; SLIM_SIPROUND; v0 ^= last;
	v2 ^= 0xff;
	SLIM_SIPROUND; SLIM_SIPROUND; SLIM_SIPROUND; SLIM_SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

void mac_link_key(const uint64_t cluster[2], const struct slim_hello *opener,
		  const struct slim_hello *acceptor, int from_opener, uint64_t key[2])
{
	struct {
		char label[18];
		uint8_t direction, half, pad[4];
		struct slim_hello opener, acceptor;
	} text = {
		.label = "slimnet announce",
		.direction = !!from_opener,
		.opener = *opener,
		.acceptor = *acceptor,
	};

	for (text.half = 0; text.half < 2; text.half++)
		key[text.half] = mac_siphash(cluster, &text, sizeof(text));
}

__le64 mac_frame(const uint64_t key[2], uint64_t number, const struct slim_frame *frame)
{
	struct {
		uint64_t number;
		struct slim_frame frame;
	} text = { .number = htole64(number), .frame = *frame };

	return (__le64)htole64(mac_siphash(key, &text,
					   sizeof(text) - sizeof(text.frame.tag)));
}
