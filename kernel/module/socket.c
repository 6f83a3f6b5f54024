// SPDX-License-Identifier: GPL-2.0-only
/*
 * Place and translate: a TCP socket of an endpoint's namespace moves into the
 * underlay's when it connects to an endpoint over a wire, or listens; it moves
 * back when that is over and it is still open. What a socket does that is not
 * carried stays in its own namespace, on the fallback overlay.
 *
 * Bound sockets are bound in their own namespace until then, so that addresses,
 * ports and conflicts are what they would be anywhere. A listener then sits on an
 * inner address (inner.h), where only slim_inet_lookup_listener() finds it; in its
 * own namespace it leaves a shadow, which listens as it did and hands on what comes
 * there: over loopback, the fallback overlay, and from wherever else that is reached.
 */
#include <linux/in6.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <net/inet_common.h>
#include <net/inet_hashtables.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/mptcp.h>
#include <net/tcp.h>

#include "slimnet.h"

static struct rhashtable slim_sockets;

static const struct rhashtable_params slim_socket_params = {
	.head_offset = offsetof(struct slim_socket, node),
	.key_offset = offsetof(struct slim_socket, sk),
	.key_len = sizeof(struct sock *),
	.min_size = SLIM_TABLE_MIN,
	.automatic_shrinking = true,
};

int slim_sockets_init(void)
{
	return rhashtable_init(&slim_sockets, &slim_socket_params);
}

void slim_sockets_exit(void)
{
	rhashtable_destroy(&slim_sockets);
}

/* What is kept of a socket that has moved. Stays as long as the caller holds `sk` locked. */
struct slim_socket *slim_socket_find(const struct sock *sk)
{
	return rhashtable_lookup_fast(&slim_sockets, &sk, slim_socket_params);
}

/* The endpoint whose namespace a socket is in, with a reference; or NULL. */
static struct slim_place *slim_place_of(const struct sock *sk)
{
	struct slim_place *place;

	rcu_read_lock();
	place = rcu_dereference(slim_net(sock_net(sk))->place);
	if (place && !refcount_inc_not_zero(&place->refs))
		place = NULL;
	rcu_read_unlock();
	return place;
}

/* A new record, which is not to be found yet. Takes over the reference to `place`. */
static struct slim_socket *slim_socket_make(struct sock *sk, struct slim_place *place,
					    struct net *home, gfp_t how)
{
	struct slim_socket *socket = kzalloc(sizeof(*socket), how);

	if (!socket)
		return NULL;
	socket->sk = sk;
	socket->place = place;
	socket->home = get_net_track(home, &socket->tracker, how);
	return socket;
}

static void slim_shadow_cut(struct slim_socket *socket);
static void slim_socket_release(struct work_struct *work);

static void slim_socket_free(struct slim_socket *socket)
{
	if (socket->shadow) {
		/* close(2) of a listener comes here with its lock held. */
		slim_shadow_cut(socket);
		INIT_WORK(&socket->release, slim_socket_release);
		queue_work(slim_work, &socket->release);
		return;
	}
	put_net_track(socket->home, &socket->tracker);
	slim_place_put(socket->place);
	kfree_rcu(socket, rcu);
}

static void slim_socket_release(struct work_struct *work)
{
	struct slim_socket *socket = container_of(work, struct slim_socket, release);

	sock_release(socket->shadow);
	socket->shadow = NULL;
	slim_socket_free(socket);
}

static int slim_socket_add(struct slim_socket *socket)
{
	struct slim_host *host = socket->place->host;
	int error = 0;

	spin_lock_bh(&host->lock);
	/* Whoever ends an endpoint or a host takes the lock after it said so. */
	if (socket->place->detached || host->dead)
		error = -ENETDOWN;
	else
		error = rhashtable_insert_fast(&slim_sockets, &socket->node, slim_socket_params);
	if (!error) {
		socket->serial = ++host->serial;
		list_add_tail(&socket->list, &host->sockets);
		host->socket_count++;
		atomic_inc(&socket->place->sockets);
	}
	spin_unlock_bh(&host->lock);
	return error;
}

static void slim_socket_remove(struct slim_socket *socket)
{
	struct slim_host *host = socket->place->host;

	spin_lock_bh(&host->lock);
	rhashtable_remove_fast(&slim_sockets, &socket->node, slim_socket_params);
	list_del(&socket->list);
	slim_alias_leave(socket);
	host->socket_count--;
	atomic_dec(&socket->place->sockets);
	spin_unlock_bh(&host->lock);
	slim_socket_free(socket);
}

static bool slim_is_transparent(const struct inet_sock *inet)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	return inet->transparent;
#else
	return inet_test_bit(TRANSPARENT, (const struct sock *)inet);
#endif
}

/*
 * Whether a socket can change its namespace: nothing of the one that it is in must
 * be left in it.
 */
