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
 */
#ifndef LB_NAT_H
#define LB_NAT_H

#include "lb_checksum.h"
#include "lb_maps.h"
#include "lb_ring.h"

/* Who talks to whom, by what is to be written into a packet. */
struct lb_ends {
	const __be32 *source; /* NULL: as it is */
	const __be32 *destination;
	__be16 source_port;
	__be16 destination_port;
};

/* Rewrites addresses and ports and the checksums with them. A later fragment has no ports. */
static __always_inline int lb_translate(struct lb_packet *packet, struct lb_ends *to, int family)
{
	__u64 addresses = 0, ports = 0;
	__be16 *port = packet->l4;
	int end;

	if (to->source) {
		addresses = lb_sum_replace_address(addresses, lb_source(packet, family), to->source,
						   family);
		ports = lb_sum_replace(ports, packet->source_port, to->source_port);
	}
	if (to->destination) {
		addresses = lb_sum_replace_address(addresses, lb_destination(packet, family),
						   to->destination, family);
		ports = lb_sum_replace(ports, packet->destination_port, to->destination_port);
	}
	if (packet->part != LB_LATER) {
		end = lb_rewrite_l4_checksum(packet, addresses + ports);
		if (end)
			return end;
		if (to->source)
			port[0] = to->source_port;
		if (to->destination)
			port[1] = to->destination_port;
	}
	if (to->source)
		__builtin_memcpy((void *)lb_source(packet, family), to->source,
				 family == 4 ? 4 : 16);
	if (to->destination)
		__builtin_memcpy((void *)lb_destination(packet, family), to->destination,
				 family == 4 ? 4 : 16);
	if (family == 4)
		lb_ip4(packet)->check = lb_checksum_apply(lb_ip4(packet)->check, addresses);
	return LB_OK;
}

static __always_inline int lb_nat_request(struct lb_packet *packet, struct lb_backend *backend,
					  int family)
{
	struct lb_ends to = {
		.destination = backend->address,
		.destination_port = backend->port ? backend->port : packet->destination_port,
	};

	return lb_translate(packet, &to, family);
}

/* Key of nat_flows: the client, and the backend's own address and port. */
static __always_inline void lb_nat_key(struct lb_flow_key *key, const __be32 *client,
				       const __be32 *backend, __be16 client_port,
				       __be16 backend_port, __u8 protocol, int family)
{
	lb_copy_address(key->source, client, family);
	lb_copy_address(key->destination, backend, family);
	key->source_port = client_port;
	key->destination_port = backend_port;
	key->protocol = protocol;
	key->family = family;
	key->pad = 0;
}

/* Records what the client's latest packet was addressed to; a write only when that is news. */
static __always_inline void lb_nat_record(struct lb_flow_key *key, __u32 backend)
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
						struct lb_backend *backend, __u32 index, int family)
{
	struct lb_flow_key key;

	if (!(backend->flags & LB_BACKEND_SHARED) && !lb_nat_marked(index))
		return;
	lb_nat_key(&key, lb_source(packet, family), backend->address, packet->source_port,
		   backend->port ? backend->port : packet->destination_port, packet->protocol,
		   family);
	lb_nat_record(&key, index);
}

/* A client's packet to a backend's own address: mark first, so that no reply slips through. */
static __always_inline void lb_nat_note_direct(struct lb_packet *packet, __u32 index, int family)
{
	struct lb_nat_mark *mark = bpf_map_lookup_elem(LB_MAP(nat_marks), &index);
	struct lb_flow_key key;

	if (!mark)
		return;
	lb_nat_key(&key, lb_source(packet, family), lb_destination(packet, family),
		   packet->source_port, packet->destination_port, packet->protocol, family);
	lb_nat_record(&key, LB_FLOW_DIRECT);
	if (!mark->direct)
		mark->direct = 1;
}

/*
 * Which backend entry the packets between a client and a nat backend belong to: `*index` comes in as
 * the endpoint's, and goes out as that of the VIP which the client knows. `*backend` is its record.
 */
static __always_inline int lb_nat_owner(const __be32 *client, __be16 client_port,
					const __be32 *address, __be16 port, __u8 protocol,
					__u32 *index, struct lb_backend **backend, int family)
{
	struct lb_backend *recorded;
	struct lb_nat_flow *flow;
	struct lb_flow_key key;

	*backend = lb_backend_at(*index);
	if (!*backend)
		return LB_END(internal);
	if (!((*backend)->flags & LB_BACKEND_SHARED) && !lb_nat_marked(*index))
		return LB_OK;
	lb_nat_key(&key, client, address, client_port, port, protocol, family);
	flow = bpf_map_lookup_elem(LB_MAP(nat_flows), &key);
	if (flow && flow->backend == LB_FLOW_DIRECT)
		return LB_END(direct);
	if (flow) {
		__u32 owner = flow->backend;

		recorded = lb_backend_at(owner);
		/* An index may have been given to another backend since: then the record is void. */
		if (recorded && (!recorded->port || recorded->port == port) &&
		    lb_same_address(recorded->address, address, family)) {
			*index = owner;
			*backend = recorded;
			return LB_OK;
		}
	}
	/* Older than the need for a record: the endpoint's index is the one that was there first. */
	return LB_OK;
}

#endif
