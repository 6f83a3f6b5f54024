// SPDX-License-Identifier: GPL-2.0-only
/* The generic netlink family that the module is driven by: slimnet/netlink.h is its manual. */
#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/slab.h>
#include <net/genetlink.h>
#include <net/inet_hashtables.h>
#include <net/tcp.h>

#include <slimnet/fingerprint.h>

#include "slimnet.h"

static struct genl_family slim_family;

/* 0, or -EINVAL with a message that names what is missing. */
#define SLIM_NEED(info, attribute) ({						\
	int missing_ = 0;							\
										\
	if (!(info)->attrs[attribute]) {					\
		NL_SET_ERR_MSG((info)->extack, #attribute " is missing");	\
		NL_SET_ERR_ATTR_MISS((info)->extack, NULL, attribute);		\
		missing_ = -EINVAL;						\
	}									\
	missing_;								\
})

#define SLIM_BAD(info, attribute, text)						\
	NL_SET_ERR_MSG_ATTR((info)->extack, (info)->attrs[attribute], #attribute ": " text)

#define SLIM_ATTR_MAX (SLIM_ATTR_COUNT - 1)

/*
 * Requests: the attributes that each has; any other is refused. As long as the family's whole
 * list, each: where one is shorter, or a request says that it has none (maxattr 0), generic
 * netlink reads beyond its end for an attribute that is the family's.
 */
static const struct nla_policy slim_none[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_UNSPEC] = { .type = NLA_REJECT },
};

static const struct nla_policy slim_start_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_ABI_VERSION] = { .type = NLA_U32 },
	[SLIM_ATTR_FINGERPRINT] = { .type = NLA_U64 },
	[SLIM_ATTR_INSTANCE] = { .type = NLA_NUL_STRING, .len = SLIM_NAME_MAX - 1 },
	[SLIM_ATTR_CLUSTER] = { .type = NLA_NUL_STRING, .len = SLIM_NAME_MAX - 1 },
	[SLIM_ATTR_UNDERLAY] = NLA_POLICY_EXACT_LEN(16),
	[SLIM_ATTR_WIRE_PORT] = { .type = NLA_U16 },
	[SLIM_ATTR_RANGE] = NLA_POLICY_EXACT_LEN(4),
	[SLIM_ATTR_KEY] = NLA_POLICY_EXACT_LEN(16),
	[SLIM_ATTR_KEY_OTHER] = NLA_POLICY_EXACT_LEN(16),
	[SLIM_ATTR_OBSERVE] = NLA_POLICY_MAX(NLA_U32, SLIM_NL_OBSERVE_OPENED |
						      SLIM_NL_OBSERVE_CLOSED),
};

static const struct nla_policy slim_teardown_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_FORCE] = { .type = NLA_FLAG },
};

static const struct nla_policy slim_observe_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_OBSERVE] = NLA_POLICY_MAX(NLA_U32, SLIM_NL_OBSERVE_OPENED |
						      SLIM_NL_OBSERVE_CLOSED),
};

static const struct nla_policy slim_begin_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_GENERATION] = NLA_POLICY_MIN(NLA_U64, 1),
	[SLIM_ATTR_BASE] = { .type = NLA_U64 },
};

static const struct nla_policy slim_put_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_TABLE] = NLA_POLICY_MAX(NLA_U32, SLIM_NL_TABLES - 1),
	[SLIM_ATTR_RECORDS] = { .type = NLA_BINARY },
	[SLIM_ATTR_GONE] = { .type = NLA_BINARY },
};

static const struct nla_policy slim_commit_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_GENERATION] = { .type = NLA_U64 },
};

static struct netlink_range_validation slim_endpoint_range = {
	.min = 1,
	.max = SLIM_ADDRESS_SERVICE - 1,
};

static struct netlink_range_validation slim_vni_range = {
	.max = (1 << 24) - 1,
};

static const struct nla_policy slim_attach_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_ENDPOINT] = NLA_POLICY_FULL_RANGE(NLA_U32, &slim_endpoint_range),
	[SLIM_ATTR_NETNS_FD] = { .type = NLA_U32 },
	[SLIM_ATTR_VNI] = NLA_POLICY_FULL_RANGE(NLA_U32, &slim_vni_range),
	[SLIM_ATTR_ADDRESS] = NLA_POLICY_EXACT_LEN(16),
};

static const struct nla_policy slim_detach_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_ENDPOINT] = NLA_POLICY_FULL_RANGE(NLA_U32, &slim_endpoint_range),
};

static const struct nla_policy slim_ask_policy[SLIM_ATTR_COUNT] = {
	[SLIM_ATTR_QUESTION] = NLA_POLICY_EXACT_LEN(sizeof(struct slim_question)),
};

/* The data path of the request's namespace; NULL: none. Under slim_mutex. */
static struct slim_host *slim_host_of(const struct net *net)
{
	return rcu_dereference_protected(slim_net(net)->host, lockdep_is_held(&slim_mutex));
}

