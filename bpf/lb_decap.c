/* SPDX-License-Identifier: MIT */
/*
 * What a backend host runs to undo its gateways' tunnels: ipip (IPv4 or IPv6 in either) and gue
 * variant 1 (draft-ietf-intarea-gue-09, 4: IP directly in UDP). Read from the bottom up: find the
 * inner packet, decide whether it may be let out, take the outer headers off, join ECN.
 *
 * Whatever is not a whole tunnel packet of a trusted gateway passes untouched: the kernel may have
 * tunnels of its own. The outer UDP checksum is not looked at: gateways send none (RFC 6935), and
 * the inner packet's own ones are checked by whoever takes it.
 *
 * Compiled by lb_xdp/datapath/decap.py, which sets
 *   LB_FD_*      a placeholder for each map
 *   LB_DECAP_TC  0 for XDP, 1 for a classifier at tc's ingress
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/udp.h>

#include "lb_decap.h"

#define LB_DECAP_MAP(name) ((void *)bpf_pseudo_fd(1, LB_FD_##name))

/* A pass returns LB_DECAP_ON to go on, or LB_DECAP_END(reason), never 0, to end there. */
#define LB_DECAP_ON 0
#define LB_DECAP_END(name) (LB_DECAP_##name + 1)

#define LB_IP_FRAGMENT 0x3fff /* more-fragments bit and offset (RFC 791, 3.1) */
#define LB_IP6_FRAGMENT 44 /* next header: fragment (RFC 8200, 4.5) */
#define LB_ECN 3 /* the low bits of ToS and traffic class (RFC 3168, 5) */
#define LB_ECN_CE 3
#define LB_ECN_V6_SHIFT 20 /* where they are in an IPv6 header's first word */

/* Ethernet, IPv6, UDP, IPv6: all that is ever looked at. */
#define LB_DECAP_DEEPEST (ETH_HLEN + 40 + 8 + 40)

struct lb_tunnel {
	struct ethhdr *eth;
	void *end;
	void *inner; /* what follows the outer headers */
	__u32 frame_len;
	__u32 inner_len; /* as the outer headers claim */
	__u32 strip; /* octets of outer headers, the Ethernet header not among them */
	__u8 protocol; /* of the outer IP header */
	__u8 version; /* of the inner packet: 4 or 6 */
	__u8 outer_ecn;
	__u8 inner_ecn;
	struct lb_decap_prefix source;
	struct lb_decap_prefix destination; /* the inner one */
};

#if LB_DECAP_TC
#define LB_DECAP_PASS (-1) /* TC_ACT_UNSPEC: the filters after ours have their say */
#define LB_DECAP_DROP 2 /* TC_ACT_SHOT */
/* Since Linux 6.3; the headers that we are compiled with may be older. */
#define LB_ADJ_ROOM_FIXED_GSO (1 << 0)
#define LB_ADJ_ROOM_DECAP_L3_IPV4 (1 << 7)
#define LB_ADJ_ROOM_DECAP_L3_IPV6 (1 << 8)

/* Opens the frame: its headers must lie in the linear part, which a driver may keep short. */
static __always_inline int lb_open(struct __sk_buff *ctx, struct lb_tunnel *tunnel)
{
	__u32 wanted = ctx->len < LB_DECAP_DEEPEST ? ctx->len : LB_DECAP_DEEPEST;

	if ((void *)(long)ctx->data + wanted > (void *)(long)ctx->data_end &&
	    bpf_skb_pull_data(ctx, wanted))
		return LB_DECAP_END(not_tunnel);
	tunnel->eth = (void *)(long)ctx->data;
	tunnel->end = (void *)(long)ctx->data_end;
	tunnel->frame_len = ctx->len;
	return ctx->vlan_present ? LB_DECAP_END(vlan) : LB_DECAP_ON;
}

/*
 * The size of the segments of a merged packet counts what is behind the inner headers: FIXED_GSO.
 * Another family must be announced; without need it is not, so that older kernels do the rest.
 */
