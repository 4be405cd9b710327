/* SPDX-License-Identifier: MIT */
/*
 * Out of the gateway: MAC addresses, and the choice between the interface that the packet came by
 * and another one of ours.
 */
#ifndef LB_FORWARD_H
#define LB_FORWARD_H

#include "lb_maps.h"

static __always_inline void lb_set_macs(struct ethhdr *eth, const __u8 *destination,
					const __u8 *source)
{
	__builtin_memcpy(eth->h_dest, destination, ETH_ALEN);
	__builtin_memcpy(eth->h_source, source, ETH_ALEN);
}

/*
 * The same where both MACs lie side by side as they do in the frame, destination first: three words
 * in place of twelve octets.
 */
static __always_inline void lb_copy_macs(struct ethhdr *eth, const __u8 *macs)
{
	const __u32 *from = (const void *)macs;
	__u32 *to = (void *)eth;

	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
}

/* Returns the XDP action; `otherwise` where the interface is not one of ours. */
static __always_inline int lb_leave_by(struct xdp_md *ctx, __u32 ifindex, int otherwise)
{
	if (ifindex == ctx->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect_map(LB_MAP(devices), ifindex, otherwise);
}

#endif
