/* SPDX-License-Identifier: MIT */
/*
 * From a frame to the few facts that the rest of the program needs. Nothing is written here, and
 * nothing is read past the end. What is plain (no tag, no IPv4 option, no IPv6 extension header, no
 * fragment, TCP or UDP) is parsed here at fixed offsets; all else is lb_general.h's.
 *
 * `family` is a constant wherever it is passed, so that each IP version gets code of its own.
 */
#ifndef LB_PARSE_H
#define LB_PARSE_H

#include "lb_reason.h"

#define LB_IP_DF 0x4000 /* do not fragment (RFC 791, 3.1) */
#define LB_IP_FRAGMENT 0x3fff /* more-fragments bit and offset (RFC 791, 3.1) */
#define LB_IP_OFFSET 0x1fff

/* Pointers stay valid until a pass moves the head of the frame. */
struct lb_packet {
	struct ethhdr *eth;
	void *l3;
	void *l4; /* not there in a later fragment */
	void *end;
	__u32 l3_at; /* octets before it: 14, and 4 for each tag */
	__u32 l3_len; /* octets from the IP header on, as that claims */
	__u32 l4_at; /* octets of IP header, extension headers included */
	__u32 frame_len; /* octets from the Ethernet header on; known after lb_check_lengths() */
	__u32 hash; /* known after lb_ring_enter() */
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 part; /* LB_WHOLE, or which sort of fragment */
	__u8 kind; /* LB_KIND_* of the service and index of the backend, once they are settled */
	__u8 sight; /* LB_SIGHT_*: lb_watch.h */
	__u32 backend;
	__be32 fragment_id;
};

#define LB_WHOLE 0
#define LB_FIRST 1 /* fragment: the first, with the transport header */
#define LB_LATER 2 /* another: no transport header */

static __always_inline struct iphdr *lb_ip4(struct lb_packet *packet)
{
	return packet->l3;
}

static __always_inline struct ipv6hdr *lb_ip6(struct lb_packet *packet)
{
	return packet->l3;
}

static __always_inline const __be32 *lb_source(struct lb_packet *packet, int family)
{
	return family == 4 ? &lb_ip4(packet)->saddr : lb_ip6(packet)->saddr.in6_u.u6_addr32;
}

static __always_inline const __be32 *lb_destination(struct lb_packet *packet, int family)
{
	return family == 4 ? &lb_ip4(packet)->daddr : lb_ip6(packet)->daddr.in6_u.u6_addr32;
}

static __always_inline __u8 lb_hops_left(struct lb_packet *packet, int family)
{
	return family == 4 ? lb_ip4(packet)->ttl : lb_ip6(packet)->hop_limit;
}

/* Copies an address into four words (lb_types.h: IPv4 is the first). */
static __always_inline void lb_copy_address(__be32 *to, const __be32 *from, int family)
{
	to[0] = from[0];
	if (family == 6) {
		to[1] = from[1];
		to[2] = from[2];
		to[3] = from[3];
	} else {
		to[1] = 0;
		to[2] = 0;
		to[3] = 0;
	}
}

static __always_inline int lb_same_address(const __be32 *a, const __be32 *b, int family)
{
	if (a[0] != b[0])
		return 0;
	return family == 4 || (a[1] == b[1] && a[2] == b[2] && a[3] == b[3]);
}

/* Returns LB_OK, or LB_GENERAL for what is not plain; `l3` has room for the IP header. */
static __always_inline int lb_parse_plain(struct lb_packet *packet, int family)
{
	__be16 *ports;

	packet->l3_at = ETH_HLEN;
	if (family == 4) {
		struct iphdr *ip = packet->l3;

		if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(LB_IP_FRAGMENT))
			return LB_GENERAL;
		packet->protocol = ip->protocol;
		packet->l3_len = bpf_ntohs(ip->tot_len);
		packet->l4_at = sizeof(*ip);
	} else {
		struct ipv6hdr *ip = packet->l3;

		if (ip->version != 6)
			return LB_GENERAL;
		packet->protocol = ip->nexthdr;
		packet->l3_len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
		packet->l4_at = sizeof(*ip);
	}
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return LB_GENERAL;
	packet->l4 = packet->l3 + packet->l4_at;
	ports = packet->l4;
	if ((void *)(ports + 2) > packet->end)
		return LB_GENERAL;
	packet->source_port = ports[0];
	packet->destination_port = ports[1];
	return LB_OK;
}

static __always_inline int lb_tcp_length_ok(struct lb_packet *packet, __u32 l4_len)
{
	struct tcphdr *tcp = packet->l4;

	if ((void *)(tcp + 1) > packet->end)
		return 0;
	return tcp->doff >= 5 && tcp->doff * 4 <= l4_len;
}

static __always_inline int lb_udp_length_ok(struct lb_packet *packet, __u32 l4_len)
{
	struct udphdr *udp = packet->l4;
	__u32 claimed;

	if ((void *)(udp + 1) > packet->end)
		return 0;
	claimed = bpf_ntohs(udp->len);
	return claimed >= sizeof(*udp) && claimed <= l4_len;
}

/*
 * How long its transport header may say that a packet is. What a first fragment lacks comes in the
 * later ones, so no length is too long for it; but the `least` of its header must be in it, and not
 * in what the frame is padded with (RFC 1858). Without a branch, which would take the verifier
 * through all that follows once more.
 */
static __always_inline __u32 lb_l4_room(struct lb_packet *packet, __u32 l4_len, __u32 least)
{
	__u32 enough = (least - 1 - l4_len) >> 31; /* the sign: l4_len is below 2^16 */

	return l4_len + (packet->part * enough << 16);
}

/*
 * For packets of a service or a backend: whatever a header claims must be inside the frame. The
 * linear part holds all that we touch; only multi-buffer frames ask the kernel for their length.
 */
static __always_inline int lb_check_lengths(struct xdp_md *ctx, struct lb_packet *packet)
{
	__u32 whole = packet->l3_at + packet->l3_len;
	__u32 l4_len = packet->l3_len - packet->l4_at;
	int ok;

	packet->frame_len = (__u32)(packet->end - (void *)packet->eth);
	if (packet->l3_len < packet->l4_at)
		return LB_END(bad_length);
	if (packet->frame_len < whole) {
		packet->frame_len = bpf_xdp_get_buff_len(ctx);
		if (packet->frame_len < whole)
			return LB_END(bad_length);
	}
	if (packet->part == LB_LATER)
		return LB_OK;
	if (packet->protocol == IPPROTO_TCP)
		ok = lb_tcp_length_ok(packet, lb_l4_room(packet, l4_len, sizeof(struct tcphdr)));
	else
		ok = lb_udp_length_ok(packet, lb_l4_room(packet, l4_len, sizeof(struct udphdr)));
	return ok ? LB_OK : LB_END(bad_length);
}

static __always_inline struct tcphdr *lb_tcp(struct lb_packet *packet)
{
	struct tcphdr *tcp = packet->l4;

	if (packet->protocol != IPPROTO_TCP || packet->part == LB_LATER ||
	    (void *)(tcp + 1) > packet->end)
		return NULL;
	return tcp;
}

static __always_inline int lb_is_syn(struct lb_packet *packet)
{
	struct tcphdr *tcp = lb_tcp(packet);

	return tcp ? tcp->syn & ~tcp->ack & 1 : 0;
}

#endif
