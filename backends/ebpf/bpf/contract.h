/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the eBPF data path and the Python that drives it: the
 * maps and the state of one host that no other data path has.
 *
 * Python reads it from the generated module slimnet_ebpf/contract.py. What all
 * data paths share, and the conventions, are in slimnet/tables.h; a change here
 * changes nothing there, and no other data path is refused for it.
 */
#ifndef SLIMNET_EBPF_CONTRACT_H
#define SLIMNET_EBPF_CONTRACT_H

#include <slimnet/event.h>
#include <slimnet/inner.h>
#include <slimnet/keys.h>
#include <slimnet/reason.h>
#include <slimnet/tables.h>
#include <slimnet/wire.h>

/*
 * The maps of the eBPF data path. The map's name is the suffix in lower case
 * behind "slim_": SLIM_MAP_ENDPOINT is slim_endpoint.
 */
enum slim_map {
	SLIM_MAP_CONTROL,	/* array[1]: struct slim_control */
	SLIM_MAP_ACTIVE,	/* array[1]: __u64, generation << 1 | slot; 0: no tables yet */
	SLIM_MAP_ADDRESS,	/* [2] of hash: struct slim_address_key -> __u32 endpoint */
	SLIM_MAP_SERVICE,	/* [2] of hash: struct slim_service_key -> struct slim_service */
	SLIM_MAP_PUBLISH,	/* [2] of hash: struct slim_publish_key -> struct slim_publish */
	SLIM_MAP_ENDPOINT,	/* [2] of hash: __u32 endpoint -> struct slim_endpoint */
	SLIM_MAP_CIDR,		/* [2] of lpm: struct slim_cidr_key -> struct slim_cidr */
	SLIM_MAP_POLICY,	/* [2] of lpm: struct slim_policy_key -> struct slim_policy */
	SLIM_MAP_CGROUP,	/* cgroup storage: struct slim_local */
	SLIM_MAP_LOCAL,		/* array[SLIM_INDEX_MAX + 1]: struct slim_usage by index */
	SLIM_MAP_LIMIT,		/* array[SLIM_INDEX_MAX + 1]: struct slim_limit by index */
	SLIM_MAP_AFFINITY,	/* LRU hash: struct slim_affinity_key -> struct slim_affinity */
	SLIM_MAP_ACCOUNT,	/* hash: struct slim_account_key -> struct slim_account */
	SLIM_MAP_SOCKET,	/* socket storage: struct slim_socket */
	SLIM_MAP_LISTENER,	/* sockhash: struct slim_listener_key -> listening socket */
	SLIM_MAP_FLOW,		/* hash: struct slim_tuple -> struct slim_flow */
	SLIM_MAP_BOUND,		/* hash: struct slim_tuple -> struct slim_bound */
	SLIM_MAP_HELD,		/* hash: struct slim_listener_key -> struct slim_held */
	SLIM_MAP_SHIELD,	/* array[65536]: struct slim_shield by port of the host */
	SLIM_MAP_OPENING,	/* LRU hash: __u32 inner address -> __u32 records in SLIM_MAP_FLOW */
	SLIM_MAP_PORT,		/* array[65536]: struct slim_port by port of the host */
	SLIM_MAP_JOINED,	/* hash: __u32 index << 16 | port -> __u32 sockets beside another's */
	SLIM_MAP_OWN,		/* lpm: struct slim_cidr_key of vni 0 -> __u32 enum slim_own */
	SLIM_MAP_COUNTER,	/* per-CPU array[SLIM_REASON_COUNT]: __u64 */
	SLIM_MAP_EVENT,		/* ring buffer: struct slim_event */
	SLIM_MAP_DOOM,		/* ring buffer: __u32 enum slim_reason, of a socket to destroy */
	SLIM_MAP_REFUSAL,	/* array: struct slim_refusal by index, direction and reason */
	SLIM_MAP_NOWHERE,	/* LRU hash: __u32 inner address -> struct slim_nowhere */
	SLIM_MAP_NAME,		/* array[65536]: names that connections have, by source port */
	SLIM_MAP_REMOTE,	/* hash: struct slim_remote_key -> struct slim_remote */
	SLIM_MAP_TOLD,		/* ring buffer: struct slim_told */
	SLIM_MAP_APART,		/* hash: __u32 endpoint -> __u32 number of its device */
	SLIM_MAP_DEVICE,	/* hash: __u32 number of a device -> struct slim_device */
	SLIM_MAP_CARRIED,	/* hash: struct slim_carried_key -> struct slim_carried */
	SLIM_MAP_POLICE,	/* hash: __u32 number of a device -> struct slim_police */
	SLIM_MAP_CARRIAGE,	/* per-CPU array[1]: what a SYN's program works on: no stack is that large */
	SLIM_MAP_OVER,		/* queue of struct slim_carried_key: connections that are over */
	SLIM_MAP_COUNT,
};

