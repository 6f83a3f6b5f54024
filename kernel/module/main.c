// SPDX-License-Identifier: GPL-2.0-only
/*
 * slimnet: sockets of containers in the host's network namespace. Hosts and
 * endpoints come and go here; what they do is in the other files.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <net/genetlink.h>
#include <net/netns/generic.h>

#include "slimnet.h"

/* Of all that starts, ends and changes hosts, endpoints and tables. */
DEFINE_MUTEX(slim_mutex);

unsigned int slim_net_id;

struct workqueue_struct *slim_work;

struct slim_net *slim_net(const struct net *net)
{
	return net_generic(net, slim_net_id);
}

/* Endpoints */

struct slim_place *slim_place_find(struct slim_host *host, u32 endpoint)
{
	struct slim_place *place;

	hash_for_each_possible_rcu(host->places, place, node, endpoint,
				   lockdep_is_held(&slim_mutex))
		if (place->endpoint == endpoint)
			return place;
	return NULL;
}

void slim_place_put(struct slim_place *place)
{
	if (!refcount_dec_and_test(&place->refs))
		return;
	/* Nobody sits on an inner address of it any more. */
	clear_bit(place->index, place->host->indexes);
	slim_accounts_free(place);
	slim_host_put(place->host);
	kfree_rcu(place, rcu);
}

/* An index that was used last is used again last. */
static u32 slim_index_take(struct slim_host *host)
{
	u32 index = find_next_zero_bit(host->indexes, SLIM_INDEX_MAX + 1, host->last_index + 1);

	if (index > SLIM_INDEX_MAX)
		index = find_next_zero_bit(host->indexes, SLIM_INDEX_MAX + 1, 1);
	if (index > SLIM_INDEX_MAX)
		return 0;
	set_bit(index, host->indexes);
	host->last_index = index;
	return index;
}

/* A new endpoint, or NULL with an error. Under slim_mutex; the caller holds `net`. */
struct slim_place *slim_place_attach(struct slim_host *host, struct net *net, u32 endpoint, u32 vni,
				     const __be32 *address, int *error)
{
	struct slim_place *place = kzalloc(sizeof(*place), GFP_KERNEL);

	*error = -ENOMEM;
	if (!place)
		return NULL;
	*error = -ENOSPC;
	place->index = slim_index_take(host);
	if (!place->index) {
		kfree(place);
		return NULL;
	}
	refcount_set(&place->refs, 1);
	refcount_inc(&host->refs);
	place->host = host;
	place->net = net;
	place->endpoint = endpoint;
	place->vni = vni;
	slim_copy(place->address, address);
	spin_lock_init(&place->lock);
	INIT_LIST_HEAD(&place->accounts);
	hash_add_rcu(host->places, &place->node, endpoint);
	host->attached++;
	rcu_assign_pointer(slim_net(net)->place, place);
	*error = 0;
	return place;
}

/* Under slim_mutex. */
void slim_place_detach(struct slim_place *place)
{
	struct slim_host *host = place->host;

	spin_lock_bh(&host->lock);
	place->detached = true;
	spin_unlock_bh(&host->lock);
	RCU_INIT_POINTER(slim_net(place->net)->place, NULL);
	hash_del_rcu(&place->node);
	host->attached--;
	synchronize_rcu();
	slim_flows_drop(host, place);
	slim_sockets_close(host, place, false);
	slim_sockets_home(host, place);
	place->net = NULL;
	slim_place_put(place);
}

/* Hosts */

static void slim_host_free(struct work_struct *work)
{
	struct slim_host *host = container_of(to_rcu_work(work), struct slim_host, work);

	slim_tables_free(host->next);
	slim_tables_free(rcu_dereference_protected(host->tables, true));
	rhashtable_destroy(&host->flows);
	if (host->names)
		slim_aliases_sweep(host, true);
	kvfree(host->names);
	kvfree(host->affinities);
	free_percpu(host->counters);
	kfree_sensitive(host);
}

void slim_host_put(struct slim_host *host)
{
	if (!refcount_dec_and_test(&host->refs))
		return;
	INIT_RCU_WORK(&host->work, slim_host_free);
	queue_rcu_work(slim_work, &host->work);
}

/* One that is to be filled, and started. */
struct slim_host *slim_host_make(struct net *net)
{
	struct slim_host *host = kzalloc(sizeof(*host), GFP_KERNEL);