static __always_inline int lb_take_off(struct __sk_buff *ctx, struct lb_tunnel *tunnel)
{
	__be16 protocol = bpf_htons(tunnel->version == 4 ? ETH_P_IP : ETH_P_IPV6);
	__u64 flags = LB_ADJ_ROOM_FIXED_GSO;
	struct ethhdr *eth;

	if (ctx->protocol != protocol)
		flags |= tunnel->version == 4 ? LB_ADJ_ROOM_DECAP_L3_IPV4
					      : LB_ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(ctx, -(__s32)tunnel->strip, BPF_ADJ_ROOM_MAC, flags))
		return LB_DECAP_END(refused);
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return LB_DECAP_END(internal);
	eth->h_proto = protocol;
	return LB_DECAP_ON;
}

#define LB_DECAP_CONTEXT struct __sk_buff
#else
#define LB_DECAP_PASS XDP_PASS
#define LB_DECAP_DROP XDP_DROP

static __always_inline int lb_open(struct xdp_md *ctx, struct lb_tunnel *tunnel)
{
	tunnel->eth = (void *)(long)ctx->data;
	tunnel->end = (void *)(long)ctx->data_end;
	tunnel->frame_len = (__u32)bpf_xdp_get_buff_len(ctx);
	return LB_DECAP_ON;
}

static __always_inline int lb_take_off(struct xdp_md *ctx, struct lb_tunnel *tunnel)
{
	struct ethhdr kept = *tunnel->eth, *eth;

	kept.h_proto = bpf_htons(tunnel->version == 4 ? ETH_P_IP : ETH_P_IPV6);
	if (bpf_xdp_adjust_head(ctx, (int)tunnel->strip))
		return LB_DECAP_END(refused);
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return LB_DECAP_END(internal);
	*eth = kept;
	return LB_DECAP_ON;
}

#define LB_DECAP_CONTEXT struct xdp_md
#endif

static __always_inline void lb_prefix_v4(struct lb_decap_prefix *prefix, __be32 address)
{
	prefix->bits = 32 + 32;
	prefix->version = 4;
	__builtin_memcpy(prefix->address, &address, 4);
}

static __always_inline void lb_prefix_v6(struct lb_decap_prefix *prefix, struct in6_addr *address)
{
	prefix->bits = 32 + 128;
	prefix->version = 6;
	__builtin_memcpy(prefix->address, address, 16);
}

static __always_inline int lb_may_be_tunnel(__u8 protocol)
{
	return protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6 || protocol == IPPROTO_UDP;
}

static __always_inline int lb_outer_v4(struct lb_tunnel *tunnel)
{
	struct iphdr *ip = (void *)(tunnel->eth + 1);
	__u32 total;

	if ((void *)(ip + 1) > tunnel->end || !lb_may_be_tunnel(ip->protocol))
		return LB_DECAP_END(not_tunnel);
	if (ip->frag_off & bpf_htons(LB_IP_FRAGMENT))
		return LB_DECAP_END(fragment);
	if (ip->version == 4 && ip->ihl > 5)
		return LB_DECAP_END(ip_options);
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || ip->ihl != 5 || total < sizeof(*ip) ||
	    ETH_HLEN + total > tunnel->frame_len)
		return LB_DECAP_END(bad_outer);
	tunnel->inner = ip + 1;
	tunnel->inner_len = total - sizeof(*ip);
	tunnel->strip = sizeof(*ip);
	tunnel->protocol = ip->protocol;
	tunnel->outer_ecn = ip->tos & LB_ECN;
	lb_prefix_v4(&tunnel->source, ip->saddr);
	return LB_DECAP_ON;
}

/* Gateways send no extension headers (RFC 2473, 4.1.1 makes them optional): others' tunnels may. */
static __always_inline int lb_outer_v6(struct lb_tunnel *tunnel)
{
	struct ipv6hdr *ip = (void *)(tunnel->eth + 1);
	__u32 length;

	if ((void *)(ip + 1) > tunnel->end)
		return LB_DECAP_END(not_tunnel);
	if (ip->nexthdr == LB_IP6_FRAGMENT)
		return LB_DECAP_END(fragment);
	if (!lb_may_be_tunnel(ip->nexthdr))
		return LB_DECAP_END(not_tunnel);
	length = bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || ETH_HLEN + sizeof(*ip) + length > tunnel->frame_len)
		return LB_DECAP_END(bad_outer);
	tunnel->inner = ip + 1;
	tunnel->inner_len = length;
	tunnel->strip = sizeof(*ip);
	tunnel->protocol = ip->nexthdr;
	tunnel->outer_ecn = (bpf_ntohl(*(__be32 *)ip) >> LB_ECN_V6_SHIFT) & LB_ECN;
	lb_prefix_v6(&tunnel->source, &ip->saddr);
	return LB_DECAP_ON;
}

