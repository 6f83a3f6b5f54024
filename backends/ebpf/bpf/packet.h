/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What tc programs know of packets.
 */
#ifndef SLIMNET_PACKET_H
#define SLIMNET_PACKET_H

#include <linux/ip.h>
#include <linux/pkt_cls.h>

#include "state.h"

/* Whoever else has a program or a filter here is asked next. */
#define SLIM_TC_NEXT TC_ACT_UNSPEC

/* RFC 792; linux/icmp.h would bring libc's headers along. */
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

struct slim_icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

#define VLAN_ID_MASK 0xfff		/* of the tag's control information, IEEE 802.1Q */

#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff

#define SLIM_TCP_OFFSET (ETH_HLEN + sizeof(struct iphdr))
#define SLIM_CHECK_OFFSET (ETH_HLEN + offsetof(struct iphdr, check))

/* A parsed SYN. */
struct slim_syn {
	struct slim_tuple tuple;
	__be32 sequence;
	__u32 options;		/* offset in the packet */
	__u32 length;		/* of the options, in bytes */
};

#endif /* SLIMNET_PACKET_H */
