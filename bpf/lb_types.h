/* SPDX-License-Identifier: MIT */
/*
 * The ABI between the program and the controller. Python reads this file
 * (lb_xdp/datapath/layout.py) and derives its view from it, so a field is declared once.
 * Structs are flat, padded by hand and their sizes asserted. Byte order stands in the type.
 * An IPv4 address in a field of four words is the first word; the others are 0.
 * A change here is a new LB_LAYOUT. Of the maps of another layout those go on that mean the same
 * (lb_xdp/datapath/estate.py): field by field and constant by constant, so what is new in meaning
 * must be new in name.
 */
#ifndef LB_TYPES_H
#define LB_TYPES_H

#define LB_LAYOUT 3

#define LB_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)

/* Places in the map `programs`. */
#define LB_PROGRAM_GENERAL4 0
#define LB_PROGRAM_GENERAL6 1
#define LB_PROGRAM_REST4 2
#define LB_PROGRAM_REST6 3
#define LB_PROGRAMS 4

/* What stands at an endpoint; LB_KIND_ADDRESS entries have port and protocol 0. */
#define LB_KIND_EMPTY 0
#define LB_KIND_DSR 1 /* the first five are services; index: ring */
#define LB_KIND_IPIP 2
#define LB_KIND_GUE 3
#define LB_KIND_NAT 4
#define LB_KIND_FULLNAT 5
#define LB_KIND_BACKEND 6 /* index: backend; a nat backend's own address and port */
#define LB_KIND_ADDRESS 7 /* index: LB_ADDRESS_* bits */
#define LB_KIND_MAC 8 /* a MAC address of the gateway's; address and port hold its octets */

#define LB_ADDRESS_VIP 1
#define LB_ADDRESS_LOCAL 2 /* an address of the gateway itself */
#define LB_ADDRESS_SNAT 4 /* what fullnat writes in place of the client's */
#define LB_ADDRESS_BACKEND 8 /* of a nat backend */

/* Of a service. */
#define LB_SERVICE_TRACKED 1 /* every flow is recorded, whatever its slot says */
#define LB_SERVICE_SOURCE 2 /* the ring is entered by the source address alone */
#define LB_SERVICE_CLIENT 4 /* a client's new flows follow its earlier ones */
#define LB_SERVICE_PREFIX 8 /* and so do those of its /24 or /64 */
#define LB_SERVICE_REJECT 16 /* nobody to take a packet: TCP RST or ICMP unreachable */
#define LB_SERVICE_LIMITED 32 /* some backend has max_connections */
#define LB_SERVICE_COUNTED 64 /* connections are counted: LIMITED or least_connections */
#define LB_SERVICE_STATELESS 128 /* session.flows is none: its slots are never unsettled */

/* More of a service, in `wishes`. */
#define LB_WISH_RESET 1 /* flows whose backend is down are answered by RST */
#define LB_WISH_WATCH 2 /* handshakes are watched: lb_watch.h */

/* How a new flow of a service gets its slot. */
#define LB_SCHEDULE_HASH 0
#define LB_SCHEDULE_TURN 1 /* round_robin: the next slot of a ring that holds the schedule */
#define LB_SCHEDULE_RANDOM 2
#define LB_SCHEDULE_LEAST 3 /* least_connections */

/* 16 bytes; the first eight are the key and are compared at once. */
struct lb_endpoint {
	__be32 address;
	__be16 port; /* 0: any */
	__u8 protocol;
	__u8 is_mac; /* part of the key, so that no MAC is taken for an endpoint */
	__u8 kind;
	__u8 flags; /* LB_SERVICE_* */
	__u8 schedule; /* LB_SCHEDULE_* */
	__u8 wishes; /* LB_WISH_* */
	__u32 index;
};
LB_SIZE(lb_endpoint, 16);

/* 32 bytes; the key is the first 24. */
struct lb_endpoint6 {
	__be32 address[4];
	__be16 port; /* 0: any */
	__u8 protocol;
	__u8 pad1[5];
	__u8 kind;
	__u8 flags; /* LB_SERVICE_* */
	__u8 schedule; /* LB_SCHEDULE_* */
	__u8 wishes; /* LB_WISH_* */
	__u32 index;
};
LB_SIZE(lb_endpoint6, 32);

#define LB_BUCKET_ENTRIES 4

/* One cache line: what a lookup reads. The controller sees to it that none overflows. */
struct lb_bucket {
	struct lb_endpoint entry[LB_BUCKET_ENTRIES];
};
LB_SIZE(lb_bucket, 64);

struct lb_bucket6 {
	struct lb_endpoint6 entry[LB_BUCKET_ENTRIES];
};
LB_SIZE(lb_bucket6, 128);

