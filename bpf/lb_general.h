/* SPDX-License-Identifier: MIT */
/*
 * The general program's journey: all that is not plain. It starts anew from the frame, of which the
 * fast program has changed nothing, and does with a packet what that would do if it could read it.
 */
#ifndef LB_GENERAL_H
#define LB_GENERAL_H

#include "lb_answer.h"
#include "lb_dispatch.h"
#include "lb_fragment.h"
#include "lb_icmp.h"
#include "lb_icmp_tunnel.h"
#include "lb_parse_general.h"

/* Another program does the rest. Returns only if the controller has left its place empty. */
static __always_inline int lb_go_on(struct xdp_md *ctx, __u32 program)
{
	lb_tail_call(ctx, LB_MAP(programs), program);
	return LB_END(internal);
}

/* Whether some service is of the version; without one, only errors about tunnels concern us. */
static __always_inline int lb_has_vips(int family)
{
	return family == 4 ? LB_IPV4 : LB_IPV6;
}

static __always_inline int lb_is_icmp(__u8 protocol, int family)
{
	return protocol == (family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static __always_inline int lb_is_extension(__u8 protocol, int family)
{
	return family == 6 && (protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
			       protocol == IPPROTO_DSTOPTS);
}

/*
 * For the fast program: whether a packet that is not plain, and between strangers by its addresses,
 * may still be ours. It may if it is an ICMP error: what it quotes may be a nat backend's, or a
 * tunnel's outer packet.
 */
static __always_inline int lb_general_concern(struct lb_packet *packet, int family)
{
	__u8 next = family == 4 ? lb_ip4(packet)->protocol : lb_ip6(packet)->nexthdr;

	if (!LB_NAT && !LB_TUNNELS)
		return 0;
	return lb_is_icmp(next, family) || lb_is_extension(next, family);
}

/* Neither TCP nor UDP that could be read, and no error: of interest only if it is for a VIP. */
static __always_inline int lb_general_other(struct xdp_md *ctx, struct lb_table *table,
					    struct lb_packet *packet, int end, int *action,
					    int family)
{
	__u8 request = family == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;
	__u8 plain = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (!(lb_address_bits(table, lb_destination(packet, family), family) & LB_ADDRESS_VIP))
		return LB_END(not_vip);
	if (end)
		return end;
	if (!lb_is_icmp(packet->protocol, family) || packet->part != LB_WHOLE ||
	    packet->l4_at != plain || packet->l4 + LB_ICMP_HEADER > packet->end ||
	    *(__u8 *)packet->l4 != request)
		return LB_END(protocol);
	if (!lb_is_for_us(table, packet->eth))
		return LB_END(other_host);
	if (packet->l3_len < plain + LB_ICMP_HEADER ||
	    packet->l3_at + packet->l3_len > bpf_xdp_get_buff_len(ctx))
		return LB_END(truncated);
	if (lb_is_martian(packet, family))
		return LB_END(martian);
	return lb_answer_echo(packet, action, family);
}

/* An ICMP error, whole. */
static __always_inline int lb_general_error(struct xdp_md *ctx, struct lb_table *table,
					    struct lb_packet *packet, int *action, int family)
{
	struct lb_packet quoted = {};
	int end = lb_quoted_parse(packet, &quoted, family);

#if LB_TUNNELS
	if (lb_is_tunnel_source(table, lb_destination(packet, family), family))
		return end ? LB_END(to_gateway)
			   : lb_tunnel_error(ctx, table, packet, &quoted, family);
#endif
	if (!lb_has_vips(family))
		return LB_END(other_family);
	if (!end)
		end = lb_error(ctx, table, packet, &quoted, action, family);
	else
		end = LB_END(protocol);
	if (end != LB_END(protocol))
		return end;
	/* About nothing of ours. */
	if (lb_address_bits(table, lb_destination(packet, family), family) & LB_ADDRESS_VIP)
		return LB_END(protocol);
	return LB_END(not_vip);
}

/* What has no ports to go by: ICMP, later fragments, and what could not be read (`end` says why). */
static __always_inline int lb_general_rest(struct xdp_md *ctx, struct lb_table *table,
					   struct lb_packet *packet, int end, int *action,
					   int family)
{
	__u8 protocol = packet->protocol;

	if (!end && packet->part == LB_WHOLE && lb_is_icmp(protocol, family) &&
	    packet->l4 + LB_ICMP_HEADER <= packet->end &&
	    lb_icmp_is_error(*(__u8 *)packet->l4, family))
		return lb_general_error(ctx, table, packet, action, family);
	if (!lb_has_vips(family))
		return LB_END(other_family);
	if (!lb_concerns_us(table, packet, family))
		return LB_END(not_vip);
	if (!end && packet->part == LB_LATER &&
	    (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP ||
	     lb_is_extension(protocol, family)))
		return lb_fragment_later(ctx, table, packet, action, family);
	return lb_general_other(ctx, table, packet, end, action, family);
}

/* TCP or UDP, whole or a first fragment. */
static __always_inline int lb_general_transport(struct xdp_md *ctx, struct lb_table *table,
						struct lb_packet *packet, struct lb_budget *place,
						int *action, int family)
{
	struct lb_fragment_key key;
	int end;

	packet->part &= LB_FIRST; /* says to the compiler what is known: not LB_LATER */
	/* Of no use for a whole packet; but a test here would double the verifier's work. */
	lb_fragment_key_of(&key, packet, family);
	end = lb_forget(place, LB_ASIDE_FREE, lb_dispatch(ctx, table, packet, 1, action, family));
	*action = lb_forget(place, LB_ASIDE_FREE + 1, *action);
	packet->kind = lb_forget(place, LB_ASIDE_FREE + 2, packet->kind);
	packet->backend = lb_forget(place, LB_ASIDE_FREE + 3, packet->backend);
	packet->end = (void *)(long)ctx->data_end;
	packet->l3 = (void *)(long)ctx->data + packet->l3_at;
	LB_KEEP(packet->l3);
	if (packet->part == LB_FIRST && lb_fragment_notable(end))
		lb_fragment_note(&key, packet, end, family);
	return end;
}

static __always_inline int lb_general_ip(struct xdp_md *ctx, struct lb_packet *packet, int *action,
					 int rest, int family)
{
	struct lb_table *table = lb_endpoints();
	struct lb_budget *place;
	int end, transport;

	if (!table)
		return LB_END(internal);
	place = lb_budget();
	if (!place)
		return LB_END(internal);
	packet->l3_at = ETH_HLEN + (lb_forget(place, 0, packet->l3_at - ETH_HLEN) & 12);
	packet->l3 = (void *)packet->eth + packet->l3_at;
	LB_KEEP(packet->l3);
	if (packet->l3 + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) >
	    packet->end)
		return lb_has_vips(family) ? LB_END(truncated) : LB_END(other_family);
	end = lb_parse_rest(packet, family);
	transport = packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP;
	if (end || !transport || packet->part == LB_LATER)
		return rest ? lb_general_rest(ctx, table, packet, end, action, family)
			    : lb_go_on(ctx, family == 4 ? LB_PROGRAM_REST4 : LB_PROGRAM_REST6);
	if (rest) /* only where no service is of this version: behind tags, or extension headers */
		return lb_has_vips(family) ? LB_END(internal) : LB_END(other_family);
	if (!lb_concerns_us(table, packet, family))
		return LB_END(not_vip);
	return lb_general_transport(ctx, table, packet, place, action, family);
}

/*
 * What a program of `family` does; the one for the `rest` gets what has no ports to go by. Apart from
 * each other because the verifier walks through all of a program's ways together, and gives up at a
 * million steps.
 */
static __always_inline int lb_general_journey(struct xdp_md *ctx, int *action, int rest, int family)
{
	struct lb_packet packet = {};
	__be16 ethertype;
	int end;

	packet.eth = (void *)(long)ctx->data;
	packet.end = (void *)(long)ctx->data_end;
	if ((void *)(packet.eth + 1) > packet.end)
		return LB_END(truncated);
	end = lb_parse_tags(&packet, &ethertype);
	if (end)
		return end;
	switch (bpf_ntohs(ethertype)) {
	case ETH_P_IP:
		if (!LB_IPV4 && !LB_OUTER4)
			return LB_END(other_family);
		/* Only behind tags: the fast program does not look there. */
		if (family != 4)
			return lb_go_on(ctx, LB_IPV4 ? LB_PROGRAM_GENERAL4 : LB_PROGRAM_REST4);
		end = lb_general_ip(ctx, &packet, action, rest, 4);
		break;
	case ETH_P_IPV6:
		if (!LB_IPV6 && !LB_OUTER6)
			return LB_END(other_family);
		if (family != 6)
			return lb_go_on(ctx, LB_IPV6 ? LB_PROGRAM_GENERAL6 : LB_PROGRAM_REST6);
		end = lb_general_ip(ctx, &packet, action, rest, 6);
		break;
	default:
		return LB_END(not_ip);
	}
	return end == LB_ANSWER ? lb_answer(ctx, action) : end;
}

#endif
