/* SPDX-License-Identifier: MIT */
/*
 * fullnat: both ends are rewritten, so a backend needs no set-up at all. Each flow has a record in
 * `flows` (lb_schedule.h), with the address and port that stand for its client's, and one in
 * `returns` by which a reply finds it. A port is free for a flow if no other flow uses it towards
 * the same backend: taking it is the insertion into `returns`.
 */
#ifndef LB_FULLNAT_H
#define LB_FULLNAT_H

#include "lb_nat.h"
#include "lb_schedule.h"

#if LB_FULLNAT

#define LB_SNAT_TRIES 16
#define LB_SNAT_FIRST_PORT 1024
#define LB_SNAT_PORTS (65536 - LB_SNAT_FIRST_PORT)

/* The number of the address for the n-th try; -1 where the family has none. */
static __always_inline __u32 lb_snat_number(struct lb_table *table, __u32 hash, int family)
{
	__u32 count = family == 4 ? table->head.snats : table->head.snats6;
	__u32 first = family == 4 ? 0 : table->head.snats;

	if (!count)
		return -1;
	return first + (__u32)((__u64)hash * count >> 32);
}

/* The client's own port first, which whoever reads a capture will be glad of. */
static __always_inline __be16 lb_snat_port(struct lb_packet *packet, __u32 hash, int attempt)
{
	if (!attempt && bpf_ntohs(packet->source_port) >= LB_SNAT_FIRST_PORT)
		return packet->source_port;
	return bpf_htons(LB_SNAT_FIRST_PORT + ((hash & 0xffffff) * (__u64)LB_SNAT_PORTS >> 24));
}

/* Whether an address and port are the flow's already, from a record that it had before. */
static __always_inline int lb_snat_held(struct lb_flow_key *key, struct lb_flow_key *flow)
{
	struct lb_return *taken = bpf_map_lookup_elem(LB_MAP(returns), key);
	__u32 *mine = (__u32 *)flow, *its, differ = 0;

	if (!taken)
		return 0;
	its = (__u32 *)&taken->flow;
#pragma unroll
	for (int i = 0; i < (int)(sizeof(*flow) / 4); i++) {
		differ |= mine[i] ^ its[i];
		LB_KEEP(differ); /* no branch each, as of LLVM 19: the verifier would follow them all */
	}
	return !differ;
}

/* Finds a free address and port for the flow, and notes them in its record. */
static __always_inline int lb_snat_take(struct lb_packet *packet, struct lb_table *table,
					struct lb_backend *backend, struct lb_flow_key *flow_key,
					struct lb_flow *flow, int family)
{
	__u32 hash = packet->hash, zero = 0;
	struct lb_budget *place = bpf_map_lookup_elem(LB_MAP(budget), &zero);
	struct lb_flow_key key;

	if (!place)
		return LB_END(internal);
	place->entry.flow = *flow_key;
	place->entry.backend = flow->backend;
	place->entry.identity = flow->identity;
	place->entry.seen = 0;

	for (int i = 0; i < LB_SNAT_TRIES; i++) {
		__u32 number = lb_snat_number(table, hash, family);
		struct lb_snat *snat = bpf_map_lookup_elem(LB_MAP(snats), &number);
		__be16 port = lb_snat_port(packet, hash, i);

		if (!snat)
			break;
		lb_nat_key(&key, backend->address, snat->address, backend->port, port,
			   packet->protocol, family);
		if (!bpf_map_update_elem(LB_MAP(returns), &key, &place->entry, BPF_NOEXIST) ||
		    (!i && lb_snat_held(&key, flow_key))) {
			__builtin_memcpy(flow->snat, snat->address, sizeof(flow->snat));
			flow->snat_port = port;
			return LB_OK;
		}
		hash = hash * 0x9e3779b1 + 0x7f4a7c15;
	}
	lb_flow_close(flow);
	bpf_map_delete_elem(LB_MAP(flows), flow_key);
	return LB_END(snat_exhausted);
}

/* `flow` is the flow's record, or NULL if it has just been made. */
static __always_inline int lb_fullnat_request(struct lb_packet *packet, struct lb_table *table,
					      struct lb_backend *backend, struct lb_flow_key *key,
					      struct lb_flow *flow, int family)
{
	struct lb_ends to;
	int end;

	if (!flow)
		flow = lb_flow_find(key);
	if (!flow)
		return LB_END(table_full);
	if (!flow->snat_port) {
		end = lb_snat_take(packet, table, backend, key, flow, family);
		if (end)
			return end;
	}
	to.source = flow->snat;
	to.source_port = flow->snat_port;
	to.destination = backend->address;
	to.destination_port = backend->port;
	return lb_translate(packet, &to, family);
}

/* The flow that a packet from a backend to an address of ours belongs to; NULL for none. */
static __always_inline struct lb_return *lb_fullnat_find(struct lb_packet *packet, int family)
{
	struct lb_flow_key key;

	lb_nat_key(&key, lb_source(packet, family), lb_destination(packet, family),
		   packet->source_port, packet->destination_port, packet->protocol, family);
	return bpf_map_lookup_elem(LB_MAP(returns), &key);
}

#endif /* LB_FULLNAT */
#endif
