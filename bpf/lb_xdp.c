/* SPDX-License-Identifier: MIT */
/*
 * The packet's journey, read from the bottom up: parse, find who stands at its destination, pick a
 * backend, rewrite, count, leave. Each pass returns LB_OK to go on or the reason at which the
 * journey ends; lb_gateway() alone turns a reason into an XDP action, and counts it.
 *
 * Compiled by lb_xdp/datapath/compile.py, which sets
 *   LB_FD_*        a placeholder for each map
 *   LB_RING_SLOTS  slots of a ring (prime)
 *   LB_BUCKET_BITS the endpoint table has that power of two buckets
 *   LB_NAT, LB_DSR whether any service uses that mode: what nobody uses is not compiled
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "lb_reason.h"
#include "lb_maps.h"
#include "lb_parse.h"
#include "lb_service.h"
#include "lb_ring.h"
#include "lb_count.h"
#include "lb_forward.h"
#include "lb_nat.h"
#include "lb_reply.h"

/* What the packet is if no endpoint of ours is its destination or source. */
static __always_inline int lb_not_ours(struct lb_table *table, struct lb_packet *packet)
{
	if (!(lb_address_bits(table, packet->ip->daddr) & LB_ADDRESS_VIP))
		return LB_END(not_vip);
	return packet->odd ? packet->odd : LB_END(no_service);
}

/* Refuses before anything is written: a packet that passes is untouched. */
static __always_inline int lb_admit(struct xdp_md *ctx, struct lb_packet *packet, int nat,
				    struct lb_backend *backend)
{
	int end = lb_check_lengths(ctx, packet);

	if (end)
		return end;
	if (nat && packet->ip->ttl <= 1)
		return LB_END(ttl_expired);
	if (bpf_ntohs(packet->ip->tot_len) > backend->mtu)
		return LB_END(too_big);
	return LB_OK;
}

/* A client's packet, to the service whose ring is `service`. */
static __always_inline int lb_request(struct xdp_md *ctx, struct lb_packet *packet, __u32 service,
				      int nat, int *action)
{
	__u32 index = lb_ring_pick(packet, service);
	struct lb_backend *backend;
	int end;

	if (!index)
		return LB_END(no_backend);
	backend = lb_backend_at(index);
	if (!backend)
		return LB_END(internal);
	end = lb_admit(ctx, packet, nat, backend);
	if (end)
		return end;
	*action = lb_leave_by(ctx, backend->ifindex, XDP_DROP);
	if (*action == XDP_DROP)
		return LB_END(no_egress);
	if (nat) {
		lb_nat_note_request(packet, backend, index);
		end = lb_nat_request(packet, backend);
		if (end)
			return end;
		lb_decrement_ttl(packet->ip);
	}
	lb_set_macs(packet->eth, backend->mac, backend->source_mac);
	lb_count_request(index, packet);
	return LB_END(forwarded);
}

/* Whoever stands at the destination, or, for a reply, at the source. */
static __always_inline int lb_dispatch(struct xdp_md *ctx, struct lb_table *table,
				       struct lb_packet *packet, int *action)
{
	struct iphdr *ip = packet->ip;
	struct lb_endpoint *to;

	to = lb_endpoint_find(table, ip->daddr, packet->destination_port, ip->protocol);
	if (to && to->kind != LB_KIND_BACKEND && !lb_is_for_us(table, packet->eth))
		return LB_END(other_host);
#if LB_DSR
	if (to && to->kind == LB_KIND_SERVICE_DSR)
		return lb_request(ctx, packet, to->index, 0, action);
#endif
#if LB_NAT
	if (to && to->kind == LB_KIND_SERVICE_NAT)
		return lb_request(ctx, packet, to->index, 1, action);
	if (to && to->kind == LB_KIND_BACKEND) {
		lb_nat_note_direct(packet, to->index);
		return LB_END(direct);
	}
	to = lb_endpoint_find(table, ip->saddr, packet->source_port, ip->protocol);
	if (to && to->kind == LB_KIND_BACKEND)
		return lb_reply(ctx, table, packet, to->index, action);
#endif
	return lb_not_ours(table, packet);
}

static __always_inline int lb_journey(struct xdp_md *ctx, int *action)
{
	struct lb_packet packet = {};
	struct lb_table *table;
	int end;

	end = lb_parse(ctx, &packet);
	if (end)
		return end;
	table = lb_endpoints();
	if (!table)
		return LB_END(internal);
	if (packet.odd)
		return lb_not_ours(table, &packet);
	return lb_dispatch(ctx, table, &packet, action);
}

/* FORWARD's action is whatever the journey found: XDP_TX or XDP_REDIRECT. */
static __always_inline int lb_verdict(int reason, int forward)
{
#define LB_ACTION_PASS XDP_PASS
#define LB_ACTION_DROP XDP_DROP
#define LB_ACTION_FORWARD forward
#define LB_REASON_CASE(name, verdict, meaning)                                                     \
	case LB_REASON_##name:                                                                     \
		return LB_ACTION_##verdict;

	switch (reason) {
		LB_REASONS(LB_REASON_CASE)
	default:
		return XDP_ABORTED;
	}
}

int lb_gateway(struct xdp_md *ctx)
{
	int forward = XDP_ABORTED;
	int reason = lb_journey(ctx, &forward) - 1;

	lb_count_reason(reason);
	return lb_verdict(reason, forward);
}
