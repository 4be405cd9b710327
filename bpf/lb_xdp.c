/* SPDX-License-Identifier: MIT */
/*
 * The packet's journey, read from the bottom up: parse, find who stands at its destination, pick a
 * backend, rewrite, count, leave. Each pass returns LB_OK to go on or the reason at which the
 * journey ends; lb_finish() alone turns a reason into an XDP action, and counts it.
 *
 * lb_gateway is what interfaces run: plain packets go through it from end to end. What is rare or
 * odd goes on in one of the general programs (lb_general.h) by a tail call, before anything is
 * written or counted.
 *
 * Compiled by lb_xdp/datapath/compile.py, which sets
 *   LB_FD_*          a placeholder for each map
 *   LB_RING_SLOTS    slots of a ring (prime)
 *   LB_HZ            jiffies a second
 *   LB_FILTER_BITS, LB_BUCKET_BITS, LB_BUCKET6_BITS, LB_WAY_BITS  sizes of tables, as powers of two
 * and what the configuration needs; what nobody uses is not compiled:
 *   LB_IPV4, LB_IPV6                          families of VIPs
 *   LB_DSR, LB_IPIP, LB_GUE, LB_NAT, LB_FULLNAT  modes
 *   LB_OUTER4, LB_OUTER6                      families of tunnels
 *   LB_FLOWS    some service may need a record of some flow
 *   LB_TRACKED  some service records every flow; LB_CLIENTS: binds clients; LB_COUNTED: counts
 *   LB_BY_SOURCE, LB_ANY_PORT, LB_REJECT      some service hashes by source, takes any port, answers
 *   LB_RESET    some service resets dead backends' flows, or fullnat's that have no record
 *   LB_WATCH    some service is watched
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#define LB_TRANSLATES (LB_NAT || LB_FULLNAT)

#include "lb_reason.h"
#include "lb_maps.h"
#include "lb_parse.h"
#include "lb_dispatch.h"
#include "lb_general.h"

static __always_inline int lb_journey(struct xdp_md *ctx, struct lb_packet *packet, int *action,
				      int family)
{
	struct lb_table *table = lb_endpoints();
	int end;

	if (!table)
		return LB_END(internal);
	packet->l3 = (void *)(packet->eth + 1);
	if (packet->l3 + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) >
	    packet->end)
		return LB_END(truncated);
	end = lb_parse_plain(packet, family);
	if (end) {
		if (lb_concerns_us(table, packet, family) || lb_general_concern(packet, family))
			return end;
		return LB_END(not_vip);
	}
	if (!lb_concerns_us(table, packet, family))
		return LB_END(not_vip);
	return lb_dispatch(ctx, table, packet, 0, action, family);
}

/* Of an IP version without a VIP: of interest only as an error about a tunnel of that version. */
static __always_inline int lb_foreign(struct xdp_md *ctx, struct lb_packet *packet, int family)
{
#if LB_TUNNELS
	struct lb_table *table = lb_endpoints();

	packet->l3 = (void *)(packet->eth + 1);
	if (!(family == 4 ? LB_OUTER4 : LB_OUTER6) || !table ||
	    packet->l3 + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) >
		    packet->end)
		return LB_END(other_family);
	if (lb_general_concern(packet, family) &&
	    lb_is_tunnel_source(table, lb_destination(packet, family), family))
		return lb_go_on(ctx, family == 4 ? LB_PROGRAM_REST4 : LB_PROGRAM_REST6);
#endif
	return LB_END(other_family);
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

static __always_inline int lb_finish(int end, int forward)
{
	lb_count_reason(end - 1);
	return lb_verdict(end - 1, forward);
}

static __always_inline int lb_general(struct xdp_md *ctx, int rest, int family)
{
	int forward = XDP_ABORTED;
	int end = lb_general_journey(ctx, &forward, rest, family);

	return lb_finish(end, forward);
}

#if LB_IPV4
int lb_general4(struct xdp_md *ctx)
{
	return lb_general(ctx, 0, 4);
}
#endif

#if LB_IPV4 || LB_OUTER4
int lb_rest4(struct xdp_md *ctx)
{
	return lb_general(ctx, 1, 4);
}
#endif

#if LB_IPV6
int lb_general6(struct xdp_md *ctx)
{
	return lb_general(ctx, 0, 6);
}
#endif

#if LB_IPV6 || LB_OUTER6
int lb_rest6(struct xdp_md *ctx)
{
	return lb_general(ctx, 1, 6);
}
#endif

int lb_gateway(struct xdp_md *ctx)
{
	struct lb_packet packet = {};
	int forward = XDP_ABORTED;
	int end;

	packet.eth = (void *)(long)ctx->data;
	packet.end = (void *)(long)ctx->data_end;
	if ((void *)(packet.eth + 1) > packet.end)
		return lb_finish(LB_END(truncated), forward);
	/* At once, which the compiler would not do: to it, the header is packed. */
	switch (bpf_ntohs(*(__be16 *)((void *)packet.eth + 2 * ETH_ALEN))) {
	case ETH_P_IP:
		end = LB_IPV4 ? lb_journey(ctx, &packet, &forward, 4) : lb_foreign(ctx, &packet, 4);
		break;
	case ETH_P_IPV6:
		end = LB_IPV6 ? lb_journey(ctx, &packet, &forward, 6) : lb_foreign(ctx, &packet, 6);
		break;
	case ETH_P_8021Q:
	case ETH_P_8021AD:
		end = LB_GENERAL;
		break;
	default:
		end = LB_END(not_ip);
	}
	if (end == LB_GENERAL)
		end = lb_go_on(ctx, LB_IPV4 && packet.eth->h_proto != bpf_htons(ETH_P_IPV6)
					    ? LB_PROGRAM_GENERAL4
					    : LB_PROGRAM_GENERAL6);
	return lb_finish(end, forward);
}