/* It, for whoever holds it; or an error. */
static struct slim_host *slim_host_held(struct genl_info *info)
{
	struct slim_host *host = slim_host_of(genl_info_net(info));

	if (!host) {
		NL_SET_ERR_MSG(info->extack, "no data path runs in this network namespace");
		return ERR_PTR(-ENODEV);
	}
	if (host->holder != info->snd_portid) {
		if (host->holder)
			NL_SET_ERR_MSG(info->extack, "another agent holds this data path");
		else
			NL_SET_ERR_MSG(info->extack, "held by nobody: SLIM_CMD_START first");
		return ERR_PTR(-EBUSY);
	}
	return host;
}

/* As slim_host_held(), of one whose tables are being prepared. */
static struct slim_host *slim_host_preparing(struct genl_info *info)
{
	struct slim_host *host = slim_host_held(info);

	if (!IS_ERR(host) && !host->next) {
		NL_SET_ERR_MSG(info->extack, "no tables are being prepared");
		return ERR_PTR(-ENOENT);
	}
	return host;
}

static u64 slim_get_u64(const struct nlattr *attribute)
{
	u64 value;

	/* Attributes are aligned to four bytes. */
	memcpy(&value, nla_data(attribute), sizeof(value));
	return value;
}

static int slim_do_start_check(struct genl_info *info)
{
	const __be32 *underlay;
	__be32 range;
	int error;

	error = SLIM_NEED(info, SLIM_ATTR_ABI_VERSION) ?: SLIM_NEED(info, SLIM_ATTR_FINGERPRINT) ?:
		SLIM_NEED(info, SLIM_ATTR_INSTANCE) ?: SLIM_NEED(info, SLIM_ATTR_UNDERLAY) ?:
		SLIM_NEED(info, SLIM_ATTR_WIRE_PORT) ?: SLIM_NEED(info, SLIM_ATTR_RANGE) ?:
		SLIM_NEED(info, SLIM_ATTR_KEY);
	if (error)
		return error;
	if (nla_get_u32(info->attrs[SLIM_ATTR_ABI_VERSION]) != SLIM_ABI_VERSION) {
		SLIM_BAD(info, SLIM_ATTR_ABI_VERSION, "the module was built from another contract");
		return -EPROTONOSUPPORT;
	}
	if (slim_get_u64(info->attrs[SLIM_ATTR_FINGERPRINT]) != SLIM_FINGERPRINT) {
		SLIM_BAD(info, SLIM_ATTR_FINGERPRINT, "the module was built from another contract");
		return -EPROTONOSUPPORT;
	}
	if (!nla_len(info->attrs[SLIM_ATTR_INSTANCE]) ||
	    !*(char *)nla_data(info->attrs[SLIM_ATTR_INSTANCE])) {
		SLIM_BAD(info, SLIM_ATTR_INSTANCE, "must not be empty");
		return -EINVAL;
	}
	underlay = nla_data(info->attrs[SLIM_ATTR_UNDERLAY]);
	if (!slim_is_mapped(underlay) || slim_is_any(underlay) || slim_is_loopback(underlay) ||
	    slim_is_multicast(underlay)) {
		SLIM_BAD(info, SLIM_ATTR_UNDERLAY, "must be the IPv4 address of a host");
		return -EINVAL;
	}
	range = nla_get_be32(info->attrs[SLIM_ATTR_RANGE]);
	if (!range || range & ~htonl(0xf0000000) || range == htonl(0xe0000000)) {
		SLIM_BAD(info, SLIM_ATTR_RANGE, "must be a /4 of addresses");
		return -EINVAL;
	}
	error = nla_get_u16(info->attrs[SLIM_ATTR_WIRE_PORT]);
	if (!error || error + SLIM_WIRE_PORTS + SLIM_BOUND_PORTS > 65536) {
		SLIM_BAD(info, SLIM_ATTR_WIRE_PORT, "no room for the wire ports behind it");
		return -EINVAL;
	}
	return 0;
}

/* Whether the one that runs is the one that is asked for. */
static int slim_do_start_same(struct genl_info *info, const struct slim_host *host)
{
	if (host->holder && host->holder != info->snd_portid) {
		NL_SET_ERR_MSG(info->extack, "another agent holds this data path");
		return -EBUSY;
	}
	if (nla_strcmp(info->attrs[SLIM_ATTR_INSTANCE], host->instance)) {
		SLIM_BAD(info, SLIM_ATTR_INSTANCE, "another instance runs in this namespace");
		return -EEXIST;
	}
	if (((__be32 *)nla_data(info->attrs[SLIM_ATTR_UNDERLAY]))[3] != host->underlay) {
		SLIM_BAD(info, SLIM_ATTR_UNDERLAY, "the data path that runs has another");
		return -EEXIST;
	}
	if (nla_get_u16(info->attrs[SLIM_ATTR_WIRE_PORT]) != host->wire_port) {
		SLIM_BAD(info, SLIM_ATTR_WIRE_PORT, "the data path that runs has another");
		return -EEXIST;
	}
	if (nla_get_be32(info->attrs[SLIM_ATTR_RANGE]) != host->range.v4) {
		SLIM_BAD(info, SLIM_ATTR_RANGE, "the data path that runs has another");
		return -EEXIST;
	}
	return 0;
}