static bool slim_may_move(const struct sock *sk)
{
	const struct inet_sock *inet = inet_sk(sk);

	if (sk->sk_state != TCP_CLOSE || !sk_unhashed(sk) || !sk->sk_net_refcnt ||
	    sk->sk_protocol != IPPROTO_TCP || sk->sk_kern_sock || sk->sk_bound_dev_if ||
	    sk_is_mptcp(sk) || inet->mc_list || inet_csk(sk)->icsk_ulp_ops ||
	    rcu_access_pointer(sk->sk_reuseport_cb))
		return false;
	/* What it could not ask for afterwards (option.c). */
	if (sk->sk_mark || rcu_access_pointer(sk->sk_filter) || sock_flag(sk, SOCK_TXTIME) ||
	    rcu_access_pointer(inet->inet_opt) || inet->uc_index || slim_is_transparent(inet) ||
	    tcp_sk(sk)->repair || tcp_sk(sk)->save_syn)
		return false;
#ifdef CONFIG_XFRM
	if (rcu_access_pointer(sk->sk_policy[0]) || rcu_access_pointer(sk->sk_policy[1]))
		return false;
#endif
#ifdef CONFIG_TCP_MD5SIG
	/* No room for its option beside ours, and it names the peer by its address. */
	if (rcu_access_pointer(tcp_sk(sk)->md5sig_info))
		return false;
#endif
	if (sk->sk_family == AF_INET6) {
		const struct ipv6_pinfo *np = inet6_sk(sk);

		if (np->ipv6_mc_list || np->ipv6_ac_list || rcu_access_pointer(np->opt) ||
		    np->ucast_oif)
			return false;
	}
	return true;
}

static void slim_move(struct sock *sk, struct net *to)
{
	struct net *from = sock_net(sk);

	__sk_dst_reset(sk);
	sock_inuse_add(from, -1);
	put_net_track(from, &sk->ns_tracker);
	get_net_track(to, &sk->ns_tracker, GFP_ATOMIC);
	sock_net_set(sk, to);
	sock_inuse_add(to, 1);
}

static void slim_bound_save(const struct sock *sk, struct slim_bound *bound)
{
	const struct inet_sock *inet = inet_sk(sk);

	bound->port = inet->inet_num;
	bound->source = inet->inet_saddr;
	bound->receives = inet->inet_rcv_saddr;
	if (sk->sk_family == AF_INET6) {
		bound->source6 = inet6_sk(sk)->saddr;
		bound->receives6 = sk->sk_v6_rcv_saddr;
	}
}

static void slim_bound_restore(struct sock *sk, const struct slim_bound *bound)
{
	struct inet_sock *inet = inet_sk(sk);

	inet->inet_saddr = bound->source;
	inet->inet_rcv_saddr = bound->receives;
	if (sk->sk_family == AF_INET6) {
		inet6_sk(sk)->saddr = bound->source6;
		sk->sk_v6_rcv_saddr = bound->receives6;
	}
}

/* Sets where an unbound socket is to be bound. */
static void slim_sit_at(struct sock *sk, __be32 address)
{
	struct inet_sock *inet = inet_sk(sk);

	inet->inet_saddr = address;
	inet->inet_rcv_saddr = address;
	if (sk->sk_family == AF_INET6) {
		ipv6_addr_set_v4mapped(address, &inet6_sk(sk)->saddr);
		ipv6_addr_set_v4mapped(address, &sk->sk_v6_rcv_saddr);
	}
}

static void slim_shadow_release(struct slim_socket *socket);

/* Back into its own namespace, where it is bound as it was. The socket is closed, and locked. */
static void slim_go_home(struct slim_socket *socket)
{
	struct sock *sk = socket->sk;
	struct inet_sock *inet = inet_sk(sk);

	if (inet_csk(sk)->icsk_bind_hash)
		inet_put_port(sk);
	slim_shadow_release(socket);
	slim_move(sk, socket->home);
	slim_bound_restore(sk, &socket->bound);
	inet->inet_sport = 0;
	/* As tcp_set_state() does: a port that bind(2) to port 0 gave is let go. */
	if (socket->bound.port && sk->sk_userlocks & SOCK_BINDPORT_LOCK) {
		if (inet_csk_get_port(sk, socket->bound.port)) {
			/* Taken meanwhile: as after a bind that failed. */
			sk->sk_userlocks &= ~(SOCK_BINDPORT_LOCK | SOCK_BINDADDR_LOCK);
			slim_bound_restore(sk, &(struct slim_bound){});
		} else {
			inet->inet_sport = htons(inet->inet_num);
		}
	}
	slim_socket_remove(socket);
}

/* The address that an endpoint's socket is bound to, v4-mapped. */
static bool slim_bound_address(const struct sock *sk, __be32 *address)
{
	if (sk->sk_family == AF_INET6 && !ipv6_addr_any(&sk->sk_v6_rcv_saddr) &&
	    !ipv6_addr_v4mapped(&sk->sk_v6_rcv_saddr))
		return false;
	slim_map_v4(address, inet_sk(sk)->inet_rcv_saddr);
	return true;
}

/* connect(2) */

