/* SPDX-License-Identifier: GPL-2.0-only */
/* What the files of the module share. */
#ifndef SLIMNET_MODULE_H
#define SLIMNET_MODULE_H

#include <linux/hashtable.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/net.h>
#include <linux/netfilter.h>
#include <linux/percpu.h>
#include <linux/rhashtable.h>
#include <linux/skbuff.h>
#include <linux/sockptr.h>
#include <linux/spinlock.h>
#include <linux/tcp.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include <slimnet/event.h>
#include <slimnet/inner.h>
#include <slimnet/keys.h>
#include <slimnet/netlink.h>
#include <slimnet/reason.h>
#include <slimnet/tables.h>
#include <slimnet/wire.h>

/* Private to this data path; not of the contract. */
enum slim_module_room {
	SLIM_FLOWS_MAX = 65536,		/* handshakes under way on one host */
	SLIM_PLACE_FLOWS_MAX = 8192,	/* of these to one endpoint */
	SLIM_AFFINITIES = 8192,		/* a power of two */
	SLIM_NAME_BUCKETS = 4096,	/* a power of two */
	/*
	 * A hash table of sockets or handshakes has room for no fewer: one for the few that a
	 * short connection needs grows and shrinks with each, by a worker.
	 */
	SLIM_TABLE_MIN = 1024,
	SLIM_TOLD_MAX = 64,		/* refusals of an endpoint that are told in a second */
	SLIM_NAME_MAX = 64,
};

/* One table: exact look-ups by hash; the longest match tries the lengths that occur. */
struct slim_table {
	struct hlist_head *buckets;
	u32 count;
	u32 size;			/* a power of two */
	u16 lengths[161];		/* how many keys have which prefix length */
};

/* What a host's data path decides by, at one generation. Not changed once in force. */
struct slim_tables {
	struct rcu_work work;
	u64 generation;
	struct slim_table table[SLIM_NL_TABLES];
};

struct slim_seen {
	u32 service;
	u32 client;
	struct slim_affinity affinity;
};

/* The data path of one host: of one network namespace, the underlay's. */
struct slim_host {
	refcount_t refs;
	struct rcu_work work;
	struct net *net;		/* no reference: the host goes before it */
	struct slim_tables __rcu *tables;
	struct slim_tables *next;	/* being prepared; under slim_mutex */
	u32 holder;			/* netlink port of who holds it, 0: nobody */
	char instance[SLIM_NAME_MAX];
	char cluster[SLIM_NAME_MAX];
	struct slim_inner_range range;
	__be32 underlay;
	u16 wire_port;
	u32 observe;
	struct slim_keys keys;
	bool dead;
	u64 __percpu *counters;		/* [SLIM_REASON_COUNT] */
	DECLARE_HASHTABLE(places, 8);	/* by endpoint; written under slim_mutex, read under RCU */
	unsigned long indexes[BITS_TO_LONGS(SLIM_INDEX_MAX + 1)];
	u32 last_index;
	u32 attached;
	struct list_head sockets;	/* struct slim_socket, by serial; under `lock` */
	spinlock_t lock;		/* of sockets and their names */
	u64 serial;
	u32 socket_count;
	u32 lingering;
	struct hlist_head *names;	/* [SLIM_NAME_BUCKETS], of alias.c; under `lock` */
	u64 visit;			/* under slim_mutex */
	struct rhashtable flows;
	atomic_t flow_count;
	struct delayed_work sweep;
	spinlock_t affinity_lock;	/* of affinities */
	struct slim_seen *affinities;	/* [SLIM_AFFINITIES] */
};

struct slim_counted {
	struct list_head list;
	struct slim_account_key key;
	struct slim_account account;
};

/* An attached endpoint: a network namespace of its own. */
struct slim_place {
	struct hlist_node node;		/* of its host */
	struct rcu_head rcu;
	refcount_t refs;
	struct slim_host *host;		/* a reference */
	struct net *net;		/* no reference; cleared when it is detached */
	u32 endpoint;
	u32 index;
	u32 vni;
	bool detached;
	__be32 address[4];
	atomic_t sockets;
	atomic_t flows;
	atomic_t connects;
	spinlock_t lock;		/* of what follows */
	struct list_head accounts;
	u64 second;
	u32 told;
	u32 omitted;
};

