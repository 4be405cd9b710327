/* SPDX-License-Identifier: MIT */
/*
 * ICMP and ICMPv6 errors about flows. An error quotes the packet that it is about, and that tells
 * whom it concerns:
 *  - from a VIP to a client: the flow's backend, which hears of it as it would without a gateway;
 *  - from a client to a backend, translated by us (nat, fullnat): the client. The quoted packet is
 *    translated back, so that client recognises it;
 *  - one of our tunnels' outer packets: the gateway. If it was too big, the client gets to know.
 * No record is made or renewed for an error. Checksums are updated: quoted IP header, quoted TCP or
 * UDP if its checksum is among what is quoted, ICMP.
 */
#ifndef LB_ICMP_H
#define LB_ICMP_H

#include "lb_answer.h"
#include "lb_dispatch.h"
#include "lb_fragment.h"
#include "lb_reply.h"
#include "lb_request.h"

#define LB_QUOTED_L4 8 /* octets of the quoted packet's transport header that must be there */
#define LB_MIN_MTU4 68 /* RFC 791, 3.2 */

static __always_inline int lb_icmp_is_error(__u8 type, int family)
{
	if (family == 6)
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

/* Octets of the ICMP message from the quoted packet's transport header on. */
static __always_inline __s32 lb_quoted_len(struct lb_packet *packet, struct lb_packet *quoted)
{
	return (__s32)packet->l3_len - (__s32)(packet->l4_at + LB_ICMP_HEADER + quoted->l4_at);
}

/* The packet that an error quotes; its `end` is the frame's. LB_OK if it is of TCP or UDP. */
static __always_inline int lb_quoted_parse(struct lb_packet *packet, struct lb_packet *quoted,
					   int family)
{
	int end;

	quoted->end = packet->end;
	quoted->l3 = packet->l4 + LB_ICMP_HEADER;
	if (quoted->l3 + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) >
	    packet->end)
		return LB_END(truncated);
	end = lb_parse_rest(quoted, family);
	if (end)
		return end;
	if (quoted->part == LB_LATER)
		return LB_END(protocol);
	quoted->part &= LB_FIRST; /* says to the compiler what was just found out */
	if (quoted->l4 + LB_QUOTED_L4 > packet->end || lb_quoted_len(packet, quoted) < LB_QUOTED_L4)
		return LB_END(truncated);
	return LB_OK;
}

/* Sums up the change of a 16-bit word. */
static __always_inline __u64 lb_sum_word(__u64 sum, __u16 before, __u16 after)
{
	return lb_sum_replace(sum, before, after);
}

#if LB_TRANSLATES
/* The quoted transport checksum, if it is quoted, and what that changes in the ICMP message. */
static __always_inline __u64 lb_quoted_checksum(struct lb_packet *packet, struct lb_packet *quoted,
						__u64 change)
{
	int at = quoted->protocol == IPPROTO_TCP ? 16 : 6;
	__u16 *check, before;

	if (lb_quoted_len(packet, quoted) < at + 2)
		return 0;
	if (quoted->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = quoted->l4;

		check = &tcp->check;
		if ((void *)(check + 1) > packet->end)
			return 0;
		before = *check;
		*check = lb_checksum_apply(before, change);
		return lb_sum_word(0, before, *check);
	}
	check = quoted->l4 + 6;
	if ((void *)(check + 1) > packet->end)
		return 0;
	before = *check;
	if (!before) /* the sender computed none (RFC 768) */
		return 0;
	*check = lb_checksum_apply(before, change);
	if (!*check)
		*check = 0xffff;
	return lb_sum_word(0, before, *check);
}

/* Rewrites the quoted packet; returns what that changes in the ICMP message's sum. */
static __always_inline __u64 lb_quoted_translate(struct lb_packet *packet, struct lb_packet *quoted,
						 struct lb_ends *to, int family)
{
	__u64 addresses = 0, ports = 0, change;
	__be16 *port = quoted->l4;
	__u16 before;

	if (to->source) {
		addresses = lb_sum_replace_address(addresses, lb_source(quoted, family), to->source,
						   family);
		ports = lb_sum_word(ports, port[0], to->source_port);
	}
	if (to->destination) {
		addresses = lb_sum_replace_address(addresses, lb_destination(quoted, family),
						   to->destination, family);
		ports = lb_sum_word(ports, port[1], to->destination_port);
	}
	change = addresses + ports + lb_quoted_checksum(packet, quoted, addresses + ports);
	if (to->source) {
		port[0] = to->source_port;
		__builtin_memcpy((void *)lb_source(quoted, family), to->source,
				 family == 4 ? 4 : 16);
	}
	if (to->destination) {
		port[1] = to->destination_port;
		__builtin_memcpy((void *)lb_destination(quoted, family), to->destination,
				 family == 4 ? 4 : 16);
	}
	if (family == 4) {
		before = lb_ip4(quoted)->check;
		lb_ip4(quoted)->check = lb_checksum_apply(before, addresses);
		change = lb_sum_word(change, before, lb_ip4(quoted)->check);
	}
	return change;
}