static void slim_key_of(const struct nlattr *attr, u64 *key)
{
	__le64 half[2];

	memcpy(half, nla_data(attr), sizeof(half));
	key[0] = le64_to_cpu(half[0]);
	key[1] = le64_to_cpu(half[1]);
	memzero_explicit(half, sizeof(half));
}

static void slim_host_update(struct genl_info *info, struct slim_host *host)
{
	u64 key[2], other[2];

	slim_key_of(info->attrs[SLIM_ATTR_KEY], key);
	slim_key_of(info->attrs[SLIM_ATTR_KEY_OTHER] ?: info->attrs[SLIM_ATTR_KEY], other);
	slim_keys_set(&host->keys, key, other);
	memzero_explicit(key, sizeof(key));
	memzero_explicit(other, sizeof(other));
	if (info->attrs[SLIM_ATTR_CLUSTER])
		nla_strscpy(host->cluster, info->attrs[SLIM_ATTR_CLUSTER], SLIM_NAME_MAX);
	if (info->attrs[SLIM_ATTR_OBSERVE])
		host->observe = nla_get_u32(info->attrs[SLIM_ATTR_OBSERVE]);
	host->holder = info->snd_portid;
}

static int slim_do_start(struct sk_buff *skb, struct genl_info *info)
{
	struct net *net = genl_info_net(info);
	struct slim_host *host;
	int error = slim_do_start_check(info);

	if (error)
		return error;
	mutex_lock(&slim_mutex);
	host = slim_host_of(net);
	if (host) {
		error = slim_do_start_same(info, host);
		if (!error)
			slim_host_update(info, host);
		goto out;
	}
	if (rcu_access_pointer(slim_net(net)->place)) {
		NL_SET_ERR_MSG(info->extack, "this network namespace is an endpoint's");
		error = -EBUSY;
		goto out;
	}
	error = -ENOMEM;
	host = slim_host_make(net);
	if (!host)
		goto out;
	nla_strscpy(host->instance, info->attrs[SLIM_ATTR_INSTANCE], SLIM_NAME_MAX);
	host->underlay = ((__be32 *)nla_data(info->attrs[SLIM_ATTR_UNDERLAY]))[3];
	host->wire_port = nla_get_u16(info->attrs[SLIM_ATTR_WIRE_PORT]);
	host->range.v4 = nla_get_be32(info->attrs[SLIM_ATTR_RANGE]);
	slim_host_update(info, host);
	error = slim_host_start(host);
	if (error)
		slim_host_put(host);
out:
	mutex_unlock(&slim_mutex);
	return error;
}

static int slim_do_teardown(struct sk_buff *skb, struct genl_info *info)
{
	struct slim_host *host;
	int error;

	mutex_lock(&slim_mutex);
	host = slim_host_held(info);
	error = PTR_ERR_OR_ZERO(host);
	if (!error) {
		error = slim_host_stop(host, info->attrs[SLIM_ATTR_FORCE]);
		if (error)
			NL_SET_ERR_MSG(info->extack, "endpoints or sockets of endpoints are there");
	}
	mutex_unlock(&slim_mutex);
	return error;
}

static int slim_do_observe(struct sk_buff *skb, struct genl_info *info)
{
	struct slim_host *host;
	int error = SLIM_NEED(info, SLIM_ATTR_OBSERVE);

	if (error)
		return error;
	mutex_lock(&slim_mutex);
	host = slim_host_held(info);
	error = PTR_ERR_OR_ZERO(host);
	if (!error)
		host->observe = nla_get_u32(info->attrs[SLIM_ATTR_OBSERVE]);
	mutex_unlock(&slim_mutex);
	return error;
}

/* Tables */

static int slim_do_begin(struct sk_buff *skb, struct genl_info *info)
{
	const struct slim_tables *held;
	struct slim_tables *next;
	struct slim_host *host;
	u64 generation;
	int error = SLIM_NEED(info, SLIM_ATTR_GENERATION);

	if (error)
		return error;
	generation = slim_get_u64(info->attrs[SLIM_ATTR_GENERATION]);
	mutex_lock(&slim_mutex);
	host = slim_host_held(info);
	error = PTR_ERR_OR_ZERO(host);
	if (error)
		goto out;
	held = rcu_dereference_protected(host->tables, lockdep_is_held(&slim_mutex));
	if (info->attrs[SLIM_ATTR_BASE]) {
		if (!held || held->generation != slim_get_u64(info->attrs[SLIM_ATTR_BASE])) {
			SLIM_BAD(info, SLIM_ATTR_BASE, "not the generation in force");
			error = -ESTALE;
			goto out;
		}
		next = slim_tables_copy(held, generation);
	} else {
		next = slim_tables_make(generation);
	}
	if (!next) {
		error = -ENOMEM;
		goto out;
	}
	slim_tables_free(host->next);
	host->next = next;
out:
	mutex_unlock(&slim_mutex);
	return error;
}