static __be16 slim_wire_port(struct slim_place *place, const struct slim_dial *dial)
{
	u32 turn, most;
	int low, high;

	/* The kernel finds a free source port at once while most are free. */
	inet_get_local_port_range(place->host->net, &low, &high);
	most = clamp((high - low + 1) / 4, 1, (int)SLIM_WIRE_TURN);
	turn = (u32)atomic_inc_return(&place->connects) / most + dial->endpoint + ntohs(dial->port);
	return htons(place->host->wire_port + (turn & (SLIM_WIRE_PORTS - 1)));
}

/* The SYN goes out in here: slim_wire_out() finds what it is to say in the record. */
static int slim_connect_to(struct slim_socket *socket, struct sockaddr_in *to)
{
	struct sock *sk = socket->sk;

	if (sk->sk_family == AF_INET6)
		ipv6_addr_set_v4mapped(to->sin_addr.s_addr, &sk->sk_v6_daddr);
	return tcp_prot.connect(sk, (struct sockaddr *)to, sizeof(*to));
}

/*
 * A socket that is bound to a port connects from that port of the host, to one of
 * the wire ports for such: other sockets may have it as well, to other ports or
 * hosts.
 */
static int slim_connect_bound(struct slim_socket *socket, struct sockaddr_in *to)
{
	struct slim_host *host = socket->place->host;
	struct sock *sk = socket->sk;
	u8 reuse = sk->sk_reuse;
	int error = -EADDRNOTAVAIL;
	u32 i;

	if (!slim_alias_give(socket, socket->bound.port))
		return error;
	for (i = 0; i < SLIM_BOUND_PORTS && error == -EADDRNOTAVAIL; i++) {
		if (inet_csk(sk)->icsk_bind_hash)
			inet_put_port(sk);
		slim_sit_at(sk, host->underlay);
		sk->sk_reuse = SK_FORCE_REUSE;
		error = inet_csk_get_port(sk, socket->bound.port) ? -EADDRINUSE : 0;
		sk->sk_reuse = reuse;
		if (error)
			break;
		inet_sk(sk)->inet_sport = htons(inet_sk(sk)->inet_num);
		to->sin_port = htons(host->wire_port + SLIM_WIRE_PORTS +
				     ((socket->place->index + i) & (SLIM_BOUND_PORTS - 1)));
		error = slim_connect_to(socket, to);
	}
	return error;
}

static int slim_connect_wire(struct sock *sk, struct slim_place *place, const __be32 *dialled,
			     __be16 port, const struct slim_dial *dial, u32 flags)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = dial->host };
	struct slim_host *host = place->host;
	struct slim_socket *socket;
	int error;

	refcount_inc(&place->refs);
	socket = slim_socket_make(sk, place, sock_net(sk), GFP_KERNEL);
	if (!socket) {
		slim_place_put(place);
		return -ENOBUFS;
	}
	slim_bound_save(sk, &socket->bound);
	slim_copy(socket->local, place->address);
	slim_copy(socket->peer, dialled);
	socket->peer_port = port;
	socket->target_port = dial->port;
	socket->peer_endpoint = dial->endpoint;
	socket->rule = dial->rule;
	socket->reason = dial->reason;
	socket->generation = dial->generation;
	socket->flags = flags | (dial->service ? SLIM_SOCKET_SERVICE : 0);

	if (inet_csk(sk)->icsk_bind_hash)
		inet_put_port(sk);
	error = slim_socket_add(socket);
	if (error) {
		if (socket->bound.port && !inet_csk_get_port(sk, socket->bound.port))
			inet_sk(sk)->inet_sport = htons(inet_sk(sk)->inet_num);
		slim_socket_free(socket);
		return error;
	}
	slim_move(sk, host->net);
	rcu_read_lock();
	/* Tables that came meanwhile may not have seen this one: ask again. */
	error = slim_host_generation(host) == dial->generation ? 0 : -ESTALE;
	rcu_read_unlock();
	if (!error && socket->bound.port) {
		error = slim_connect_bound(socket, &to);
	} else if (!error) {
		to.sin_port = slim_wire_port(place, dial);
		slim_sit_at(sk, host->underlay);
		error = slim_connect_to(socket, &to);
	}
	if (error && sk->sk_state == TCP_CLOSE)
		slim_go_home(socket);
	return error;
}

static void slim_connect_refused(struct slim_place *place, const __be32 *dialled, __be16 port,
				 const struct slim_dial *dial)
{
	struct slim_event event = {
		.kind = SLIM_EVENT_REFUSED,
		.reason = dial->reason,
		.rule = dial->rule,
		.direction = dial->direction,
		.endpoint = place->endpoint,
		.peer_endpoint = dial->endpoint,
		.destination_port = port,
		.protocol = IPPROTO_TCP,
	};

	slim_copy(event.source, place->address);
	slim_copy(event.destination, dialled);
	slim_refused(place->host, place, &event);
}

/* Whether a listener of an endpoint of this host is where `dial` goes. */
static bool slim_listens(struct slim_place *place, const struct slim_dial *dial)
{
	struct slim_place *other;
	bool listens;

	rcu_read_lock();
	other = slim_place_find(place->host, dial->endpoint);
	listens = other && slim_listener(place->host, other->index, dial->port);
	rcu_read_unlock();
	return listens;
}

