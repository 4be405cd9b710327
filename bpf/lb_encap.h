/* SPDX-License-Identifier: MIT */
/*
 * ipip and gue: the packet travels whole inside another one to its backend, wherever that is.
 *
 * ipip: RFC 2003 (IPv4 in IPv4), RFC 2473 (in IPv6), RFC 4213 (IPv6 in IPv4). gue: the same in UDP,
 * variant 1 of draft-ietf-intarea-gue-09, section 4: no header of its own. The outer UDP checksum
 * is 0, as RFC 768 and RFC 6935 allow: the inner packet has its own.
 * The outer source varies with the flow, so that a receiver spreads flows over its queues.
 */
#ifndef LB_ENCAP_H
#define LB_ENCAP_H

#include "lb_checksum.h"
#include "lb_service.h"

#define LB_OUTER_TTL 64
#define LB_GUE_SOURCE_PORT 0xc000 /* the first of the dynamic ports (RFC 6335, 6) */

/* What the outer header takes over from the inner one, read before the head moves. */
struct lb_inner {
	__u32 len; /* of the inner packet */
	__be16 id;
	__be16 df;
	__u8 tos;
	__u8 protocol; /* what the inner packet is to the outer one */
};

static __always_inline void lb_inner_of(struct lb_inner *inner, struct lb_packet *packet,
					int family)
{
	inner->len = packet->l3_len;
	if (family == 4) {
		inner->protocol = IPPROTO_IPIP;
		inner->tos = lb_ip4(packet)->tos;
		inner->id = lb_ip4(packet)->id;
		inner->df = lb_ip4(packet)->frag_off & bpf_htons(LB_IP_DF);
	} else {
		inner->protocol = IPPROTO_IPV6;
		inner->tos = lb_ip6(packet)->priority << 4 | lb_ip6(packet)->flow_lbl[0] >> 4;
		inner->id = 0;
		inner->df = bpf_htons(LB_IP_DF); /* IPv6 is never fragmented on its way */
	}
}

/* Header checksum of an IPv4 header without options, its check field 0. */
static __always_inline __u16 lb_header_checksum(struct iphdr *ip)
{
	__u32 *word = (__u32 *)ip;

	return ~lb_sum_fold((__u64)word[0] + word[1] + word[2] + word[3] + word[4]);
}

static __always_inline void lb_write_outer4(struct iphdr *ip, struct lb_inner *inner,
					    struct lb_table *table, struct lb_backend *backend,
					    __u32 hash, __u8 protocol, __u32 len)
{
	/* Word by word: to sum up octets that were just written would have to wait for them. */
	__be32 word[5] = {
		bpf_htonl(0x45000000 | (__u32)inner->tos << 16 | len),
		bpf_htonl((__u32)bpf_ntohs(inner->id) << 16 | bpf_ntohs(inner->df)),
		bpf_htonl(LB_OUTER_TTL << 24 | (__u32)protocol << 16),
		table->head.tunnel_source | bpf_htonl(hash & table->head.tunnel_host_mask),
		backend->address[0],
	};
	__be32 *to = (__be32 *)ip;

	to[0] = word[0];
	to[1] = word[1];
	to[2] = word[2];
	to[3] = word[3];
	to[4] = word[4];
	ip->check = ~lb_sum_fold((__u64)word[0] + word[1] + word[2] + word[3] + word[4]);
}

static __always_inline void lb_write_outer6(struct ipv6hdr *ip, struct lb_inner *inner,
					    struct lb_table *table, struct lb_backend *backend,
					    __u32 hash, __u8 protocol, __u32 payload)
{
	*(__be32 *)ip = bpf_htonl(0x60000000 | (__u32)inner->tos << 20 | (hash & 0xfffff));
	ip->payload_len = bpf_htons(payload);
	ip->nexthdr = protocol;
	ip->hop_limit = LB_OUTER_TTL;
	lb_copy_address(ip->saddr.in6_u.u6_addr32, table->head.tunnel_source6, 6);
	ip->saddr.in6_u.u6_addr32[3] |= bpf_htonl(hash & table->head.tunnel_host_mask6);
	lb_copy_address(ip->daddr.in6_u.u6_addr32, backend->address, 6);
}

static __always_inline void lb_write_udp(struct udphdr *udp, struct lb_table *table, __u32 hash,
					 __u32 payload)
{
	udp->source = bpf_htons(LB_GUE_SOURCE_PORT | (hash & 0x3fff));
	udp->dest = table->head.gue_port;
	udp->len = bpf_htons(sizeof(*udp) + payload);
	udp->check = 0;
}

/* Moves the head by `added` octets; tags behind the MAC addresses, `tags` octets, come along. */
static __always_inline int lb_make_room(struct xdp_md *ctx, struct lb_packet *packet, int added,
					int tags)
{
	__u8 *from, *to;

	if (bpf_xdp_adjust_head(ctx, -added))
		return LB_END(no_room);
	packet->eth = (void *)(long)ctx->data;
	packet->end = (void *)(long)ctx->data_end;
	/* Room for two tags, however many there are: the IP header is longer. */
	if ((void *)packet->eth + added + ETH_HLEN + 8 > packet->end)
		return LB_END(internal);
	to = (__u8 *)packet->eth + 2 * ETH_ALEN;
	from = to + added;
	if (tags >= 4)
		*(__u32 *)to = *(__u32 *)from;
	if (tags >= 8)
		*(__u32 *)(to + 4) = *(__u32 *)(from + 4);
	/* 0, 4 or 8; the verifier wants to see that it is nothing worse. */
	packet->l3 = (void *)packet->eth + ETH_HLEN + (tags & 12);
	return LB_OK;
}

/* `outer` is the family of the tunnel and `gue` its sort: constants. */
static __always_inline int lb_wrap(struct xdp_md *ctx, struct lb_packet *packet,
				   struct lb_table *table, struct lb_backend *backend,
				   struct lb_inner *inner, int outer, int gue, int tags)
{
	int ip_len = outer == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	int udp_len = gue ? sizeof(struct udphdr) : 0;
	__u8 protocol = gue ? IPPROTO_UDP : inner->protocol;
	__u16 *ethertype;
	int end;

	end = lb_make_room(ctx, packet, ip_len + udp_len, tags);
	if (end)
		return end;
	if (packet->l3 + ip_len + udp_len > packet->end)
		return LB_END(internal);
	ethertype = packet->l3 - 2;
	if (outer == 4) {
		*ethertype = bpf_htons(ETH_P_IP);
		lb_write_outer4(packet->l3, inner, table, backend, packet->hash, protocol,
				ip_len + udp_len + inner->len);
	} else {
		*ethertype = bpf_htons(ETH_P_IPV6);
		lb_write_outer6(packet->l3, inner, table, backend, packet->hash, protocol,
				udp_len + inner->len);
	}
	if (gue)
		lb_write_udp(packet->l3 + ip_len, table, packet->hash, inner->len);
	return LB_OK;
}

static __always_inline int lb_encap(struct xdp_md *ctx, struct lb_packet *packet,
				    struct lb_table *table, struct lb_backend *backend, int gue,
				    int tags, int family)
{
	struct lb_inner inner;

	lb_inner_of(&inner, packet, family);
	lb_decrement_hops(packet, family);
#if LB_OUTER6
	if (backend->flags & LB_BACKEND_IPV6)
		return lb_wrap(ctx, packet, table, backend, &inner, 6, gue, tags);
#endif
#if LB_OUTER4
	return lb_wrap(ctx, packet, table, backend, &inner, 4, gue, tags);
#else
	return LB_END(internal);
#endif
}

#endif
