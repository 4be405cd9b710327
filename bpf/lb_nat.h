/* SPDX-License-Identifier: MIT */
/*
 * nat: the destination is rewritten on the way to the backend, the source on the way back.
 *
 * The way back follows from the backend's own address and port, so no flow is recorded. Two
 * exceptions, each paid for by the backend that needs it and by no other:
 *  - a backend of several nat services (LB_BACKEND_SHARED): a reply does not tell which VIP it
 *    belongs to, so every flow is recorded; one without a record is the older service's;
 *  - a backend that clients also talk to at its own address through this gateway: from the first
 *    such packet on it is marked, and its flows are recorded, direct ones as LB_FLOW_DIRECT.
 * Invariant: the flow table's entry for a 5-tuple, if there is one, tells what the client's latest
 * packet was addressed to.
 *
 * Checksums are updated, never computed anew (RFC 1624, equation 3): what came wrong stays wrong.
 */
#ifndef LB_NAT_H
#define LB_NAT_H

#include "lb_maps.h"
#include "lb_ring.h"

/* Adds the replacement of one 32-bit word to a running one's complement sum. */
static __always_inline __u64 lb_sum_replace(__u64 sum, __u32 before, __u32 after)
{
	return sum + (__u32)~before + after;
}

static __always_inline __u16 lb_sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
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

/* One hop less (RFC 791, 3.2), and the header checksum with it. */
static __always_inline void lb_decrement_ttl(struct iphdr *ip)
{
	__be16 *ttl_word = (__be16 *)&ip->ttl;
	__be16 before = *ttl_word;

	ip->ttl -= 1;
	/* Both words are extended by equal upper halves, which cancel out. */
	ip->check = lb_checksum_apply(ip->check, lb_sum_replace(0, before, *ttl_word));
}

/* `change` covers the pseudo-header's address and the port. lb_check_lengths() has passed. */
static __always_inline int lb_rewrite_l4_checksum(struct lb_packet *packet, __u64 change)
{
	struct tcphdr *tcp = packet->l4;
	struct udphdr *udp = packet->l4;

	if (packet->ip->protocol == IPPROTO_TCP) {
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

static __always_inline int lb_nat_request(struct lb_packet *packet, struct lb_backend *backend)
{
	struct iphdr *ip = packet->ip;
	__be16 *ports = packet->l4;
	__u64 address = lb_sum_replace(0, ip->daddr, backend->address);
	__u64 port = lb_sum_replace(0, packet->destination_port, backend->port);
	int end;

	end = lb_rewrite_l4_checksum(packet, address + port);
	if (end)
		return end;
	ports[1] = backend->port;
	ip->daddr = backend->address;
	ip->check = lb_checksum_apply(ip->check, address);
	return LB_OK;
}

static __always_inline int lb_nat_reply(struct lb_packet *packet, struct lb_backend *backend)
{
	struct iphdr *ip = packet->ip;
	__be16 *ports = packet->l4;
	__u64 address = lb_sum_replace(0, ip->saddr, backend->vip);
	__u64 port = lb_sum_replace(0, packet->source_port, backend->vip_port);
	int end;

	end = lb_rewrite_l4_checksum(packet, address + port);
	if (end)
		return end;
	ports[0] = backend->vip_port;
	ip->saddr = backend->vip;
	ip->check = lb_checksum_apply(ip->check, address);
	return LB_OK;
}

static __always_inline void lb_nat_key(struct lb_nat_key *key, struct lb_packet *packet,
				       __be32 backend, __be16 backend_port)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->client = packet->ip->saddr;
	key->client_port = packet->source_port;
	key->backend = backend;
	key->backend_port = backend_port;
	key->protocol = packet->ip->protocol;
}

/* Records what the client's latest packet was addressed to; a write only when that is news. */
static __always_inline void lb_nat_record(struct lb_nat_key *key, __u32 backend)
{
	struct lb_nat_flow *known = bpf_map_lookup_elem(LB_MAP(nat_flows), key);
	struct lb_nat_flow flow = { .backend = backend };

	if (known && known->backend == backend)
		return;
	bpf_map_update_elem(LB_MAP(nat_flows), key, &flow, BPF_ANY);
}

static __always_inline int lb_nat_marked(__u32 backend)
{
	struct lb_nat_mark *mark = bpf_map_lookup_elem(LB_MAP(nat_marks), &backend);

	return mark && mark->direct;
}

/* A client's packet to a service: recorded only for a backend that needs it. */
static __always_inline void lb_nat_note_request(struct lb_packet *packet,
						struct lb_backend *backend, __u32 index)
{
	struct lb_nat_key key;

	if (!(backend->flags & LB_BACKEND_SHARED) && !lb_nat_marked(index))
		return;
	lb_nat_key(&key, packet, backend->address, backend->port);
	lb_nat_record(&key, index);
}

/* A client's packet to a backend's own address: mark first, so that no reply slips through. */
static __always_inline void lb_nat_note_direct(struct lb_packet *packet, __u32 index)
{
	struct lb_nat_mark *mark = bpf_map_lookup_elem(LB_MAP(nat_marks), &index);
	struct lb_nat_key key;

	if (!mark)
		return;
	lb_nat_key(&key, packet, packet->ip->daddr, packet->destination_port);
	lb_nat_record(&key, LB_FLOW_DIRECT);
	if (!mark->direct)
		mark->direct = 1;
}

/* What the flow table says of a reply: the flow as its client's packets were recorded. */
static __always_inline struct lb_nat_flow *lb_nat_recorded(struct lb_packet *packet)
{
	struct lb_nat_key key = {};

	key.client = packet->ip->daddr;
	key.client_port = packet->destination_port;
	key.backend = packet->ip->saddr;
	key.backend_port = packet->source_port;
	key.protocol = packet->ip->protocol;
	return bpf_map_lookup_elem(LB_MAP(nat_flows), &key);
}

/*
 * Which backend entry a reply belongs to: `*index` comes in as the endpoint's, and goes out as that
 * of the VIP which the client knows. `*backend` is its record.
 */
static __always_inline int lb_nat_owner(struct lb_packet *packet, __u32 *index,
					struct lb_backend **backend)
{
	struct lb_backend *recorded;
	struct lb_nat_flow *flow;

	*backend = lb_backend_at(*index);
	if (!*backend)
		return LB_END(internal);
	if (!((*backend)->flags & LB_BACKEND_SHARED) && !lb_nat_marked(*index))
		return LB_OK;
	flow = lb_nat_recorded(packet);
	if (flow && flow->backend == LB_FLOW_DIRECT)
		return LB_END(direct);
	if (flow) {
		__u32 owner = flow->backend;

		recorded = lb_backend_at(owner);
		/* An index may have been given to another backend since: then the record is void. */
		if (recorded && recorded->address == packet->ip->saddr &&
		    recorded->port == packet->source_port) {
			*index = owner;
			*backend = recorded;
			return LB_OK;
		}
	}
	/* Older than the need for a record: the endpoint's index is the one that was there first. */
	return LB_OK;
}

#endif