static int slim_connect(struct sock *sk, struct sockaddr *name, int length)
{
	struct sockaddr_in *to = (struct sockaddr_in *)name;
	struct slim_socket *socket = slim_socket_find(sk);
	struct slim_place *place;
	struct slim_dial dial;
	__be32 dialled[4], bound[4];
	u32 flags = 0;
	bool carried;
	int error;

	if (socket && sk->sk_state == TCP_CLOSE)
		slim_go_home(socket);
	place = slim_place_of(sk);
	if (!place)
		return tcp_prot.connect(sk, name, length);
	if (length < (int)sizeof(*to) || to->sin_family != AF_INET || !slim_may_move(sk) ||
	    !slim_bound_address(sk, bound)) {
		slim_place_put(place);
		return tcp_prot.connect(sk, name, length);
	}
	slim_map_v4(dialled, to->sin_addr.s_addr);
again:
	rcu_read_lock();
	error = slim_host_dial(place->host, place->endpoint, place->vni, dialled, to->sin_port,
			       slim_is_loopback(bound), &dial);
	rcu_read_unlock();
	switch (dial.kind) {
	case SLIM_WAY_WIRE:
		flags = SLIM_SOCKET_WIRE;
		carried = true;
		break;
	case SLIM_WAY_SAME_HOST:
		dial.host = place->host->underlay;
		carried = slim_listens(place, &dial);
		break;
	case SLIM_WAY_SELF:
	case SLIM_WAY_OUTSIDE:
		carried = false;
		break;
	default:
		/* What no wire carries the fallback overlay does, with the same policy. */
		if (dial.reason == SLIM_REASON_UNREACHABLE) {
			carried = false;
			break;
		}
		slim_connect_refused(place, dialled, to->sin_port, &dial);
		slim_place_put(place);
		return -error;
	}
	if (carried) {
		error = slim_connect_wire(sk, place, dialled, to->sin_port, &dial, flags);
		if (error == -ESTALE)
			goto again;
		if (!error) {
			slim_count(place->host, dial.reason);
			if (dial.kind == SLIM_WAY_SAME_HOST)
				slim_count(place->host, dial.peer_reason);
		}
	} else {
		slim_count(place->host, dial.reason);
		error = tcp_prot.connect(sk, name, length);
	}
	slim_place_put(place);
	return error;
}

int slim_tcp_v4_connect(struct sock *sk, struct sockaddr *name, int length)
{
	int error;

	slim_hook_enter();
	error = slim_connect(sk, name, length);
	slim_hook_leave();
	return error;
}

/* listen(2) */

/* What a socket's sk_data_ready is that nobody has set: sock_def_readable(). */
static void (*slim_default_ready)(struct sock *sk);

/* What of a listener its connections inherit that an application may set. */
static void slim_shadow_copy(const struct sock *sk, struct sock *shadow)
{
	const u8 buffers = SOCK_SNDBUF_LOCK | SOCK_RCVBUF_LOCK;

	shadow->sk_userlocks = (shadow->sk_userlocks & ~buffers) | (sk->sk_userlocks & buffers);
	shadow->sk_sndbuf = READ_ONCE(sk->sk_sndbuf);
	shadow->sk_rcvbuf = READ_ONCE(sk->sk_rcvbuf);
	shadow->sk_rcvlowat = READ_ONCE(sk->sk_rcvlowat);
	shadow->sk_rcvtimeo = READ_ONCE(sk->sk_rcvtimeo);
	shadow->sk_sndtimeo = READ_ONCE(sk->sk_sndtimeo);
	shadow->sk_lingertime = READ_ONCE(sk->sk_lingertime);
	shadow->sk_priority = READ_ONCE(sk->sk_priority);
	sock_valbool_flag(shadow, SOCK_LINGER, sock_flag(sk, SOCK_LINGER));
	sock_valbool_flag(shadow, SOCK_KEEPOPEN, sock_flag(sk, SOCK_KEEPOPEN));
	sock_valbool_flag(shadow, SOCK_URGINLINE, sock_flag(sk, SOCK_URGINLINE));
	tcp_sk(shadow)->nonagle = tcp_sk(sk)->nonagle;
	tcp_sk(shadow)->keepalive_time = tcp_sk(sk)->keepalive_time;
	tcp_sk(shadow)->keepalive_intvl = tcp_sk(sk)->keepalive_intvl;
	tcp_sk(shadow)->keepalive_probes = tcp_sk(sk)->keepalive_probes;
	tcp_sk(shadow)->linger2 = tcp_sk(sk)->linger2;
	inet_csk(shadow)->icsk_user_timeout = inet_csk(sk)->icsk_user_timeout;
}

/* An option of a listener that has moved was set. */
void slim_shadow_follow(struct sock *sk)
{
	struct slim_socket *socket;
	struct sock *shadow;

	lock_sock(sk);
	socket = slim_socket_find(sk);
	if (socket && socket->shadow) {
		shadow = socket->shadow->sk;
		lock_sock(shadow);
		slim_shadow_copy(sk, shadow);
		release_sock(shadow);
	}
	release_sock(sk);
}

