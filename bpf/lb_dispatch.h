/* SPDX-License-Identifier: MIT */
/*
 * Who a parsed TCP or UDP packet belongs to, and what is done with it. Both programs run this;
 * `general` is a constant, 1 in the one that answers what cannot be forwarded and knows tags. The
 * fast one hands such packets over before anything is written.
 */
#ifndef LB_DISPATCH_H
#define LB_DISPATCH_H

#include "lb_answer.h"
#include "lb_reply.h"
#include "lb_request.h"
#include "lb_service.h"

/* What the packet is if no endpoint of ours is its destination or source. */
static __always_inline int lb_not_ours(struct lb_table *table, struct lb_packet *packet, int family)
{
	if (lb_address_bits(table, lb_destination(packet, family), family) & LB_ADDRESS_VIP)
		return LB_END(no_service);
	return LB_END(not_vip);
}

/* Most packets of most gateways are not for a VIP, and told apart by one load or two. */
static __always_inline int lb_concerns_us(struct lb_table *table, struct lb_packet *packet,
					  int family)
{
	if (lb_may_be_ours(table, lb_destination(packet, family), family))
		return 1;
	return LB_NAT && lb_may_be_ours(table, lb_source(packet, family), family);
}

/*
 * What stands there, of kind LB_KIND_EMPTY if nothing does. A copy, so that the verifier does not
 * follow all the rest once for each entry of the bucket.
 */
static __always_inline struct lb_stand lb_stand_of(struct lb_stand *at)
{
	__u64 copy = at ? *(__u64 *)at : 0;

	LB_KEEP(copy);
	return *(struct lb_stand *)&copy;
}

/* To the service at `to`. */
static __always_inline int lb_serve(struct xdp_md *ctx, struct lb_table *table,
				    struct lb_packet *packet, struct lb_stand *to, int general,
				    int *action, int family)
{
	struct lb_choice choice = {};
	int tags = general ? packet->l3_at - ETH_HLEN : 0;
	int end;

	if (!lb_is_for_us(table, packet->eth))
		return LB_END(other_host);
	end = lb_request(ctx, packet, table, to, &choice, tags, action, family);
	if (end != LB_END(too_big) && end != LB_END(no_backend) && end != LB_END(backends_full) &&
	    (!LB_RESET || end != LB_END(severed)))
		return end;
	if (!general)
		return LB_GENERAL;
	if (end == LB_END(too_big))
		return lb_ask_too_big(packet, choice.backend->mtu, 0, family);
#if LB_RESET
	if (end == LB_END(severed)) {
		end = lb_answer_reset(ctx, packet, end, family);
		if (end)
			return end;
		*action = XDP_TX;
		return LB_END(reset);
	}
#endif
#if LB_REJECT
	if (to->flags & LB_SERVICE_REJECT)
		return lb_refuse(ctx, packet, end, action, family);
#endif
	return end;
}

/* Whoever stands at the destination, or, for a reply, at the source. */
static __always_inline int lb_dispatch(struct xdp_md *ctx, struct lb_table *table,
				       struct lb_packet *packet, int general, int *action,
				       int family)
{
	const __be32 *destination = lb_destination(packet, family);
	struct lb_stand to;

	to = lb_stand_of(lb_endpoint_find(table, destination, packet->destination_port,
					  packet->protocol, family));
	if (to.kind && lb_is_service(&to))
		return lb_serve(ctx, table, packet, &to, general, action, family);
#if LB_NAT
	if (to.kind == LB_KIND_BACKEND) {
		lb_nat_note_direct(packet, to.index, family);
		return LB_END(direct);
	}
#endif
#if LB_FULLNAT
	/* Before nat's: a backend may be of both, and what it sends to this address is fullnat's. */
	if (lb_address_bits(table, destination, family) & LB_ADDRESS_SNAT)
		return lb_fullnat_reply(ctx, table, packet, action, family);
#endif
#if LB_NAT
	to = lb_stand_of(lb_endpoint_find(table, lb_source(packet, family), packet->source_port,
					  packet->protocol, family));
	if (to.kind == LB_KIND_BACKEND)
		return lb_reply(ctx, table, packet, to.index, action, family);
#endif
	return lb_not_ours(table, packet, family);
}

#endif
