/* SPDX-License-Identifier: MIT */
/*
 * Packets of the gateway's own, all of them answers that leave the way their cause came by: echo
 * replies, "too big", RST and "port unreachable". Except for echo replies, which cost the asker as
 * much as us, they have a budget for each CPU and second: "too big" one of its own, so that path MTU
 * discovery goes on during a flood of what is refused.
 *
 * Who calls has checked that the frame is for us, whole or a first fragment, of lengths that agree,
 * from a source that a client may have, and no ICMP error (RFC 1122, 3.2.2; RFC 4443, 2.4).
 */
#ifndef LB_ANSWER_H
#define LB_ANSWER_H

#include "lb_checksum.h"
#include "lb_encap.h"
#include "lb_forward.h"
#include "lb_maps.h"
#include "lb_parse_general.h"
#include "lb_way.h"

#define LB_TUNNELS (LB_IPIP || LB_GUE)

#define LB_ANSWERS 1000 /* each CPU may send in a second, of either sort */
#define LB_ANSWER_TTL 64
#define LB_ANSWER_TOS 0xc0 /* internetwork control (RFC 1812, 4.3.2.5) */
#define LB_QUOTE4 548 /* octets: 576 in all (RFC 1812, 4.3.2.3) */
#define LB_QUOTE6 1232 /* 1280 in all (RFC 4443, 2.4) */
#define LB_MIN_MTU6 1280 /* RFC 8200, 5 */
#define LB_TCP_RST 4
#define LB_TCP_ACK 16

/* Takes one answer off the budget of its sort, if there is one left. */
static __always_inline int lb_budget_left(struct lb_budget *budget, int too_big)
{
	__u32 *left = too_big ? &budget->left_too_big : &budget->left;
	__u32 second = bpf_jiffies64() / LB_HZ;

	if (budget->second != second) {
		budget->second = second;
		budget->left = LB_ANSWERS;
		budget->left_too_big = LB_ANSWERS;
	}
	if (!*left)
		return 0;
	*left -= 1;
	return 1;
}

/* What lb_budget.aside holds between lb_ask_error() and lb_answer(). */
#define LB_ASIDE_TAGS 0 /* octets of VLAN tags */
#define LB_ASIDE_QUOTE 1 /* octets */
#define LB_ASIDE_TYPE 2 /* the ICMP header's first word, but for the checksum */
#define LB_ASIDE_WORD 3 /* and its second */
#define LB_ASIDE_FAMILY 4
#define LB_ASIDE_ROUTED 5 /* 1: to be sent by the routing table, not back */
#define LB_ASIDE_FREE 6 /* from here on: whatever the general program forgets meanwhile */

/* The two kinds of errors that are written are this one and "port unreachable". */
static __always_inline int lb_is_too_big(__u8 type, __u8 code, int family)
{
	return family == 4 ? code == ICMP_FRAG_NEEDED : type == ICMPV6_PKT_TOOBIG;
}

/*
 * Asks for an ICMP or ICMPv6 error about the packet, which lb_answer() writes: `word` is the second
 * word of its header. Returns LB_ANSWER, or the reason why not.
 */
static __always_inline int lb_ask_error(struct lb_packet *packet, __u8 type, __u8 code, __u32 word,
					__u32 routed, int family)
{
	__u32 most = family == 4 ? LB_QUOTE4 : LB_QUOTE6;
	struct lb_budget *budget = lb_budget();

	if (!budget)
		return LB_END(internal);
	if (!lb_budget_left(budget, lb_is_too_big(type, code, family)))
		return LB_END(unanswered);
	budget->aside[LB_ASIDE_TAGS] = packet->l3_at - ETH_HLEN;
	budget->aside[LB_ASIDE_QUOTE] = packet->l3_len < most ? packet->l3_len : most;
	budget->aside[LB_ASIDE_TYPE] = (__u32)type << 24 | (__u32)code << 16;
	budget->aside[LB_ASIDE_WORD] = word;
	budget->aside[LB_ASIDE_FAMILY] = family;
	budget->aside[LB_ASIDE_ROUTED] = routed;
	return LB_ANSWER;
}

/*
 * Too large for a way of `mtu` octets (RFC 1191, 4; RFC 4443, 3.2). Also for IPv4 packets that might
 * be fragmented: that is work for a host, and one that hears of it sends packets that fit.
 */
static __always_inline int lb_ask_too_big(struct lb_packet *packet, __u32 mtu, __u32 routed,
					  int family)
{
	if (family == 4)
		return lb_ask_error(packet, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, mtu, routed, 4);
	return lb_ask_error(packet, ICMPV6_PKT_TOOBIG, 0, mtu < LB_MIN_MTU6 ? LB_MIN_MTU6 : mtu,
			    routed, 6);
}

