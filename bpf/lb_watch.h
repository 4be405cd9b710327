/* SPDX-License-Identifier: MIT */
/*
 * Handshakes of watched services: begun, begun again, answered, and how long that took.
 *
 * A SYN is told by its mark: sequence number, client's address and port, mixed. A table entered by
 * that holds the latest SYN of each place, and is overwritten freely. So a SYN flood makes it forget,
 * and no more; a handshake that is forgotten counts as unanswered.
 *
 * In nat and fullnat the backend's SYN-ACK is the answer. Elsewhere only the client's side passes
 * here: its next number, one after the SYN's, tells that it had an answer.
 */
#ifndef LB_WATCH_H
#define LB_WATCH_H

#include "lb_maps.h"
#include "lb_parse.h"
#include "lb_service.h"

#if LB_WATCH

#define LB_DURATION_FIRST_US 16 /* the first bound of lb_watch_count.durations; each doubles */

/* lb_packet.sight: what a client's packet tells, noted before it is rewritten. */
#define LB_SIGHT_NONE 0
#define LB_SIGHT_SYN 1
#define LB_SIGHT_NEXT 2

static __always_inline struct lb_watch_count *lb_watch_count_of(__u32 backend)
{
	return bpf_map_lookup_elem(LB_MAP(watched), &backend);
}

static __always_inline struct lb_handshake *lb_handshake_at(__u32 mark)
{
	__u32 place = mark * 0x9e3779b1 >> (32 - LB_HANDSHAKE_BITS);

	return bpf_map_lookup_elem(LB_MAP(handshakes), &place);
}

/* `sequence` is the SYN's. */
static __always_inline __u32 lb_handshake_mark(__u32 sequence, const __be32 *client, __be16 port,
					       int family)
{
	return (sequence ^ client[family == 4 ? 0 : 3]) + port * 0x85ebca6b;
}

static __always_inline void lb_watch_look(struct lb_packet *packet, struct lb_stand *stand,
					  __u32 *mark, int family)
{
	struct tcphdr *tcp;
	int syn;

	packet->sight = LB_SIGHT_NONE;
	if (!(stand->wishes & LB_WISH_WATCH))
		return;
	tcp = lb_tcp(packet);
	LB_KEEP(tcp);
	if (!tcp)
		return;
	syn = lb_is_syn(packet);
	if (!syn && (stand->kind >= LB_KIND_NAT || tcp->syn | tcp->rst))
		return;
	packet->sight = syn ? LB_SIGHT_SYN : LB_SIGHT_NEXT;
	*mark = lb_handshake_mark(bpf_ntohl(tcp->seq) - !syn, lb_source(packet, family),
				  packet->source_port, family);
}

/* The packet has been sent to the backend. */
static __always_inline void lb_watch_request(struct lb_packet *packet, __u32 mark, __u32 backend)
{
	struct lb_handshake *known;
	struct lb_watch_count *count;
	int same;

	if (packet->sight == LB_SIGHT_NONE)
		return;
	known = lb_handshake_at(mark);
	if (!known)
		return;
	same = known->backend == backend && known->mark == mark;
	if (packet->sight == LB_SIGHT_NEXT && !same)
		return;
	count = lb_watch_count_of(backend);
	if (!count)
		return;
	if (packet->sight == LB_SIGHT_NEXT) {
		known->backend = 0;
		count->answered += 1;
	} else if (same) {
		count->repeated += 1;
	} else {
		known->mark = mark;
		known->backend = backend;
		known->begun_ns = bpf_ktime_get_ns();
		count->begun += 1;
	}
}

/* Which of lb_watch_count.durations: how many bounds are exceeded, without a branch for each. */
static __always_inline __u32 lb_duration_place(__u64 us)
{
	__u32 place = 0;

#pragma unroll
	for (int i = 0; i < LB_DURATIONS - 1; i++)
		place += (((__u64)LB_DURATION_FIRST_US << i) - us) >> 63;
	return place;
}

static __always_inline void lb_watch_answer(struct lb_watch_count *count,
					    struct lb_handshake *known)
{
	__u64 us = (bpf_ktime_get_ns() - known->begun_ns) / 1000;
	__u32 place = lb_duration_place(us);

	known->backend = 0;
	count->answered += 1;
	count->duration_us += us;
	if (place < LB_DURATIONS)
		count->durations[place] += 1;
}

/* A backend's packet to a client, not translated yet. */
static __always_inline void lb_watch_reply(struct lb_packet *packet, __u32 index,
					   struct lb_backend *backend, const __be32 *client,
					   __be16 client_port, int family)
{
	struct lb_watch_count *count;
	struct lb_handshake *known;
	struct tcphdr *tcp;
	__u32 mark;

	if (!(backend->flags & LB_BACKEND_WATCHED))
		return;
	tcp = lb_tcp(packet);
	LB_KEEP(tcp);
	if (!tcp || !(tcp->syn | tcp->rst))
		return;
	count = lb_watch_count_of(index);
	if (!count)
		return;
	if (tcp->rst) {
		count->resets += 1;
		return;
	}
	mark = lb_handshake_mark(bpf_ntohl(tcp->ack_seq) - 1, client, client_port, family);
	known = lb_handshake_at(mark);
	if (known && known->backend == index && known->mark == mark)
		lb_watch_answer(count, known);
}

#endif /* LB_WATCH */
#endif
