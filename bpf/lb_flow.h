/* SPDX-License-Identifier: MIT */
/*
 * Flows that the ring alone does not place: those on a slot that changed hands a while ago, and all
 * flows of a service that must know them (lb_schedule.h says where a new one goes).
 *
 * Invariants:
 *  - a flow without a record on an unsettled slot is older than the slot's change: it belongs to
 *    the former backend, and is recorded as such when it shows itself;
 *  - on a severed slot, and by a record whose backend is down, flows are reset where the service says so;
 *  - a record is added in a settled slot only by a tracked service, and in a marked one by none;
 *  - a record whose backend is down, gone or another by now is void and never followed;
 *  - where the table is full, a new flow goes where a flow without a record would, and one that begins
 *    on a severed slot is reset by its second packet.
 * Records are removed by the controller, and by a SYN on a marked slot.
 */
#ifndef LB_FLOW_H
#define LB_FLOW_H

#include "lb_count.h"
#include "lb_limit.h"
#include "lb_ring.h"
#include "lb_service.h"

#if LB_FLOWS

#define LB_TOUCH_JIFFIES LB_HZ /* how stale `seen` may get before a packet renews it */
#define LB_NEWS_LIVES 1 /* the first packet for a while */
#define LB_NEWS_OPEN 2 /* the first that is no SYN */

static __always_inline __u32 lb_now(void)
{
	return bpf_jiffies64();
}

static __always_inline void lb_flow_key_of(struct lb_flow_key *key, struct lb_packet *packet,
					   int family)
{
	lb_copy_address(key->source, lb_source(packet, family), family);
	lb_copy_address(key->destination, lb_destination(packet, family), family);
	key->source_port = packet->source_port;
	key->destination_port = packet->destination_port;
	key->protocol = packet->protocol;
	key->family = family;
	key->pad = 0;
}

static __always_inline struct lb_flow *lb_flow_find(struct lb_flow_key *key)
{
	return bpf_map_lookup_elem(LB_MAP(flows), key);
}

/* The flow is over: its backend has a connection less, once. */
static __always_inline void lb_flow_close(struct lb_flow *flow)
{
	__u64 before = __sync_fetch_and_or(&flow->state, LB_FLOW_CLOSED);

	if (before & LB_FLOW_CLOSED)
		return;
	LB_COUNT_FLOW(closes);
	if (before & LB_FLOW_COUNTED)
		lb_release(flow->backend);
}

/* The record's backend is gone or down. Where it is gone, the index may be another's, who owes nothing. */
static __always_inline void lb_flow_abandon(struct lb_flow *flow)
{
	struct lb_backend *backend = lb_backend_at(flow->backend);

	if (!backend || backend->identity != flow->identity)
		__sync_fetch_and_and(&flow->state, ~(__u64)LB_FLOW_COUNTED);
	lb_flow_close(flow);
}

/*
 * What a packet of the flow tells: it lives, it is established, it ends. `side` is the sender's FIN
 * bit; `both` says whether both directions pass here, so that both FINs can be waited for. Returns
 * LB_NEWS_* bits.
 */
static __always_inline int lb_flow_see(struct lb_flow *flow, struct lb_packet *packet, __u64 side,
				       int both)
{
	struct tcphdr *tcp = lb_tcp(packet);
	__u32 now = lb_now();
	__u64 fins = LB_FLOW_CLIENT_FIN | LB_FLOW_BACKEND_FIN;
	int news = now - flow->seen > LB_TOUCH_JIFFIES ? LB_NEWS_LIVES : 0;

	if (news)
		flow->seen = now;
	if (!tcp)
		return news;
	if (flow->state & LB_FLOW_OPENING && side == LB_FLOW_CLIENT_FIN && !tcp->syn) {
		__sync_fetch_and_and(&flow->state, ~(__u64)LB_FLOW_OPENING);
		news |= LB_NEWS_OPEN;
	}
	if (tcp->rst) {
		lb_flow_close(flow);
	} else if (tcp->fin) {
		__u64 state = __sync_fetch_and_or(&flow->state, side) | side;

		if (!both || (state & fins) == fins)
			lb_flow_close(flow);
	}
	return news;
}

