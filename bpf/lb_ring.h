/* SPDX-License-Identifier: MIT */
/*
 * From a flow to its backend: hash, slot, backend. The controller keeps backends that are down out
 * of the ring, so a slot is believed; 0 means that the service has nobody to take a packet.
 */
#ifndef LB_RING_H
#define LB_RING_H

#include "lb_hash.h"
#include "lb_maps.h"

/* The backend's index for this packet: 0 for none. */
static __always_inline __u32 lb_ring_pick(struct lb_packet *packet, __u32 service)
{
	struct lb_ring *ring = bpf_map_lookup_elem(LB_MAP(rings), &service);
	__u32 ports = (__u32)bpf_ntohs(packet->source_port) << 16 |
		      bpf_ntohs(packet->destination_port);
	__u32 hash;

	if (!ring)
		return 0;
	hash = lb_flow_hash(bpf_ntohl(packet->ip->saddr), bpf_ntohl(packet->ip->daddr), ports,
			    packet->ip->protocol);
	return ring->slot[(__u64)hash * LB_RING_SLOTS >> 32];
}

static __always_inline struct lb_backend *lb_backend_at(__u32 index)
{
	return bpf_map_lookup_elem(LB_MAP(backends), &index);
}

#endif