enum slim_socket_flag {
	SLIM_SOCKET_LISTENER = 1,
	SLIM_SOCKET_ACCEPTED = 2,
	SLIM_SOCKET_WIRE = 4,		/* to another host */
	SLIM_SOCKET_SERVICE = 8,
	SLIM_SOCKET_OPENED = 64,	/* established once */
	SLIM_SOCKET_CLOSED = 128,	/* and over: told and on its account */
	SLIM_SOCKET_LINGERS = 256,	/* closed, and the other end may not be */
};

/* Where a socket was bound in its own namespace. */
struct slim_bound {
	u16 port;			/* 0: not */
	__be32 source;
	__be32 receives;
	struct in6_addr source6;
	struct in6_addr receives6;
};

/* A socket of an endpoint that is in the underlay's namespace. Changed under its lock. */
struct slim_socket {
	struct rhash_head node;
	struct list_head list;
	struct rcu_head rcu;
	struct sock *sk;
	struct slim_place *place;	/* a reference */
	struct net *home;		/* a reference */
	netns_tracker tracker;
	struct slim_bound bound;
	struct socket *shadow;		/* of a listener, in `home` */
	struct work_struct release;
	u64 serial;
	u64 visit;
	u64 generation;
	u64 opened;
	u32 flags;
	u32 peer_endpoint;
	u32 rule;
	u32 reason;
	__be32 local[4];		/* what getsockname(2) says */
	__be32 peer[4];			/* and getpeername(2) */
	struct slim_name *met;		/* of one that connects, by its listener */
	struct slim_name *dialled;	/* and by the service that was dialled */
	__be16 local_port;		/* 0: the kernel's own */
	__be16 peer_port;
	__be16 target_port;		/* as policy was asked, and as the option says */
};

/* A capability for one handshake (design, 4.1). */
struct slim_flow_key {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
};

struct slim_flow {
	struct rhash_head node;
	struct rcu_head rcu;
	struct slim_flow_key key;
	struct slim_place *place;	/* a reference: the listener's */
	u64 generation;
	unsigned long time;		/* jiffies */
	u32 source_endpoint;
	u32 rule;
	u32 reason;
	u32 flags;			/* enum slim_socket_flag, of the child */
	__be32 source[4];
	__be32 destination[4];
	__be16 port;			/* of the listener */
	__be16 name;			/* of the caller, in the overlay */
};

struct slim_net {
	struct slim_host __rcu *host;	/* whose underlay this is */
	struct slim_place __rcu *place;	/* whose own namespace this is */
};

/* main.c */
extern struct mutex slim_mutex;
extern unsigned int slim_net_id;
extern struct workqueue_struct *slim_work;
struct slim_net *slim_net(const struct net *net);
struct slim_host *slim_host_make(struct net *net);
int slim_host_start(struct slim_host *host);
int slim_host_stop(struct slim_host *host, bool force);
void slim_host_put(struct slim_host *host);
struct slim_place *slim_place_find(struct slim_host *host, u32 endpoint);
struct slim_place *slim_place_attach(struct slim_host *host, struct net *net, u32 endpoint, u32 vni,
				     const __be32 *address, int *error);
void slim_place_detach(struct slim_place *place);
void slim_place_put(struct slim_place *place);

/* tables.c */
struct slim_tables *slim_tables_make(u64 generation);
struct slim_tables *slim_tables_copy(const struct slim_tables *old, u64 generation);
void slim_tables_free(struct slim_tables *tables);
u32 slim_table_key_size(u32 table);
u32 slim_table_record_size(u32 table);
int slim_table_check(u32 table, const u8 *key, const u8 *value);
int slim_table_set(struct slim_tables *tables, u32 table, const u8 *record);
void slim_table_remove(struct slim_tables *tables, u32 table, const u8 *key);
const void *slim_table_get(const struct slim_tables *tables, u32 table, const void *key);
const void *slim_table_match(const struct slim_tables *tables, u32 table, const void *key);

/* decide.c: the brain, asked with the tables in force. Under rcu_read_lock(). */

/* What becomes of a connect: slim_way()'s answer, without pointers into the tables. */
struct slim_dial {
	u32 kind;			/* enum slim_way_kind */
	u32 reason;
	u32 direction;
	u32 rule;
	u32 peer_reason;
	u32 endpoint;
	u32 service;
	__be32 host;			/* underlay address of the endpoint's host */
	__be16 port;			/* as policy was asked */
	u64 generation;
};