/* Rewrites an error: the addresses of its own header, and the packet that it quotes. */
static __always_inline void lb_error_translate(struct lb_packet *packet, struct lb_packet *quoted,
					       struct lb_ends *outer, struct lb_ends *inner,
					       int family)
{
	__u64 addresses = 0, change = lb_quoted_translate(packet, quoted, inner, family);
	__u16 *check = packet->l4 + 2;

	if (outer->source) {
		addresses = lb_sum_replace_address(addresses, lb_source(packet, family),
						   outer->source, family);
		__builtin_memcpy((void *)lb_source(packet, family), outer->source,
				 family == 4 ? 4 : 16);
	}
	if (outer->destination) {
		addresses = lb_sum_replace_address(addresses, lb_destination(packet, family),
						   outer->destination, family);
		__builtin_memcpy((void *)lb_destination(packet, family), outer->destination,
				 family == 4 ? 4 : 16);
	}
	if (family == 4)
		lb_ip4(packet)->check = lb_checksum_apply(lb_ip4(packet)->check, addresses);
	else
		change += addresses; /* the pseudo-header (RFC 4443, 2.3) */
	*check = lb_checksum_apply(*check, change);
}
#endif /* LB_TRANSLATES */

/* Refuses before anything is written; the quoted packet has been found inside the frame. */
static __always_inline int lb_error_admit(struct xdp_md *ctx, struct lb_table *table,
					  struct lb_packet *packet, int routes, int family)
{
	if (!lb_is_for_us(table, packet->eth))
		return LB_END(other_host);
	if (packet->l3_at + packet->l3_len > bpf_xdp_get_buff_len(ctx))
		return LB_END(bad_length);
	if (routes && lb_hops_left(packet, family) <= 1)
		return LB_END(ttl_expired);
	return lb_is_martian(packet, family) ? LB_END(martian) : LB_OK;
}

/* The backend of the flow that `key` names, as lb_pick() would have it; 0 for none. */
static __always_inline __u32 lb_error_pick(struct lb_stand *stand, struct lb_flow_key *key,
					   __u32 hash, struct lb_flow **known)
{
	struct lb_ring *ring = lb_ring_at(stand->index);
	__u32 slot;

	if (!ring)
		return 0;
	slot = lb_slot_at(ring, hash);
#if LB_FLOWS
	if (stand->flags & LB_SERVICE_TRACKED || lb_slot_state(slot)) {
		struct lb_flow *flow = lb_flow_find(key);
		struct lb_backend *former;

		if (flow && lb_backend_if(flow->backend, flow->identity)) {
			*known = flow;
			return flow->backend;
		}
		/* Of a severed slot too: its former backend may be up again by now. */
		if (!flow && lb_slot_former(slot)) {
			__u32 index = lb_slot_former(slot);

			former = lb_backend_at(index);
			if (index && former && former->flags & LB_BACKEND_UP)
				return index;
		}
	}
#endif
	return lb_slot_backend(slot);
}

/* About a packet from a VIP to a client: to the flow's backend. */
static __always_inline int lb_error_request(struct xdp_md *ctx, struct lb_table *table,
					    struct lb_packet *packet, struct lb_packet *quoted,
					    struct lb_stand *stand, int *action, int family)
{
	const __be32 *vip = lb_source(quoted, family), *client = lb_destination(quoted, family);
	int end = lb_error_admit(ctx, table, packet, stand->kind != LB_KIND_DSR, family);
	struct lb_flow *flow = NULL;
	struct lb_backend *backend;
	__u32 index;

	if (end)
		return end;
	packet->hash = lb_hash_of(client, vip, quoted->destination_port, quoted->source_port,
				  quoted->protocol,
				  LB_BY_SOURCE && stand->flags & LB_SERVICE_SOURCE, family);
	{
		struct lb_flow_key key;

		lb_nat_key(&key, client, vip, quoted->destination_port, quoted->source_port,
			   quoted->protocol, family);
		index = lb_error_pick(stand, &key, packet->hash, &flow);
	}
	backend = index ? lb_backend_at(index) : NULL;
	if (!backend || (stand->kind == LB_KIND_FULLNAT && !flow))
		return LB_END(protocol);
	if (packet->l3_len > backend->mtu)
		return LB_END(unanswered);
	*action = lb_leave_by(ctx, backend->ifindex, XDP_DROP);
	if (*action == XDP_DROP)
		return LB_END(no_egress);
#if LB_TRANSLATES
	if (stand->kind >= LB_KIND_NAT) {
		struct lb_ends outer = { .destination = backend->address };
		struct lb_ends inner = {
			.source = backend->address,
			.source_port = backend->port ? backend->port : quoted->source_port,
		};

#if LB_FULLNAT
		if (flow && stand->kind == LB_KIND_FULLNAT) {
			inner.destination = flow->snat;
			inner.destination_port = flow->snat_port;
		}
#endif
		LB_KEEP(inner.destination);
		lb_error_translate(packet, quoted, &outer, &inner, family);
	}
#endif
	end = lb_hand_over(ctx, packet, table, stand->kind, backend, family);
	return end ? end : LB_END(icmp_error);
}

