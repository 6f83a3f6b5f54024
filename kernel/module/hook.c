// SPDX-License-Identifier: GPL-2.0-only
/*
 * Functions of ours that stand in for functions of the kernel, by ftrace with
 * IPMODIFY, as live patches do it (Documentation/livepatch/livepatch.rst).
 *
 * Every call of such a function anywhere in the kernel comes to ours, except
 * those that the module itself makes: ours calls the one that it stands in for.
 * A caller is told by its return address, so no call of ours may be a jump
 * (-fno-optimize-sibling-calls).
 */
#ifndef CONFIG_X86_64
#error "slimnet has been built and tested for x86-64 only"
#endif

#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/version.h>
#include <net/inet_common.h>
#include <net/mptcp.h>

#include "slimnet.h"

#ifndef arch_ftrace_regs		/* Linux 6.13, and 6.12's long-term releases */
#define arch_ftrace_regs(fregs) (fregs)
#endif
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define ftrace_regs_set_instruction_pointer ftrace_instruction_pointer_set
#define ftrace_regs_get_argument(fregs, n) regs_get_kernel_argument(&(fregs)->regs, n)
#endif

struct slim_hook {
	struct ftrace_ops ops;
	char *name;
	void *function;
	bool registered;
};

/* How many tasks are in a function of ours that may sleep. */
static atomic_t slim_inside = ATOMIC_INIT(0);

void slim_hook_enter(void)
{
	atomic_inc(&slim_inside);
}

void slim_hook_leave(void)
{
	atomic_dec(&slim_inside);
}

static void notrace slim_redirect(unsigned long ip, unsigned long parent_ip,
				  struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	void *function = container_of(ops, struct slim_hook, ops)->function;

	if (!within_module(parent_ip, THIS_MODULE))
		ftrace_regs_set_instruction_pointer(regs, (unsigned long)function);
}

/* tcp_set_state() is only looked at. */
static void notrace slim_watch_state(unsigned long ip, unsigned long parent_ip,
				     struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	slim_tcp_state((struct sock *)ftrace_regs_get_argument(regs, 0),
		       (int)ftrace_regs_get_argument(regs, 1));
}

/*
 * Called as inet_create(net, sock, protocol, kern). A socket of MPTCP in an endpoint's
 * namespace becomes one of TCP, as MPTCP itself falls back to: its subflows would be
 * other sockets than the one that the application has.
 */
static void notrace slim_watch_create(unsigned long ip, unsigned long parent_ip,
				      struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	const struct net *net = (const struct net *)ftrace_regs_get_argument(regs, 0);

	if ((int)ftrace_regs_get_argument(regs, 2) == IPPROTO_MPTCP &&
	    rcu_access_pointer(slim_net(net)->place))
		arch_ftrace_regs(regs)->regs.dx = IPPROTO_TCP;
}

#define SLIM_HOOK(kernel, ours) {						\
	.name = #kernel,							\
	.function = ours,							\
	.ops = {								\
		.func = slim_redirect,						\
		.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT,	\
	},									\
}

static struct slim_hook slim_hooks[] = {
	SLIM_HOOK(tcp_v4_destroy_sock, slim_tcp_v4_destroy_sock),
	{
		.name = "tcp_set_state",
		.ops = { .func = slim_watch_state, .flags = FTRACE_OPS_FL_PERMANENT },
	},
	{
		.name = "inet_create",
		.ops = { .func = slim_watch_create, .flags = FTRACE_OPS_FL_PERMANENT },
	},
	{
		.name = "inet6_create",
		.ops = { .func = slim_watch_create, .flags = FTRACE_OPS_FL_PERMANENT },
	},
	SLIM_HOOK(tcp_disconnect, slim_tcp_disconnect),
	SLIM_HOOK(inet_getname, slim_inet_getname),
	SLIM_HOOK(inet6_getname, slim_inet6_getname),
	SLIM_HOOK(sock_setsockopt, slim_sock_setsockopt),
	SLIM_HOOK(tcp_setsockopt, slim_tcp_setsockopt),
	SLIM_HOOK(tcp_getsockopt, slim_tcp_getsockopt),
	SLIM_HOOK(sock_ioctl, slim_sock_ioctl),
#ifdef CONFIG_COMPAT
	SLIM_HOOK(compat_sock_ioctl, slim_compat_sock_ioctl),
#endif
	SLIM_HOOK(inet_csk_complete_hashdance, slim_inet_csk_complete_hashdance),
	SLIM_HOOK(inet_csk_reqsk_queue_add, slim_inet_csk_reqsk_queue_add),
	SLIM_HOOK(__inet_lookup_listener, slim_inet_lookup_listener),
	SLIM_HOOK(inet_csk_listen_start, slim_inet_csk_listen_start),
	SLIM_HOOK(inet_csk_listen_stop, slim_inet_csk_listen_stop),
	SLIM_HOOK(tcp_v4_connect, slim_tcp_v4_connect),
};

int slim_hooks_register(void)
{
	size_t i;
	int error;

	for (i = 0; i < ARRAY_SIZE(slim_hooks); i++) {
		struct slim_hook *hook = &slim_hooks[i];

		error = ftrace_set_filter(&hook->ops, hook->name, strlen(hook->name), 1);
		if (!error)
			error = register_ftrace_function(&hook->ops);
		if (error) {
			pr_err("slimnet: cannot stand in for %s: %d%s\n", hook->name, error,
			       error == -EBUSY ? " (a live patch does)" : "");
			ftrace_free_filter(&hook->ops);
			slim_hooks_unregister();
			return error;
		}
		hook->registered = true;
	}
	return 0;
}

/* When it returns, nobody is in a function of ours any more. */
void slim_hooks_unregister(void)
{
	size_t i = ARRAY_SIZE(slim_hooks);

	while (i--) {
		struct slim_hook *hook = &slim_hooks[i];

		if (!hook->registered)
			continue;
		unregister_ftrace_function(&hook->ops);
		ftrace_free_filter(&hook->ops);
		hook->registered = false;
	}
	/* Who was sent to a function of ours has entered it, or left it. */
	synchronize_rcu_tasks();
	while (atomic_read(&slim_inside))
		msleep(20);
	/* And who left it has returned from it. */
	synchronize_rcu_tasks();
}
