/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The live connections of endpoints, for whoever reads the iterator: one
 * struct slim_connection and its struct
 * slim_socket each. The data path itself keeps no list.
 */
#ifndef SLIMNET_LIST_H
#define SLIMNET_LIST_H

#include "bind.h"

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
} __attribute__((preserve_access_index));

static __always_inline int slim_list(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct slim_socket *socket = ctx->value;
	struct sock *sk = ctx->sk;
	struct slim_connection row = {};

	if (!socket || !sk)
		return 0;
	row.cookie = bpf_get_socket_cookie(sk);
	row.state = sk->__sk_common.skc_state;
	row.real_source_port = bpf_htons(sk->__sk_common.skc_num);
	row.real_destination_port = sk->__sk_common.skc_dport;
	row.real_source = sk->__sk_common.skc_rcv_saddr;
	row.real_destination = sk->__sk_common.skc_daddr;
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	bpf_seq_write(ctx->meta->seq, socket, sizeof(*socket));
	return 0;
}

#endif /* SLIMNET_LIST_H */
