/* SPDX-License-Identifier: MIT */
/*
 * Hashes. A packet waits for each multiplication in turn, so there are as few as do the work.
 */
#ifndef LB_HASH_H
#define LB_HASH_H

#define LB_MIX_1 0x9e3779b97f4a7c15ULL
#define LB_MIX_2 0xff51afd7ed558ccdULL
#define LB_MIX_3 0xc4ceb9fe1a85ec53ULL
#define LB_MIX_4 0xbf58476d1ce4e5b9ULL
#define LB_MIX_5 0x94d049bb133111ebULL

/* The end of every flow hash: ports as source << 16 | destination, in host order. */
static __always_inline __u32 lb_hash_finish(__u64 addresses, __u32 ports, __u8 protocol)
{
	__u64 hash = addresses ^ addresses >> 32;

	hash = (hash ^ ((__u64)protocol << 32 | ports)) * LB_MIX_2;
	hash ^= hash >> 32;
	return hash * LB_MIX_3 >> 32;
}

/*
 * Which slot a flow falls on: the same on every gateway, and in lb_xdp/core/flow_hash.py, which says
 * why it is what it is. Addresses in host order.
 */
static __always_inline __u32 lb_flow_hash(__u32 source, __u32 destination, __u32 ports,
					  __u8 protocol)
{
	return lb_hash_finish(((__u64)source << 32 | destination) * LB_MIX_1, ports, protocol);
}

/* The same for IPv6: four products that do not wait for each other. Halves in host order. */
static __always_inline __u32 lb_flow_hash6(const __u64 source[2], const __u64 destination[2],
					   __u32 ports, __u8 protocol)
{
	return lb_hash_finish(source[0] * LB_MIX_1 + source[1] * LB_MIX_2 +
				      destination[0] * LB_MIX_4 + destination[1] * LB_MIX_5,
			      ports, protocol);
}

/*
 * The bucket of an endpoint: multiply-shift (Dietzfelbinger et al., J. Algorithms 25, 1997), one
 * multiplication. The controller picks the odd factor with which no bucket overflows.
 */
static __always_inline __u32 lb_bucket_of(__u64 key, __u64 factor)
{
	return key * factor >> (64 - LB_BUCKET_BITS);
}

/* Words as they lie in memory; `rest` is port | protocol << 16. */
static __always_inline __u32 lb_bucket6_of(__u64 high, __u64 low, __u64 rest, __u64 factor_high,
					   __u64 factor_low)
{
	return (low * factor_low + (high ^ rest * LB_MIX_1) * factor_high) >>
	       (64 - LB_BUCKET6_BITS);
}

/* The bit of an address in the filter; an IPv6 address is its halves' sum here. */
static __always_inline __u32 lb_filter_bit(__u64 address)
{
	return address * LB_MIX_1 >> (64 - LB_FILTER_BITS);
}

#endif
