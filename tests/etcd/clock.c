/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Preloaded: the process's wall clock is wrong by CLOCK_OFF seconds. The kernel has one
 * wall clock for all (time_namespaces(7) shift the others), so this is where a process
 * asks for it.
 */

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t off;

__attribute__((constructor)) static void begin(void)
{
	const char *text = getenv("CLOCK_OFF");

	off = text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	long error = syscall(SYS_clock_gettime, clock, now);

	if (!error && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += off;
	return error;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	long error = syscall(SYS_gettimeofday, now, zone);

	if (!error)
		now->tv_sec += off;
	return error;
}

time_t time(time_t *into)
{
	struct timespec now;

	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	if (into)
		*into = now.tv_sec;
	return now.tv_sec;
}
