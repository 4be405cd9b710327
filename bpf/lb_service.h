/* SPDX-License-Identifier: MIT */
/*
 * Who stands at an address and port: the endpoint table. A lookup hashes once and compares the four
 * entries of one cache line. The controller lays the table out so that no bucket overflows, and
 * never changes it in place: another set of endpoints is another table and a swap of the program.
 */
#ifndef LB_SERVICE_H
#define LB_SERVICE_H

#include "lb_hash.h"
#include "lb_maps.h"

/* The 8 octets of struct lb_endpoint's key, as they lie in memory. */
static __always_inline __u64 lb_endpoint_key(__be32 address, __be16 port, __u8 protocol)
{
	return (__u64)address | (__u64)port << 32 | (__u64)protocol << 48;
}

static __always_inline struct lb_endpoint *lb_entry_find(struct lb_table *table, __u64 key)
{
	__u32 at = lb_bucket_of(key, table->head.factor);
	struct lb_bucket *bucket = &table->bucket[at & ((1 << LB_BUCKET_BITS) - 1)];

#pragma unroll
	for (int i = 0; i < LB_BUCKET_ENTRIES; i++) {
		if (*(__u64 *)&bucket->entry[i] == key)
			return &bucket->entry[i];
	}
	return NULL;
}

static __always_inline struct lb_endpoint *lb_endpoint_find(struct lb_table *table, __be32 address,
							    __be16 port, __u8 protocol)
{
	return lb_entry_find(table, lb_endpoint_key(address, port, protocol));
}

static __always_inline struct lb_table *lb_endpoints(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(LB_MAP(endpoints), &zero);
}

/* LB_ADDRESS_* bits of an address; 0 for one that is nobody's. */
static __always_inline __u32 lb_address_bits(struct lb_table *table, __be32 address)
{
	struct lb_endpoint *entry = lb_endpoint_find(table, address, 0, 0);

	return entry && entry->kind == LB_KIND_ADDRESS ? entry->index : 0;
}

#define LB_IS_MAC (1ULL << 56) /* lb_endpoint.is_mac, as it lies in the key */
#define LB_VRRP_MAC 0x01005e0000ULL /* 00:00:5e:00:01, as it lies in memory (RFC 5798, 7.3) */

/*
 * Whether a frame was sent to the gateway. Others arrive as well, flooded by a switch or in
 * promiscuous mode: to forward them would double packets, and between two gateways without end.
 */
static __always_inline int lb_is_for_us(struct lb_table *table, struct ethhdr *eth)
{
	__u16 *part = (__u16 *)eth->h_dest;
	__u64 mac = part[0] | (__u64)part[1] << 16 | (__u64)part[2] << 32;

	return lb_entry_find(table, mac | LB_IS_MAC) || (mac & 0xffffffffffULL) == LB_VRRP_MAC;
}

#endif
