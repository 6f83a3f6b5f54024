/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Byte order, for every environment that a shared header is compiled in: BPF,
 * the kernel and user space each have names of their own for it.
 */
#ifndef SLIMNET_BYTEORDER_H
#define SLIMNET_BYTEORDER_H

#include <linux/types.h>

#ifdef __CHECKER__
#define slim_force __attribute__((force))
#else
#define slim_force
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define slim_htobe32(x) ((slim_force __be32)__builtin_bswap32(x))
#define slim_be16toh(x) (__builtin_bswap16((slim_force __u16)(x)))
#define slim_be32toh(x) (__builtin_bswap32((slim_force __u32)(x)))
#define slim_htole32(x) ((slim_force __le32)(__u32)(x))
/* The number whose little-endian bytes are those of a field in network order. */
#define slim_bytes16(x) ((slim_force __u16)(x))
#define slim_bytes32(x) ((slim_force __u32)(x))
#else
#define slim_htobe32(x) ((slim_force __be32)(x))
#define slim_be16toh(x) ((slim_force __u16)(x))
#define slim_be32toh(x) ((slim_force __u32)(x))
#define slim_htole32(x) ((slim_force __le32)__builtin_bswap32(x))
#define slim_bytes16(x) (__builtin_bswap16((slim_force __u16)(x)))
#define slim_bytes32(x) (__builtin_bswap32((slim_force __u32)(x)))
#endif

#ifndef __always_inline
#define __always_inline inline __attribute__((__always_inline__))
#endif

#endif /* SLIMNET_BYTEORDER_H */