/* What becomes of a SYN: slim_admit()'s answer, likewise. */
struct slim_syn {
	u32 reason;
	u32 rule;
	u32 source_endpoint;
	u32 destination_endpoint;
	bool known;			/* whether the addresses are */
	__be32 source[4];
	__be32 destination[4];
	u64 generation;
};

int slim_host_dial(struct slim_host *host, u32 endpoint, u32 vni, const __be32 *address,
		   __be16 port, bool from_loopback, struct slim_dial *dial);
int slim_host_syn(struct slim_host *host, const struct slim_tuple *tuple, __be32 sequence,
		  const struct slim_option *option, struct slim_syn *syn);
bool slim_host_answer(struct slim_host *host, struct slim_question *question);
bool slim_host_still(struct slim_host *host, u32 endpoint, u32 peer, __be16 port, u32 direction,
		     u64 *generation, u32 *rule, u32 *forbids);
u64 slim_host_generation(struct slim_host *host);

/* hook.c */
int slim_hooks_register(void);
void slim_hooks_unregister(void);
void slim_hook_enter(void);
void slim_hook_leave(void);

/* socket.c: what stands in for functions of the kernel. */
int slim_tcp_v4_connect(struct sock *sk, struct sockaddr *name, int length);
int slim_inet_csk_listen_start(struct sock *sk);
void slim_inet_csk_listen_stop(struct sock *sk);
int slim_tcp_disconnect(struct sock *sk, int flags);
int slim_inet_getname(struct socket *sock, struct sockaddr *name, int peer);
int slim_inet6_getname(struct socket *sock, struct sockaddr *name, int peer);
void slim_tcp_v4_destroy_sock(struct sock *sk);
struct sock *slim_inet_csk_reqsk_queue_add(struct sock *sk, struct request_sock *req,
					   struct sock *child);
struct sock *slim_inet_csk_complete_hashdance(struct sock *sk, struct sock *child,
					      struct request_sock *req, bool own_req);
void slim_tcp_state(struct sock *sk, int state);
void slim_shadow_follow(struct sock *sk);
int slim_sockets_init(void);
void slim_sockets_exit(void);
struct slim_socket *slim_socket_find(const struct sock *sk);
void slim_sockets_close(struct slim_host *host, struct slim_place *place, bool forbidden);
void slim_sockets_home(struct slim_host *host, const struct slim_place *place);

/* option.c: likewise. */
int slim_sock_setsockopt(struct socket *sock, int level, int name, sockptr_t value,
			 unsigned int length);
int slim_tcp_setsockopt(struct sock *sk, int level, int name, sockptr_t value, unsigned int length);
int slim_tcp_getsockopt(struct sock *sk, int level, int name, char __user *value,
			int __user *length);
long slim_sock_ioctl(struct file *file, unsigned int command, unsigned long argument);
long slim_compat_sock_ioctl(struct file *file, unsigned int command, unsigned long argument);

/* wire.c */
extern const struct rhashtable_params slim_flow_params;
int slim_wire_register(struct net *net);
void slim_wire_unregister(struct net *net);
struct sock *slim_inet_lookup_listener(struct net *net, struct inet_hashinfo *hashinfo,
				       struct sk_buff *skb, int doff, const __be32 saddr,
				       const __be16 sport, const __be32 daddr,
				       const unsigned short hnum, const int dif, const int sdif);
struct sock *slim_listener(struct slim_host *host, u32 index, __be16 port);
struct slim_flow *slim_flow_take(struct slim_host *host, const struct slim_flow_key *key);
void slim_flow_free(struct slim_host *host, struct slim_flow *flow);
void slim_flows_drop(struct slim_host *host, const struct slim_place *place);
void slim_flows_forbid(struct slim_host *host);
void slim_flows_sweep(struct work_struct *work);

/* alias.c */
bool slim_alias_give(struct slim_socket *socket, u16 port);
void slim_alias_leave(struct slim_socket *socket);
void slim_aliases_sweep(struct slim_host *host, bool all);

/* account.c */
void slim_count(struct slim_host *host, u32 reason);
void slim_refused(struct slim_host *host, struct slim_place *place, struct slim_event *event);
void slim_account(struct slim_place *place, u32 rule, u32 direction,
		  const struct slim_account *more);
struct slim_account slim_socket_carried(const struct slim_socket *socket);
void slim_accounts_free(struct slim_place *place);

/* netlink.c */
int slim_netlink_init(void);
void slim_netlink_exit(void);
void slim_tell(struct slim_host *host, const struct slim_event *event);

#endif /* SLIMNET_MODULE_H */