	if (!host)
		return NULL;
	if (rhashtable_init(&host->flows, &slim_flow_params)) {
		kfree(host);
		return NULL;
	}
	refcount_set(&host->refs, 1);
	host->net = net;
	hash_init(host->places);
	INIT_LIST_HEAD(&host->sockets);
	spin_lock_init(&host->lock);
	spin_lock_init(&host->affinity_lock);
	INIT_DELAYED_WORK(&host->sweep, slim_flows_sweep);
	host->counters = __alloc_percpu(SLIM_REASON_COUNT * sizeof(u64), sizeof(u64));
	host->affinities = kvcalloc(SLIM_AFFINITIES, sizeof(*host->affinities), GFP_KERNEL);
	host->names = kvcalloc(SLIM_NAME_BUCKETS, sizeof(*host->names), GFP_KERNEL);
	if (!host->counters || !host->affinities || !host->names) {
		slim_host_put(host);
		return NULL;
	}
	return host;
}

/* Under slim_mutex. */
int slim_host_start(struct slim_host *host)
{
	int error = slim_wire_register(host->net);

	if (error)
		return error;
	/* Without it no module could be unloaded that a host runs in. */
	__module_get(THIS_MODULE);
	rcu_assign_pointer(slim_net(host->net)->host, host);
	schedule_delayed_work(&host->sweep, 10 * HZ);
	return 0;
}

/* Under slim_mutex. */
int slim_host_stop(struct slim_host *host, bool force)
{
	struct slim_place *place;
	struct hlist_node *next;
	int bucket;

	if (!force && (host->attached || host->socket_count))
		return -EBUSY;
	hash_for_each_safe(host->places, bucket, next, place, node)
		slim_place_detach(place);
	spin_lock_bh(&host->lock);
	host->dead = true;
	spin_unlock_bh(&host->lock);
	/* Of endpoints that were detached before. */
	slim_sockets_close(host, NULL, false);
	slim_sockets_home(host, NULL);
	RCU_INIT_POINTER(slim_net(host->net)->host, NULL);
	slim_wire_unregister(host->net);
	synchronize_rcu();
	cancel_delayed_work_sync(&host->sweep);
	slim_flows_drop(host, NULL);
	slim_host_put(host);
	module_put(THIS_MODULE);
	return 0;
}

/* A network namespace ends: whatever was in it is gone already. */
static void __net_exit slim_net_exit(struct net *net)
{
	struct slim_place *place;
	struct slim_host *host;

	mutex_lock(&slim_mutex);
	place = rcu_dereference_protected(slim_net(net)->place, lockdep_is_held(&slim_mutex));
	if (place)
		slim_place_detach(place);
	host = rcu_dereference_protected(slim_net(net)->host, lockdep_is_held(&slim_mutex));
	if (host)
		slim_host_stop(host, true);
	mutex_unlock(&slim_mutex);
}

static struct pernet_operations slim_net_ops = {
	.exit = slim_net_exit,
	.id = &slim_net_id,
	.size = sizeof(struct slim_net),
};

static int __init slim_init(void)
{
	int error = -ENOMEM;

	slim_work = alloc_workqueue("slimnet", WQ_UNBOUND, 0);
	if (!slim_work)
		return error;
	error = slim_sockets_init();
	if (error)
		goto no_sockets;
	error = register_pernet_subsys(&slim_net_ops);
	if (error)
		goto no_net;
	error = slim_hooks_register();
	if (error)
		goto no_hooks;
	error = slim_netlink_init();
	if (error)
		goto no_netlink;
	return 0;
no_netlink:
	slim_hooks_unregister();
no_hooks:
	unregister_pernet_subsys(&slim_net_ops);
no_net:
	slim_sockets_exit();
no_sockets:
	destroy_workqueue(slim_work);
	return error;
}

static void __exit slim_exit(void)
{
	slim_netlink_exit();
	slim_hooks_unregister();
	unregister_pernet_subsys(&slim_net_ops);
	/* Shadows first; what was put last is queued after a grace period, and then done. */
	flush_workqueue(slim_work);
	rcu_barrier();
	destroy_workqueue(slim_work);
	slim_sockets_exit();
}

module_init(slim_init);
module_exit(slim_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("slimnet: sockets of containers in the host's network namespace");
MODULE_ALIAS_GENL_FAMILY(SLIM_NL_FAMILY);
MODULE_VERSION("1");