/* Whether an attribute has whole records of a table, each of them one. */
static int slim_records_check(struct genl_info *info, u32 attribute, u32 table, bool values)
{
	u32 size = values ? slim_table_record_size(table) : slim_table_key_size(table);
	const struct nlattr *found = info->attrs[attribute];
	const u8 *record;
	int left;

	if (!found)
		return 0;
	if (nla_len(found) % size) {
		NL_SET_ERR_MSG_ATTR(info->extack, found, "no whole number of records");
		return -EINVAL;
	}
	for (record = nla_data(found), left = nla_len(found); left; record += size, left -= size) {
		if (slim_table_check(table, record,
				     values ? record + slim_table_key_size(table) : NULL)) {
			NL_SET_ERR_MSG_ATTR(info->extack, found, "a record that is none");
			return -EINVAL;
		}
	}
	return 0;
}

static int slim_records_put(struct slim_tables *tables, struct genl_info *info, u32 table)
{
	const struct nlattr *gone = info->attrs[SLIM_ATTR_GONE];
	const struct nlattr *records = info->attrs[SLIM_ATTR_RECORDS];
	u32 size = slim_table_key_size(table);
	const u8 *record;
	int error, left;

	if (gone)
		for (record = nla_data(gone), left = nla_len(gone); left;
		     record += size, left -= size)
			slim_table_remove(tables, table, record);
	size = slim_table_record_size(table);
	if (records)
		for (record = nla_data(records), left = nla_len(records); left;
		     record += size, left -= size) {
			error = slim_table_set(tables, table, record);
			if (error)
				return error;
		}
	return 0;
}

static int slim_do_put(struct sk_buff *skb, struct genl_info *info)
{
	struct slim_host *host;
	u32 table;
	int error = SLIM_NEED(info, SLIM_ATTR_TABLE);

	if (error)
		return error;
	table = nla_get_u32(info->attrs[SLIM_ATTR_TABLE]);
	error = slim_records_check(info, SLIM_ATTR_GONE, table, false) ?:
		slim_records_check(info, SLIM_ATTR_RECORDS, table, true);
	if (error)
		return error;
	mutex_lock(&slim_mutex);
	host = slim_host_preparing(info);
	error = PTR_ERR_OR_ZERO(host);
	if (error)
		goto out;
	error = slim_records_put(host->next, info, table);
	if (error) {
		/* Half of a message is in them. */
		slim_tables_free(host->next);
		host->next = NULL;
	}
out:
	mutex_unlock(&slim_mutex);
	return error;
}

static int slim_do_commit(struct sk_buff *skb, struct genl_info *info)
{
	struct slim_tables *old;
	struct slim_host *host;
	int error = SLIM_NEED(info, SLIM_ATTR_GENERATION);

	if (error)
		return error;
	mutex_lock(&slim_mutex);
	host = slim_host_preparing(info);
	error = PTR_ERR_OR_ZERO(host);
	if (error)
		goto out;
	if (host->next->generation != slim_get_u64(info->attrs[SLIM_ATTR_GENERATION])) {
		SLIM_BAD(info, SLIM_ATTR_GENERATION, "not of the tables that are being prepared");
		error = -EINVAL;
		goto out;
	}
	old = rcu_replace_pointer(host->tables, host->next, lockdep_is_held(&slim_mutex));
	host->next = NULL;
	/* After this nobody decides by the old ones. */
	synchronize_rcu();
	slim_tables_free(old);
	slim_flows_forbid(host);
	slim_sockets_close(host, NULL, true);
out:
	mutex_unlock(&slim_mutex);
	return error;
}

/* Endpoints */

static int slim_reply(struct genl_info *info, u32 command, u32 attribute, int size,
		      const void *data)
{
	struct sk_buff *reply = genlmsg_new(nla_total_size(size), GFP_KERNEL);
	void *header;

	if (!reply)
		return -ENOMEM;
	header = genlmsg_put_reply(reply, info, &slim_family, 0, command);
	if (!header || nla_put(reply, attribute, size, data)) {
		nlmsg_free(reply);
		return -EMSGSIZE;
	}
	genlmsg_end(reply, header);
	return genlmsg_reply(reply, info);
}

/* Attaches, or finds the one that is attached and the same. */
static struct slim_place *slim_attach(struct genl_info *info, struct slim_host *host,
				      struct net *net)
{
	const __be32 *address = nla_data(info->attrs[SLIM_ATTR_ADDRESS]);
	u32 endpoint = nla_get_u32(info->attrs[SLIM_ATTR_ENDPOINT]);
	u32 vni = nla_get_u32(info->attrs[SLIM_ATTR_VNI]);
	struct slim_place *place = slim_place_find(host, endpoint);
	int error;