/* gue: steps over the UDP header. The inner version stands in the inner packet alone. */
static __always_inline int lb_outer_udp(struct lb_tunnel *tunnel, __be16 gue_port)
{
	struct udphdr *udp = tunnel->inner;
	__u8 *first = (void *)(udp + 1);
	__u32 length;

	if ((void *)(udp + 1) > tunnel->end || udp->dest != gue_port)
		return LB_DECAP_END(not_tunnel);
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || length > tunnel->inner_len)
		return LB_DECAP_END(bad_outer);
	tunnel->inner = first;
	tunnel->inner_len = length - sizeof(*udp);
	tunnel->strip += sizeof(*udp);
	if ((void *)(first + 1) > tunnel->end)
		return LB_DECAP_END(bad_inner);
	tunnel->version = *first >> 4;
	return LB_DECAP_ON;
}

static __always_inline int lb_outer(struct lb_tunnel *tunnel, __be16 gue_port)
{
	int end;

	if ((void *)(tunnel->eth + 1) > tunnel->end)
		return LB_DECAP_END(not_tunnel);
	switch (bpf_ntohs(tunnel->eth->h_proto)) {
	case ETH_P_IP:
		end = lb_outer_v4(tunnel);
		break;
	case ETH_P_IPV6:
		end = lb_outer_v6(tunnel);
		break;
	case ETH_P_8021Q:
	case ETH_P_8021AD:
		return LB_DECAP_END(vlan);
	default:
		return LB_DECAP_END(not_tunnel);
	}
	if (end)
		return end;
	if (tunnel->protocol == IPPROTO_UDP)
		return lb_outer_udp(tunnel, gue_port);
	tunnel->version = tunnel->protocol == IPPROTO_IPIP ? 4 : 6;
	return LB_DECAP_ON;
}

static __always_inline int lb_inner_v4(struct lb_tunnel *tunnel)
{
	struct iphdr *ip = tunnel->inner;
	__u32 total;

	if ((void *)(ip + 1) > tunnel->end || ip->version != 4 || ip->ihl < 5)
		return LB_DECAP_END(bad_inner);
	total = bpf_ntohs(ip->tot_len);
	if (total < ip->ihl * 4 || total > tunnel->inner_len)
		return LB_DECAP_END(bad_inner);
	tunnel->inner_ecn = ip->tos & LB_ECN;
	lb_prefix_v4(&tunnel->destination, ip->daddr);
	return LB_DECAP_ON;
}

static __always_inline int lb_inner_v6(struct lb_tunnel *tunnel)
{
	struct ipv6hdr *ip = tunnel->inner;

	if ((void *)(ip + 1) > tunnel->end || ip->version != 6)
		return LB_DECAP_END(bad_inner);
	if (sizeof(*ip) + bpf_ntohs(ip->payload_len) > tunnel->inner_len)
		return LB_DECAP_END(bad_inner);
	tunnel->inner_ecn = (bpf_ntohl(*(__be32 *)ip) >> LB_ECN_V6_SHIFT) & LB_ECN;
	lb_prefix_v6(&tunnel->destination, &ip->daddr);
	return LB_DECAP_ON;
}

static __always_inline int lb_inner(struct lb_tunnel *tunnel)
{
	if (tunnel->version == 4)
		return lb_inner_v4(tunnel);
	if (tunnel->version == 6)
		return lb_inner_v6(tunnel);
	return LB_DECAP_END(bad_inner);
}

