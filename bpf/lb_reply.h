/* SPDX-License-Identifier: MIT */
/*
 * nat, the way back: a backend's packet to a client gets the VIP as its source and leaves by the
 * route to the client. The client may be anywhere, so the kernel's routing table is asked
 * (bpf_fib_lookup, which needs forwarding enabled on the interface). Where it knows no way for XDP,
 * the translated packet passes, and the kernel routes it, resolves the neighbour or complains.
 */
#ifndef LB_REPLY_H
#define LB_REPLY_H

#include "lb_forward.h"
#include "lb_nat.h"

#define LB_AF_INET 2

/* Asks with the VIP as the source, which the packet bears once it is translated. */
static __always_inline int lb_route_reply(struct xdp_md *ctx, struct lb_packet *packet,
					  struct lb_backend *backend, struct bpf_fib_lookup *route)
{
	struct iphdr *ip = packet->ip;

	route->family = LB_AF_INET;
	route->tos = ip->tos;
	route->l4_protocol = ip->protocol;
	route->tot_len = bpf_ntohs(ip->tot_len);
	route->ipv4_src = backend->vip;
	route->ipv4_dst = ip->daddr;
	route->ifindex = ctx->ingress_ifindex;
	switch (bpf_fib_lookup(ctx, route, sizeof(*route), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		return LB_OK;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return LB_END(no_neighbour);
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return LB_END(too_big);
	default:
		return LB_END(no_route);
	}
}

/* `end` is what lb_route_reply() said. */
static __always_inline int lb_send_reply(struct xdp_md *ctx, struct lb_packet *packet,
					 struct bpf_fib_lookup *route, int end, int *action)
{
	if (end)
		return end;
	*action = lb_leave_by(ctx, route->ifindex, XDP_PASS);
	if (*action == XDP_PASS)
		return LB_END(other_egress);
	lb_decrement_ttl(packet->ip); /* only here: where the packet passes, the kernel does it */
	lb_set_macs(packet->eth, route->dmac, route->smac);
	return LB_END(replied);
}

/* Refuses before anything is written: a packet that passes from here is untouched. */
static __always_inline int lb_admit_reply(struct xdp_md *ctx, struct lb_table *table,
					  struct lb_packet *packet)
{
	int end;

	if (lb_address_bits(table, packet->ip->daddr) & LB_ADDRESS_LOCAL)
		return LB_END(to_gateway);
	if (!lb_is_for_us(table, packet->eth))
		return LB_END(other_host);
	end = lb_check_lengths(ctx, packet);
	if (end)
		return end;
	return packet->ip->ttl <= 1 ? LB_END(ttl_expired) : LB_OK;
}

static __always_inline int lb_reply(struct xdp_md *ctx, struct lb_table *table,
				    struct lb_packet *packet, __u32 index, int *action)
{
	struct bpf_fib_lookup route = {};
	struct lb_backend *backend;
	int end, way;

	end = lb_admit_reply(ctx, table, packet);
	if (end)
		return end;
	end = lb_nat_owner(packet, &index, &backend);
	if (end)
		return end;
	way = lb_route_reply(ctx, packet, backend, &route);
	/* Not to be fragmented: untranslated, so that the kernel's complaint finds the backend. */
	if (way == LB_END(too_big) && packet->ip->frag_off & bpf_htons(LB_IP_DF))
		return way;
	end = lb_nat_reply(packet, backend);
	if (end)
		return end;
	lb_count_reply(index, packet);
	return lb_send_reply(ctx, packet, &route, way, action);
}

#endif
