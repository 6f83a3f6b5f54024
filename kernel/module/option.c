// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a socket that has moved does not have: options and ioctls that take or show
 * anything of the host's network namespace (sockopt.h). In its own namespace it has
 * them; slim_may_move() sees to it that none of them comes along.
 */
#include <linux/fs.h>
#include <linux/in.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <net/sock.h>
#include <net/tcp.h>

#include <slimnet/sockopt.h>

#include "slimnet.h"

static struct slim_place *slim_moved(const struct sock *sk)
{
	const struct slim_socket *socket = slim_socket_find(sk);

	return socket ? socket->place : NULL;
}

/* 1: swallowed, 0: the kernel's own, or an error. */
static int slim_option(const struct sock *sk, int level, int name)
{
	struct slim_place *place;
	int error = 0;

	rcu_read_lock();
	place = slim_moved(sk);
	if (place && slim_option_forbidden(level, name)) {
		slim_count(place->host, SLIM_REASON_OPTION);
		error = -EPERM;
	} else if (place && slim_option_swallowed(level, name)) {
		error = 1;
	}
	rcu_read_unlock();
	return error;
}

int slim_sock_setsockopt(struct socket *sock, int level, int name, sockptr_t value,
			 unsigned int length)
{
	int error;

	slim_hook_enter();
	error = slim_option(sock->sk, level, name);
	if (!error)
		error = sock_setsockopt(sock, level, name, value, length);
	if (!error && READ_ONCE(sock->sk->sk_state) == TCP_LISTEN)
		slim_shadow_follow(sock->sk);
	slim_hook_leave();
	return min(error, 0);
}

/* Of every level but SOL_SOCKET. */
int slim_tcp_setsockopt(struct sock *sk, int level, int name, sockptr_t value, unsigned int length)
{
	int error;

	slim_hook_enter();
	error = slim_option(sk, level, name);
	if (!error)
		error = tcp_prot.setsockopt(sk, level, name, value, length);
	if (!error && READ_ONCE(sk->sk_state) == TCP_LISTEN)
		slim_shadow_follow(sk);
	slim_hook_leave();
	return min(error, 0);
}

int slim_tcp_getsockopt(struct sock *sk, int level, int name, char __user *value,
			int __user *length)
{
	struct slim_place *place;
	int error = 0;

	slim_hook_enter();
	rcu_read_lock();
	place = slim_moved(sk);
	if (place && slim_option_reveals(level, name)) {
		slim_count(place->host, SLIM_REASON_OPTION);
		error = -EPERM;
	}
	rcu_read_unlock();
	if (!error)
		error = tcp_prot.getsockopt(sk, level, name, value, length);
	slim_hook_leave();
	return error;
}

/* Whether an ioctl is about a network namespace, its interfaces, routes and neighbours. */
static bool slim_ioctl_forbidden(const struct file *file, unsigned int command)
{
	const struct socket *sock = file->private_data;
	bool forbidden = false;

	/* Those of the socket itself come first (asm-generic/sockios.h). */
	if (command >> 8 != SIOCADDRT >> 8 || command < SIOCADDRT || !sock->sk)
		return false;
	rcu_read_lock();
	forbidden = slim_moved(sock->sk);
	rcu_read_unlock();
	return forbidden;
}

long slim_sock_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	long error = -EPERM;

	slim_hook_enter();
	if (!slim_ioctl_forbidden(file, command))
		error = file->f_op->unlocked_ioctl(file, command, argument);
	slim_hook_leave();
	return error;
}

#ifdef CONFIG_COMPAT
long slim_compat_sock_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	long error = -EPERM;

	slim_hook_enter();
	if (!slim_ioctl_forbidden(file, command))
		error = file->f_op->compat_ioctl(file, command, argument);
	slim_hook_leave();
	return error;
}
#endif
