/* SPDX-License-Identifier: MIT */
/*
 * Who stands at an address and port: the endpoint tables, one for each IP version. A lookup hashes
 * once and compares the four entries of one bucket. The controller lays the tables out so that no
 * bucket overflows, and never changes them in place: another set of endpoints is another table and
 * a swap of the program.
 */
#ifndef LB_SERVICE_H
#define LB_SERVICE_H

#include "lb_hash.h"
#include "lb_maps.h"
#include "lb_parse.h"

/* The end of struct lb_endpoint and struct lb_endpoint6. */
struct lb_stand {
	__u8 kind;
	__u8 flags;
	__u8 schedule;
	__u8 wishes;
	__u32 index;
};

static __always_inline struct lb_table *lb_endpoints(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(LB_MAP(endpoints), &zero);
}

/* An address as two halves, as they lie in memory; IPv4 is the second half. */
struct lb_halves {
	__u64 high;
	__u64 low;
};

static __always_inline struct lb_halves lb_halves(const __be32 *address, int family)
{
	struct lb_halves halves = { .high = 0, .low = address[0] };

	if (family == 6) {
		halves.high = (__u64)address[1] << 32 | address[0];
		halves.low = (__u64)address[3] << 32 | address[2];
	}
	return halves;
}

/* Whether an address may be in the tables; if not, it is not. */
static __always_inline int lb_may_be_ours(struct lb_table *table, const __be32 *address, int family)
{
	struct lb_halves halves = lb_halves(address, family);
	__u32 bit = lb_filter_bit(halves.high + halves.low) & ((1 << LB_FILTER_BITS) - 1);

	return table->filter[bit >> 6] >> (bit & 63) & 1;
}

static __always_inline struct lb_stand *lb_entry_find(struct lb_table *table, __u64 key)
{
	__u32 at = lb_bucket_of(key, table->head.factor);
	struct lb_bucket *bucket = &table->bucket[at & ((1 << LB_BUCKET_BITS) - 1)];

#pragma unroll
	for (int i = 0; i < LB_BUCKET_ENTRIES; i++) {
		if (*(__u64 *)__builtin_assume_aligned(&bucket->entry[i], 8) == key)
			return (struct lb_stand *)&bucket->entry[i].kind;
	}
	return NULL;
}

static __always_inline struct lb_stand *lb_entry6_find(struct lb_table *table,
						       struct lb_halves address, __u64 rest)
{
	__u32 at = lb_bucket6_of(address.high, address.low, rest, table->head.factor6_high,
				 table->head.factor6_low);
	struct lb_bucket6 *bucket = &table->bucket6[at & ((1 << LB_BUCKET6_BITS) - 1)];

#pragma unroll
	for (int i = 0; i < LB_BUCKET_ENTRIES; i++) {
		__u64 *key = (__u64 *)&bucket->entry[i];

		if (key[0] == address.high && key[1] == address.low && key[2] == rest)
			return (struct lb_stand *)&bucket->entry[i].kind;
	}
	return NULL;
}

static __always_inline struct lb_stand *lb_stand_at(struct lb_table *table, const __be32 *address,
						    __be16 port, __u8 protocol, int family)
{
	if (family == 4)
		return lb_entry_find(table, address[0] | (__u64)port << 32 | (__u64)protocol << 48);
	return lb_entry6_find(table, lb_halves(address, 6), port | (__u64)protocol << 16);
}

/* Who stands at an address and port; a port of its own goes before `port: any`. */
static __always_inline struct lb_stand *lb_endpoint_find(struct lb_table *table,
							 const __be32 *address, __be16 port,
							 __u8 protocol, int family)
{
	struct lb_stand *stand = lb_stand_at(table, address, port, protocol, family);

#if LB_ANY_PORT
	if (!stand)
		stand = lb_stand_at(table, address, 0, protocol, family);
#endif
	return stand;
}

/* LB_ADDRESS_* bits of an address; 0 for one that is nobody's. */
static __always_inline __u32 lb_address_bits(struct lb_table *table, const __be32 *address,
					     int family)
{
	struct lb_stand *stand = lb_stand_at(table, address, 0, 0, family);

	return stand && stand->kind == LB_KIND_ADDRESS ? stand->index : 0;
}

static __always_inline int lb_is_service(struct lb_stand *stand)
{
	return stand->kind <= LB_KIND_FULLNAT;
}

#define LB_IS_MAC (1ULL << 56) /* lb_endpoint.is_mac, as it lies in the key */
#define LB_VRRP_MAC 0x01005e0000ULL /* 00:00:5e:00:01, as it lies in memory (RFC 5798, 7.3) */
#define LB_VRRP6_MAC 0x02005e0000ULL

/*
 * Whether a frame was sent to the gateway. Others arrive as well, flooded by a switch or in
 * promiscuous mode: to forward them would double packets, and between two gateways without end.
 */
static __always_inline int lb_is_for_us(struct lb_table *table, struct ethhdr *eth)
{
	__u16 *part = (__u16 *)eth->h_dest;
	__u64 mac = part[0] | (__u64)part[1] << 16 | (__u64)part[2] << 32;

	return lb_entry_find(table, mac | LB_IS_MAC) || (mac & 0xffffffffffULL) == LB_VRRP_MAC ||
	       (mac & 0xffffffffffULL) == LB_VRRP6_MAC;
}

#endif
