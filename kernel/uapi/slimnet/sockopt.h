/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which socket options an endpoint does not have: a socket of it sits in the
 * host's network namespace, and must not say, take or show anything of that.
 *
 * Compiled unchanged into every data path. The including file includes
 * what names options in its environment: linux/in.h, linux/tcp.h and
 * asm/socket.h, or libc's.
 */
#ifndef SLIMNET_SOCKOPT_H
#define SLIMNET_SOCKOPT_H

#include "byteorder.h"

/* Options, by level, that not every environment's headers name. */
enum slim_sockopt_level {
	SLIM_SOL_IP = 0,
	SLIM_SOL_TCP = 6,
	SLIM_SOL_UDP = 17,
	SLIM_SOL_IPV6 = 41,
};

enum slim_sockopt {
	SLIM_SO_BINDTODEVICE = 25,
	SLIM_SO_ATTACH_FILTER = 26,
	SLIM_SO_MARK = 36,
	SLIM_SO_ATTACH_BPF = 50,
	SLIM_SO_ATTACH_REUSEPORT_CBPF = 51,
	SLIM_SO_ATTACH_REUSEPORT_EBPF = 52,
	SLIM_SO_TXTIME = 61,
	SLIM_IP_RECVERR_RFC4884 = 26,
	SLIM_IP_LOCAL_PORT_RANGE = 51,
	SLIM_SO_ORIGINAL_DST = 80,	/* of IP and IPV6, conntrack's */
	SLIM_IPV6_2292PKTINFO = 2,
	SLIM_IPV6_2292PKTOPTIONS = 6,
	SLIM_IPV6_NEXTHOP = 9,
	SLIM_IPV6_JOIN_GROUP = 20,
	SLIM_IPV6_RECVERR = 25,
	SLIM_IPV6_JOIN_ANYCAST = 27,
	SLIM_IPV6_RECVERR_RFC4884 = 31,
	SLIM_IPV6_FLOWLABEL_MGR = 32,
	SLIM_IPV6_IPSEC_POLICY = 34,
	SLIM_IPV6_XFRM_POLICY = 35,
	SLIM_IPV6_RECVPKTINFO = 49,
	SLIM_IPV6_PKTINFO = 50,
	SLIM_IPV6_HOPOPTS = 54,
	SLIM_IPV6_RTHDRDSTOPTS = 55,
	SLIM_IPV6_RTHDR = 57,
	SLIM_IPV6_DSTOPTS = 59,
	SLIM_IPV6_RECVORIGDSTADDR = 74,
	SLIM_IPV6_TRANSPARENT = 75,
	SLIM_IPV6_UNICAST_IF = 76,
	SLIM_TCP_AO_ADD_KEY = 38,
	SLIM_TCP_AO_DEL_KEY = 39,
	SLIM_TCP_AO_INFO = 40,
	SLIM_TCP_AO_GET_KEYS = 41,
	SLIM_TCP_AO_REPAIR = 42,
	SLIM_UDP_ENCAP = 100,
};

/*
 * Of all that Linux 6.18 has: what names a device, an address, a port or a peer
 * of the underlay, or shows one. EPERM, for none of it is set by a library that
 * its caller did not ask for it.
 */
