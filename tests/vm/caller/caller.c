/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A caller in the kernel: when it is loaded it connects to 10.9.0.2 port 80, says hello,
 * and is gone. With a socket of the process that loads it, or with one of the kernel's
 * own in that process's network namespace (kernel=1).
 */
#include <linux/in.h>
#include <linux/inet.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/nsproxy.h>
#include <linux/uio.h>
#include <net/net_namespace.h>

static bool kernel;
module_param(kernel, bool, 0);

static int __init caller_init(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(80) };
	struct kvec text = { .iov_base = "hello", .iov_len = 5 };
	struct msghdr message = {};
	struct socket *sock;
	int error;

	to.sin_addr.s_addr = in_aton("10.9.0.2");
	if (kernel)
		error = sock_create_kern(current->nsproxy->net_ns, AF_INET, SOCK_STREAM, 0, &sock);
	else
		error = sock_create(AF_INET, SOCK_STREAM, 0, &sock);
	if (error)
		return error;
	error = kernel_connect(sock, (struct sockaddr *)&to, sizeof(to), 0);
	if (!error && kernel_sendmsg(sock, &message, &text, 1, 5) != 5)
		error = -EIO;
	sock_release(sock);
	/* Nothing stays; ECANCELED: all went well. */
	return error ?: -ECANCELED;
}

module_init(caller_init);
MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("A caller in the kernel, for a test");