/* Sums 16-bit words up to the end of the frame, `limit` octets at most; an odd octet is padded. */
static __always_inline __u64 lb_sum_to_end(void *from, void *end, int limit)
{
	__u32 *word = from;
	__u64 sum = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < limit / 4; i++) {
		if ((void *)(word + 1) > end)
			break;
		sum += *word++;
		LB_KEEP(word);
	}
	if ((void *)word + 2 <= end) {
		sum += *(__u16 *)word;
		word = (void *)word + 2;
	}
	LB_KEEP(word);
	if ((void *)word + 1 <= end)
		sum += *(__u8 *)word;
	return sum;
}

static __always_inline __u64 lb_sum_addresses(const __be32 *source, const __be32 *destination,
					      int family)
{
	__u64 sum = (__u64)source[0] + destination[0];

	if (family == 6)
		sum += (__u64)source[1] + source[2] + source[3] + destination[1] + destination[2] +
		       destination[3];
	return sum;
}

/* The header of an answer to the packet whose header is `cause`; `len` octets follow. */
static __always_inline void lb_write_answer4(struct iphdr *ip, struct iphdr *cause, __u32 len)
{
	__be32 source = cause->daddr, destination = cause->saddr;

	*(__be16 *)ip = bpf_htons(0x4500 | LB_ANSWER_TOS);
	ip->tot_len = bpf_htons(sizeof(*ip) + len);
	ip->id = 0;
	ip->frag_off = bpf_htons(LB_IP_DF);
	ip->ttl = LB_ANSWER_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->check = 0;
	ip->saddr = source;
	ip->daddr = destination;
	ip->check = lb_header_checksum(ip);
}

static __always_inline void lb_write_answer6(struct ipv6hdr *ip, struct ipv6hdr *cause, __u32 len)
{
	*(__be32 *)ip = bpf_htonl(0x60000000);
	ip->payload_len = bpf_htons(len);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = LB_ANSWER_TTL;
	lb_copy_address(ip->saddr.in6_u.u6_addr32, cause->daddr.in6_u.u6_addr32, 6);
	lb_copy_address(ip->daddr.in6_u.u6_addr32, cause->saddr.in6_u.u6_addr32, 6);
}

/* Cuts the frame off behind `len` octets from the IP header on. Pointers are void after it. */
static __always_inline int lb_cut(struct xdp_md *ctx, struct lb_packet *packet, __u32 len)
{
	int excess = (int)bpf_xdp_get_buff_len(ctx) - (int)(packet->l3_at + len);

	return excess < 0 || bpf_xdp_adjust_tail(ctx, -excess) ? LB_END(internal) : LB_OK;
}

/*
 * Writes an error about the packet at `l3`, from its destination to its source, around `quote`
 * octets of it. The frame's MACs are those of one that goes back.
 */
static __always_inline int lb_write_error(struct xdp_md *ctx, struct lb_packet *packet,
					  struct lb_budget *budget, int family)
{
	__u32 ip_len = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u32 quote = budget->aside[LB_ASIDE_QUOTE] & 0x7ff, added = ip_len + LB_ICMP_HEADER;
	struct ethhdr *before;
	__be32 *icmp;
	__u64 sum;

	/* Of a multi-buffer frame, only the linear part is at hand. */
	if (packet->l3 + quote > packet->end)
		return LB_END(unanswered);
	if (lb_cut(ctx, packet, quote))
		return LB_END(internal);
	if (lb_make_room(ctx, packet, added, packet->l3_at - ETH_HLEN))
		return LB_END(no_room);
	before = (void *)packet->eth + added;
	lb_set_macs(packet->eth, before->h_source, before->h_dest);
	LB_KEEP(packet->l3);
	if (packet->l3 + added + ip_len > packet->end)
		return LB_END(internal);
	icmp = packet->l3 + ip_len;
	((__u16 *)packet->l3)[-1] = bpf_htons(family == 4 ? ETH_P_IP : ETH_P_IPV6);
	icmp[0] = bpf_htonl(budget->aside[LB_ASIDE_TYPE]);
	icmp[1] = bpf_htonl(budget->aside[LB_ASIDE_WORD]);
	sum = lb_sum_to_end(icmp, packet->end,
			    LB_ICMP_HEADER + (family == 4 ? LB_QUOTE4 : LB_QUOTE6));
	/* Of pointers from before the loop, the verifier knows another range at each of its ends. */
	LB_LOAD_ANEW();
	packet->eth = (void *)(long)ctx->data;
	packet->end = (void *)(long)ctx->data_end;
	packet->l3 = (void *)packet->eth + packet->l3_at;
	LB_KEEP(packet->l3);
	if ((void *)(packet->eth + 1) > packet->end || packet->l3 + added + ip_len > packet->end)
		return LB_END(internal);
	icmp = packet->l3 + ip_len;
	if (family == 4) {
		lb_write_answer4(packet->l3, packet->l3 + added, LB_ICMP_HEADER + quote);
	} else {
		lb_write_answer6(packet->l3, packet->l3 + added, LB_ICMP_HEADER + quote);
		sum += lb_sum_addresses(lb_source(packet, 6), lb_destination(packet, 6), 6) +
		       bpf_htons(IPPROTO_ICMPV6) + bpf_htons(LB_ICMP_HEADER + quote);
	}
	((__u16 *)icmp)[1] = ~lb_sum_fold(sum);
	packet->protocol = family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	packet->l3_len = added + quote;
	return LB_OK;
}

