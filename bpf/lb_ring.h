/* SPDX-License-Identifier: MIT */
/*
 * From a flow to its slot, and from a slot to a backend. The controller keeps backends that are
 * down out of the ring, so a settled slot is believed; 0 means that the service has nobody.
 */
#ifndef LB_RING_H
#define LB_RING_H

#include "lb_hash.h"
#include "lb_maps.h"
#include "lb_parse.h"

#define LB_SLOT_INDEX ((1 << LB_SLOT_INDEX_BITS) - 1)

static __always_inline __u32 lb_slot_backend(__u32 slot)
{
	return slot & LB_SLOT_INDEX;
}

static __always_inline __u32 lb_slot_former(__u32 slot)
{
	return slot >> LB_SLOT_FORMER_SHIFT & LB_SLOT_INDEX;
}

static __always_inline __u32 lb_slot_state(__u32 slot)
{
	return slot >> LB_SLOT_STATE_SHIFT;
}

/* Whether flows without a record may be a former backend's, so that they need one when they show. */
static __always_inline int lb_slot_waits(__u32 slot)
{
	return lb_slot_state(slot) & LB_SLOT_UNSETTLED; /* SEVERED has the bit as well */
}

static __always_inline __u64 lb_host_order(const __be32 *words)
{
	return (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
}

/* The flow's hash; by_source: that of all flows from its source. */
static __always_inline __u32 lb_hash_of(const __be32 *source, const __be32 *destination,
					__be16 source_port, __be16 destination_port, __u8 protocol,
					int by_source, int family)
{
	__u32 ports = (__u32)bpf_ntohs(source_port) << 16 | bpf_ntohs(destination_port);

	if (family == 4) {
		__u32 client = bpf_ntohl(source[0]);

		if (by_source)
			return lb_flow_hash(client, 0, 0, 0);
		return lb_flow_hash(client, bpf_ntohl(destination[0]), ports, protocol);
	}
	{
		__u64 client[2] = { lb_host_order(source), lb_host_order(source + 2) };
		__u64 vip[2] = { lb_host_order(destination), lb_host_order(destination + 2) };
		__u64 none[2] = { 0, 0 };

		if (by_source)
			return lb_flow_hash6(client, none, 0, 0);
		return lb_flow_hash6(client, vip, ports, protocol);
	}
}

static __always_inline struct lb_ring *lb_ring_at(__u32 service)
{
	return bpf_map_lookup_elem(LB_MAP(rings), &service);
}

/* The slot that a hash falls on. */
static __always_inline __u32 lb_slot_at(struct lb_ring *ring, __u32 hash)
{
	return ring->slot[(__u64)hash * LB_RING_SLOTS >> 32];
}

static __always_inline struct lb_backend *lb_backend_at(__u32 index)
{
	return bpf_map_lookup_elem(LB_MAP(backends), &index);
}

/* The backend that a record names, if it may have packets: up, and still the one that was meant. */
static __always_inline struct lb_backend *lb_backend_if(__u32 index, __u32 identity)
{
	struct lb_backend *backend = lb_backend_at(index);

	if (!backend || backend->identity != identity || !(backend->flags & LB_BACKEND_UP))
		return NULL;
	return backend;
}

#endif
