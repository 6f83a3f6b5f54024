/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef SLIMNET_DEMO_CLOCK_H
#define SLIMNET_DEMO_CLOCK_H

#include <stdint.h>
#include <time.h>

#define SECOND 1000000000ull

/* Nanoseconds. */
static inline uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

#endif