	if (place) {
		if (place->net != net)
			SLIM_BAD(info, SLIM_ATTR_NETNS_FD, "the endpoint is attached with another");
		else if (place->vni != vni)
			SLIM_BAD(info, SLIM_ATTR_VNI, "the endpoint is attached with another");
		else if (!slim_same(place->address, address))
			SLIM_BAD(info, SLIM_ATTR_ADDRESS, "the endpoint is attached with another");
		else
			return place;
		return ERR_PTR(-EEXIST);
	}
	if (rcu_access_pointer(slim_net(net)->host)) {
		SLIM_BAD(info, SLIM_ATTR_NETNS_FD, "it is a host's");
		return ERR_PTR(-EINVAL);
	}
	if (rcu_access_pointer(slim_net(net)->place)) {
		SLIM_BAD(info, SLIM_ATTR_NETNS_FD, "it is another endpoint's");
		return ERR_PTR(-EEXIST);
	}
	place = slim_place_attach(host, net, endpoint, vni, address, &error);
	if (error == -ENOSPC)
		NL_SET_ERR_MSG(info->extack, "as many endpoints as a host can have are attached");
	return place ?: ERR_PTR(error);
}

static int slim_do_attach(struct sk_buff *skb, struct genl_info *info)
{
	struct slim_place *place;
	struct slim_host *host;
	struct net *net;
	u32 index = 0;
	int error;

	error = SLIM_NEED(info, SLIM_ATTR_ENDPOINT) ?: SLIM_NEED(info, SLIM_ATTR_NETNS_FD) ?:
		SLIM_NEED(info, SLIM_ATTR_VNI) ?: SLIM_NEED(info, SLIM_ATTR_ADDRESS);
	if (error)
		return error;
	if (!slim_is_mapped(nla_data(info->attrs[SLIM_ATTR_ADDRESS]))) {
		SLIM_BAD(info, SLIM_ATTR_ADDRESS, "must be an IPv4 address, v4-mapped");
		return -EINVAL;
	}
	net = get_net_ns_by_fd(nla_get_u32(info->attrs[SLIM_ATTR_NETNS_FD]));
	if (IS_ERR(net)) {
		SLIM_BAD(info, SLIM_ATTR_NETNS_FD, "no descriptor of a network namespace");
		return PTR_ERR(net);
	}
	mutex_lock(&slim_mutex);
	host = slim_host_held(info);
	error = PTR_ERR_OR_ZERO(host);
	if (!error) {
		place = slim_attach(info, host, net);
		error = PTR_ERR_OR_ZERO(place);
		if (!error)
			index = place->index;
	}
	mutex_unlock(&slim_mutex);
	put_net(net);
	return error ?: slim_reply(info, SLIM_CMD_ATTACH, SLIM_ATTR_INDEX, sizeof(index), &index);
}

static int slim_do_detach(struct sk_buff *skb, struct genl_info *info)
{
	struct slim_place *place;
	struct slim_host *host;
	int error = SLIM_NEED(info, SLIM_ATTR_ENDPOINT);

	if (error)
		return error;
	mutex_lock(&slim_mutex);
	host = slim_host_held(info);
	error = PTR_ERR_OR_ZERO(host);
	if (!error) {
		place = slim_place_find(host, nla_get_u32(info->attrs[SLIM_ATTR_ENDPOINT]));
		if (place)
			slim_place_detach(place);
	}
	mutex_unlock(&slim_mutex);
	return error;
}

/* Questions */

static int slim_fill_host(struct sk_buff *reply, struct slim_host *host)
{
	u64 counters[SLIM_REASON_COUNT] = {};
	__be32 underlay[4];
	int cpu, reason;

	for_each_possible_cpu(cpu)
		for (reason = 0; reason < SLIM_REASON_COUNT; reason++)
			counters[reason] += per_cpu_ptr(host->counters, cpu)[reason];
	slim_map_v4(underlay, host->underlay);
	return nla_put_string(reply, SLIM_ATTR_INSTANCE, host->instance) ||
	       nla_put_string(reply, SLIM_ATTR_CLUSTER, host->cluster) ||
	       nla_put(reply, SLIM_ATTR_UNDERLAY, sizeof(underlay), underlay) ||
	       nla_put_u16(reply, SLIM_ATTR_WIRE_PORT, host->wire_port) ||
	       nla_put_be32(reply, SLIM_ATTR_RANGE, host->range.v4) ||
	       nla_put_u32(reply, SLIM_ATTR_OBSERVE, host->observe) ||
	       nla_put_u64_64bit(reply, SLIM_ATTR_GENERATION, slim_host_generation(host),
				 SLIM_ATTR_PAD) ||
	       nla_put_u32(reply, SLIM_ATTR_ENDPOINTS, host->attached) ||
	       nla_put_u32(reply, SLIM_ATTR_SOCKETS, host->socket_count) ||
	       (host->holder && nla_put_flag(reply, SLIM_ATTR_HELD)) ||
	       nla_put(reply, SLIM_ATTR_COUNTERS, sizeof(counters), counters);
}

