/* SPDX-License-Identifier: MIT */
/*
 * Internet checksums, updated and not computed anew (RFC 1624, equation 3): what came wrong stays
 * wrong, and finds its judge at the receiver.
 */
#ifndef LB_CHECKSUM_H
#define LB_CHECKSUM_H

#include "lb_parse.h"

/* Adds the replacement of one 32-bit word to a running one's complement sum. */
static __always_inline __u64 lb_sum_replace(__u64 sum, __u32 before, __u32 after)
{
	return sum + (__u32)~before + after;
}

static __always_inline __u64 lb_sum_replace_address(__u64 sum, const __be32 *before,
						    const __be32 *after, int family)
{
	sum = lb_sum_replace(sum, before[0], after[0]);
	if (family == 6) {
		sum = lb_sum_replace(sum, before[1], after[1]);
		sum = lb_sum_replace(sum, before[2], after[2]);
		sum = lb_sum_replace(sum, before[3], after[3]);
	}
	return sum;
}

/* Of sums below 2^48: each step waits for the one before, so there is none too many. */
static __always_inline __u16 lb_sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

/* The checksum field after `change` (a sum of replacements) is applied to it. */
static __always_inline __u16 lb_checksum_apply(__u16 checksum, __u64 change)
{
	return ~lb_sum_fold((__u64)(__u16)~checksum + change);
}

/*
 * One hop less (RFC 791, 3.2; RFC 8200, 3), and IPv4's header checksum with it: one is taken off
 * the upper octet of a word, so one is added to that of the sum's complement (RFC 1141).
 */
static __always_inline void lb_decrement_hops(struct lb_packet *packet, int family)
{
	struct iphdr *ip = packet->l3;
	__u32 check;

	if (family == 6) {
		lb_ip6(packet)->hop_limit -= 1;
		return;
	}
	ip->ttl -= 1;
	check = ip->check + bpf_htons(0x0100);
	ip->check = check + (check >= 0xffff);
}

/* `change` covers the pseudo-header's addresses and the ports. lb_check_lengths() has passed. */
static __always_inline int lb_rewrite_l4_checksum(struct lb_packet *packet, __u64 change)
{
	struct tcphdr *tcp = packet->l4;
	struct udphdr *udp = packet->l4;

	if (packet->protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > packet->end)
			return LB_END(bad_length);
		tcp->check = lb_checksum_apply(tcp->check, change);
		return LB_OK;
	}
	if ((void *)(udp + 1) > packet->end)
		return LB_END(bad_length);
	if (udp->check) { /* 0: the sender computed none (RFC 768) */
		udp->check = lb_checksum_apply(udp->check, change);
		if (!udp->check)
			udp->check = 0xffff;
	}
	return LB_OK;
}

#endif