/* What the endpoints of one host share; what each may have of it, share.h says. */
enum slim_room {
	SLIM_FLOW_ROOM = 65536,		/* records of handshakes */
	SLIM_BOUND_ROOM = 87380,	/* source-bound connections, live or kept */
	SLIM_BOUND_RECORDS = 3,		/* of each such connection, while it lives */
	SLIM_HELD_ROOM = 262144,	/* records of bound ports */
	SLIM_LISTENER_ROOM = 262144,
	SLIM_CARRIED_ROOM = 131072,	/* connections of endpoints with namespaces of their own */
	SLIM_CARRIED_RECORDS = 3,	/* of each such connection: for each way, and of its name */
	SLIM_NAME_WAYS = 5,		/* names of connections with one source port */
};

/* How long records are kept. */
enum slim_patience {
	SLIM_HANDSHAKE_SECONDS = 130,	/* no SYN of Linux's default retry schedule is older */
	SLIM_ANSWER_SECONDS = 5,	/* a handshake that the kernel has no request socket for */
	SLIM_IDLE_SECONDS = 432000,	/* a connection without a packet: nf_conntrack's five days */
	SLIM_LINGER_SECONDS = 60,	/* TIME_WAIT: how long a closed source-bound tuple is kept */
};

enum slim_waiting {
	SLIM_WAITING = 3,		/* half minutes: no earlier one has a TIME_WAIT left */
};

/* In the mark of what slim_sweep is run on: how much it looks at. */
enum slim_sweeping {
	SLIM_SWEEP_WHOLE = 0,		/* every place of the tables */
	SLIM_SWEEP_COUNTED = 1,		/* no table of which nobody holds a record, by the counts */
	SLIM_SWEEP_FLOWS = 2,		/* every place of the handshakes' table, the others by counts */
};

/* What an address is by the routes of this host. */
enum slim_own {
	SLIM_OWN_LOCAL = 1,		/* delivered to itself */
	SLIM_OWN_BROADCAST = 2,
};

/* The state of one socket of an endpoint, in its socket storage. */
enum slim_socket_flag {
	SLIM_SOCKET_BOUND = 1,		/* explicit port: sits on an inner address */
	SLIM_SOCKET_ANY_PORT = 2,	/* sits on a port of the host: bind(0), or none */
	SLIM_SOCKET_WILDCARD = 4,	/* bound to 0.0.0.0 or :: */
	SLIM_SOCKET_LOOPBACK = 8,	/* bound to the endpoint's loopback */
	SLIM_SOCKET_HELD = 16,		/* counted in slim_held, and on a port of the host in slim_local */
	SLIM_SOCKET_SHIELDED_V6 = 32,	/* counted in slim_shield, of that family */
	SLIM_SOCKET_SHIELDED_V4 = 64,
	SLIM_SOCKET_WIRE = 128,		/* connects over the wire: the SYN gets the option */
	SLIM_SOCKET_SAME_HOST = 256,	/* connects on this host: CONNECT_CB writes the flow */
	SLIM_SOCKET_SOURCE_BOUND = 512,	/* connects with an inner source: tc rewrites */
	SLIM_SOCKET_ACCEPTED = 1024,
	SLIM_SOCKET_OUTSIDE = 2048,	/* connects to an address outside of every overlay */
	SLIM_SOCKET_ESTABLISHED = 4096,
	SLIM_SOCKET_V6ONLY = 8192,	/* :: with IPV6_V6ONLY, or ::1: sits on a port of the host */
	SLIM_SOCKET_REUSE_ADDRESS = 16384,
	SLIM_SOCKET_REUSE_PORT = 32768,
	SLIM_SOCKET_DUAL = 65536,	/* bound to ::, and IPv4 comes in as well */
	SLIM_SOCKET_SERVICE = 131072,	/* dialled a service */
	SLIM_SOCKET_PUBLISHED = 262144,	/* accepted through a published port */
	SLIM_SOCKET_DOOMED = 524288,	/* may not be: dead already, and to be destroyed */
	SLIM_SOCKET_ELSEWHERE = 1048576, /* a datagram socket of another network namespace */
	SLIM_SOCKET_ANNOUNCED = 2097152,	/* WIRE, but the agent says who it is: no option */
};