/* Something came to a shadow: whoever waits for the listener's connections is to know. */
static void slim_shadow_ready(struct sock *shadow)
{
	struct slim_socket *socket;

	rcu_read_lock();
	socket = rcu_dereference_sk_user_data(shadow);
	if (socket)
		socket->sk->sk_data_ready(socket->sk);
	rcu_read_unlock();
}

static bool slim_is_shadow(const struct sock *sk)
{
	return sk->sk_data_ready == slim_shadow_ready;
}

/*
 * The listener that a connection of its shadow goes to, if it has room. The child
 * is locked; rcu_read_lock() is held, which keeps the listener there.
 */
static struct sock *slim_shadow_of(struct sock *shadow, struct sock *child)
{
	struct slim_socket *socket = rcu_dereference_sk_user_data(shadow);

	child->sk_data_ready = slim_default_ready;
	if (!socket || sk_acceptq_is_full(socket->sk))
		return NULL;
	return socket->sk;
}

/* Of the locks of shadows, which are taken while those of listeners are held. */
static struct lock_class_key slim_shadow_key[2];

/*
 * Makes the shadow of a listener that is about to move: bound as it is, beside it,
 * so that nobody can take the port in between.
 */
static int slim_shadow_make(struct slim_socket *socket)
{
	struct sock *sk = socket->sk, *shadow;
	struct socket *sock;
	u8 reuse = sk->sk_reuse;
	int error;

	error = __sock_create(socket->home, sk->sk_family, SOCK_STREAM, IPPROTO_TCP, &sock, 0);
	if (error)
		return error;
	shadow = sock->sk;
	sock_lock_init_class_and_name(shadow, "slock-slimnet-shadow", &slim_shadow_key[0],
				      "sk_lock-slimnet-shadow", &slim_shadow_key[1]);
	SOCK_INODE(sock)->i_uid = SOCK_INODE(sk->sk_socket)->i_uid;
	lock_sock(shadow);
	shadow->sk_uid = sk->sk_uid;
	shadow->sk_reuseport = sk->sk_reuseport;
	shadow->sk_ipv6only = sk->sk_ipv6only;
	shadow->sk_max_ack_backlog = sk->sk_max_ack_backlog;
	slim_shadow_copy(sk, shadow);
	slim_bound_restore(shadow, &socket->bound);
	shadow->sk_reuse = SK_FORCE_REUSE;
	error = inet_csk_get_port(shadow, socket->bound.port);
	shadow->sk_reuse = reuse;
	if (!error)
		inet_sk(shadow)->inet_sport = htons(inet_sk(shadow)->inet_num);
	write_lock_bh(&shadow->sk_callback_lock);
	__rcu_assign_sk_user_data_with_flags(shadow, socket, SK_USER_DATA_NOCOPY);
	slim_default_ready = shadow->sk_data_ready;
	shadow->sk_data_ready = slim_shadow_ready;
	write_unlock_bh(&shadow->sk_callback_lock);
	release_sock(shadow);
	if (error)
		sock_release(sock);
	else
		socket->shadow = sock;
	return error;
}

/* Nothing that comes to the shadow is handed on after this. */
static void slim_shadow_cut(struct slim_socket *socket)
{
	struct sock *shadow = socket->shadow->sk;

	write_lock_bh(&shadow->sk_callback_lock);
	rcu_assign_sk_user_data(shadow, NULL);
	write_unlock_bh(&shadow->sk_callback_lock);
}

static void slim_shadow_release(struct slim_socket *socket)
{
	if (!socket->shadow)
		return;
	slim_shadow_cut(socket);
	sock_release(socket->shadow);
	socket->shadow = NULL;
}

static int slim_shadow_listen(struct slim_socket *socket)
{
	struct sock *shadow = socket->shadow->sk;
	int error;

	lock_sock(shadow);
	error = inet_csk_listen_start(shadow);
	release_sock(shadow);
	return error;
}

static int slim_listen_moved(struct sock *sk, struct slim_place *place, bool wildcard)
{
	struct slim_host *host = place->host;
	struct inet_sock *inet = inet_sk(sk);
	struct slim_socket *socket;
	__be16 port;
	int error;

	refcount_inc(&place->refs);
	socket = slim_socket_make(sk, place, sock_net(sk), GFP_KERNEL);
	if (!socket) {
		slim_place_put(place);
		return -ENOMEM;
	}
	slim_bound_save(sk, &socket->bound);
	port = htons(socket->bound.port);
	socket->local_port = port;
	socket->flags = SLIM_SOCKET_LISTENER;
	if (!wildcard)
		slim_copy(socket->local, place->address);
	error = slim_shadow_make(socket);
	if (!error) {
		error = slim_socket_add(socket);
		if (error)
			slim_shadow_release(socket);
	}
	if (error) {
		slim_socket_free(socket);
		return error;
	}
	inet_put_port(sk);
	/* Here it shows whether somebody else listens there (inet_csk_bind_conflict()). */
	error = slim_shadow_listen(socket);
	slim_move(sk, host->net);
	slim_sit_at(sk, slim_inner_to_v4(&host->range, slim_inner(false, place->index, port)));
	if (!error)
		error = inet_csk_get_port(sk, SLIM_INNER_PORT);
	if (!error) {
		inet->inet_sport = htons(inet->inet_num);
		/* A cookie that a client keeps leaves no room for our option in its next SYN. */
		inet_csk(sk)->icsk_accept_queue.fastopenq.max_qlen = 0;
		error = inet_csk_listen_start(sk);
	}
	if (error)
		slim_go_home(socket);
	return error;
}

