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

/*
 * On to the other end of a device, from a program on what another device receives. The other
 * end of a netkit (drivers/net/netkit.c) has its program before anything is received, and no
 * tc ingress yet: the kernel drops what asks for a peer there, and such a program comes before
 * this host's stack has any part in it, so that to send by the device is as short a way. Only
 * what was received has an interface that it came by.
 */
static __always_inline int slim_pass_on(struct __sk_buff *skb, __u32 device)
{
	return skb->ingress_ifindex ? bpf_redirect_peer(device, 0) : bpf_redirect(device, 0);
}

#endif /* SLIMNET_PACKET_H */