static __always_inline _Bool slim_option_forbidden(int level, int name)
{
	switch (level) {
	case SOL_SOCKET:
		switch (name) {
		case SLIM_SO_BINDTODEVICE:		/* a device of the host */
		case SO_BINDTOIFINDEX:
		case SLIM_SO_MARK:			/* the host's routing rules */
		case SLIM_SO_ATTACH_FILTER:		/* a filter reads its packets' addresses, bit by bit */
		case SLIM_SO_ATTACH_BPF:
		case SLIM_SO_ATTACH_REUSEPORT_CBPF:
		case SLIM_SO_ATTACH_REUSEPORT_EBPF:
		case SLIM_SO_TXTIME:			/* a packet that is late comes back with its headers */
			return 1;
		}
		return 0;
	case SLIM_SOL_IP:
		switch (name) {
		case IP_TRANSPARENT:		/* foreign addresses */
		case IP_OPTIONS:		/* a source route: another destination than policy was asked for */
		case IP_UNICAST_IF:		/* a device */
		case SLIM_IP_LOCAL_PORT_RANGE:	/* a port of the host by its number */
		case IP_IPSEC_POLICY:		/* the host's IPsec */
		case IP_XFRM_POLICY:
		case IP_ADD_MEMBERSHIP:		/* the host's multicast is heard */
		case IP_ADD_SOURCE_MEMBERSHIP:
		case MCAST_JOIN_GROUP:
		case MCAST_JOIN_SOURCE_GROUP:
			return 1;
		}
		return 0;
	case SLIM_SOL_IPV6:
		switch (name) {
		case SLIM_IPV6_TRANSPARENT:
		case SLIM_IPV6_UNICAST_IF:
		case SLIM_IPV6_PKTINFO:		/* source address and device */
		case SLIM_IPV6_2292PKTOPTIONS:	/* the same, and routing headers */
		case SLIM_IPV6_NEXTHOP:
		case SLIM_IPV6_RTHDR:
		case SLIM_IPV6_RTHDRDSTOPTS:
		case SLIM_IPV6_HOPOPTS:
		case SLIM_IPV6_DSTOPTS:
		case SLIM_IPV6_FLOWLABEL_MGR:	/* the same with a label; of these a host has 4,096 */
		case SLIM_IPV6_IPSEC_POLICY:
		case SLIM_IPV6_XFRM_POLICY:
		case SLIM_IPV6_JOIN_GROUP:
		case SLIM_IPV6_JOIN_ANYCAST:
		case MCAST_JOIN_GROUP:
		case MCAST_JOIN_SOURCE_GROUP:
			return 1;
		}
		return 0;
	case SLIM_SOL_TCP:
		switch (name) {
		case TCP_REPAIR:		/* a connection out of nothing */
		case TCP_SAVE_SYN:		/* shows underlay addresses, wire port and tag */
		case TCP_MD5SIG:		/* the peer by its address: the kernel would look for */
		case TCP_MD5SIG_EXT:		/* the underlay's, find no key, and sign nothing */
		case SLIM_TCP_AO_ADD_KEY:
		case SLIM_TCP_AO_DEL_KEY:
		case SLIM_TCP_AO_INFO:
		case SLIM_TCP_AO_GET_KEYS:
		case SLIM_TCP_AO_REPAIR:
			return 1;
		}
		return 0;
	case SLIM_SOL_UDP:
		return name == SLIM_UDP_ENCAP;	/* the host's IPsec and L2TP */
	}
	return 0;
}

/*
 * Swallowed, so that the kernel does nothing and the caller hears nothing of
 * it; whoever asks for these takes what they give as a hint and does without.
 */
static __always_inline _Bool slim_option_swallowed(int level, int name)
{
	switch (level) {
	case SLIM_SOL_TCP:
		switch (name) {
		case TCP_FASTOPEN:		/* a cached cookie would leave no room for our option */
		case TCP_FASTOPEN_CONNECT:	/* in the client's SYN */
			return 1;
		}
		return 0;
	case SLIM_SOL_IP:
		switch (name) {
		case IP_PKTINFO:		/* which address of the host a datagram came to */
		case IP_RECVORIGDSTADDR:
		case IP_RECVOPTS:		/* the same, in a record of the route (RFC 791) */
		case IP_RETOPTS:
		case IP_RECVERR:		/* who sent an ICMP error: the host itself, for one */
		case SLIM_IP_RECVERR_RFC4884:
			return 1;
		}
		return 0;
	case SLIM_SOL_IPV6:
		switch (name) {
		case SLIM_IPV6_2292PKTINFO:
		case SLIM_IPV6_RECVPKTINFO:
		case SLIM_IPV6_RECVORIGDSTADDR:
		case SLIM_IPV6_RECVERR:
		case SLIM_IPV6_RECVERR_RFC4884:
			return 1;
		}
		return 0;
	}
	return 0;
}

/* What shows underlay addresses. Nothing is saved or noted for them: see above. */
static __always_inline _Bool slim_option_reveals(int level, int name)
{
	switch (level) {
	case SLIM_SOL_TCP:
		return name == TCP_SAVED_SYN || name == SLIM_TCP_AO_GET_KEYS;
	case SLIM_SOL_IP:
		return name == IP_PKTOPTIONS || name == SLIM_SO_ORIGINAL_DST;
	case SLIM_SOL_IPV6:
		return name == SLIM_IPV6_2292PKTOPTIONS || name == SLIM_SO_ORIGINAL_DST;
	}
	return 0;
}

#endif /* SLIMNET_SOCKOPT_H */