/*
 * LB_FLOW_* bits of a flow that shows itself by this packet: it may end with it. As lb_flow_see(), but
 * without branches, each of which would double what the verifier has to go through.
 */
static __always_inline __u64 lb_flow_shown(struct lb_packet *packet, int both)
{
	struct tcphdr *tcp = lb_tcp(packet);
	__u64 syn = lb_is_syn(packet), fin, rst;

	if (!tcp)
		return 0;
	fin = tcp->fin & ~syn;
	rst = tcp->rst & ~syn;
	return syn * LB_FLOW_OPENING | fin * LB_FLOW_CLIENT_FIN |
	       (rst | (fin & !both)) * LB_FLOW_CLOSED;
}

/* Counts a record, and its end if it came with it: one lookup for both, and no branch. */
static __always_inline void lb_count_insert(__u64 state)
{
	__u32 zero = 0;
	struct lb_flow_count *count = bpf_map_lookup_elem(LB_MAP(flow_counts), &zero);

	if (!count)
		return;
	count->inserts += 1;
	count->closes += state / LB_FLOW_CLOSED & 1;
}

/* Adds or replaces a record; 0 where there is no room. With LB_FLOW_COUNTED lb_reserve() was called. */
static __always_inline int lb_flow_record(struct lb_flow_key *key, __u32 index,
					  struct lb_backend *backend, __u64 state)
{
	struct lb_flow flow = {
		.state = state,
		.backend = index,
		.identity = backend->identity,
		.seen = lb_now(),
	};

	if (bpf_map_update_elem(LB_MAP(flows), key, &flow, BPF_ANY)) {
		LB_COUNT_FLOW(full);
		return 0;
	}
	lb_count_insert(state);
	return 1;
}

/* Whether a flow is reset whose backend is gone or down: not one that begins with this packet. */
static __always_inline int lb_severs(struct lb_packet *packet, struct lb_stand *stand)
{
	return LB_RESET && stand->wishes & LB_WISH_RESET && lb_tcp(packet) && !lb_is_syn(packet);
}

/*
 * A flow of an untracked service on a slot that is not settled. Sets the backend's index, 0 for
 * none. A record that is void and reset stays for a while, closed: the RST may be lost on its way.
 */
static __always_inline int lb_unsettled_pick(struct lb_packet *packet, struct lb_stand *stand,
					     __u32 slot, __u32 *picked, int family)
{
	__u32 index = lb_slot_backend(slot), former = lb_slot_former(slot);
	int syn = lb_is_syn(packet);
	struct lb_backend *backend;
	struct lb_flow_key key;
	struct lb_flow *flow;

	lb_flow_key_of(&key, packet, family);
	flow = lb_flow_find(&key);
	if (flow && !syn) {
		if (lb_backend_if(flow->backend, flow->identity)) {
			lb_flow_see(flow, packet, LB_FLOW_CLIENT_FIN, 0);
			*picked = flow->backend;
			return LB_OK;
		}
		if (lb_severs(packet, stand)) {
			lb_flow_abandon(flow);
			return LB_END(severed);
		}
		LB_COUNT_FLOW(rehashed);
	}
	*picked = index;
	if (lb_slot_state(slot) == LB_SLOT_MARKED) {
		if (flow)
			bpf_map_delete_elem(LB_MAP(flows), &key);
		return LB_OK;
	}
	backend = lb_backend_at(former);
	if (!backend || !(backend->flags & LB_BACKEND_UP)) {
		if (!flow && lb_slot_state(slot) == LB_SLOT_SEVERED && lb_severs(packet, stand))
			return LB_END(severed);
		former = index;
	}
	/* A record that is void was the former backend's; its flow starts over at the present one. */
	if (!syn && !flow)
		index = former;
	backend = lb_backend_at(index);
	*picked = index;
	if (index && backend && !lb_flow_record(&key, index, backend, lb_flow_shown(packet, 0)))
		*picked = former;
	return LB_OK;
}

#endif /* LB_FLOWS */
#endif
