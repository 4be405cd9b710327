/* SPDX-License-Identifier: MIT */
/*
 * The maps, by name. The controller creates them (geometry: lb_xdp/datapath/maps.py), the compiler
 * gets a placeholder for each (-D LB_FD_name), and the loader puts real file descriptors in their
 * place. BCC's own map declarations are not used: they bring no geometry check and no headers.
 */
#ifndef LB_MAPS_H
#define LB_MAPS_H

#include "lb_types.h"

#define LB_MAP(name) ((void *)bpf_pseudo_fd(1, LB_FD_##name))

/* The value of the one-entry endpoint table. */
struct lb_table {
	struct lb_table_head head;
	struct lb_bucket bucket[1 << LB_BUCKET_BITS];
};

/*
 * A service's ring: slot -> backend index, 0 for none. One slot longer than used, so that the
 * verifier sees `hash * LB_RING_SLOTS >> 32` stay inside (clang would drop an explicit check).
 */
struct lb_ring {
	__u32 slot[LB_RING_SLOTS + 1];
};

#endif