/* Sends a packet to its destination, if the way is known: else it is the kernel's. */
static __always_inline int lb_leave_by_way(struct xdp_md *ctx, struct lb_packet *packet,
					   struct lb_way *way, int unknown, int *action, int family)
{
	if (unknown)
		return unknown;
	*action = lb_leave_by(ctx, way->ifindex, XDP_PASS);
	if (*action == XDP_PASS)
		return LB_END(other_egress);
	lb_decrement_hops(packet, family);
	lb_set_macs(packet->eth, way->mac, way->source_mac);
	return LB_END(icmp_error);
}

static __always_inline void lb_swap_macs(struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	lb_set_macs(eth, eth->h_source, mac);
}

static __always_inline int lb_answer_as(struct xdp_md *ctx, struct lb_packet *packet,
					struct lb_budget *budget, int *action, int family)
{
	__u32 ip_len = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct lb_way *way = NULL;
	__u32 what;
	int end;

	if (packet->l3 + ip_len > packet->end)
		return LB_END(internal);
	end = lb_write_error(ctx, packet, budget, family);
	if (end)
		return end;
#if LB_TUNNELS
	if (budget->aside[LB_ASIDE_ROUTED]) {
		/* As it came, addressed to us: another host's frame, the kernel would not route. */
		lb_swap_macs(packet->eth);
		end = lb_way_to(ctx, packet, lb_source(packet, family),
				lb_destination(packet, family), &way, family);
		return lb_leave_by_way(ctx, packet, way, end, action, family);
	}
#endif
	*action = XDP_TX;
	what = budget->aside[LB_ASIDE_TYPE] >> 16;
	return lb_is_too_big(what >> 8, what, family) ? LB_END(too_big) : LB_END(refused);
}

/* Writes what was asked for. From nothing but `aside`, so that the verifier comes here once. */
static __always_inline int lb_answer(struct xdp_md *ctx, int *action)
{
	struct lb_budget *budget = lb_budget();
	struct lb_packet packet = {};

	if (!budget)
		return LB_END(internal);
	packet.eth = (void *)(long)ctx->data;
	packet.end = (void *)(long)ctx->data_end;
	packet.l3_at = ETH_HLEN + (budget->aside[LB_ASIDE_TAGS] & 12);
	packet.l3 = (void *)packet.eth + packet.l3_at;
	LB_KEEP(packet.l3);
#if LB_IPV4
	if (budget->aside[LB_ASIDE_FAMILY] == 4)
		return lb_answer_as(ctx, &packet, budget, action, 4);
#endif
#if LB_IPV6
	if (budget->aside[LB_ASIDE_FAMILY] == 6)
		return lb_answer_as(ctx, &packet, budget, action, 6);
#endif
	return LB_END(internal);
}

static __always_inline void lb_turn_around(struct lb_packet *packet, int family)
{
	__be32 address[4];

	lb_swap_macs(packet->eth);
	if (family == 4) {
		address[0] = lb_ip4(packet)->saddr;
		lb_ip4(packet)->saddr = lb_ip4(packet)->daddr;
		lb_ip4(packet)->daddr = address[0];
	} else {
		lb_copy_address(address, lb_source(packet, 6), 6);
		lb_copy_address(lb_ip6(packet)->saddr.in6_u.u6_addr32, lb_destination(packet, 6),
				6);
		lb_copy_address(lb_ip6(packet)->daddr.in6_u.u6_addr32, address, 6);
	}
}

