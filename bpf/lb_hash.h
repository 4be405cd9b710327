/* SPDX-License-Identifier: MIT */
/*
 * MurmurHash3_x86_32 (Austin Appleby, public domain) over whole 32-bit words. Two users: the flow
 * hash, which must be the same on every gateway and in lb_xdp/core/flow_hash.py, and the endpoint
 * table.
 */
#ifndef LB_HASH_H
#define LB_HASH_H

static __always_inline __u32 lb_rotl32(__u32 value, int bits)
{
	return (value << bits) | (value >> (32 - bits));
}

static __always_inline __u32 lb_hash_mix(__u32 hash, __u32 word)
{
	word *= 0xcc9e2d51;
	word = lb_rotl32(word, 15);
	word *= 0x1b873593;
	hash ^= word;
	return lb_rotl32(hash, 13) * 5 + 0xe6546b64;
}

static __always_inline __u32 lb_hash_end(__u32 hash, __u32 bytes)
{
	hash ^= bytes;
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ (hash >> 16);
}

/* Addresses and ports in host order. */
static __always_inline __u32 lb_flow_hash(__u32 source, __u32 destination, __u32 ports,
					  __u8 protocol)
{
	__u32 hash = protocol;

	hash = lb_hash_mix(hash, source);
	hash = lb_hash_mix(hash, destination);
	hash = lb_hash_mix(hash, ports);
	return lb_hash_end(hash, 12);
}

/* Address in host order; `where` is port << 16 | protocol, or 0 for the address alone. */
static __always_inline __u32 lb_endpoint_hash(__u32 seed, __u32 address, __u32 where)
{
	return lb_hash_end(lb_hash_mix(lb_hash_mix(seed, address), where), 8);
}

#endif
