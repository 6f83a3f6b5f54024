// SPDX-License-Identifier: GPL-2.0-only
/* Counters, accounts, and which refusals are told. */
#include <linux/ktime.h>
#include <linux/slab.h>
#include <linux/tcp.h>

#include <slimnet/account.h>
#include <slimnet/clock.h>

#include "slimnet.h"

void slim_count(struct slim_host *host, u32 reason)
{
	if (reason < SLIM_REASON_COUNT)
		this_cpu_inc(host->counters[reason]);
}

/* Adds to what an endpoint did by one rule. */
void slim_account(struct slim_place *place, u32 rule, u32 direction,
		  const struct slim_account *more)
{
	struct slim_counted *counted;

	spin_lock_bh(&place->lock);
	list_for_each_entry(counted, &place->accounts, list)
		if (counted->key.rule == rule && counted->key.direction == direction)
			goto found;
	counted = kzalloc(sizeof(*counted), GFP_ATOMIC);
	if (!counted)
		goto out;
	counted->key.endpoint = place->endpoint;
	counted->key.rule = rule;
	counted->key.direction = direction;
	list_add_tail(&counted->list, &place->accounts);
found:
	counted->account.connections += more->connections;
	counted->account.refused += more->refused;
	counted->account.sent += more->sent;
	counted->account.received += more->received;
out:
	spin_unlock_bh(&place->lock);
}

/* What a connection carried so far; asked before its state changes to CLOSE, what it carried. */
struct slim_account slim_socket_carried(const struct slim_socket *socket)
{
	const struct sock *sk = socket->sk;
	const bool opener = !(socket->flags & SLIM_SOCKET_ACCEPTED);

	return (struct slim_account){
		.connections = 1,
		.sent = slim_account_sent(READ_ONCE(tcp_sk(sk)->bytes_acked),
					  READ_ONCE(sk->sk_state), opener),
		.received = slim_account_received(READ_ONCE(tcp_sk(sk)->bytes_received),
						  sock_flag(sk, SOCK_DONE)),
	};
}

void slim_accounts_free(struct slim_place *place)
{
	struct slim_counted *counted, *next;

	list_for_each_entry_safe(counted, next, &place->accounts, list)
		kfree(counted);
}

/* Whether it was policy that refused: then the rule has it on its account. */
static bool slim_is_policy(u32 reason)
{
	return reason == SLIM_REASON_RULE_DENY || reason == SLIM_REASON_DEFAULT_DENY ||
	       reason == SLIM_REASON_HOST_DENY;
}

/* Whether an endpoint's refusal is told: not more than some in a second are. */
static bool slim_may_tell(struct slim_place *place, struct slim_event *event)
{
	u64 second = div_u64(event->time, SLIM_SECOND);
	bool told;

	spin_lock_bh(&place->lock);
	if (place->second != second) {
		place->second = second;
		place->told = 0;
	}
	told = place->told < SLIM_TOLD_MAX;
	if (told) {
		place->told++;
		event->omitted = place->omitted;
		place->omitted = 0;
	} else {
		place->omitted++;
	}
	spin_unlock_bh(&place->lock);
	return told;
}

/* Counts, charges and tells what was refused, to an endpoint if it is known. */
void slim_refused(struct slim_host *host, struct slim_place *place, struct slim_event *event)
{
	const struct slim_account more = { .refused = 1 };

	slim_count(host, event->reason);
	if (!place)
		return;
	event->time = ktime_get_ns();
	if (slim_is_policy(event->reason))
		slim_account(place, event->rule, event->direction, &more);
	if (slim_may_tell(place, event))
		slim_tell(host, event);
}
