/* SPDX-License-Identifier: MIT */
/*
 * ICMP errors about the outer packets of our tunnels. They come to the tunnel's source address,
 * where nobody lives. "Too big" is told to the client, whose packet is in the quoted one, as if the
 * VIP had said it: path MTU discovery then works through the tunnel (RFC 2003, 4; RFC 2473, 8.1).
 * Other errors are the gateway's to see: they pass.
 */
#ifndef LB_ICMP_TUNNEL_H
#define LB_ICMP_TUNNEL_H

#include "lb_icmp.h"

#if LB_TUNNELS

/* Whether an address is one that our tunnels have as a source. */
static __always_inline int lb_is_tunnel_source(struct lb_table *table, const __be32 *address,
					       int family)
{
	struct lb_table_head *head = &table->head;

	if (family == 4)
		return !((address[0] ^ head->tunnel_source) & ~bpf_htonl(head->tunnel_host_mask));
	return address[0] == head->tunnel_source6[0] && address[1] == head->tunnel_source6[1] &&
	       address[2] == head->tunnel_source6[2] &&
	       !((address[3] ^ head->tunnel_source6[3]) & ~bpf_htonl(head->tunnel_host_mask6));
}

/* What "too big" says is the MTU; 0 for another error. */
static __always_inline __u32 lb_error_mtu(struct lb_packet *packet, int family)
{
	__u8 *icmp = packet->l4;

	if (packet->l4 + LB_ICMP_HEADER > packet->end)
		return 0;
	if (family == 6)
		return icmp[0] == ICMPV6_PKT_TOOBIG ? bpf_ntohl(*(__be32 *)(icmp + 4)) : 0;
	if (icmp[0] != ICMP_DEST_UNREACH || icmp[1] != ICMP_FRAG_NEEDED)
		return 0;
	return bpf_ntohs(*(__be16 *)(icmp + 6));
}

/* Cuts `cut` octets out behind the Ethernet header and its tags. */
static __always_inline int lb_cut_out(struct xdp_md *ctx, struct lb_packet *packet, __u32 cut)
{
	__u32 *from = (__u32 *)packet->eth, *to = (void *)from + (cut & 0xffff);

	LB_KEEP(to);
	if ((void *)(from + 5) > packet->end || (void *)(to + 5) > packet->end)
		return LB_END(internal);
	/* With tags that may be there; `cut` is longer than all this. */
	for (int i = 0; i < 5; i++)
		to[i] = from[i];
	return bpf_xdp_adjust_head(ctx, cut) ? LB_END(internal) : LB_OK;
}

/* `at`: from `packet`'s IP header to the inner packet's, which is of `family`. */
static __always_inline int lb_tunnel_relay(struct xdp_md *ctx, struct lb_table *table,
					   struct lb_packet *packet, void *l3, __u32 at, __u32 mtu,
					   int family)
{
	__u32 ip_len = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u32 least = family == 4 ? LB_MIN_MTU4 : 0;
	struct lb_packet inner = { .l3 = l3, .end = packet->end };
	struct lb_stand *stand;

	if (inner.l3 + ip_len > packet->end || lb_parse_rest(&inner, family) ||
	    inner.part == LB_LATER || !inner.destination_port)
		return LB_END(to_gateway);
	/* What is quoted ends where the error does, whatever the frame is padded with. */
	if (packet->l3_len < at + inner.l4_at + LB_QUOTED_L4)
		return LB_END(to_gateway);
	stand = lb_endpoint_find(table, lb_destination(&inner, family), inner.destination_port,
				 inner.protocol, family);
	if (!stand || (stand->kind != LB_KIND_IPIP && stand->kind != LB_KIND_GUE))
		return LB_END(to_gateway);
	/* It must be smaller than what we sent, and not smaller than anything may be. */
	if (mtu >= inner.l3_len || mtu < least || lb_is_martian(&inner, family))
		return LB_END(to_gateway);
	packet->l3_len -= at;
	if (packet->l3_len > inner.l3_len)
		packet->l3_len = inner.l3_len;
	if (lb_cut_out(ctx, packet, at))
		return LB_END(internal);
	return lb_ask_too_big(packet, mtu, 1, family);
}

/* About an outer packet; `quoted` is as far as its transport header. */
static __always_inline int lb_tunnel_error(struct xdp_md *ctx, struct lb_table *table,
					   struct lb_packet *packet, struct lb_packet *quoted,
					   int family)
{
	__u32 at = packet->l4_at + LB_ICMP_HEADER + quoted->l4_at;
	__u32 overhead = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u32 mtu = lb_error_mtu(packet, family);
	__u8 *inner = quoted->l4;
	int end;

	/* An error goes to whoever sent the packet. */
	if (!lb_same_address(lb_source(quoted, family), lb_destination(packet, family), family))
		return LB_END(to_gateway);
	if (quoted->protocol == IPPROTO_UDP && quoted->destination_port == table->head.gue_port) {
		inner += sizeof(struct udphdr);
		LB_KEEP(inner);
		at += sizeof(struct udphdr);
		overhead += sizeof(struct udphdr);
	} else if (quoted->protocol != IPPROTO_IPIP && quoted->protocol != IPPROTO_IPV6) {
		return LB_END(to_gateway);
	}
	if (mtu <= overhead || packet->l3_len < at + LB_QUOTED_L4 ||
	    (void *)(inner + 1) > packet->end)
		return LB_END(to_gateway);
	end = lb_error_admit(ctx, table, packet, 0, family);
	if (end)
		return end;
#if LB_IPV4
	if (*inner >> 4 == 4)
		return lb_tunnel_relay(ctx, table, packet, inner, at, mtu - overhead, 4);
#endif
#if LB_IPV6
	if (*inner >> 4 == 6)
		return lb_tunnel_relay(ctx, table, packet, inner, at, mtu - overhead, 6);
#endif
	return LB_END(to_gateway);
}

#endif /* LB_TUNNELS */
#endif
