/* SPDX-License-Identifier: MIT */
/*
 * The ABI between the program and the controller. Python reads this file
 * (lb_xdp/datapath/layout.py) and derives its view from it, so a field is declared once.
 * Structs are flat, padded by hand and their sizes asserted. Byte order stands in the type.
 * A change here is a new LB_LAYOUT: pins of another layout are never reopened.
 */
#ifndef LB_TYPES_H
#define LB_TYPES_H

#define LB_LAYOUT 1

#define LB_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)

/* What stands at an endpoint; LB_KIND_ADDRESS entries have port and protocol 0. */
#define LB_KIND_EMPTY 0
#define LB_KIND_SERVICE_DSR 1 /* index: ring */
#define LB_KIND_SERVICE_NAT 2 /* index: ring */
#define LB_KIND_BACKEND 3 /* index: backend; a nat backend's own address and port */
#define LB_KIND_ADDRESS 4 /* index: LB_ADDRESS_* bits */
#define LB_KIND_MAC 5 /* a MAC address of the gateway's; address and port hold its octets */

#define LB_ADDRESS_VIP 1
#define LB_ADDRESS_LOCAL 2 /* an address of the gateway itself */

/* 16 bytes; the first eight are the key and are compared at once. */
struct lb_endpoint {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 is_mac; /* part of the key, so that no MAC is taken for an endpoint */
	__u8 kind;
	__u8 pad1[3];
	__u32 index;
};
LB_SIZE(lb_endpoint, 16);

#define LB_BUCKET_ENTRIES 4

/* One cache line: what a lookup reads. The controller sees to it that none overflows. */
struct lb_bucket {
	struct lb_endpoint entry[LB_BUCKET_ENTRIES];
};
LB_SIZE(lb_bucket, 64);

/* The head of the endpoint table; 1 << LB_BUCKET_BITS buckets follow. */
struct lb_table_head {
	__u64 build; /* for the controller: which sources the generation's program came from */
	__u64 factor; /* odd: what lb_bucket_of() multiplies by */
	__u64 pad[6];
};
LB_SIZE(lb_table_head, 64);

#define LB_BACKEND_SHARED 1 /* several nat services: replies need the flow table */
#define LB_BACKEND_UP 2 /* for the controller that starts next: the program trusts the ring */

/* One backend of one service, and how to reach it. Index 0 is never used: it means "none". */
struct lb_backend {
	__be32 address;
	__be32 vip;
	__be16 port;
	__be16 vip_port;
	__u8 mac[6]; /* next hop */
	__u8 source_mac[6]; /* of the interface it leaves by */
	__u32 ifindex;
	__u8 protocol;
	__u8 flags;
	__u16 mtu; /* of the interface it leaves by */
};
LB_SIZE(lb_backend, 32);

/* Per CPU. Octets count from the Ethernet header on. */
struct lb_backend_count {
	__u64 packets;
	__u64 bytes;
	__u64 flows; /* TCP SYNs */
	__u64 reply_packets;
	__u64 reply_bytes;
};
LB_SIZE(lb_backend_count, 40);

/* A flow as seen from the backend: what a reply carries in reverse. */
struct lb_nat_key {
	__be32 client;
	__be32 backend;
	__be16 client_port;
	__be16 backend_port;
	__u8 protocol;
	__u8 pad[3];
};
LB_SIZE(lb_nat_key, 16);

#define LB_FLOW_DIRECT 0 /* a backend index otherwise */

struct lb_nat_flow {
	__u32 backend; /* index, or LB_FLOW_DIRECT */
};
LB_SIZE(lb_nat_flow, 4);

/* Written by the program: this backend has been talked to at its own address. */
struct lb_nat_mark {
	__u32 direct;
};
LB_SIZE(lb_nat_mark, 4);

#endif