static int slim_do_info(struct sk_buff *skb, struct genl_info *info)
{
	struct sk_buff *reply = genlmsg_new(NLMSG_GOODSIZE, GFP_KERNEL);
	struct slim_host *host;
	void *header;
	int bad;

	if (!reply)
		return -ENOMEM;
	header = genlmsg_put_reply(reply, info, &slim_family, 0, SLIM_CMD_INFO);
	bad = !header || nla_put_u32(reply, SLIM_ATTR_ABI_VERSION, SLIM_ABI_VERSION) ||
	      nla_put_u64_64bit(reply, SLIM_ATTR_FINGERPRINT, SLIM_FINGERPRINT, SLIM_ATTR_PAD) ||
	      nla_put_u32(reply, SLIM_ATTR_NL_VERSION, SLIM_NL_VERSION) ||
	      nla_put_string(reply, SLIM_ATTR_MODULE_VERSION, THIS_MODULE->version ?: "") ||
	      nla_put_u32(reply, SLIM_ATTR_FEATURES, SLIM_NL_FEATURE_NONE);
	if (!bad) {
		mutex_lock(&slim_mutex);
		rcu_read_lock();
		host = rcu_dereference(slim_net(genl_info_net(info))->host);
		bad = host && slim_fill_host(reply, host);
		rcu_read_unlock();
		mutex_unlock(&slim_mutex);
	}
	if (bad) {
		nlmsg_free(reply);
		return -EMSGSIZE;
	}
	genlmsg_end(reply, header);
	return genlmsg_reply(reply, info);
}

static int slim_do_ask(struct sk_buff *skb, struct genl_info *info)
{
	struct slim_question question;
	struct slim_host *host;
	bool answered = false;
	int error = SLIM_NEED(info, SLIM_ATTR_QUESTION);

	if (error)
		return error;
	memcpy(&question, nla_data(info->attrs[SLIM_ATTR_QUESTION]), sizeof(question));
	if (question.direction > SLIM_EGRESS) {
		SLIM_BAD(info, SLIM_ATTR_QUESTION, "direction is none of enum slim_direction");
		return -EINVAL;
	}
	memset_startat(&question, 0, verdict);
	rcu_read_lock();
	host = rcu_dereference(slim_net(genl_info_net(info))->host);
	if (host)
		answered = slim_host_answer(host, &question);
	rcu_read_unlock();
	if (!answered) {
		NL_SET_ERR_MSG(info->extack, "no tables are in force");
		return -ENOENT;
	}
	return slim_reply(info, SLIM_CMD_ASK, SLIM_ATTR_QUESTION, sizeof(question), &question);
}

/* Dumps: one message a record; cb->args[0] is how far they came. */

static void *slim_dump_put(struct sk_buff *skb, struct netlink_callback *cb, u32 command)
{
	return genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &slim_family,
			   NLM_F_MULTI, command);
}

static bool slim_put_place(struct sk_buff *skb, struct netlink_callback *cb,
			   const struct slim_place *place)
{
	void *header = slim_dump_put(skb, cb, SLIM_CMD_ENDPOINTS);

	if (!header)
		return false;
	if (nla_put_u32(skb, SLIM_ATTR_ENDPOINT, place->endpoint) ||
	    nla_put_u32(skb, SLIM_ATTR_INDEX, place->index) ||
	    nla_put_u32(skb, SLIM_ATTR_VNI, place->vni) ||
	    nla_put(skb, SLIM_ATTR_ADDRESS, sizeof(place->address), place->address) ||
	    nla_put_u32(skb, SLIM_ATTR_NETNS_INODE, place->net->ns.inum) ||
	    nla_put_u64_64bit(skb, SLIM_ATTR_NETNS_COOKIE, place->net->net_cookie, SLIM_ATTR_PAD) ||
	    nla_put_u32(skb, SLIM_ATTR_SOCKETS, atomic_read(&place->sockets))) {
		genlmsg_cancel(skb, header);
		return false;
	}
	genlmsg_end(skb, header);
	return true;
}

static int slim_dump_endpoints(struct sk_buff *skb, struct netlink_callback *cb)
{
	const struct slim_place *place;
	struct slim_host *host;
	long at = 0;
	int bucket;

	mutex_lock(&slim_mutex);
	host = slim_host_of(sock_net(skb->sk));
	if (host)
		hash_for_each(host->places, bucket, place, node) {
			if (at++ < cb->args[0])
				continue;
			if (!slim_put_place(skb, cb, place))
				goto full;
			cb->args[0] = at;
		}
full:
	mutex_unlock(&slim_mutex);
	return skb->len;
}

