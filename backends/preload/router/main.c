// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* slimnet-router: see backends/preload/protocol/README.md. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include <slimnet/address.h>

#include "diag.h"
#include "loop.h"
#include "own.h"
#include "ports.h"
#include "router.h"

static const char usage[] =
	"usage: slimnet-router --control PATH --state PATH --host ADDRESS\n"
	"                      --listen ADDRESS:PORT --key PATH [--ports FIRST-LAST]\n"
	"\n"
	"The router of slimnet's preload data path, started by the agent.\n"
	"\n"
	"  --control PATH         Unix socket that it makes for the agent\n"
	"  --state PATH           file that a router started later takes up\n"
	"  --host ADDRESS         underlay address of this host\n"
	"  --listen ADDRESS:PORT  where other hosts' routers reach it\n"
	"  --key PATH             file of the cluster's key, 32 digits; of two while it rotates,\n"
	"                         a line each, the first of which makes links\n"
	"  --ports FIRST-LAST     ports of the host for endpoints' ports (20000-31999)\n";

void say(const char *format, ...)
{
	char line[512];
	va_list values;
	int size;

	va_start(values, format);
	size = vsnprintf(line, sizeof(line) - 1, format, values);
	va_end(values);
	if (size < 0)
		return;
	if (size > (int)sizeof(line) - 2)
		size = (int)sizeof(line) - 2;
	line[size++] = '\n';
	/* One write: lines of two routers do not mix. */
	fprintf(stderr, "slimnet-router: %.*s", size, line);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void __attribute__((noreturn)) wrong(const char *option, const char *value)
{
	say("%s: wrong value: %s", option, value);
	exit(2);
}

static int read_address(const char *text, __be32 *address)
{
	struct in_addr v4;
	struct in6_addr v6;

	if (inet_pton(AF_INET, text, &v4) == 1) {
		slim_map_v4(address, v4.s_addr);
		return 0;
	}
	if (inet_pton(AF_INET6, text, &v6) != 1)
		return -1;
	memcpy(address, &v6, sizeof(v6));
	return 0;
}

static int read_number(const char *text, const char *end, unsigned long most, unsigned long *number)
{
	char *stopped;

	if (*text < '0' || *text > '9')
		return -1;
	*number = strtoul(text, &stopped, 10);
	return stopped != end || *number > most ? -1 : 0;
}

static void read_listen(const char *text, struct slim_shim_name *name)
{
	const char *colon = strrchr(text, ':');
	unsigned long port;
	char address[64];
	size_t size = colon ? (size_t)(colon - text) : 0;

	if (size > 1 && text[0] == '[' && text[size - 1] == ']') {
		text++;
		size -= 2;
	}
	if (!size || size >= sizeof(address) ||
	    read_number(colon + 1, colon + strlen(colon), 65535, &port) || !port)
		wrong("--listen", text);
	memcpy(address, text, size);
	address[size] = 0;
	if (read_address(address, name->address))
		wrong("--listen", text);
	name->port = htons((uint16_t)port);
}

static void read_ports(const char *text)
{
	const char *dash = strchr(text, '-');
	unsigned long first, last;

	if (!dash || read_number(text, dash, 65535, &first) ||
	    read_number(dash + 1, dash + strlen(dash), 65535, &last) || !first || first > last)
		wrong("--ports", text);
	ports_range((uint16_t)first, (uint16_t)last);
}

static void on_signal(struct watch *watch, uint32_t events)
{
	(void)watch;
	(void)events;
	loop_stop();
}

static void take_up_tables(void)
{
	char text[512];

	if (!state->tables[0])
		return;
	tables = tables_open(state->tables, text, sizeof(text));
	if (!tables) {
		/* As before the first tables: everything is refused until the agent has new ones. */
		say("%s", text);
		return;
	}
	flows_revoke();
}

static int failed(const char *what, const char *value)
{
	say("%s %s: %s", what, value, strerror(errno));
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "control", required_argument, NULL, 'c' },
		{ "state", required_argument, NULL, 's' },
		{ "host", required_argument, NULL, 'h' },
		{ "listen", required_argument, NULL, 'l' },
		{ "key", required_argument, NULL, 'k' },
		{ "ports", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, '?' + 1 },
		{ NULL, 0, NULL, 0 },
	};
	const char *control = NULL, *file = NULL, *host = NULL, *listen = NULL, *key_file = NULL;
	struct slim_shim_name name = {};
	struct rlimit files;
	struct watch signals;
	uint8_t keys[2][16] = {};
	__be32 address[4];
	sigset_t ends;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'c':
			control = optarg;
			break;
		case 's':
			file = optarg;
			break;
		case 'h':
			host = optarg;
			break;
		case 'l':
			listen = optarg;
			break;
		case 'k':
			key_file = optarg;
			break;
		case 'p':
			read_ports(optarg);
			break;
		case '?' + 1:
			fputs(usage, stdout);
			return 0;
		default:
			return 2;
		}
	if (!control || !file || !host || !listen || !key_file || optind < argc) {
		fputs(usage, stderr);
		return 2;
	}
	if (read_address(host, address))
		wrong("--host", host);
	read_listen(listen, &name);
	if (read_keys(key_file, keys))
		return failed("--key", key_file);
	/* A connection of each process of each endpoint. */
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	own_set(address);
	if (loop_start() ||
	    loop_watch(&signals, signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK), EPOLLIN,
		       on_signal))
		return failed("epoll", "");
	if (diag_open())
		say("sock_diag: %s: live connections cannot be told from closed ones",
		    strerror(errno));
	if (state_open(file, address)) {
		if (errno == EWOULDBLOCK) {
			say("--state %s: another router has it", file);
			return 2;
		}
		return failed("--state", file);
	}
	take_up_tables();
	if (link_start(&name, (const uint8_t (*)[16])keys))
		return failed("--listen", listen);
	flows_start();
	endpoint_start();
	published_tables();
	if (control_start(control))
		return failed("--control", control);
	loop_run();
	unlink(control);
	return 0;
}
