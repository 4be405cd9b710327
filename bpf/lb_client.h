/* SPDX-License-Identifier: MIT */
/*
 * Clients whose new flows follow their earlier ones. Anybody can send a SYN in any client's name, so
 * a first packet leaves its client's bond in `unproven`, an LRU: there the client's next flows find
 * it, and a flood of first packets pushes out only others of their kind. The bond gets into
 * `affinities`, which evicts none, when the client shows that it hears what it is answered: by a
 * packet of TCP that goes on with a flow, by one of UDP that comes later than the first, or by
 * another flow of UDP.
 */
#ifndef LB_CLIENT_H
#define LB_CLIENT_H

#include "lb_flow.h"

#if LB_CLIENTS

/* A client of a service, or the network that it is in: the key of its bond. */
static __always_inline void lb_client_key(struct lb_flow_key *key, struct lb_flow_key *flow,
					  struct lb_stand *stand)
{
	*key = *flow;
	key->source_port = 0;
	if (!(stand->flags & LB_SERVICE_PREFIX))
		return;
	if (flow->family == 4) {
		key->source[0] &= bpf_htonl(0xffffff00);
	} else {
		key->source[2] = 0;
		key->source[3] = 0;
	}
}

/* The backend that a bond is with, if that takes new flows; else 0. */
static __always_inline __u32 lb_bond_backend(struct lb_affinity *bond, struct lb_ring *ring)
{
	struct lb_backend *backend;

	if (!bond || lb_now() - bond->seen > ring->head.affinity_s * LB_HZ)
		return 0;
	backend = lb_backend_if(bond->backend, bond->identity);
	return backend && !(backend->flags & LB_BACKEND_NO_NEW) ? bond->backend : 0;
}

/* A new flow's client is bound to its backend. */
static __always_inline int lb_client_bind(struct lb_flow_key *client, __u32 index, int proven)
{
	struct lb_backend *backend = lb_backend_at(index);
	struct lb_affinity bond = { .backend = index, .seen = lb_now() };

	if (!backend)
		return LB_END(internal);
	bond.identity = backend->identity;
	if (proven)
		bpf_map_update_elem(LB_MAP(affinities), client, &bond, BPF_ANY);
	else
		bpf_map_update_elem(LB_MAP(unproven), client, &bond, BPF_ANY);
	return LB_OK;
}

static __always_inline int lb_same_bond(struct lb_affinity *bond, struct lb_affinity *other)
{
	return bond->backend == other->backend && bond->identity == other->identity;
}

/*
 * A client goes on with a flow: it is remembered. `news` are LB_NEWS_* bits. The latest flow that
 * opens tells where the client belongs; older ones that go on may be with a former backend.
 */
static __always_inline void lb_client_prove(struct lb_stand *stand, struct lb_flow_key *key,
					    struct lb_flow *flow, int news)
{
	struct lb_affinity fresh = {
		.backend = flow->backend,
		.identity = flow->identity,
		.seen = lb_now(),
	};
	struct lb_flow_key client;
	struct lb_affinity *bond;

	lb_client_key(&client, key, stand);
	bond = bpf_map_lookup_elem(LB_MAP(affinities), &client);
	if (bond && (!(news & LB_NEWS_OPEN) || lb_same_bond(bond, &fresh))) {
		bond->seen = fresh.seen;
		return;
	}
	/* A SYN again proves nothing; nor does the RST of a host that was answered unasked. */
	if (flow->state & (LB_FLOW_OPENING | LB_FLOW_CLOSED))
		return;
	bpf_map_update_elem(LB_MAP(affinities), &client, &fresh, BPF_ANY);
}

#endif /* LB_CLIENTS */
#endif