static bool slim_put_account(struct sk_buff *skb, struct netlink_callback *cb,
			     const struct slim_account_key *key,
			     const struct slim_account *account)
{
	void *header = slim_dump_put(skb, cb, SLIM_CMD_ACCOUNTS);

	if (!header)
		return false;
	if (nla_put(skb, SLIM_ATTR_ACCOUNT_KEY, sizeof(*key), key) ||
	    nla_put(skb, SLIM_ATTR_ACCOUNT, sizeof(*account), account)) {
		genlmsg_cancel(skb, header);
		return false;
	}
	genlmsg_end(skb, header);
	return true;
}

/*
 * Sockets of a host, from the one after `*serial`; false: there was no room for all. `put` answers
 * the same of one.
 */
static bool slim_dump_sockets(struct sk_buff *skb, struct netlink_callback *cb,
			      struct slim_host *host, long *serial,
			      bool (*put)(struct sk_buff *skb, struct netlink_callback *cb,
					  const struct slim_socket *socket))
{
	const struct slim_socket *socket;
	bool all = true;

	spin_lock_bh(&host->lock);
	list_for_each_entry(socket, &host->sockets, list) {
		if (socket->serial <= (u64)*serial)
			continue;
		all = put(skb, cb, socket);
		if (!all)
			break;
		*serial = (long)socket->serial;
	}
	spin_unlock_bh(&host->lock);
	return all;
}

/* Of a connection that lives, what it carried so far. */
static bool slim_put_carried(struct sk_buff *skb, struct netlink_callback *cb,
			     const struct slim_socket *socket)
{
	const struct slim_account_key key = {
		.endpoint = socket->place->endpoint,
		.rule = socket->rule,
		.direction = socket->flags & SLIM_SOCKET_ACCEPTED ? SLIM_INGRESS : SLIM_EGRESS,
	};
	struct slim_account carried;

	if (!(socket->flags & SLIM_SOCKET_OPENED) || socket->flags & SLIM_SOCKET_CLOSED)
		return true;
	carried = slim_socket_carried(socket);
	return slim_put_account(skb, cb, &key, &carried);
}

static int slim_dump_accounts(struct sk_buff *skb, struct netlink_callback *cb)
{
	const struct slim_counted *counted;
	struct slim_place *place;
	struct slim_host *host;
	bool full = false;
	long at = 0;
	int bucket;

	mutex_lock(&slim_mutex);
	host = slim_host_of(sock_net(skb->sk));
	/*
	 * Live ones before the accounts of ended ones: one that ends in between is then in this
	 * answer twice, where the other order would leave it out.
	 */
	if (host && slim_dump_sockets(skb, cb, host, &cb->args[1], slim_put_carried))
		hash_for_each(host->places, bucket, place, node) {
			spin_lock_bh(&place->lock);
			list_for_each_entry(counted, &place->accounts, list) {
				if (at++ < cb->args[0])
					continue;
				full = !slim_put_account(skb, cb, &counted->key,
							 &counted->account);
				if (full)
					break;
				cb->args[0] = at;
			}
			spin_unlock_bh(&place->lock);
			if (full)
				break;
		}
	mutex_unlock(&slim_mutex);
	return skb->len;
}

static bool slim_put_connection(struct sk_buff *skb, struct netlink_callback *cb,
				const struct slim_socket *socket)
{
	struct slim_nl_connection connection = {
		.opened = socket->opened,
		.cookie = atomic64_read(&socket->sk->sk_cookie),
		.generation = socket->generation,
		.endpoint = socket->place->endpoint,
		.peer_endpoint = socket->peer_endpoint,
		.local_port = socket->local_port ?: inet_sk(socket->sk)->inet_sport,
		.peer_port = socket->peer_port,
		.state = READ_ONCE(socket->sk->sk_state),
		.rule = socket->rule,
	};
	void *header;

	if (connection.state == TCP_CLOSE || connection.state == TCP_LISTEN)
		return true;
	header = slim_dump_put(skb, cb, SLIM_CMD_CONNECTIONS);
	if (!header)
		return false;
	slim_copy(connection.local, socket->local);
	slim_copy(connection.peer, socket->peer);
	if (socket->flags & SLIM_SOCKET_ACCEPTED)
		connection.flags |= SLIM_NL_ACCEPTED;
	if (socket->flags & SLIM_SOCKET_WIRE)
		connection.flags |= SLIM_NL_WIRE;
	if (socket->flags & SLIM_SOCKET_SERVICE)
		connection.flags |= SLIM_NL_SERVICE;
	if (nla_put(skb, SLIM_ATTR_CONNECTION, sizeof(connection), &connection)) {
		genlmsg_cancel(skb, header);
		return false;
	}
	genlmsg_end(skb, header);
	return true;
}

