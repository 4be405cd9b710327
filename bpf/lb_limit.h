/* SPDX-License-Identifier: MIT */
/*
 * Connections of a backend: counted by the program, limited by the controller's word. What ended
 * without a packet to show it is in lb_limit.expired, which only the controller writes.
 */
#ifndef LB_LIMIT_H
#define LB_LIMIT_H

#include "lb_maps.h"

/*
 * Connections that a backend has now; `before` is lb_active.connections. Signed: a backend that was
 * taken out and put back in begins at 0, and the flows that it had before end all the same.
 */
static __always_inline __u64 lb_connections_left(__u64 before, struct lb_limit *limit)
{
	__s64 left = before - limit->expired;

	return left > 0 ? left : 0;
}

/*
 * Counts one connection more, if the backend may have it. The addition comes first, so that no two
 * CPUs take the last place. With `resume` below the limit, a full backend stays full for a while:
 * an estimate that wavers does not make it flap.
 */
static __always_inline int lb_reserve(__u32 backend)
{
	struct lb_limit *limit = bpf_map_lookup_elem(LB_MAP(limits), &backend);
	struct lb_active *active = bpf_map_lookup_elem(LB_MAP(active), &backend);
	__u64 now;

	if (!limit || !active)
		return 0;
	now = lb_connections_left(__sync_fetch_and_add(&active->connections, 1), limit);
	if (!limit->connections)
		return 1;
	if (active->full && now <= limit->resume)
		active->full = 0;
	if (now < limit->connections && !active->full)
		return 1;
	active->full = 1;
	__sync_fetch_and_add(&active->connections, -1);
	return 0;
}

/* Counts a connection that is there already, whatever the limit. */
static __always_inline void lb_count_one(__u32 backend)
{
	struct lb_active *active = bpf_map_lookup_elem(LB_MAP(active), &backend);

	if (active)
		__sync_fetch_and_add(&active->connections, 1);
}

static __always_inline void lb_release(__u32 backend)
{
	struct lb_active *active = bpf_map_lookup_elem(LB_MAP(active), &backend);

	if (active)
		__sync_fetch_and_add(&active->connections, -1);
}

/* Connections for each unit of weight, scaled: what least_connections compares. */
static __always_inline __u64 lb_load(__u32 backend)
{
	struct lb_limit *limit = bpf_map_lookup_elem(LB_MAP(limits), &backend);
	struct lb_active *active = bpf_map_lookup_elem(LB_MAP(active), &backend);

	if (!backend || !limit || !active || !limit->weight)
		return ~0ULL;
	/* One more than there are: of idle backends the heavier one comes first, as in HAProxy. */
	return ((lb_connections_left(active->connections, limit) + 1) << 20) / limit->weight;
}

#endif