/* What a doomed socket is bound to (SO_BINDTOIFINDEX): the last interface number there can be. */
enum slim_interface {
	SLIM_NOWHERE = 0x7fffffff,
};

/* What a socket is counted in. Apart from its flags: no connect and no bind forgets it. */
enum slim_counted {
	SLIM_COUNTED_LISTENER = 1,	/* a listener, until its last close */
	SLIM_COUNTED_PORT = 2,		/* on a port of the host */
	SLIM_COUNTED_JOINED = 4,	/* where another endpoint was first */
	SLIM_COUNTED_FOLLOWED = 8,	/* STATE_CB will say when it leaves that port */
	SLIM_COUNTED_NAME = 16,		/* has its name in SLIM_MAP_NAME */
};

/* Bits of slim_control.observe: what is worth an event. Refusals always are. */
enum slim_observe {
	SLIM_OBSERVE_OPENED = 1,
	SLIM_OBSERVE_CLOSED = 2,
};

/* What the data path of one host must know besides the tables. */
struct slim_control {
	__u32 abi_version;
	__u32 observe;			/* enum slim_observe */
	__u32 ifindex;			/* the underlay interface */
	__be32 range;			/* IPv4 inner range, a /4: 240.0.0.0 */
	__be32 range6[4];		/* IPv6 inner range, a /64 */
	__be32 underlay[4];		/* this host's underlay address */
	__u16 wire_port;		/* the first of SLIM_WIRE_PORTS */
	__u16 pad;
	__u32 held_limit;		/* an endpoint's sockets on bind(0), and its UDP sockets */
	__u32 wire_turn;		/* connects of an endpoint before it takes the next way to a host */
	__u32 port_room;		/* ports of the host that all endpoints may have, of either kind */
	struct slim_keys keys;		/* the cluster's */
	__u64 netns;			/* cookie of the host's network namespace; 0: not known */
	__u32 apart;			/* endpoints with a network namespace of their own */
	__u32 policed;			/* those of them that have a limit */
	__u32 elsewhere;		/* 1: they have connections by other ports than wire ports */
	/*
	 * Ports that the kernel gives no connection by itself, from where theirs come to hosts
	 * of wire announce.
	 */
	__u16 source_port;		/* the first */
	__u16 source_ports;		/* how many */
};

/* Written once, when the endpoint is attached to its cgroup. */
struct slim_local {
	__u32 endpoint;			/* 0: not ready, refuse everything */
	__u32 index;
	__u32 vni;
	__u32 pad;
	__be32 address[4];
};

/* What one endpoint holds of the host, by index; at index 0, which is nobody's, what all hold. */
struct slim_usage {
	__u32 epoch;			/* the half minute that waiting[0] counts, and 1 the one before */
	__u32 waiting[SLIM_WAITING];	/* sockets on bind(0) that went into TIME_WAIT */
	__u32 held;			/* live sockets on bind(0) */
	__u32 connects;			/* to endpoints, in this turn */
	__u32 flows;			/* records of handshakes that are charged to it */
	__u32 bound;			/* its source-bound connections, live or kept */
	__u32 places;			/* its records in SLIM_MAP_HELD */
	__u32 listeners;
	__u32 datagrams;		/* UDP sockets */
	__u32 ports;			/* distinct ports of the host that its TCP sockets are on */
	__u32 carried;			/* at index 0: connections in SLIM_MAP_CARRIED */
	__u32 turn;			/* which wire port its connections take, or which source */
	__u32 turned;			/* since when, in about a second of bpf_ktime_get_ns() */
	__u32 pad;
	__u64 next;			/* bpf_ktime_get_ns() at which the endpoint will be in time with its rate */
};

enum slim_refusal_limit {
	SLIM_REFUSALS_TOLD = 64,	/* events a second, of one slim_refusal */
};

/* The events of one endpoint's refusals in one direction for one reason. */
struct slim_refusal {
	__u32 second;			/* about a second of bpf_ktime_get_ns() */
	__u32 told;			/* events in that second */
	__u32 omitted;			/* refusals since the last event: counted, not told */
	__u32 pad;
};

