/* SPDX-License-Identifier: MIT */
/*
 * Counters, per CPU, so that no packet waits for another CPU's cache line. Plain additions: one CPU
 * runs one XDP program at a time. The controller sums them when somebody asks.
 */
#ifndef LB_COUNT_H
#define LB_COUNT_H

#include "lb_maps.h"
#include "lb_parse.h"

static __always_inline void lb_count_reason(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(LB_MAP(reasons), &reason);

	if (count)
		*count += 1;
}

static __always_inline void lb_count_request(__u32 backend, struct lb_packet *packet, int flow)
{
	struct lb_backend_count *count = bpf_map_lookup_elem(LB_MAP(counts), &backend);

	if (!count)
		return;
	count->packets += 1;
	count->bytes += packet->frame_len;
	count->flows += flow;
}

static __always_inline void lb_count_reply(__u32 backend, struct lb_packet *packet)
{
	struct lb_backend_count *count = bpf_map_lookup_elem(LB_MAP(counts), &backend);

	if (!count)
		return;
	count->reply_packets += 1;
	count->reply_bytes += packet->frame_len;
}

#define LB_COUNT_FLOW(field)                                                                       \
	({                                                                                         \
		__u32 lb_zero = 0;                                                                 \
		struct lb_flow_count *lb_count = bpf_map_lookup_elem(LB_MAP(flow_counts),          \
								     &lb_zero);                    \
                                                                                                   \
		if (lb_count)                                                                      \
			lb_count->field += 1;                                                      \
	})

#endif
