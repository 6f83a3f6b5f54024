/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ways in for the fuzzer (test/fuzz.c), in a build of its own only. */
#ifndef SLIMNET_ROUTER_FUZZING_H
#define SLIMNET_ROUTER_FUZZING_H

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION

#include <stddef.h>
#include <stdint.h>

#include <linux/types.h>

/* A process of the first endpoint, connected by `fd`; it reads; 0: its connection ended. */
void fuzz_process(int fd);
int fuzz_turn(void);
void fuzz_end(void);
/* Bytes of another host's; `tagged`: as frames whose tags are made right. */
void fuzz_link(int fd, int opener, int tagged, const __be32 *host, const uint8_t *bytes,
	       size_t size);
void fuzz_bury(void);

#endif

#endif
