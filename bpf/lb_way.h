/* SPDX-License-Identifier: MIT */
/*
 * The way to a client. It may be anywhere, so the kernel's routing table is asked (bpf_fib_lookup,
 * which needs forwarding enabled on the interface). That costs more than all the rest of a reply,
 * so each CPU remembers what it was told for a second: a changed route or neighbour takes as long
 * to be believed, whether the controller lives or not.
 */
#ifndef LB_WAY_H
#define LB_WAY_H

#include "lb_hash.h"
#include "lb_maps.h"
#include "lb_parse.h"

#define LB_AF_INET 2
#define LB_AF_INET6 10

static __always_inline int lb_way_known(struct lb_way *way, const __be32 *destination, __u32 now,
					int family)
{
	return way->until && (__s32)(way->until - now) > 0 && way->family == family &&
	       lb_same_address(way->address, destination, family);
}

/* Asks with the VIP as the source, which the packet bears once it is translated. */
static __always_inline int lb_way_ask(struct xdp_md *ctx, struct lb_packet *packet,
				      const __be32 *vip, const __be32 *destination,
				      struct lb_way *way, int family)
{
	struct bpf_fib_lookup route = {};

	route.l4_protocol = packet->protocol;
	route.tot_len = packet->l3_len;
	route.ifindex = ctx->ingress_ifindex;
	if (family == 4) {
		route.family = LB_AF_INET;
		route.tos = lb_ip4(packet)->tos;
		route.ipv4_src = vip[0];
		route.ipv4_dst = destination[0];
	} else {
		route.family = LB_AF_INET6;
		lb_copy_address(route.ipv6_src, vip, 6);
		lb_copy_address(route.ipv6_dst, destination, 6);
	}
	switch (bpf_fib_lookup(ctx, &route, sizeof(route), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return LB_END(no_neighbour);
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return LB_END(reply_too_big);
	default:
		return LB_END(no_route);
	}
	lb_copy_address(way->address, destination, family);
	way->family = family;
	way->ifindex = route.ifindex;
	way->mtu = route.mtu_result;
	__builtin_memcpy(way->mac, route.dmac, ETH_ALEN);
	__builtin_memcpy(way->source_mac, route.smac, ETH_ALEN);
	return LB_OK;
}

/* Sets `way` to where a packet to `destination` goes, or says why that is not known. */
static __always_inline int lb_way_to(struct xdp_md *ctx, struct lb_packet *packet,
				     const __be32 *vip, const __be32 *destination,
				     struct lb_way **way, int family)
{
	__u64 address = (__u64)destination[0] << 32 | (family == 6 ? destination[3] : 0);
	__u32 at = address * LB_MIX_1 >> (64 - LB_WAY_BITS);
	__u32 now = bpf_jiffies64();
	int end;

	if (family == 6)
		at ^= (__u32)(destination[1] * 0x9e3779b1U) >> (32 - LB_WAY_BITS);
	/* Not a per-CPU map, whose elements lie apart and behind pointers: two misses in place of one. */
	at |= bpf_get_smp_processor_id() << LB_WAY_BITS;
	*way = bpf_map_lookup_elem(LB_MAP(ways), &at);
	if (!*way)
		return LB_END(internal);
	if (lb_way_known(*way, destination, now, family))
		return packet->l3_len > (*way)->mtu ? LB_END(reply_too_big) : LB_OK;
	(*way)->until = 0;
	end = lb_way_ask(ctx, packet, vip, destination, *way, family);
	if (!end)
		(*way)->until = (now + LB_HZ) | 1;
	return end;
}

#endif
