/* SPDX-License-Identifier: MIT */
/*
 * Parsing of what is not plain: VLAN tags, IPv4 options, IPv6 extension headers, fragments. Used
 * for frames and for the packets that ICMP errors quote alike. As in lb_parse.h nothing is written,
 * and nothing is read past the end.
 */
#ifndef LB_PARSE_GENERAL_H
#define LB_PARSE_GENERAL_H

#include "lb_maps.h"
#include "lb_parse.h"

#define LB_TAG 4 /* octets of an 802.1Q or 802.1ad tag */
#define LB_EXTENSIONS 6 /* IPv6 extension headers that are followed */
#define LB_IP6_OFFSET 0xfff8 /* offset and more-fragments bit (RFC 8200, 4.5) */
#define LB_IP6_MORE 1
#define LB_ICMP_HEADER 8 /* octets of an ICMP or ICMPv6 header, the same for both */

/*
 * Keeps the compiler (LLVM 14, 19) from reasoning about a pointer: from computing it anew from what it
 * was made of, where the verifier knows how far it may be read only for that very sum; and from
 * testing in place of a pointer that may be NULL the condition that made it so.
 */
#define LB_KEEP(pointer) asm volatile("" : "+r"(pointer))

/* Has the compiler load anew what it loaded before: a pointer of the context, for one. */
#define LB_LOAD_ANEW() asm volatile("" ::: "memory")

/*
 * Puts a number aside and takes it up again: the same number, of which the verifier knows nothing
 * now. Else it would go through all that follows once for each way on which a number came about,
 * and at a million instructions it gives up (Linux 6.1 to 6.18).
 */
static __always_inline __u32 lb_forget(struct lb_budget *place, int which, __u32 number)
{
	volatile __u32 *aside = &place->aside[which];

	*aside = number;
	return *aside;
}

static __always_inline struct lb_budget *lb_budget(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(LB_MAP(budget), &zero);
}

static __always_inline int lb_is_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/* Up to two tags; a third one is no IP to us. Sets `l3_at`. */
static __always_inline int lb_parse_tags(struct lb_packet *packet, __be16 *ethertype)
{
	void *frame = packet->eth;

	packet->l3_at = ETH_HLEN;
	*ethertype = packet->eth->h_proto;
	if (!lb_is_tag(*ethertype))
		return LB_OK;
	if (frame + ETH_HLEN + LB_TAG > packet->end)
		return LB_END(truncated);
	packet->l3_at = ETH_HLEN + LB_TAG;
	*ethertype = *(__be16 *)(frame + ETH_HLEN + LB_TAG - 2);
	if (!lb_is_tag(*ethertype))
		return LB_OK;
	if (frame + ETH_HLEN + 2 * LB_TAG > packet->end)
		return LB_END(truncated);
	packet->l3_at = ETH_HLEN + 2 * LB_TAG;
	*ethertype = *(__be16 *)(frame + ETH_HLEN + 2 * LB_TAG - 2);
	return LB_OK;
}

static __always_inline int lb_parse_ip4(struct lb_packet *packet)
{
	struct iphdr *ip = packet->l3;
	__u32 offset = bpf_ntohs(ip->frag_off);

	if (ip->version != 4 || ip->ihl < 5)
		return LB_END(odd_header);
	packet->protocol = ip->protocol;
	packet->l3_len = bpf_ntohs(ip->tot_len);
	packet->l4_at = ip->ihl * 4;
	packet->fragment_id = ip->id;
	packet->part = offset & LB_IP_OFFSET	 ? LB_LATER
		       : offset & LB_IP_FRAGMENT ? LB_FIRST
						 : LB_WHOLE;
	return LB_OK;
}

/* `header`: of 8 octets at least. Returns the next one's protocol. */
static __always_inline __u8 lb_parse_fragment6(struct lb_packet *packet, __u8 *header)
{
	__u16 offset = bpf_ntohs(*(__be16 *)(header + 2));

	packet->fragment_id = *(__be32 *)(header + 4);
	/* Offset 0 and nothing to follow: whole, whatever the header is there for (RFC 6946). */
	packet->part = offset & LB_IP6_OFFSET ? LB_LATER
		       : offset & LB_IP6_MORE ? LB_FIRST
					      : LB_WHOLE;
	return header[0];
}

/* A packet that is to travel on from here by its routing header is not for us to judge. */
static __always_inline int lb_parse_ip6(struct lb_packet *packet)
{
	struct ipv6hdr *ip = packet->l3;
	__u8 next = ip->nexthdr;
	__u32 at = sizeof(*ip);

	if (ip->version != 6)
		return LB_END(odd_header);
	packet->l3_len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	packet->part = LB_WHOLE;
	for (int i = 0; i <= LB_EXTENSIONS; i++) {
		__u8 *header = packet->l3 + at;

		if ((next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		     next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT) ||
		    packet->part == LB_LATER) {
			packet->protocol = next;
			packet->l4_at = at;
			return LB_OK;
		}
		if ((void *)header + 8 > packet->end)
			return LB_END(truncated);
		if (next == IPPROTO_FRAGMENT) {
			next = lb_parse_fragment6(packet, header);
			at += 8;
			continue;
		}
		if (next == IPPROTO_ROUTING && header[3])
			return LB_END(odd_header);
		next = header[0];
		at += (header[1] + 1) * 8;
	}
	return LB_END(odd_header);
}

/*
 * From `l3`, where there is room for the IP header, to `l4`. Ports are 0 in a later fragment and in
 * what is neither TCP nor UDP; of ICMP, its header is there.
 */
static __always_inline int lb_parse_rest(struct lb_packet *packet, int family)
{
	int end = family == 4 ? lb_parse_ip4(packet) : lb_parse_ip6(packet);
	__u8 icmp = family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	struct lb_budget *place;
	__be16 *ports;

	if (end)
		return end;
	place = lb_budget();
	if (!place)
		return LB_END(internal);
	packet->l4_at = lb_forget(place, 0, packet->l4_at) & 0x3fff;
	packet->part = lb_forget(place, 1, packet->part);
	packet->protocol = lb_forget(place, 2, packet->protocol);
	packet->fragment_id = lb_forget(place, 3, packet->fragment_id);
	packet->l4 = packet->l3 + packet->l4_at;
	LB_KEEP(packet->l4);
	if (packet->l4 > packet->end)
		return LB_END(truncated);
	if (packet->part == LB_LATER)
		return LB_OK;
	if (packet->protocol == icmp)
		return packet->l4 + LB_ICMP_HEADER > packet->end ? LB_END(truncated) : LB_OK;
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return LB_OK;
	ports = packet->l4;
	if ((void *)(ports + 2) > packet->end)
		return LB_END(truncated);
	packet->source_port = ports[0];
	packet->destination_port = ports[1];
	return LB_OK;
}

#endif
