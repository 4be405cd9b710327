/* SPDX-License-Identifier: MIT */
/*
 * A client's packet to a service: admit it, pick its backend, rewrite it for the service's mode.
 * Everything that may refuse a packet comes before the first write into it.
 */
#ifndef LB_REQUEST_H
#define LB_REQUEST_H

#include "lb_count.h"
#include "lb_encap.h"
#include "lb_forward.h"
#include "lb_fullnat.h"
#include "lb_nat.h"
#include "lb_ring.h"
#include "lb_schedule.h"
#include "lb_service.h"
#include "lb_watch.h"

/* What is found out on the way from a packet to its backend. */
struct lb_choice {
	__u32 index;
	struct lb_backend *backend;
	int begins; /* the packet is a flow's first */
#if LB_WATCH
	__u32 mark; /* of its handshake */
#endif
#if LB_TRACKED
	struct lb_flow_key key; /* of a tracked service's flow */
	struct lb_flow *flow; /* its record; NULL: made just now, or none */
#endif
};

/* Addresses that no client can have (RFC 1122, 3.2.1.3; RFC 4291, 2.5 and 2.7), the VIP included. */
static __always_inline int lb_is_martian(struct lb_packet *packet, int family)
{
	const __be32 *source = lb_source(packet, family);

	if (lb_same_address(source, lb_destination(packet, family), family))
		return 1;
	if (family == 4) {
		__u32 top = bpf_ntohl(source[0]) >> 24;

		return top == 0 || top == 127 || top >= 224;
	}
	if ((source[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
		return 1;
	return !source[0] && !source[1] && !source[2] && bpf_ntohl(source[3]) <= 1;
}

static __always_inline int lb_pick(struct lb_packet *packet, struct lb_stand *stand,
				   struct lb_choice *choice, int family)
{
	struct lb_ring *ring = lb_ring_at(stand->index);
	int by_source = LB_BY_SOURCE && stand->flags & LB_SERVICE_SOURCE;
	__u32 slot;

	if (!ring)
		return LB_END(internal);
	packet->hash = lb_hash_of(lb_source(packet, family), lb_destination(packet, family),
				  packet->source_port, packet->destination_port, packet->protocol,
				  by_source, family);
#if LB_TRACKED
	if (stand->flags & LB_SERVICE_TRACKED) {
		int end = lb_tracked_pick(packet, stand, ring, &choice->key, &choice->index,
					  &choice->flow, family);

		if (end == LB_UNKNOWN)
			return LB_OK;
		choice->begins = !choice->flow;
		return end;
	}
#endif
	choice->begins = lb_is_syn(packet);
	slot = lb_slot_at(ring, packet->hash);
	choice->index = lb_slot_backend(slot);
#if LB_FLOWS
	if (lb_slot_state(slot)) {
		int end = lb_unsettled_pick(packet, stand, slot, &choice->index, family);

		if (end)
			return end;
	}
#endif
	return choice->index ? LB_OK : LB_END(no_backend);
}

static __always_inline int lb_rewrite(struct xdp_md *ctx, struct lb_packet *packet,
				      struct lb_table *table, int kind, struct lb_choice *choice,
				      int tags, int family)
{
	struct lb_backend *backend = choice->backend;
	int end = LB_OK;

#if LB_IPIP
	if (kind == LB_KIND_IPIP)
		return lb_encap(ctx, packet, table, backend, 0, tags, family);
#endif
#if LB_GUE
	if (kind == LB_KIND_GUE)
		return lb_encap(ctx, packet, table, backend, 1, tags, family);
#endif
#if LB_NAT
	if (kind == LB_KIND_NAT) {
		lb_nat_note_request(packet, backend, choice->index, family);
		end = lb_nat_request(packet, backend, family);
		if (!end)
			lb_decrement_hops(packet, family);
	}
#endif
#if LB_FULLNAT
	if (kind == LB_KIND_FULLNAT) {
		end = lb_fullnat_request(packet, table, backend, &choice->key, choice->flow,
					 family);
		if (!end)
			lb_decrement_hops(packet, family);
	}
#endif
	return end;
}

/*
 * Sends a packet the way that a backend is reached. `general`: this is the general program, which
 * answers what cannot be forwarded; the fast one hands such packets over.
 */
static __always_inline int lb_send(struct xdp_md *ctx, struct lb_packet *packet,
				   struct lb_table *table, int kind, struct lb_choice *choice,
				   int tags, int *action, int family)
{
	int end;

	*action = lb_leave_by(ctx, choice->backend->ifindex, XDP_DROP);
	if (*action == XDP_DROP)
		return LB_END(no_egress);
	end = lb_rewrite(ctx, packet, table, kind, choice, tags, family);
	if (end)
		return end;
	lb_copy_macs(packet->eth, choice->backend->mac);
	return LB_OK;
}

/* Refuses before anything is written or remembered: a packet that passes is untouched. */
static __always_inline int lb_admit(struct xdp_md *ctx, struct lb_packet *packet, int kind,
				    int family)
{
	int end = lb_check_lengths(ctx, packet);

	if (end)
		return end;
	if (kind != LB_KIND_DSR && lb_hops_left(packet, family) <= 1)
		return LB_END(ttl_expired);
	return lb_is_martian(packet, family) ? LB_END(martian) : LB_OK;
}

/* To the service at `stand`. LB_END(too_big), no_backend, backends_full: nothing is written yet. */
static __always_inline int lb_request(struct xdp_md *ctx, struct lb_packet *packet,
				      struct lb_table *table, struct lb_stand *stand,
				      struct lb_choice *choice, int tags, int *action, int family)
{
	int end = lb_admit(ctx, packet, stand->kind, family);

	if (end)
		return end;
	end = lb_pick(packet, stand, choice, family);
	if (end)
		return end;
	packet->kind = stand->kind;
	packet->backend = choice->index;
	choice->backend = lb_backend_at(choice->index);
	if (!choice->backend)
		return LB_END(internal);
	if (packet->l3_len > choice->backend->mtu)
		return LB_END(too_big);
#if LB_WATCH
	lb_watch_look(packet, stand, &choice->mark, family);
#endif
	end = lb_send(ctx, packet, table, stand->kind, choice, tags, action, family);
	if (end)
		return end;
#if LB_WATCH
	lb_watch_request(packet, choice->mark, choice->index);
#endif
	lb_count_request(choice->index, packet, choice->begins);
	return LB_END(forwarded);
}

#endif
