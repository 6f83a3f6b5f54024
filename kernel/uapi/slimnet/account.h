/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How many bytes a connection carried: TCP counts SYN and FIN as one each, for
 * they take a sequence number (RFC 9293, section 3.4), and so does the kernel
 * in tcpi_bytes_acked and tcpi_bytes_received.
 *
 * Compiled unchanged into every data path.
 */
#ifndef SLIMNET_ACCOUNT_H
#define SLIMNET_ACCOUNT_H

#include "byteorder.h"

/* As far as they matter here; the kernel's numbers (include/net/tcp_states.h). */
enum slim_tcp_state {
	SLIM_TCP_FIN_WAIT2 = 5,
	SLIM_TCP_LAST_ACK = 9,
	SLIM_TCP_CLOSING = 11,
};

/*
 * Payload out of what the kernel counted. `state` is the one before CLOSE; what
 * an aborted connection still had under way is not known.
 */
static __always_inline __u64 slim_account_sent(__u64 acked, __u32 state, _Bool opened)
{
	__u64 flags = opened;	/* its SYN; an accepted one's SYN-ACK is not counted */

	if (state == SLIM_TCP_FIN_WAIT2 || state == SLIM_TCP_CLOSING ||
	    state == SLIM_TCP_LAST_ACK)
		flags++;
	return acked > flags ? acked - flags : 0;
}

/*
 * `over`: the other end's FIN came (SOCK_DONE). The state does not say: from
 * FIN_WAIT2 a socket that was closed leaves for TIME_WAIT before it comes, and
 * when it comes.
 */
static __always_inline __u64 slim_account_received(__u64 received, _Bool over)
{
	return received > over ? received - over : 0;
}

#endif /* SLIMNET_ACCOUNT_H */