static __always_inline int lb_same_mac(const __u8 *one, const __u8 *other)
{
	const __u16 *a = (const void *)one, *b = (const void *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* Whether this tunnel packet is for us, and from whom we take any. */
static __always_inline int lb_admit(struct lb_tunnel *tunnel, struct lb_decap_host *host)
{
	int end;

	if (!lb_same_mac(tunnel->eth->h_dest, host->mac))
		return LB_DECAP_END(other_host);
	if (!bpf_map_lookup_elem(LB_DECAP_MAP(trust), &tunnel->source))
		return LB_DECAP_END(untrusted);
	end = lb_inner(tunnel);
	if (end)
		return end;
	if (host->flags & LB_DECAP_LIMIT_VIPS &&
	    !bpf_map_lookup_elem(LB_DECAP_MAP(vips), &tunnel->destination))
		return LB_DECAP_END(not_vip);
	if (tunnel->outer_ecn == LB_ECN_CE && !tunnel->inner_ecn)
		return LB_DECAP_END(congested);
	return LB_DECAP_ON;
}

/* IPv4: the checksum follows (RFC 1624, equation 3), so sums over the whole header stay true. */
static __always_inline void lb_set_ecn_v4(struct iphdr *ip, __u8 ecn)
{
	__u16 *word = (__u16 *)ip;
	__u32 sum = (__u16)~ip->check + (__u16) ~*word;

	ip->tos = (ip->tos & ~LB_ECN) | ecn;
	sum += *word;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
}

static __always_inline int lb_set_ecn_v6(LB_DECAP_CONTEXT *ctx, struct ipv6hdr *ip, __u8 ecn)
{
	__u32 mask = LB_ECN << LB_ECN_V6_SHIFT;
	__be32 word = *(__be32 *)ip;

	word = (word & ~bpf_htonl(mask)) | bpf_htonl((__u32)ecn << LB_ECN_V6_SHIFT);
#if LB_DECAP_TC
	/* By the helper: a card's sum over the packet must follow. */
	return bpf_skb_store_bytes(ctx, ETH_HLEN, &word, sizeof(word), BPF_F_RECOMPUTE_CSUM);
#else
	*(__be32 *)ip = word;
	return 0;
#endif
}

/*
 * RFC 6040, figure 4: a sender that knows ECN is told of congestion (outer CE), and of ECT(1) where
 * it sent ECT(0). CE stays CE.
 */
static __always_inline int lb_join_ecn(LB_DECAP_CONTEXT *ctx, struct lb_tunnel *tunnel)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *v6 = (void *)(eth + 1);
	struct iphdr *v4 = (void *)(eth + 1);

	if (!tunnel->inner_ecn || tunnel->inner_ecn == LB_ECN_CE || !(tunnel->outer_ecn & 1))
		return LB_DECAP_ON;
	if ((void *)(v4 + 1) > end)
		return LB_DECAP_END(internal);
	if (tunnel->version == 4)
		lb_set_ecn_v4(v4, tunnel->outer_ecn);
	else if (lb_set_ecn_v6(ctx, v6, tunnel->outer_ecn))
		return LB_DECAP_END(internal);
	return LB_DECAP_ON;
}

static __always_inline int lb_undo(LB_DECAP_CONTEXT *ctx)
{
	struct lb_tunnel tunnel = {};
	struct lb_decap_host *host;
	__u32 only = 0;
	int end;

	host = bpf_map_lookup_elem(LB_DECAP_MAP(host), &only);
	if (!host)
		return LB_DECAP_END(internal);
	end = lb_open(ctx, &tunnel);
	if (!end)
		end = lb_outer(&tunnel, host->gue_port);
	if (!end)
		end = lb_admit(&tunnel, host);
	if (!end)
		end = lb_take_off(ctx, &tunnel);
	if (!end)
		end = lb_join_ecn(ctx, &tunnel);
	return end ? end : LB_DECAP_END(decapsulated);
}

int lb_decap(LB_DECAP_CONTEXT *ctx)
{
	__u32 reason = lb_undo(ctx) - 1;
	__u64 *count = bpf_map_lookup_elem(LB_DECAP_MAP(counts), &reason);

	if (count)
		*count += 1;
#define LB_DECAP_CASE(name, verdict, meaning)                                                      \
	case LB_DECAP_##name:                                                                      \
		return LB_DECAP_##verdict;

	switch (reason) {
		LB_DECAP_REASONS(LB_DECAP_CASE)
	default:
		return LB_DECAP_PASS;
	}
}
