/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is left of an endpoint that is no more, and what never was one.
 *
 * A cgroup's last socket keeps its programs, its directory does not. So whoever
 * was handed a socket of an ended endpoint meets them still, in a cgroup whose
 * slim_local has endpoint 0: socket(2), bind(2), connect(2) and sendto(2) are
 * refused, listen(2), which cannot be, is shielded. A cgroup that is made where
 * endpoints' are, and has no endpoint yet or never, meets the programs of the
 * directory above, of which the same is true.
 *
 * What passes no hook (a UDP socket that has its port from a sendto(2) that was
 * refused may receive; a connect(2) may be between its hook and its SYN) is
 * without packets: slim_silence is attached both ways as an endpoint ends. No
 * endpoint that lives has it.
 */
#ifndef SLIMNET_DEAD_H
#define SLIMNET_DEAD_H

#include "limit.h"

static __always_inline int slim_silence_run(void)
{
	return SLIM_DROP;
}

#endif /* SLIMNET_DEAD_H */