/* The head of the endpoint tables; filter and buckets follow (lb_maps.h). */
struct lb_table_head {
	__u64 build; /* for the controller: which sources the generation's program came from */
	__u64 factor; /* odd: what lb_bucket_of() multiplies by */
	__u64 factor6_low; /* odd, both: lb_bucket6_of() */
	__u64 factor6_high;
	__be32 tunnel_source; /* host bits 0: the flow's hash fills them */
	__u32 tunnel_host_mask; /* in host order */
	__be32 tunnel_source6[4];
	__be16 gue_port;
	__u16 snats; /* IPv4 addresses in the map of that name; after them snats6 of IPv6 */
	__u32 filter_bits; /* these three for the controller: what the program was compiled with */
	__u32 bucket_bits;
	__u32 bucket6_bits;
	__u32 hz; /* for the controller: jiffies a second */
	__u32 snats6;
	__u32 tunnel_host_mask6; /* of the last word, in host order */
	__u32 tunnel_prefix6; /* these two for the controller */
	__u32 flow_entries;
	__u32 pad1;
	__u64 pad2[4];
};
LB_SIZE(lb_table_head, 128);

#define LB_BACKEND_SHARED 1 /* several nat services: replies need the flow table */
#define LB_BACKEND_UP 2 /* probes allow it; without it no packet goes there, recorded or not */
#define LB_BACKEND_IPV6 4 /* the family of `address` */
#define LB_BACKEND_VIP6 8 /* the family of `vip` */
#define LB_BACKEND_ANY_PORT 16 /* of a service on any port: the packet's own port is kept */
#define LB_BACKEND_NO_NEW 32 /* weight 0 or draining: recorded flows only */
#define LB_BACKEND_TRACKED 64 /* its service records every flow */
#define LB_BACKEND_WATCHED 128 /* its service has its handshakes watched */

/* One backend of one service, and how to reach it. Index 0 is never used: it means "none". */
struct lb_backend {
	__be32 address[4];
	__be32 vip[4];
	__be16 port;
	__be16 vip_port;
	__u8 mac[6]; /* next hop */
	__u8 source_mac[6]; /* of the interface it leaves by */
	__u32 ifindex;
	__u8 protocol;
	__u8 flags;
	__u16 mtu; /* of the interface it leaves by, less what a tunnel adds */
	__u32 identity; /* tells it from the backend that had this index before */
	__u32 pad1;
};
LB_SIZE(lb_backend, 64);

/*
 * A slot of a ring: the backend's index, the index of the one before, and the state.
 * SETTLED: the ring is all there is to know. UNSETTLED: flows without a record belong to the former
 * backend. MARKED: the former one is over, but records may exist and count. SEVERED: as UNSETTLED, but
 * the former one is down (or 0: gone for good), and flows without a record are reset.
 */
#define LB_SLOT_INDEX_BITS 15
#define LB_SLOT_FORMER_SHIFT 15
#define LB_SLOT_STATE_SHIFT 30
#define LB_SLOT_SETTLED 0
#define LB_SLOT_UNSETTLED 1
#define LB_SLOT_MARKED 2
#define LB_SLOT_SEVERED 3

/* The head of a ring; LB_RING_SLOTS slots follow. */
struct lb_ring_head {
	__u64 unsettled_until_ns; /* CLOCK_MONOTONIC; for the controller that starts next */
	__u64 turn; /* written by the program: LB_SCHEDULE_TURN */
	__u32 affinity_s; /* how long a client without flows is remembered */
	__u32 pad1;
	__u64 pad2[5];
};
LB_SIZE(lb_ring_head, 64);

/* Per CPU. Octets count from the Ethernet header on. */
struct lb_backend_count {
	__u64 packets;
	__u64 bytes;
	__u64 flows; /* TCP SYNs; of tracked services, flows that began */
	__u64 reply_packets;
	__u64 reply_bytes;
};
LB_SIZE(lb_backend_count, 40);

#define LB_HANDSHAKE_BITS 16
#define LB_DURATIONS 21

/* The latest SYN of a place of the table. */
struct lb_handshake {
	__u32 mark; /* what it is told by: lb_handshake_mark() */
	__u32 backend; /* index; 0: answered */
	__u64 begun_ns; /* CLOCK_MONOTONIC */
};
LB_SIZE(lb_handshake, 16);

/* Per CPU, of watched backends alone. */
struct lb_watch_count {
	__u64 begun; /* handshakes: SYNs, but for those that were repeated */
	__u64 answered;
	__u64 repeated;
	__u64 resets; /* RSTs from the backend; these and all below in nat and fullnat only */
	__u64 duration_us; /* from SYN to SYN-ACK, in sum */
	__u64 durations[LB_DURATIONS]; /* within 16 us, 32, 64, ...; the last: longer than 8.4 s */
};
LB_SIZE(lb_watch_count, 208);

