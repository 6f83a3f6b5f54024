/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What an endpoint may send: the arithmetic of its limits.
 *
 * Compiled unchanged into every data path. All connections of an endpoint share
 * one timeline (the generic cell rate algorithm, ITU-T I.371): `next` is when the
 * endpoint will have caught up with what it has sent. A packet goes out at once,
 * and moves `next` on by what it costs. Its connection sends the next one when
 * the clock has come there, so that those who have much to send take turns.
 */
#ifndef SLIMNET_RATE_H
#define SLIMNET_RATE_H

#include "byteorder.h"
#include "clock.h"

/*
 * How far ahead an endpoint may be, in ns. What nobody paces (datagrams, the
 * first segments of a connection, its SYN) is held back in this order: datagrams
 * leave room to TCP, and a SYN, which is sent again only after a second, is the
 * last. Acknowledgements are free: how many there are is for those to say who
 * send to the endpoint.
 */
enum slim_rate_ahead {
	SLIM_RATE_DATAGRAM = 100000000,
	SLIM_RATE_SEGMENT = 400000000,
	SLIM_RATE_SYN = 2000000000,
};

static __always_inline _Bool slim_rate_holds(__u64 next, __u64 now, __u64 ahead)
{
	return next > now + ahead;
}

/* So many segments of a connection are not paced (tcp_update_skb_after_send()). */
#define SLIM_RATE_FIRST 10

/* What an endpoint did not use it may use later, but no more than this, in ns. */
#define SLIM_RATE_SPARE 50000000ULL

/* From when on does what is sent now count? */
static __always_inline __u64 slim_rate_from(__u64 next, __u64 now)
{
	return next + SLIM_RATE_SPARE > now ? next : now - SLIM_RATE_SPARE;
}

/* How long a packet of so many bytes takes at `rate` bytes a second, which is not 0. */
static __always_inline __u64 slim_rate_cost(__u32 length, __u64 rate)
{
	return length * SLIM_SECOND / rate;
}

/* Of one connection, which the kernel paces (SO_MAX_PACING_RATE, bytes a second). */
#define SLIM_NO_PACE 0xffffffff

/*
 * At what pace is a connection that sends so many bytes now to go on when its turn
 * comes? Where the endpoint is behind, at up to twice its rate.
 */
static __always_inline __u32 slim_rate_pace(__u32 length, __u64 next, __u64 now, __u64 rate)
{
	__u64 cost = slim_rate_cost(length, rate), wait, pace;

	next = slim_rate_from(next, now) + cost;
	wait = next > now + cost / 2 ? next - now : cost / 2;
	pace = wait ? length * SLIM_SECOND / wait : SLIM_NO_PACE - 1;
	if (!pace)
		return 1;
	return pace < SLIM_NO_PACE ? pace : SLIM_NO_PACE - 1;
}

/*
 * How many segments a connection of that pace may have on the way: those of two
 * round trips (srtt, us) and 4 ms, and a few. Where the round trip is short,
 * Linux sends 64 KiB at once, however slow the pace (net.ipv4.tcp_tso_rtt_log),
 * and who has to wait for the turns of many others would wait long.
 */
static __always_inline __u32 slim_rate_window(__u32 pace, __u32 srtt, __u32 mss)
{
	return 4 + pace * (2ULL * srtt + 4000) / 1000000 / (mss ? mss : 1);
}

/*
 * Below that pace a connection on one host has Ethernet's segments in place of
 * loopback's of 64 KiB, which would each take more than 2 ms.
 */
#define SLIM_RATE_SMALL 32000000	/* bytes a second */
#define SLIM_RATE_MSS 1448

/*
 * What the application itself asked for: it is what the kernel has now, unless
 * that is what we told it for a limit (0: nothing).
 */
static __always_inline __u32 slim_rate_own(__u32 own, __u32 told, __u32 has)
{
	return told && has == told ? own : has;
}

#endif /* SLIMNET_RATE_H */
