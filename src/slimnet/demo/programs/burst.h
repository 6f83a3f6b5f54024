/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How connections are accepted from a full queue, between load.c and answer.c on one machine:
 * the client connects once, and then `count` times; the first connection carries `count` (32
 * bits), and back `count` times of 64 bits, nanoseconds of each accept.
 */
#ifndef SLIMNET_DEMO_BURST_H
#define SLIMNET_DEMO_BURST_H

#include <stdint.h>

/* Below the usual limits on descriptors (1024) and on a listener's queue (4096). */
#define BURST 500

#endif