/* Turns an echo request into its reply (RFC 792; RFC 4443, 4.2): only the type differs. */
static __always_inline int lb_answer_echo(struct lb_packet *packet, int *action, int family)
{
	__be16 *icmp = packet->l4, before, after, *hops;

	if (packet->l4 + LB_ICMP_HEADER > packet->end)
		return LB_END(truncated);
	before = icmp[0];
	after = family == 4 ? 0 : bpf_htons(ICMPV6_ECHO_REPLY << 8);
	icmp[0] = after;
	icmp[1] = lb_checksum_apply(icmp[1], lb_sum_replace(0, before, after));
	lb_turn_around(packet, family);
	if (family == 4) {
		hops = (__be16 *)&lb_ip4(packet)->ttl;
		before = *hops;
		after = bpf_htons(LB_ANSWER_TTL << 8 | lb_ip4(packet)->protocol);
		*hops = after;
		lb_ip4(packet)->check = lb_checksum_apply(lb_ip4(packet)->check,
							  lb_sum_replace(0, before, after));
	} else {
		lb_ip6(packet)->hop_limit = LB_ANSWER_TTL;
	}
	*action = XDP_TX;
	return LB_END(echo);
}

#if LB_REJECT || LB_RESET
/* Writes the RST that answers a TCP segment (RFC 9293, 3.5.2) in the segment's place. */
static __always_inline void lb_write_reset(struct lb_packet *packet, struct tcphdr *tcp, int family)
{
	__u32 len = packet->l3_len - packet->l4_at - tcp->doff * 4 + tcp->syn + tcp->fin;
	__be32 *word = (__be32 *)tcp, seq = 0, ack = 0;
	__u32 flags = LB_TCP_RST;
	__u64 sum;

	if (tcp->ack) {
		seq = word[2];
	} else {
		ack = bpf_htonl(bpf_ntohl(word[1]) + len);
		flags |= LB_TCP_ACK;
	}
	word[0] = (__u32)packet->source_port << 16 | packet->destination_port;
	word[1] = seq;
	word[2] = ack;
	word[3] = bpf_htonl((__u32)sizeof(*tcp) << 26 | flags << 16);
	word[4] = 0;
	lb_turn_around(packet, family);
	sum = lb_sum_addresses(lb_source(packet, family), lb_destination(packet, family), family) +
	      bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(*tcp));
	sum += (__u64)word[0] + word[1] + word[2] + word[3];
	tcp->check = ~lb_sum_fold(sum);
	if (family == 4) {
		struct iphdr *ip = packet->l3;

		ip->tos = 0;
		ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*tcp));
		ip->id = 0;
		ip->frag_off = bpf_htons(LB_IP_DF);
		ip->ttl = LB_ANSWER_TTL;
		ip->check = 0;
		ip->check = lb_header_checksum(ip);
	} else {
		*(__be32 *)packet->l3 = bpf_htonl(0x60000000);
		lb_ip6(packet)->payload_len = bpf_htons(sizeof(*tcp));
		lb_ip6(packet)->hop_limit = LB_ANSWER_TTL;
	}
}

/* Not behind options or extension headers: such a segment is dropped for `end`, as is an RST. */
static __always_inline int lb_answer_reset(struct xdp_md *ctx, struct lb_packet *packet, int end,
					   int family)
{
	__u32 ip_len = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct tcphdr *tcp = packet->l3 + ip_len;
	struct lb_budget *budget = lb_budget();

	if (packet->l4_at != ip_len || packet->part != LB_WHOLE)
		return end;
	if ((void *)(tcp + 1) > packet->end || tcp->rst)
		return end;
	if (!budget || !lb_budget_left(budget, 0))
		return LB_END(unanswered);
	lb_write_reset(packet, tcp, family);
	return lb_cut(ctx, packet, ip_len + sizeof(*tcp)) ? LB_END(internal) : LB_OK;
}

#endif /* LB_REJECT || LB_RESET */

#if LB_REJECT
/* For a service that says so: the packet that nobody takes is answered. */
static __always_inline int lb_refuse(struct xdp_md *ctx, struct lb_packet *packet, int end,
				     int *action, int family)
{
	if (packet->protocol == IPPROTO_UDP && family == 4)
		return lb_ask_error(packet, ICMP_DEST_UNREACH, ICMP_PORT_UNREACH, 0, 0, 4);
	if (packet->protocol == IPPROTO_UDP)
		return lb_ask_error(packet, ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH, 0, 0, 6);
	end = lb_answer_reset(ctx, packet, end, family);
	if (end)
		return end;
	*action = XDP_TX;
	return LB_END(refused);
}
#endif /* LB_REJECT */

#endif