/* A capability for one handshake (design 4.1). */
struct slim_flow {
	__u64 time;			/* bpf_ktime_get_ns() when written */
	__u64 generation;
	__be32 source[4];		/* what getpeername() says at the acceptor */
	__be32 destination[4];		/* what getsockname() says at the acceptor */
	__be16 source_port;
	__be16 destination_port;
	__u32 source_endpoint;
	__u32 destination_endpoint;
	__u32 inner;			/* the listener's inner address: loopback, index, port */
	__u32 rule;
	__u32 flags;			/* enum slim_flow_flag */
	__u32 charged;			/* an inner address: whose room this takes */
	__u32 pad;
};

enum slim_flow_flag {
	SLIM_FLOW_LOOPBACK = 1,		/* within one endpoint */
	SLIM_FLOW_V6ONLY = 2,		/* to the listener on the IPv6 inner address */
	SLIM_FLOW_DIRECT = 4,		/* same host: the kernel's own look-up finds the listener */
	SLIM_FLOW_SAME_HOST = 8,
	SLIM_FLOW_MINE = 16,		/* of a socket: the record is the one that it wrote */
	SLIM_FLOW_ANNOUNCED = 32,	/* its SYN has no option: the agent heard of it */
};

/*
 * A connection that another host announced, put to slim_announced: writes the record of its
 * handshake, or says why not.
 */
struct slim_announcement {
	struct slim_tuple tuple;	/* of the SYN */
	__u32 source_endpoint;
	__u32 destination_endpoint;
	__be16 source_port;		/* as the caller sees it */
	__be16 port;			/* that is dialled */
	__u32 withdrawn;		/* 1: it does not come; its record goes */
	__u32 error;			/* from here on the answer: a positive errno, or 0 */
	__u32 reason;
	__u32 rule;
	__u32 later;			/* 1: the tables may be behind: ask again */
};

/*
 * Where a host that speaks announce has a port of an endpoint. Endpoint and port 0: the
 * host has told all that it has, and will tell what changes.
 */
struct slim_remote_key {
	__be32 host[4];
	__u32 endpoint;
	__be16 port;
	__u16 pad;
};

struct slim_remote {
	__be16 port;			/* of the host */
	__u16 pad;
};

enum slim_told_kind {
	SLIM_TOLD_CONNECTS = 0,
	SLIM_TOLD_CLOSED = 1,		/* it is over, or never came to be */
	SLIM_TOLD_REFUSED = 2,		/* by the other end's policy: `tuple` has its destination only */
};

/* A connection from here to such a host, for the agent to tell it of. */
struct slim_told {
	struct slim_tuple tuple;
	__u32 source_endpoint;
	__u32 destination_endpoint;
	__be16 source_port;		/* as the caller sees it */
	__be16 port;			/* as policy was asked */
	__u32 kind;			/* enum slim_told_kind */
	__u32 reason;			/* REFUSED */
	__u32 rule;
};

struct slim_listener_key {
	__u32 inner;
	__u32 v6only;
};

/*
 * The bound sockets of one endpoint at one port, by half (loopback or not):
 * for the conflicts that inner addresses do not show to the kernel.
 */
struct slim_held {
	__u32 sockets;
	__u32 host;			/* of these on a port of the host */
	__u32 reuse_address;		/* of these with SO_REUSEADDR */
	__u32 reuse_port;		/* of these with SO_REUSEPORT */
	__u32 dual;			/* of these on both families */
};

/* Listeners of endpoints on a port of the host, by the family that they listen for. */
struct slim_shield {
	__u32 v4;
	__u32 v6;
};

/* TCP sockets of endpoints on a port of the host. */
struct slim_port {
	__u64 owner;			/* index << 32 | sockets of that endpoint */
	__u32 sockets;
	__u32 pad;
};

/* A source-bound connection: underlay tuple -> inner source, and back. */
struct slim_bound {
	__be32 address;			/* to write in place of the one found */
	__be16 port;
	__u16 waiting;			/* closed from here: TIME_WAIT is on this host */
	__u64 closed;			/* bpf_ktime_get_ns() of the close, 0 while open */
};

/*
 * What a UDP socket is connected to to which it may send nothing, by the inner
 * address that it has as its peer instead; and what is told when it sends.
 */
struct slim_nowhere {
	__be32 source[4];		/* the endpoint's address */
	__be32 destination[4];		/* as dialled */
	__u32 endpoint;
	__u32 index;
	__u32 peer;			/* endpoint, 0: none */
	__u32 reason;
	__u32 rule;
	__be16 port;			/* as dialled */
	__u16 error;			/* errno of a sendto(2) there */
};