static int slim_dump_connections(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct slim_host *host;

	mutex_lock(&slim_mutex);
	host = slim_host_of(sock_net(skb->sk));
	if (host)
		slim_dump_sockets(skb, cb, host, &cb->args[0], slim_put_connection);
	mutex_unlock(&slim_mutex);
	return skb->len;
}

/* The family */

#define SLIM_DO(command, function, policy_) {		\
	.cmd = command,					\
	.doit = function,				\
	.policy = policy_,				\
	.maxattr = ARRAY_SIZE(policy_) - 1,		\
	.flags = GENL_ADMIN_PERM,			\
}

#define SLIM_DUMP(command, function) {			\
	.cmd = command,					\
	.dumpit = function,				\
	.policy = slim_none,				\
	.maxattr = SLIM_ATTR_MAX,			\
	.flags = GENL_ADMIN_PERM,			\
}

static const struct genl_ops slim_operations[] = {
	SLIM_DO(SLIM_CMD_INFO, slim_do_info, slim_none),
	SLIM_DO(SLIM_CMD_START, slim_do_start, slim_start_policy),
	SLIM_DO(SLIM_CMD_TEARDOWN, slim_do_teardown, slim_teardown_policy),
	SLIM_DO(SLIM_CMD_OBSERVE, slim_do_observe, slim_observe_policy),
	SLIM_DO(SLIM_CMD_TABLES_BEGIN, slim_do_begin, slim_begin_policy),
	SLIM_DO(SLIM_CMD_TABLES_PUT, slim_do_put, slim_put_policy),
	SLIM_DO(SLIM_CMD_TABLES_COMMIT, slim_do_commit, slim_commit_policy),
	SLIM_DO(SLIM_CMD_ATTACH, slim_do_attach, slim_attach_policy),
	SLIM_DO(SLIM_CMD_DETACH, slim_do_detach, slim_detach_policy),
	SLIM_DUMP(SLIM_CMD_ENDPOINTS, slim_dump_endpoints),
	SLIM_DUMP(SLIM_CMD_CONNECTIONS, slim_dump_connections),
	SLIM_DUMP(SLIM_CMD_ACCOUNTS, slim_dump_accounts),
	SLIM_DO(SLIM_CMD_ASK, slim_do_ask, slim_ask_policy),
};

static const struct genl_multicast_group slim_groups[] = {
	{ .name = SLIM_NL_GROUP_EVENTS, .flags = GENL_MCAST_CAP_NET_ADMIN },
};

static struct genl_family slim_family = {
	.name = SLIM_NL_FAMILY,
	.version = SLIM_NL_VERSION,
	.maxattr = SLIM_ATTR_MAX,
	.netnsok = true,
	.module = THIS_MODULE,
	.ops = slim_operations,
	.n_ops = ARRAY_SIZE(slim_operations),
	.resv_start_op = SLIM_CMD_UNSPEC + 1,
	.mcgrps = slim_groups,
	.n_mcgrps = ARRAY_SIZE(slim_groups),
};

/* To whoever listens in the host's namespace. Any context. */
void slim_tell(struct slim_host *host, const struct slim_event *event)
{
	struct sk_buff *skb;
	void *header;

	if (!genl_has_listeners(&slim_family, host->net, 0))
		return;
	skb = genlmsg_new(nla_total_size(sizeof(*event)), GFP_ATOMIC);
	if (!skb)
		return;
	header = genlmsg_put(skb, 0, 0, &slim_family, 0, SLIM_CMD_EVENT);
	if (!header || nla_put(skb, SLIM_ATTR_EVENT, sizeof(*event), event)) {
		nlmsg_free(skb);
		return;
	}
	genlmsg_end(skb, header);
	genlmsg_multicast_netns(&slim_family, host->net, skb, 0, 0, GFP_ATOMIC);
}

/* A socket of netlink was closed: who held a data path by it holds it no more. */
static int slim_released(struct notifier_block *block, unsigned long event, void *data)
{
	const struct netlink_notify *closed = data;
	struct slim_host *host;

	if (event != NETLINK_URELEASE || closed->protocol != NETLINK_GENERIC || !closed->portid)
		return NOTIFY_DONE;
	mutex_lock(&slim_mutex);
	host = slim_host_of(closed->net);
	if (host && host->holder == closed->portid) {
		host->holder = 0;
		slim_tables_free(host->next);
		host->next = NULL;
	}
	mutex_unlock(&slim_mutex);
	return NOTIFY_DONE;
}

static struct notifier_block slim_notifier = { .notifier_call = slim_released };

int slim_netlink_init(void)
{
	int error = netlink_register_notifier(&slim_notifier);

	if (error)
		return error;
	error = genl_register_family(&slim_family);
	if (error)
		netlink_unregister_notifier(&slim_notifier);
	return error;
}

void slim_netlink_exit(void)
{
	genl_unregister_family(&slim_family);
	netlink_unregister_notifier(&slim_notifier);
}
