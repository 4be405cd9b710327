/* SPDX-License-Identifier: MIT */
/*
 * nat and fullnat, the way back: a backend's packet to a client gets the VIP as its source and
 * leaves by the way to the client. Where no way for XDP is known, the translated packet passes, and
 * the kernel routes it, resolves the neighbour or complains.
 */
#ifndef LB_REPLY_H
#define LB_REPLY_H

#include "lb_count.h"
#include "lb_forward.h"
#include "lb_fullnat.h"
#include "lb_nat.h"
#include "lb_watch.h"
#include "lb_way.h"

#if LB_TRANSLATES

/* Refuses before anything is written: a packet that passes from here is untouched. */
static __always_inline int lb_admit_reply(struct xdp_md *ctx, struct lb_table *table,
					  struct lb_packet *packet, int family)
{
	int end;

	if (!lb_is_for_us(table, packet->eth))
		return LB_END(other_host);
	end = lb_check_lengths(ctx, packet);
	if (end)
		return end;
	return lb_hops_left(packet, family) <= 1 ? LB_END(ttl_expired) : LB_OK;
}

/* `vip` and `client` are the ends of the translated packet. */
static __always_inline int lb_send_reply(struct xdp_md *ctx, struct lb_packet *packet,
					 __u32 backend, struct lb_ends *to, const __be32 *client,
					 int *action, int family)
{
	struct lb_way *way;
	int unknown = lb_way_to(ctx, packet, to->source, client, &way, family);
	int end;

	/* Not to be fragmented: untranslated, so that the kernel's complaint finds the backend. */
	if (unknown == LB_END(reply_too_big) &&
	    (family == 6 || lb_ip4(packet)->frag_off & bpf_htons(LB_IP_DF)))
		return unknown;
	end = lb_translate(packet, to, family);
	if (end)
		return end;
	packet->kind = to->destination ? LB_KIND_FULLNAT : LB_KIND_NAT;
	packet->backend = backend;
	lb_count_reply(backend, packet);
	if (unknown)
		return unknown;
	*action = lb_leave_by(ctx, way->ifindex, XDP_PASS);
	if (*action == XDP_PASS)
		return LB_END(other_egress);
	/* Only here: where the packet passes, the kernel does it. */
	lb_decrement_hops(packet, family);
	lb_copy_macs(packet->eth, way->mac);
	return LB_END(replied);
}

#if LB_NAT
/* A tracked service's flow learns from its replies as well. */
static __always_inline void lb_nat_see_reply(struct lb_packet *packet, struct lb_backend *backend,
					     int family)
{
#if LB_TRACKED
	struct lb_flow_key key;
	struct lb_flow *flow;

	if (!(backend->flags & LB_BACKEND_TRACKED))
		return;
	lb_nat_key(&key, lb_destination(packet, family), backend->vip, packet->destination_port,
		   backend->vip_port ? backend->vip_port : packet->source_port, packet->protocol,
		   family);
	flow = lb_flow_find(&key);
	if (flow)
		lb_flow_see(flow, packet, LB_FLOW_BACKEND_FIN, 1);
#endif
}

static __always_inline int lb_reply(struct xdp_md *ctx, struct lb_table *table,
				    struct lb_packet *packet, __u32 index, int *action, int family)
{
	const __be32 *client = lb_destination(packet, family);
	struct lb_backend *backend;
	struct lb_ends to = {};
	int end;

	if (lb_may_be_ours(table, client, family) &&
	    lb_address_bits(table, client, family) & LB_ADDRESS_LOCAL)
		return LB_END(to_gateway);
	end = lb_admit_reply(ctx, table, packet, family);
	if (end)
		return end;
	end = lb_nat_owner(client, packet->destination_port, lb_source(packet, family),
			   packet->source_port, packet->protocol, &index, &backend, family);
	if (end)
		return end;
	lb_nat_see_reply(packet, backend, family);
	to.source = backend->vip;
	to.source_port = backend->vip_port ? backend->vip_port : packet->source_port;
#if LB_WATCH
	lb_watch_reply(packet, index, backend, client, packet->destination_port, family);
#endif
	return lb_send_reply(ctx, packet, index, &to, client, action, family);
}
#endif /* LB_NAT */

#if LB_FULLNAT
/*
 * A reply tells the flow's record that it lives, once a second, and how it ends; its record need not
 * be looked up for more. Without one the flow is over.
 */
static __always_inline int lb_fullnat_see_reply(struct lb_packet *packet, struct lb_return *found)
{
	struct tcphdr *tcp = lb_tcp(packet);
	struct lb_flow *flow;
	__u32 now = lb_now();

	if (found->seen && now - found->seen <= LB_TOUCH_JIFFIES && !(tcp && (tcp->fin | tcp->rst)))
		return 1;
	flow = lb_flow_find(&found->flow);
	/* The port may be left over from the flow's time with another backend. */
	if (!flow || flow->snat_port != packet->destination_port ||
	    flow->identity != found->identity)
		return 0;
	found->seen = now | 1;
	lb_flow_see(flow, packet, LB_FLOW_BACKEND_FIN, 1);
	return 1;
}

/* To an address of fullnat's. */
static __always_inline int lb_fullnat_reply(struct xdp_md *ctx, struct lb_table *table,
					    struct lb_packet *packet, int *action, int family)
{
	struct lb_return *found = lb_fullnat_find(packet, family);
	struct lb_backend *backend;
	struct lb_ends to = {};
	int end;

	if (!found)
		return LB_END(no_flow);
	backend = lb_backend_at(found->backend);
	if (!backend || backend->identity != found->identity)
		return LB_END(no_flow);
	end = lb_admit_reply(ctx, table, packet, family);
	if (end)
		return end;
	if (!lb_fullnat_see_reply(packet, found))
		return LB_END(no_flow);
	to.source = backend->vip;
	to.source_port = backend->vip_port;
	to.destination = found->flow.source;
	to.destination_port = found->flow.source_port;
#if LB_WATCH
	lb_watch_reply(packet, found->backend, backend, to.destination, to.destination_port,
		       family);
#endif
	return lb_send_reply(ctx, packet, found->backend, &to, found->flow.source, action, family);
}
#endif /* LB_FULLNAT */

#endif /* LB_TRANSLATES */
#endif
