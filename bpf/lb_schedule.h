/* SPDX-License-Identifier: MIT */
/*
 * Services that track every flow: an established one follows its record, a new one is given to a
 * backend by the service's algorithm, its client's history and the backends' limits.
 */
#ifndef LB_SCHEDULE_H
#define LB_SCHEDULE_H

#include "lb_client.h"
#include "lb_flow.h"

#if LB_TRACKED

#define LB_TRIES 8 /* slots looked at for a backend that has room */
#define LB_SAMPLES 8 /* slots that least_connections compares */
#define LB_RESET_IT (~0U) /* no backend's index */
#define LB_UNKNOWN -3 /* by the ring, without a record: see lb_tracked_pick() */

/* One connection is counted where the service counts any. */
static __always_inline int lb_takes_one(__u32 index, struct lb_stand *stand)
{
	if (!LB_COUNTED || !(stand->flags & LB_SERVICE_COUNTED))
		return 1;
	return lb_reserve(index);
}

/* Of LB_SAMPLES slots the backend with the fewest connections for its weight; 0 if all are empty. */
static __always_inline __u32 lb_least_loaded(struct lb_ring *ring)
{
	__u32 hash = bpf_get_prandom_u32();
	__u64 least = ~0ULL;
	__u32 best = 0;

	for (int i = 0; i < LB_SAMPLES; i++) {
		__u32 index = lb_slot_backend(lb_slot_at(ring, hash));
		__u64 load = lb_load(index);

		if (load < least) {
			best = index;
			least = load;
		}
		hash = hash * 0x9e3779b1 + 0x7f4a7c15;
	}
	return best;
}

/* The slot's backend for the n-th try. */
static __always_inline __u32 lb_scheduled(struct lb_ring *ring, struct lb_stand *stand, __u32 hash,
					  int attempt)
{
	__u64 turn;

	if (stand->schedule == LB_SCHEDULE_TURN) {
		turn = __sync_fetch_and_add(&ring->head.turn, 1) % LB_RING_SLOTS;
		hash = ((turn << 32) + LB_RING_SLOTS - 1) / LB_RING_SLOTS;
	} else if (stand->schedule == LB_SCHEDULE_HASH) {
		hash += (__u32)attempt * 0x9e3779b1;
	} else {
		hash = bpf_get_prandom_u32();
	}
	return lb_slot_backend(lb_slot_at(ring, hash));
}

/* For a new flow: sets the backend's index and counts the connection, or says why there is none. */
static __always_inline int lb_assign(struct lb_packet *packet, struct lb_stand *stand,
				     struct lb_ring *ring, struct lb_flow_key *flow, __u32 *index)
{
	int end = LB_END(no_backend);

	*index = 0;
#if LB_CLIENTS
	struct lb_flow_key client;
	struct lb_affinity *bond;
	int again = 0;

	lb_client_key(&client, flow, stand);
	if (stand->flags & LB_SERVICE_CLIENT) {
		bond = bpf_map_lookup_elem(LB_MAP(affinities), &client);
		*index = lb_bond_backend(bond, ring);
		if (*index && lb_takes_one(*index, stand)) {
			bond->seen = lb_now();
			return LB_OK;
		}
		bond = bpf_map_lookup_elem(LB_MAP(unproven), &client);
		*index = lb_bond_backend(bond, ring);
		if (*index && lb_takes_one(*index, stand)) {
			again = packet->protocol == IPPROTO_UDP;
			end = LB_OK;
		}
	}
#endif
#if LB_COUNTED
	/* Its winner may have come to its limit: then any backend with room does. */
	if (end && stand->schedule == LB_SCHEDULE_LEAST) {
		*index = lb_least_loaded(ring);
		if (*index && lb_takes_one(*index, stand))
			end = LB_OK;
	}
#endif
	for (int i = 0; i < LB_TRIES && end; i++) {
		*index = lb_scheduled(ring, stand, packet->hash, i);
		if (!*index)
			break;
		end = lb_takes_one(*index, stand) ? LB_OK : LB_END(backends_full);
	}
#if LB_CLIENTS
	if (!end && stand->flags & LB_SERVICE_CLIENT)
		end = lb_client_bind(&client, *index, again);
#endif
	return end;
}

