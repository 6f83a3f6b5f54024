// SPDX-License-Identifier: GPL-2.0-only
/*
 * Under which port a connection of an endpoint goes in the overlay, so that no two
 * live ones have one name: source and destination, addresses and ports.
 *
 * It is the source port that the kernel chose. But the kernel knows connections by
 * wire port, and an endpoint takes the next of those now and then (slim_wire_port());
 * so the kernel may give a source port again that a live connection to the same
 * destination has. That one goes by another port, its alias (wire.h).
 *
 * Behind a service a connection has two names, the listener's and the client's own:
 * one is by the endpoint that was chosen, the other by the address that was dialled.
 *
 * The name of a connection that this end closed first lingers, as TIME_WAIT would:
 * the listener may not have closed its end yet. For a minute, and for less, by and
 * by down to nothing, only where no other port is found.
 */
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "slimnet.h"

#define SLIM_ALIAS_TRIES 24		/* ports that are drawn */
#define SLIM_ALIAS_HURRY 6		/* each of so many with half the patience, then a second */
#define SLIM_ALIAS_LAST 16		/* the others of any port, and without patience */
#define SLIM_ALIAS_FIRST 1024
#define SLIM_ALIAS_LINGER 64		/* seconds */
#define SLIM_LINGERING_MAX 262144	/* names of one host that linger */

/* One name; changed under the host's lock. */
struct slim_name {
	struct hlist_node node;
	u64 to;				/* port and endpoint of the listener, or address dialled */
	u32 endpoint;
	u16 port;
	bool dialled;
	bool lives;
	unsigned long since;		/* jiffies: when it was left */
};

static struct hlist_head *slim_names(struct slim_host *host, u16 port)
{
	return &host->names[port & (SLIM_NAME_BUCKETS - 1)];
}

static struct slim_name slim_name_of(const struct slim_socket *socket, bool dialled, u16 port)
{
	return (struct slim_name){
		.to = dialled ? (u64)ntohs(socket->peer_port) << 32 | ntohl(socket->peer[3]) :
				(u64)ntohs(socket->target_port) << 32 | socket->peer_endpoint,
		.endpoint = socket->place->endpoint,
		.port = port,
		.dialled = dialled,
		.lives = true,
	};
}

/* Takes a name that nobody has, nor had less than `patience` seconds ago; or NULL. */
static struct slim_name *slim_name_take(struct slim_host *host, const struct slim_name *wanted,
					u32 patience)
{
	struct slim_name *name;

	hlist_for_each_entry(name, slim_names(host, wanted->port), node) {
		if (name->port != wanted->port || name->to != wanted->to ||
		    name->endpoint != wanted->endpoint || name->dialled != wanted->dialled)
			continue;
		if (name->lives || time_before(jiffies, name->since + patience * HZ))
			return NULL;
		name->lives = true;
		host->lingering--;
		return name;
	}
	name = kmemdup(wanted, sizeof(*wanted), GFP_ATOMIC);
	if (name)
		hlist_add_head(&name->node, slim_names(host, name->port));
	return name;
}

static void slim_name_leave(struct slim_host *host, struct slim_name *name, bool lingers)
{
	if (!name)
		return;
	if (lingers && host->lingering < SLIM_LINGERING_MAX) {
		name->lives = false;
		name->since = jiffies;
		host->lingering++;
		return;
	}
	hlist_del(&name->node);
	kfree(name);
}

/* Takes both names that the connection has with this port, or none. */
static bool slim_alias_take(struct slim_socket *socket, u16 port, u32 patience)
{
	struct slim_host *host = socket->place->host;
	struct slim_name met = slim_name_of(socket, false, port);
	struct slim_name dialled = slim_name_of(socket, true, port);

	socket->met = slim_name_take(host, &met, patience);
	if (!socket->met || !(socket->flags & SLIM_SOCKET_SERVICE))
		return socket->met;
	socket->dialled = slim_name_take(host, &dialled, patience);
	if (socket->dialled)
		return true;
	slim_name_leave(host, socket->met, false);
	socket->met = NULL;
	return false;
}

static bool slim_alias_search(struct slim_socket *socket)
{
	u32 i, alias, patience;

	for (i = 0; i < SLIM_ALIAS_TRIES; i++) {
		alias = get_random_u32() & 0xffff;
		patience = i < SLIM_ALIAS_HURRY ? SLIM_ALIAS_LINGER >> i : i < SLIM_ALIAS_LAST;
		/* Where the kernel takes source ports from; then wherever one is. */
		if (i < SLIM_ALIAS_LAST)
			alias |= 0x8000;
		else if (alias < SLIM_ALIAS_FIRST)
			alias += SLIM_ALIAS_FIRST;
		if (slim_alias_take(socket, (u16)alias, patience)) {
			socket->local_port = htons((u16)alias);
			return true;
		}
	}
	return false;
}

/*
 * A connection that is about to be made gets its name, if it has none yet: `port` is
 * what its socket has, by the kernel's choice or, if it is bound, by bind(2). False:
 * it has none, for that port, or every port that was tried, is taken.
 */
bool slim_alias_give(struct slim_socket *socket, u16 port)
{
	struct slim_host *host = socket->place->host;
	bool bound = socket->bound.port, given;

	spin_lock_bh(&host->lock);
	given = socket->met ||
		slim_alias_take(socket, port, bound ? 0 : SLIM_ALIAS_LINGER) ||
		(!bound && slim_alias_search(socket));
	spin_unlock_bh(&host->lock);
	return given;
}

/* Under the host's lock. */
void slim_alias_leave(struct slim_socket *socket)
{
	struct slim_host *host = socket->place->host;
	bool lingers = socket->flags & SLIM_SOCKET_LINGERS;

	slim_name_leave(host, socket->met, lingers);
	slim_name_leave(host, socket->dialled, lingers);
	socket->met = NULL;
	socket->dialled = NULL;
}

/* Frees those that linger no longer; or all, when nobody has one. */
void slim_aliases_sweep(struct slim_host *host, bool all)
{
	struct slim_name *name;
	struct hlist_node *next;
	u32 i;

	for (i = 0; i < SLIM_NAME_BUCKETS; i++) {
		spin_lock_bh(&host->lock);
		hlist_for_each_entry_safe(name, next, &host->names[i], node) {
			if (!all && (name->lives ||
				     time_before(jiffies, name->since + SLIM_ALIAS_LINGER * HZ)))
				continue;
			hlist_del(&name->node);
			kfree(name);
			host->lingering--;
		}
		spin_unlock_bh(&host->lock);
		cond_resched();
	}
}