#if LB_TRANSLATES
/* About a translated request: back to the client. `inner` names the ends that it knows. */
static __always_inline int lb_error_reply(struct xdp_md *ctx, struct lb_table *table,
					  struct lb_packet *packet, struct lb_packet *quoted,
					  struct lb_backend *backend, struct lb_ends *inner,
					  int *action, int family)
{
	const __be32 *client = inner->source ? inner->source : lb_source(quoted, family);
	int end = lb_error_admit(ctx, table, packet, 1, family);
	struct lb_ends outer = { .destination = inner->source };
	struct lb_way *way = NULL;
	int unknown;

	if (end)
		return end;
	unknown = lb_way_to(ctx, packet, backend->vip, client, &way, family);
	if (unknown == LB_END(reply_too_big))
		return unknown;
	inner->destination = backend->vip;
	inner->destination_port = backend->vip_port ? backend->vip_port : quoted->destination_port;
	/* A router's own address stays: whoever traces the way wants to see it. */
	if (lb_same_address(lb_source(packet, family), lb_destination(quoted, family), family))
		outer.source = backend->vip;
	LB_KEEP(outer.source);
	lb_error_translate(packet, quoted, &outer, inner, family);
	return lb_leave_by_way(ctx, packet, way, unknown, action, family);
}
#endif

#if LB_NAT
static __always_inline int lb_error_nat(struct xdp_md *ctx, struct lb_table *table,
					struct lb_packet *packet, struct lb_packet *quoted,
					__u32 index, int *action, int family)
{
	struct lb_ends inner = {};
	struct lb_backend *backend;
	__u32 bits = lb_address_bits(table, lb_destination(packet, family), family);
	int end;

	if (bits & LB_ADDRESS_LOCAL)
		return LB_END(to_gateway);
	if (bits & LB_ADDRESS_VIP) /* no client has it: a backend was answered from another VIP */
		return LB_END(protocol);
	end = lb_nat_owner(lb_source(quoted, family), quoted->source_port,
			   lb_destination(quoted, family), quoted->destination_port,
			   quoted->protocol, &index, &backend, family);
	if (end)
		return end;
	return lb_error_reply(ctx, table, packet, quoted, backend, &inner, action, family);
}
#endif

#if LB_FULLNAT
static __always_inline int lb_error_fullnat(struct xdp_md *ctx, struct lb_table *table,
					    struct lb_packet *packet, struct lb_packet *quoted,
					    int *action, int family)
{
	struct lb_ends inner = {};
	struct lb_backend *backend;
	struct lb_return *found;
	struct lb_flow *flow;

	{
		struct lb_flow_key key;

		lb_nat_key(&key, lb_destination(quoted, family), lb_source(quoted, family),
			   quoted->destination_port, quoted->source_port, quoted->protocol, family);
		found = bpf_map_lookup_elem(LB_MAP(returns), &key);
	}
	flow = found ? lb_flow_find(&found->flow) : NULL;
	if (!flow || flow->snat_port != quoted->source_port)
		return LB_END(no_flow);
	backend = lb_backend_at(flow->backend);
	if (!backend || backend->identity != flow->identity)
		return LB_END(no_flow);
	inner.source = found->flow.source;
	inner.source_port = found->flow.source_port;
	return lb_error_reply(ctx, table, packet, quoted, backend, &inner, action, family);
}
#endif

/* `packet` is an error, and whole. `table` decides whether it is about anything of ours. */
static __always_inline int lb_error(struct xdp_md *ctx, struct lb_table *table,
				    struct lb_packet *packet, struct lb_packet *quoted, int *action,
				    int family)
{
	struct lb_stand stand;

	/* An error goes to whoever sent the packet. */
	if (!lb_same_address(lb_source(quoted, family), lb_destination(packet, family), family))
		return LB_END(protocol);
	if (quoted->protocol != IPPROTO_TCP && quoted->protocol != IPPROTO_UDP)
		return LB_END(protocol);
	stand = lb_stand_of(lb_endpoint_find(table, lb_source(quoted, family), quoted->source_port,
					     quoted->protocol, family));
	if (stand.kind && lb_is_service(&stand))
		return lb_error_request(ctx, table, packet, quoted, &stand, action, family);
#if LB_FULLNAT
	if (lb_address_bits(table, lb_source(quoted, family), family) & LB_ADDRESS_SNAT)
		return lb_error_fullnat(ctx, table, packet, quoted, action, family);
#endif
#if LB_NAT
	stand = lb_stand_of(lb_endpoint_find(table, lb_destination(quoted, family),
					     quoted->destination_port, quoted->protocol, family));
	if (stand.kind == LB_KIND_BACKEND)
		return lb_error_nat(ctx, table, packet, quoted, stand.index, action, family);
#endif
	return LB_END(protocol);
}

#endif
