/* SPDX-License-Identifier: MIT */
/*
 * Hashes. A packet waits for each multiplication in turn, so there are as few as do the work.
 */
#ifndef LB_HASH_H
#define LB_HASH_H

/*
 * Which slot a flow falls on: the same on every gateway, and in lb_xdp/core/flow_hash.py, which says
 * why it is what it is. Addresses and ports in host order, ports as source << 16 | destination.
 */
static __always_inline __u32 lb_flow_hash(__u32 source, __u32 destination, __u32 ports,
					  __u8 protocol)
{
	__u64 hash = ((__u64)source << 32 | destination) * 0x9e3779b97f4a7c15ULL;

	hash ^= hash >> 32;
	hash = (hash ^ ((__u64)protocol << 32 | ports)) * 0xff51afd7ed558ccdULL;
	hash ^= hash >> 32;
	return hash * 0xc4ceb9fe1a85ec53ULL >> 32;
}

/*
 * The bucket of an endpoint: multiply-shift (Dietzfelbinger et al., J. Algorithms 25, 1997), one
 * multiplication. The controller picks the odd factor with which no bucket overflows.
 */
static __always_inline __u32 lb_bucket_of(__u64 key, __u64 factor)
{
	return key * factor >> (64 - LB_BUCKET_BITS);
}

#endif