static int slim_listen(struct sock *sk)
{
	struct slim_socket *socket = slim_socket_find(sk);
	struct inet_sock *inet = inet_sk(sk);
	struct slim_place *place;
	__be32 address[4];
	bool wildcard;
	int error;

	if (socket && sk->sk_state == TCP_CLOSE)
		slim_go_home(socket);
	place = slim_place_of(sk);
	if (!place)
		return inet_csk_listen_start(sk);
	if (!slim_may_move(sk) || ipv6_only_sock(sk) || !slim_bound_address(sk, address))
		goto stay;
	wildcard = slim_is_any(address);
	if (!wildcard && !slim_same(address, place->address))
		goto stay;
	if (!inet->inet_num) {
		if (inet_csk_get_port(sk, 0))
			goto stay;
		inet->inet_sport = htons(inet->inet_num);
	}
	error = slim_listen_moved(sk, place, wildcard);
	slim_place_put(place);
	return error;
stay:
	slim_place_put(place);
	return inet_csk_listen_start(sk);
}

int slim_inet_csk_listen_start(struct sock *sk)
{
	int error;

	slim_hook_enter();
	error = slim_listen(sk);
	slim_hook_leave();
	return error;
}

/* Its port is free again when close(2) returns, in its own namespace too. The socket is locked. */
void slim_inet_csk_listen_stop(struct sock *sk)
{
	struct slim_socket *socket;

	slim_hook_enter();
	inet_csk_listen_stop(sk);
	socket = slim_socket_find(sk);
	if (socket)
		slim_shadow_release(socket);
	slim_hook_leave();
}

/* The end of a connection or a listener whose socket goes on. */

int slim_tcp_disconnect(struct sock *sk, int flags)
{
	struct slim_socket *socket;
	int error;

	slim_hook_enter();
	error = tcp_disconnect(sk, flags);
	socket = slim_socket_find(sk);
	if (socket && sk->sk_state == TCP_CLOSE)
		slim_go_home(socket);
	slim_hook_leave();
	return error;
}

void slim_tcp_v4_destroy_sock(struct sock *sk)
{
	struct slim_socket *socket = slim_socket_find(sk);

	tcp_prot.destroy(sk);
	if (socket)
		slim_socket_remove(socket);
}

/* accept(2): a connection that is complete, for a listener of ours. */

/* Whether a connection may be; if so, what is kept of it is there. The child is locked. */
static bool slim_child(struct slim_socket *listener, const struct request_sock *req,
		       struct sock *child)
{
	const struct slim_flow_key key = {
		.source = inet_rsk(req)->ir_rmt_addr,
		.destination = inet_rsk(req)->ir_loc_addr,
		.source_port = inet_rsk(req)->ir_rmt_port,
		.destination_port = htons(inet_rsk(req)->ir_num),
	};
	struct slim_place *place = listener->place;
	struct slim_host *host = place->host;
	struct slim_socket *socket = NULL;
	struct slim_flow *flow = slim_flow_take(host, &key);
	u32 reason = SLIM_REASON_NO_FLOW, forbids;

	if (!flow || flow->place != place)
		goto no;
	reason = SLIM_REASON_FLOW_FULL;
	refcount_inc(&place->refs);
	socket = slim_socket_make(child, place, listener->home, GFP_ATOMIC);
	if (!socket) {
		slim_place_put(place);
		goto no;
	}
	socket->flags = flow->flags | SLIM_SOCKET_ACCEPTED;
	socket->peer_endpoint = flow->source_endpoint;
	socket->rule = flow->rule;
	socket->reason = flow->reason;
	socket->generation = flow->generation;
	slim_copy(socket->local, flow->destination);
	slim_copy(socket->peer, flow->source);
	socket->local_port = flow->port;
	socket->target_port = flow->port;
	socket->peer_port = flow->name;
	if (slim_socket_add(socket)) {
		slim_socket_free(socket);
		goto no;
	}
	slim_flow_free(host, flow);
	flow = NULL;
	/* Decided at the SYN; tables that came since may say otherwise. */
	reason = SLIM_REASON_GENERATION;
	if (!slim_host_still(host, place->endpoint, socket->peer_endpoint, socket->target_port,
			     SLIM_INGRESS, &socket->generation, &socket->rule, &forbids))
		goto no;
	return true;
no:
	if (flow)
		slim_flow_free(host, flow);
	slim_count(host, reason);
	return false;
}

/* As inet_child_forget() does, of a connection that found its listener closed. */
static void slim_child_forget(struct sock *child)
{
	child->sk_prot->disconnect(child, O_NONBLOCK);
	sock_orphan(child);
	this_cpu_inc(*child->sk_prot->orphan_count);
	inet_csk_destroy_sock(child);
}

