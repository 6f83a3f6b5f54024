/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Times are nanoseconds of a clock that never steps (CLOCK_MONOTONIC), 64 bits.
 */
#ifndef SLIMNET_CLOCK_H
#define SLIMNET_CLOCK_H

#define SLIM_SECOND 1000000000ULL

#endif /* SLIMNET_CLOCK_H */