/* The router's end of the link of an endpoint with a network namespace of its own. */
struct slim_device {
	__u32 endpoint;
	__u32 vni;
	__be32 address;			/* the endpoint's */
	__be32 near;			/* the router's, towards its host */
	__u32 uplink;			/* number of the router's way out, in its namespace */
	__u32 portal;			/* and of its other end, in the host's */
	__u32 carried;			/* its connections in SLIM_MAP_CARRIED */
	__u8 macs[12];			/* destination and source of what goes to the endpoint */
};

/* What such an endpoint may send: what is over it is dropped. */
struct slim_police {
	__u64 rate;			/* bytes a second, all together; 0: as much as it likes */
	__u64 connection_rate;		/* each connection that is carried */
	__u64 next;			/* bpf_ktime_get_ns() at which it will be in time */
};

/* A packet's addresses: as the endpoint sends it, or as it comes in from the underlay. */
struct slim_carried_key {
	__u32 device;			/* number of the endpoint's; 0: from the underlay */
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
};

enum slim_carried_device {
	SLIM_CARRIED_NAME = 0x40000000,	/* or'ed to a device's number: the record of a name */
};

enum slim_carried_flag {
	SLIM_CARRIED_ACCEPTED = 1,	/* the endpoint was called */
	SLIM_CARRIED_FINAL = 2,		/* a FIN or RST has passed this way */
	SLIM_CARRIED_ANSWERED = 4,	/* a packet but a SYN has passed this way */
	SLIM_CARRIED_REVOKED = 8,	/* new tables forbid it: nothing but a RST passes */
	SLIM_CARRIED_PUBLISHED = 64,	/* it came to a published port */
	SLIM_CARRIED_OPENED = 16,	/* it is established; of the way out */
	SLIM_CARRIED_CLOSED = 32,	/* and over; likewise */
	SLIM_CARRIED_ANNOUNCED = 128,	/* by wire announce: its SYN has no option */
};

/* What becomes of such a packet. */
struct slim_carried {
	__be32 source;			/* to write */
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 device;			/* number of the endpoint's */
	__u32 back;			/* in the key of the other way: number of a device, or 0 */
	__u32 through;			/* device whose peer it goes to next */
	__u32 endpoint;
	__u32 peer;			/* endpoint */
	__u32 rule;
	__be16 port;			/* as policy was asked */
	__u16 flags;			/* enum slim_carried_flag */
	__be16 name;			/* the port by which the peer knows it, if it has a record of its own */
	__u16 pad;
	__u8 macs[12];			/* to write, on the way into an endpoint */
	__u64 opened;			/* bpf_ktime_get_ns() */
	__u64 used;			/* of the last packet, about; or of the FIN */
	__u64 bytes;			/* of payload that went this way */
	__u64 next;			/* as in struct slim_police, for this connection */
};

struct slim_socket {
	__u32 endpoint;
	__u32 peer_endpoint;
	__be32 local[4];		/* overlay, as bound or as connected from */
	__be32 peer[4];			/* overlay, as dialled or as accepted */
	__be16 local_port;		/* as bound, or the alias of the real one (alias.h); 0: that one */
	__be16 peer_port;
	__u32 index;
	__u32 inner;			/* its own inner address, once it is bound */
	__u32 flags;			/* enum slim_socket_flag */
	__u32 rule;			/* of its own endpoint's policy */
	__u32 peer_rule;		/* on this host: of the listener's */
	__u32 flow_flags;		/* enum slim_flow_flag, for CONNECT_CB */
	__be32 underlay[4];		/* destination as rewritten */
	__be16 underlay_port;
	__be16 bound_port;
	__be16 target_port;		/* as policy was asked: behind a service another than dialled */
	__u16 host_port;		/* in host order: SLIM_COUNTED_PORT */
	__u32 pace;			/* what the kernel was told for a limit; 0: nothing */
	__u32 own_pace;			/* what the application asked for, where pace is not 0 */
	__u32 dialled;			/* the inner address that a connect on this host goes to */
	__u32 counted;			/* enum slim_counted */
	__u32 window;			/* likewise of segments on the way; 0: nothing */
	__u64 generation;
	__u64 opened;			/* bpf_ktime_get_ns(), 0 before */
};

#endif /* SLIMNET_EBPF_CONTRACT_H */
