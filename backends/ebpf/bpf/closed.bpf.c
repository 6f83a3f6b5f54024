// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What is kept from the processes of a closed endpoint: one in the host's network
 * namespace whose processes somebody else starts, a container engine say. `slimnet run`
 * takes the same away from what it starts by capabilities, seccomp and Landlock.
 *
 *  - socket families past which no hook of the data path looks: AF_PACKET, AF_VSOCK, ...
 *  - abstract Unix sockets of the host, which belong to its network namespace;
 *  - capabilities with which a process is past the hooks: CAP_NET_RAW, CAP_NET_ADMIN, ...
 *  - bpf(2), bpffs, and the ways out of its cgroup: writing to cgroupfs, and
 *    clone3(CLONE_INTO_CGROUP), which needs but an O_PATH descriptor, of which no hook of
 *    opening hears;
 *  - SO_ORIGINAL_DST, which would write underlay addresses into the caller's memory.
 *
 * An object of its own, for a kernel may lack the BPF LSM. Each hook takes one of the ten
 * that the machine has for programs on cgroups (CGROUP_LSM_NUM), and costs all of the
 * machine a little wherever one such endpoint is; so there is none of inode_permission,
 * which every part of a path passes.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "contract.h"
#include "fingerprint.h"

#include <slimnet/fingerprint.h>

#define ENOENT 2
#define EAFNOSUPPORT 97

#define SLIM_HOOK_REFUSE 0
#define SLIM_HOOK_ALLOW 1

/* From the kernel's headers: magic.h, sched.h, fs.h, in.h, netfilter_ipv4.h. */
#define CGROUP_SUPER_MAGIC 0x27e0eb
#define CGROUP2_SUPER_MAGIC 0x63677270
#define BPF_FS_MAGIC 0xcafe4a11
#define CLONE_INTO_CGROUP 0x200000000ULL
#define FMODE_WRITE 2
#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80

/* What this object was built from; the loader refuses another. */
const volatile struct {
	__u64 version;
	__u64 fingerprint;
	__u64 own;
} slim_abi_stamp = { SLIM_ABI_VERSION, SLIM_FINGERPRINT, SLIM_EBPF_FINGERPRINT };

/* Bit masks; set by the loader. */
const volatile struct {
	__u64 families;			/* that socket(2) may ask for */
	__u64 capabilities;		/* that no process has */
} slim_closed_to;

/* The cgroup that the programs are attached to; all 0 until the loader has said it. */
struct slim_closed_cgroup {
	__u64 id;
	__u32 level;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, struct slim_closed_cgroup);
} slim_closed SEC(".maps");

/* The kernel's own types, as far as they are read here. */
#define KERNEL __attribute__((preserve_access_index))

struct kernfs_node {
	__u64 id;
} KERNEL;
struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[];	/* Linux 6.1 */
} KERNEL;
struct sock_cgroup_data {
	struct cgroup *cgroup;
} KERNEL;
struct sock {
	struct sock_cgroup_data sk_cgrp_data;
} KERNEL;
struct socket {
	struct sock *sk;
} KERNEL;
struct sockaddr_un {
	char sun_path[108];
} KERNEL;
struct unix_address {
	int len;
	struct sockaddr_un name[];
} KERNEL;
struct unix_sock {
	struct unix_address *addr;
} KERNEL;
struct super_block {
	unsigned long s_magic;
} KERNEL;
struct inode {
	struct super_block *i_sb;
} KERNEL;
struct file {
	unsigned int f_mode;
	struct inode *f_inode;
} KERNEL;

static __always_inline int slim_refuse_with(int number)
{
	bpf_set_retval(-number);
	return SLIM_HOOK_REFUSE;
}

static __always_inline bool slim_has(__u64 mask, __u32 number)
{
	return number < 64 && mask >> number & 1;
}

/* Is this an abstract socket, and none of the endpoint's own? */
static __always_inline bool slim_is_foreign(struct sock *sk)
{
	const struct slim_closed_cgroup *here = bpf_get_local_storage(&slim_closed, 0);
	struct unix_address *address = BPF_CORE_READ((struct unix_sock *)sk, addr);
	struct cgroup *there, *ancestor, **ancestors;
	char first;

	/* One without an address is half of a socketpair(2), or of a connection. */
	if (!address || BPF_CORE_READ(address, len) <= (int)sizeof(unsigned short))
		return false;
	bpf_core_read(&first, sizeof(first), &address->name[0].sun_path);
	if (first)
		return false;
	there = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	if (!here->id || BPF_CORE_READ(there, level) < (int)here->level)
		return true;
	ancestors = (void *)__builtin_preserve_access_index(&there->ancestors[0]);
	bpf_probe_read_kernel(&ancestor, sizeof(ancestor), ancestors + here->level);
	return BPF_CORE_READ(ancestor, kn, id) != here->id;
}

SEC("lsm_cgroup/socket_create")
int BPF_PROG(slim_closed_create, int family, int type, int protocol, int kern)
{
	return kern || slim_has(slim_closed_to.families, family) ?
		       SLIM_HOOK_ALLOW : slim_refuse_with(EAFNOSUPPORT);
}

SEC("lsm_cgroup/unix_stream_connect")
int BPF_PROG(slim_closed_stream, struct sock *own, struct sock *other)
{
	return !slim_is_foreign(other);
}

SEC("lsm_cgroup/unix_may_send")
int BPF_PROG(slim_closed_send, struct socket *own, struct socket *other)
{
	return !slim_is_foreign(BPF_CORE_READ(other, sk));
}

SEC("lsm_cgroup/socket_getsockopt")
int BPF_PROG(slim_closed_option, struct socket *sock, int level, int option)
{
	return (level == SOL_IP || level == SOL_IPV6) && option == SO_ORIGINAL_DST ?
		       slim_refuse_with(ENOENT) : SLIM_HOOK_ALLOW;
}

/* Reading cgroupfs is no way out, and programs look there for how much memory they have. */
SEC("lsm_cgroup/file_open")
int BPF_PROG(slim_closed_open, struct file *file)
{
	unsigned long magic = file->f_inode->i_sb->s_magic;

	if (magic == CGROUP2_SUPER_MAGIC || magic == CGROUP_SUPER_MAGIC)
		return !(file->f_mode & FMODE_WRITE);
	return magic != BPF_FS_MAGIC;
}

SEC("lsm_cgroup/task_alloc")
int BPF_PROG(slim_closed_clone, void *task, __u64 flags)
{
	return !(flags & CLONE_INTO_CGROUP);
}

SEC("lsm_cgroup/bpf")
int BPF_PROG(slim_closed_bpf)
{
	return SLIM_HOOK_REFUSE;
}

SEC("lsm_cgroup/capable")
int BPF_PROG(slim_closed_capable, const void *credentials, void *space, int capability)
{
	return !slim_has(slim_closed_to.capabilities, capability);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