/*
 * The backend of a flow that has no record though it did not begin with this packet: it is older
 * than the tracking of its service, or its record was lost, or there is no such flow. The slot knows
 * whose it was; 0: it does not. LB_RESET_IT: the flow is to be reset. It was one's that is down, or
 * one of fullnat, without whose record nobody knows what its backend takes it for.
 */
static __always_inline __u32 lb_older_flow(struct lb_packet *packet, struct lb_stand *stand,
					   __u32 slot)
{
	__u32 former = lb_slot_former(slot);
	struct lb_backend *backend = lb_backend_at(former);

	if (lb_is_syn(packet))
		return 0;
	if (LB_FULLNAT && stand->kind == LB_KIND_FULLNAT && packet->protocol == IPPROTO_TCP)
		return LB_RESET_IT;
	if (former && backend && backend->flags & LB_BACKEND_UP)
		return former;
	if (lb_slot_state(slot) == LB_SLOT_SEVERED && lb_severs(packet, stand))
		return LB_RESET_IT;
	/* UDP has no beginning: what is unknown is new. */
	return packet->protocol == IPPROTO_TCP ? lb_slot_backend(slot) : 0;
}

/* Whether a packet goes on with the flow of a record, if that is not void. */
static __always_inline int lb_goes_on(struct lb_flow *flow, struct lb_packet *packet)
{
	/* A SYN again, before anything else: the same flow. Later: the client's port, used anew. */
	return !lb_is_syn(packet) ||
	       (flow->state & (LB_FLOW_OPENING | LB_FLOW_CLOSED)) == LB_FLOW_OPENING;
}

/*
 * Sets the index of the flow's backend, and `known` to its record; NULL: the flow is new. `key`
 * comes out filled. A flow that finds no room in the table goes by the ring, which is as good a
 * place as any without a record. LB_UNKNOWN: so does one that did not begin here, until its slot
 * changes hands; anybody can send a packet that looks like that.
 */
static __always_inline int lb_tracked_pick(struct lb_packet *packet, struct lb_stand *stand,
					   struct lb_ring *ring, struct lb_flow_key *key,
					   __u32 *index, struct lb_flow **known, int family)
{
	/* Without branches, each of which would double what the verifier has to go through. */
	int counted = LB_COUNTED ? stand->flags / LB_SERVICE_COUNTED & 1 : 0;
	int both = stand->kind / LB_KIND_NAT; /* nat, fullnat: both directions pass here */
	struct lb_backend *backend;
	struct lb_flow *flow;
	int end, recorded;
	__u64 state;

	lb_flow_key_of(key, packet, family);
	flow = lb_flow_find(key);
	if (flow && lb_goes_on(flow, packet)) {
		if (lb_backend_if(flow->backend, flow->identity)) {
			int news = lb_flow_see(flow, packet, LB_FLOW_CLIENT_FIN, both);

#if LB_CLIENTS
			if (news && stand->flags & LB_SERVICE_CLIENT)
				lb_client_prove(stand, key, flow, news);
#endif
			*index = flow->backend;
			*known = flow;
			return LB_OK;
		}
		if (lb_severs(packet, stand)) {
			lb_flow_abandon(flow);
			return LB_END(severed);
		}
		LB_COUNT_FLOW(rehashed);
	}
	*index = 0;
	if (flow)
		lb_flow_abandon(flow);
	else
		*index = lb_older_flow(packet, stand, lb_slot_at(ring, packet->hash));
	if (LB_RESET && *index == LB_RESET_IT)
		return LB_END(severed);
	if (*index && !lb_slot_waits(lb_slot_at(ring, packet->hash)))
		return LB_UNKNOWN;
	if (*index) {
		if (counted)
			lb_count_one(*index);
	} else {
		end = lb_assign(packet, stand, ring, key, index);
		if (end)
			return end;
	}
	backend = lb_backend_at(*index);
	if (!backend)
		return LB_END(internal);
	state = lb_flow_shown(packet, both) | counted * LB_FLOW_COUNTED;
	recorded = lb_flow_record(key, *index, backend, state);
	if (counted && (!recorded || state & LB_FLOW_CLOSED))
		lb_release(*index);
	if (!recorded)
		*index = lb_slot_backend(lb_slot_at(ring, packet->hash));
	return *index ? LB_OK : LB_END(no_backend);
}

#endif /* LB_TRACKED */
#endif
