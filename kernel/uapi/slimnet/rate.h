/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What an endpoint may send: the arithmetic of its limits.
 *
 * Compiled unchanged into every data path. For all connections of an endpoint
 * together: a packet is let through while the endpoint is less than
 * SLIM_RATE_AHEAD ahead of its rate (the generic cell rate algorithm, ITU-T
 * I.371). `next` is when it will have caught up with what it has sent.
 */
#ifndef SLIMNET_RATE_H
#define SLIMNET_RATE_H

#include "byteorder.h"
#include "clock.h"

#define SLIM_RATE_AHEAD 20000000ULL	/* ns */

enum slim_rate_answer {
	SLIM_RATE_SEND = 0,
	SLIM_RATE_SLOWER = 1,		/* let through, and told to slow down */
	SLIM_RATE_HOLD = 2,		/* held back, to be sent again */
};

static __always_inline enum slim_rate_answer slim_rate_ask(__u64 next, __u64 now)
{
	if (next > now + SLIM_RATE_AHEAD)
		return SLIM_RATE_HOLD;
	return next > now + SLIM_RATE_AHEAD / 2 ? SLIM_RATE_SLOWER : SLIM_RATE_SEND;
}

/* How long a packet of so many bytes takes at `rate` bytes a second, which is not 0. */
static __always_inline __u64 slim_rate_cost(__u32 length, __u64 rate)
{
	return length * SLIM_SECOND / rate;
}

/* Of one connection, which the kernel paces (SO_MAX_PACING_RATE, bytes a second). */
#define SLIM_NO_PACE 0xffffffff

/*
 * May a connection keep the pace that it has? What the application asked for
 * stays, if it is less than the limit. `told`: what it was told for a limit
 * before, 0 for nothing.
 */
static __always_inline _Bool slim_rate_keeps(__u32 own, __u32 told, __u32 limit)
{
	return own <= limit && (!told || own != told);
}

#endif /* SLIMNET_RATE_H */
