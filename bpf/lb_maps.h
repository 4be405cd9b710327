/* SPDX-License-Identifier: MIT */
/*
 * The maps, by name. The controller creates them (geometry: lb_xdp/datapath/maps.py), the compiler
 * gets a placeholder for each (-D LB_FD_name), and the loader puts real file descriptors in their
 * place. BCC's own map declarations are not used: they bring no geometry check and no headers.
 *
 *   endpoints   one struct lb_table                  rings       service -> struct lb_ring
 *   backends    index -> struct lb_backend           programs    LB_PROGRAM_* -> program
 *   snats       number -> struct lb_snat             devices     ifindex -> ifindex
 *   counts      index -> struct lb_backend_count     reasons     enum lb_reason -> packets
 *   flows       lb_flow_key -> lb_flow               flow_counts 0: struct lb_flow_count
 *   returns     lb_flow_key -> lb_return             affinities  lb_flow_key -> lb_affinity
 *   limits      index -> struct lb_limit             active      index -> struct lb_active
 *   nat_flows   lb_flow_key -> lb_nat_flow           nat_marks   index -> struct lb_nat_mark
 *   fragments   lb_fragment_key -> lb_fragment       ways        hash -> struct lb_way
 *   handshakes  mark -> struct lb_handshake          watched     index -> struct lb_watch_count
 *   budget      0: struct lb_budget                  unproven    lb_flow_key -> lb_affinity
 */
#ifndef LB_MAPS_H
#define LB_MAPS_H

#include "lb_types.h"

#define LB_MAP(name) ((void *)bpf_pseudo_fd(1, LB_FD_##name))

/*
 * The value of the one-entry endpoint table. The filter has a bit for each address that stands in
 * the buckets, so that most packets that are none of ours are told by one load.
 */
struct lb_table {
	struct lb_table_head head;
	__u64 filter[1 << (LB_FILTER_BITS - 6)];
	struct lb_bucket bucket[1 << LB_BUCKET_BITS];
	struct lb_bucket6 bucket6[1 << LB_BUCKET6_BITS];
};

/*
 * A service's ring. One slot longer than used, so that the verifier sees
 * `hash * LB_RING_SLOTS >> 32` stay inside (clang would drop an explicit check).
 */
struct lb_ring {
	struct lb_ring_head head;
	__u32 slot[LB_RING_SLOTS + 1];
};

/* BCC offers it only as sugar on its own maps. */
static void (*lb_tail_call)(void *ctx, void *programs, __u32 index) = (void *)BPF_FUNC_tail_call;

#endif
