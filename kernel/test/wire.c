/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * wire.h on whatever machine this is built for: reads SYNs in hexadecimal, a line
 * each, and prints what the tag of each option must be, or why there is none.
 *
 *   key source destination source_port sequence options
 *
 * as they are on the wire; the key's bytes as key files have them.
 */
#include <stdio.h>
#include <string.h>

#include "slimnet/wire.h"

static int unhex(const char *text, void *to, size_t size)
{
	unsigned char *bytes = to;
	size_t at;

	if (strlen(text) > 2 * size)
		return -1;
	for (at = 0; text[2 * at]; at++) {
		unsigned int byte;

		if (sscanf(text + 2 * at, "%2x", &byte) != 1)
			return -1;
		bytes[at] = (unsigned char)byte;
	}
	return (int)at;
}

static __u64 le64(const unsigned char *bytes)
{
	__u64 value = 0;
	int at;

	for (at = 7; at >= 0; at--)
		value = value << 8 | bytes[at];
	return value;
}

int main(void)
{
	char words[6][129];

	while (scanf("%128s %128s %128s %128s %128s %128s", words[0], words[1], words[2], words[3],
		     words[4], words[5]) == 6) {
		unsigned char key[16] = {}, options[SLIM_TCP_OPTIONS_MAX] = {};
		__be32 source = 0, destination = 0, sequence = 0;
		struct slim_option option = {};
		unsigned char tag[4];
		__be16 port = 0;
		__le32 made;
		int length, found;

		if (unhex(words[0], key, sizeof(key)) != sizeof(key) ||
		    unhex(words[1], &source, 4) != 4 || unhex(words[2], &destination, 4) != 4 ||
		    unhex(words[3], &port, 2) != 2 || unhex(words[4], &sequence, 4) != 4)
			return 1;
		length = unhex(words[5], options, sizeof(options));
		if (length < 0)
			return 1;
		found = slim_option_find(options, (__u32)length, &option);
		if (found != 1) {
			printf("%d\n", found);
			continue;
		}
		made = slim_tag((const __u64[]){ le64(key), le64(key + 8) }, source, destination,
				port, sequence, &option);
		memcpy(tag, &made, sizeof(tag));
		printf("%02x%02x%02x%02x %s\n", tag[0], tag[1], tag[2], tag[3],
		       memcmp(&option.tag, tag, sizeof(tag)) ? "wrong" : "right");
	}
	return 0;
}