/* Per CPU: what happens to the flow table. */
struct lb_flow_count {
	__u64 inserts;
	__u64 closes; /* seen to end, by FIN or RST; idle ones are the controller's to count */
	__u64 full; /* flows that found no room */
	__u64 rehashed; /* whose backend was gone or down */
};
LB_SIZE(lb_flow_count, 32);

/* What the controller allows a backend. Written by it alone. */
struct lb_limit {
	__u64 expired; /* connections that ended without a word: taken off `active` */
	__u32 connections; /* at most; 0: no limit */
	__u32 resume; /* full until so few are left */
	__u32 weight; /* least_connections */
	__u32 pad1;
};
LB_SIZE(lb_limit, 24);

/* Written by the program alone, by atomic additions. */
struct lb_active {
	__u64 connections;
	__u64 full; /* 1 from reaching the limit until `resume` */
};
LB_SIZE(lb_active, 16);

/* A flow as its client sends it. source_port 0 and a masked source: a client (affinities, unproven). */
struct lb_flow_key {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 family; /* 4 or 6 */
	__u16 pad;
};
LB_SIZE(lb_flow_key, 40);

#define LB_FLOW_OPENING 1 /* nothing but SYNs so far */
#define LB_FLOW_COUNTED 2 /* in lb_active.connections */
#define LB_FLOW_CLIENT_FIN 4
#define LB_FLOW_BACKEND_FIN 8
#define LB_FLOW_CLOSED 16 /* taken off lb_active.connections, if it was in */

struct lb_flow {
	__u64 state; /* LB_FLOW_* bits, set by atomic or */
	__u32 backend; /* index */
	__u32 identity; /* the backend's */
	__u32 seen; /* jiffies, low 32 bits; exact to a second */
	__be16 snat_port; /* fullnat: what stands for the client's port, and its address */
	__u16 pad1;
	__be32 snat[4];
};
LB_SIZE(lb_flow, 40);

/* fullnat, by what a reply carries: key source is the backend, destination the gateway. */
struct lb_return {
	struct lb_flow_key flow; /* the client's */
	__u32 backend; /* index; with the identity, as in the flow's record */
	__u32 identity;
	__u32 seen; /* when the flow's record was last told of a reply: jiffies, low 32 bits */
};
LB_SIZE(lb_return, 52);

struct lb_affinity {
	__u32 backend;
	__u32 identity;
	__u32 seen; /* jiffies, low 32 bits */
	__u32 pad1;
};
LB_SIZE(lb_affinity, 16);

#define LB_FLOW_DIRECT 0 /* a backend index otherwise */

/* nat: what a client's latest packet was addressed to. Key destination: the backend. */
struct lb_nat_flow {
	__u32 backend; /* index, or LB_FLOW_DIRECT */
};
LB_SIZE(lb_nat_flow, 4);

/* Written by the program: this backend has been talked to at its own address. */
struct lb_nat_mark {
	__u32 direct;
};
LB_SIZE(lb_nat_mark, 4);

struct lb_fragment_key {
	__be32 source[4];
	__be32 destination[4];
	__be32 id; /* IPv4: the 16-bit identification */
	__u8 protocol;
	__u8 family;
	__u16 pad;
};
LB_SIZE(lb_fragment_key, 40);

#define LB_FRAGMENT_REPLY 1 /* from a backend, to the client */

/* Where the first fragment went, for those after it. */
struct lb_fragment {
	__be32 address[4]; /* fullnat: the other address to write, the gateway's or the client's */
	__u32 backend;
	__u32 identity;
	__u32 seen; /* jiffies, low 32 bits */
	__u8 kind; /* LB_KIND_* of the service */
	__u8 flags; /* LB_FRAGMENT_* */
	__u16 pad1;
};
LB_SIZE(lb_fragment, 32);

struct lb_snat {
	__be32 address[4];
	__u8 family;
	__u8 pad1[3];
};
LB_SIZE(lb_snat, 20);

/* The way to a client, remembered for a moment. Each CPU has elements of its own. */
struct lb_way {
	__be32 address[4];
	__u32 until; /* jiffies, low 32 bits; 0: empty */
	__u32 ifindex;
	__u8 mac[6];
	__u8 source_mac[6];
	__u16 mtu;
	__u16 family;
};
LB_SIZE(lb_way, 40);

/*
 * Per CPU: what the gateway may still send of its own, and where the general program puts numbers
 * aside for the verifier to forget them (lb_parse_general.h).
 */
struct lb_budget {
	__u32 second; /* jiffies / LB_HZ */
	__u32 left; /* packets that refuse, in this second */
	__u32 left_too_big; /* and ones that say "too big" */
	__u32 aside[10];
	struct lb_return entry; /* too large for the stack (lb_fullnat.h) */
};
LB_SIZE(lb_budget, 104);

#endif
