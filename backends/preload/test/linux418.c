// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * linux418 COMMAND [ARGUMENT]...: a command, and all that it starts, without what kernels
 * newer than 4.18 brought: those system calls are ENOSYS, those options of sockets are
 * ENOPROTOOPT, and those protocols are EPROTONOSUPPORT. What is not in the registers of a
 * call (flags in memory, /proc, netlink, how calls behave) is this kernel's all the same.
 */
#include <err.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <netinet/in.h>
#include <unistd.h>

/* The last that Linux 4.18 has. Of IP's options there are only three to name. */
enum {
	LAST_CALL = SYS_rseq,		/* on all machines, by its uapi/asm/unistd.h */
	LAST_SOCKET_OPTION = 60,	/* SO_ZEROCOPY */
	LAST_TCP_OPTION = 36,		/* TCP_INQ */
	LAST_PROTOCOL = 255,		/* IPPROTO_RAW; IPPROTO_MPTCP is 262 */
	RECVERR_RFC4884 = 26,
	LOCAL_PORT_RANGE = 51,
	PROTOCOL = 52,
};

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(test, value, yes, no) BPF_JUMP(BPF_JMP | test | BPF_K, (value), (yes), (no))
#define ANSWER(value) BPF_STMT(BPF_RET | BPF_K, (value))
#define ALLOW ANSWER(SECCOMP_RET_ALLOW)
#define REFUSE_IF(test, value, error) \
	IF(test, value, 0, 1), ANSWER(SECCOMP_RET_ERRNO | (error))

int main(int argc, char **argv)
{
	struct sock_filter filter[] = {
		LOAD(arch),
		IF(BPF_JEQ, MACHINE, 1, 0),
		ALLOW,
		LOAD(nr),
		REFUSE_IF(BPF_JGT, LAST_CALL, ENOSYS),
		IF(BPF_JEQ, SYS_socket, 0, 4),
		LOAD(args[2]),
		REFUSE_IF(BPF_JGT, LAST_PROTOCOL, EPROTONOSUPPORT),
		ALLOW,
		IF(BPF_JEQ, SYS_setsockopt, 2, 0),
		IF(BPF_JEQ, SYS_getsockopt, 1, 0),
		ALLOW,
		LOAD(args[1]),
		IF(BPF_JEQ, SOL_SOCKET, 0, 4),
		LOAD(args[2]),
		REFUSE_IF(BPF_JGT, LAST_SOCKET_OPTION, ENOPROTOOPT),
		ALLOW,
		IF(BPF_JEQ, IPPROTO_TCP, 0, 4),
		LOAD(args[2]),
		REFUSE_IF(BPF_JGT, LAST_TCP_OPTION, ENOPROTOOPT),
		ALLOW,
		IF(BPF_JEQ, IPPROTO_IP, 0, 8),
		LOAD(args[2]),
		REFUSE_IF(BPF_JEQ, RECVERR_RFC4884, ENOPROTOOPT),
		REFUSE_IF(BPF_JEQ, LOCAL_PORT_RANGE, ENOPROTOOPT),
		REFUSE_IF(BPF_JEQ, PROTOCOL, ENOPROTOOPT),
		ALLOW,
		ALLOW,
	};
	const struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

	if (argc < 2)
		errx(2, "wanted a command");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		err(1, "seccomp");
	execvp(argv[1], argv + 1);
	err(127, "%s", argv[1]);
}