/* Whether a complete connection is for a listener of ours, and may not be. */
static bool slim_child_refused(struct sock *sk, const struct request_sock *req, struct sock *child)
{
	struct slim_socket *listener;
	bool refused;

	rcu_read_lock();
	listener = slim_socket_find(sk);
	refused = listener && listener->flags & SLIM_SOCKET_LISTENER && !slim_socket_find(child) &&
		  !slim_child(listener, req, child);
	rcu_read_unlock();
	return refused;
}

/* Hands a shadow's connection to its listener; of any other listener's, forgets it: NULL. */
static struct sock *slim_child_queue(struct sock *sk, struct request_sock *req, struct sock *child)
{
	struct sock *listener = NULL;

	rcu_read_lock();
	if (slim_is_shadow(sk))
		listener = slim_shadow_of(sk, child);
	if (listener) {
		child = inet_csk_reqsk_queue_add(listener, req, child);
	} else {
		slim_child_forget(child);
		child = NULL;
	}
	rcu_read_unlock();
	return child;
}

/* Of a handshake with a request socket. */
struct sock *slim_inet_csk_complete_hashdance(struct sock *sk, struct sock *child,
					      struct request_sock *req, bool own_req)
{
	struct sock *done;

	if (!own_req || (!slim_is_shadow(sk) && !slim_child_refused(sk, req, child)))
		return inet_csk_complete_hashdance(sk, child, req, own_req);
	inet_csk_reqsk_queue_drop(req->rsk_listener, req);
	reqsk_queue_removed(&inet_csk(req->rsk_listener)->icsk_accept_queue, req);
	done = slim_child_queue(sk, req, child);
	if (done)
		return done;
	bh_unlock_sock(child);
	__acquire(child);	/* locked by the caller, as sparse cannot know */
	sock_put(child);
	return NULL;
}

/* Of one with a SYN cookie, or of Fast Open. The caller undoes it for NULL. */
struct sock *slim_inet_csk_reqsk_queue_add(struct sock *sk, struct request_sock *req,
					   struct sock *child)
{
	if (!slim_is_shadow(sk) && !slim_child_refused(sk, req, child))
		return inet_csk_reqsk_queue_add(sk, req, child);
	return slim_child_queue(sk, req, child);
}

/* getsockname(2), getpeername(2), and the name that accept(2) gives */

/* Whether a socket has moved; then its name, or its peer's. A port of the kernel's own stays. */
static bool slim_socket_name(struct sock *sk, int peer, __be32 *address, __be16 *port)
{
	struct slim_socket *socket;

	lock_sock(sk);
	socket = slim_socket_find(sk);
	if (socket) {
		slim_copy(address, peer ? socket->peer : socket->local);
		if (peer)
			*port = socket->peer_port;
		else if (socket->local_port)
			*port = socket->local_port;
	}
	release_sock(sk);
	return socket;
}

int slim_inet_getname(struct socket *sock, struct sockaddr *name, int peer)
{
	struct sockaddr_in *sin = (struct sockaddr_in *)name;
	__be32 address[4];
	int length;

	slim_hook_enter();
	length = inet_getname(sock, name, peer);
	if (length > 0 && slim_socket_name(sock->sk, peer, address, &sin->sin_port))
		sin->sin_addr.s_addr = address[3];
	slim_hook_leave();
	return length;
}

int slim_inet6_getname(struct socket *sock, struct sockaddr *name, int peer)
{
	struct sockaddr_in6 *sin = (struct sockaddr_in6 *)name;
	__be32 address[4];
	int length;

	slim_hook_enter();
	length = inet6_getname(sock, name, peer);
	if (length > 0 && slim_socket_name(sock->sk, peer, address, &sin->sin6_port))
		memcpy(&sin->sin6_addr, address, sizeof(sin->sin6_addr));
	slim_hook_leave();
	return length;
}

/* Opened and closed */

static void slim_connection_tell(struct slim_socket *socket, u32 kind, u32 reason, u32 rule,
				 const struct slim_account *more)
{
	const struct sock *sk = socket->sk;
	struct slim_host *host = socket->place->host;
	const u64 now = ktime_get_ns();
	struct slim_event event = {
		.time = now,
		.kind = kind,
		.reason = reason,
		.rule = rule,
		.endpoint = socket->place->endpoint,
		.peer_endpoint = socket->peer_endpoint,
		.protocol = IPPROTO_TCP,
	};
	__be16 own = socket->local_port ?: inet_sk(sk)->inet_sport;

	if (socket->flags & SLIM_SOCKET_ACCEPTED) {
		event.direction = SLIM_INGRESS;
		slim_copy(event.source, socket->peer);
		slim_copy(event.destination, socket->local);
		event.source_port = socket->peer_port;
		event.destination_port = own;
	} else {
		event.direction = SLIM_EGRESS;
		slim_copy(event.source, socket->local);
		slim_copy(event.destination, socket->peer);
		event.source_port = own;
		event.destination_port = socket->peer_port;
	}
	if (more) {
		event.sent = more->sent;
		event.received = more->received;
		event.duration = now - socket->opened;
	}
	slim_tell(host, &event);
}

/* Every TCP socket of the machine comes through here when its state is about to change. */
void slim_tcp_state(struct sock *sk, int state)
{
	struct slim_socket *socket;

	if (state != TCP_ESTABLISHED && state != TCP_CLOSE)
		return;
	rcu_read_lock();
	socket = slim_socket_find(sk);
	if (!socket || socket->flags & SLIM_SOCKET_LISTENER)
		goto out;
	if (state == TCP_ESTABLISHED && !(socket->flags & SLIM_SOCKET_OPENED)) {
		socket->flags |= SLIM_SOCKET_OPENED;
		socket->opened = ktime_get_ns();
		if (socket->place->host->observe & SLIM_NL_OBSERVE_OPENED)
			slim_connection_tell(socket, SLIM_EVENT_OPENED, socket->reason,
					     socket->rule, NULL);
	} else if (state == TCP_CLOSE && (socket->flags & SLIM_SOCKET_OPENED) &&
		   !(socket->flags & SLIM_SOCKET_CLOSED)) {
		const bool opener = !(socket->flags & SLIM_SOCKET_ACCEPTED);
		const struct slim_account more = slim_socket_carried(socket);

		socket->flags |= SLIM_SOCKET_CLOSED;
		if (opener && sk->sk_state != TCP_CLOSE_WAIT && sk->sk_state != TCP_LAST_ACK)
			socket->flags |= SLIM_SOCKET_LINGERS;
		slim_account(socket->place, socket->rule, opener ? SLIM_EGRESS : SLIM_INGRESS,
			     &more);
		if (socket->place->host->observe & SLIM_NL_OBSERVE_CLOSED)
			slim_connection_tell(socket, SLIM_EVENT_CLOSED, socket->reason,
					     socket->rule, &more);
	}
out:
	rcu_read_unlock();
}

/* Sockets of a host, one after the other, by who must not go on. */

#define SLIM_BATCH 64

static u32 slim_sockets_batch(struct slim_host *host, const struct slim_place *place,
			      struct sock **batch)
{
	struct slim_socket *socket;
	u32 count = 0;

	spin_lock_bh(&host->lock);
	list_for_each_entry(socket, &host->sockets, list) {
		if (count == SLIM_BATCH)
			break;
		if (socket->visit == host->visit || (place && socket->place != place))
			continue;
		socket->visit = host->visit;
		if (refcount_inc_not_zero(&socket->sk->sk_refcnt))
			batch[count++] = socket->sk;
	}
	spin_unlock_bh(&host->lock);
	return count;
}

/* Whether the tables in force let a socket go on; if not, it is counted and told. */
static bool slim_socket_still(struct sock *sk)
{
	struct slim_socket *socket;
	bool still = true;
	u32 forbids;

	lock_sock(sk);
	rcu_read_lock();
	socket = slim_socket_find(sk);
	if (socket && !(socket->flags & SLIM_SOCKET_LISTENER) && sk->sk_state != TCP_CLOSE)
		still = slim_host_still(socket->place->host, socket->place->endpoint,
					socket->peer_endpoint, socket->target_port,
					socket->flags & SLIM_SOCKET_ACCEPTED ? SLIM_INGRESS :
									       SLIM_EGRESS,
					&socket->generation, &socket->rule, &forbids);
	if (!still) {
		slim_count(socket->place->host, SLIM_REASON_REVOKED);
		slim_connection_tell(socket, SLIM_EVENT_REFUSED, SLIM_REASON_REVOKED, forbids,
				     NULL);
	}
	rcu_read_unlock();
	release_sock(sk);
	return still;
}

/*
 * Closes connections and listeners of a host, or of one endpoint of it; or of these
 * only the connections that the tables in force forbid. Under slim_mutex.
 */
void slim_sockets_close(struct slim_host *host, struct slim_place *place, bool forbidden)
{
	struct sock *batch[SLIM_BATCH];
	u32 count, i;

	host->visit++;
	while ((count = slim_sockets_batch(host, place, batch))) {
		for (i = 0; i < count; i++) {
			if (!forbidden || !slim_socket_still(batch[i]))
				tcp_abort(batch[i], ECONNRESET);
			sock_put(batch[i]);
		}
		cond_resched();
	}
}

/* Sends home what is still open of closed sockets. Under slim_mutex. */
void slim_sockets_home(struct slim_host *host, const struct slim_place *place)
{
	struct sock *batch[SLIM_BATCH];
	struct slim_socket *socket;
	u32 count, i;

	host->visit++;
	while ((count = slim_sockets_batch(host, place, batch))) {
		for (i = 0; i < count; i++) {
			lock_sock(batch[i]);
			socket = slim_socket_find(batch[i]);
			if (socket && batch[i]->sk_state == TCP_CLOSE)
				slim_go_home(socket);
			release_sock(batch[i]);
			sock_put(batch[i]);
		}
		cond_resched();
	}
}
