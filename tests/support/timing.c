/* SPDX-License-Identifier: MIT */
/*
 * Times an XDP program by BPF_PROG_TEST_RUN, which does not restore the packet between repetitions:
 * lb_restore() writes the next flow's frame over whatever the last run left, and tail-calls the
 * program under test. lb_mac_swap() is the baseline of a program that only turns a frame around.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>

#define LB_MAP(fd) ((void *)bpf_pseudo_fd(1, (fd)))
/* BCC has this helper only as sugar on its own maps. */
static void (*lb_tail_call)(void *ctx, void *programs, __u32 index) = (void *)BPF_FUNC_tail_call;

#define LB_FRAME_LEN 54
#define LB_CLIENT_AT 26 /* source address; the last three octets vary with the flow */
#define LB_PORT_AT 34 /* source port */

struct lb_timing {
	__u32 next;
	__u32 flow_mask;
	__u8 reply; /* the varying address is the destination, and so is the port */
	__u8 frame[LB_FRAME_LEN];
	__u8 pad;
};

int lb_restore(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct lb_timing *timing = bpf_map_lookup_elem(LB_MAP(LB_FD_timing), &zero);
	__u8 *frame = (void *)(long)ctx->data;
	__u32 flow;

	if (!timing || frame + LB_FRAME_LEN > (__u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(frame, timing->frame, LB_FRAME_LEN);
	flow = timing->next++ & timing->flow_mask;
	if (timing->reply) {
		*(__u16 *)(frame + LB_CLIENT_AT + 6) ^= (__u16)(flow >> 16);
		*(__u16 *)(frame + LB_PORT_AT + 2) ^= (__u16)flow;
	} else {
		*(__u16 *)(frame + LB_CLIENT_AT + 2) ^= (__u16)(flow >> 16);
		*(__u16 *)(frame + LB_PORT_AT) ^= (__u16)flow;
	}
	lb_tail_call(ctx, LB_MAP(LB_FD_programs), 0);
	return XDP_ABORTED;
}

int lb_mac_swap(struct xdp_md *ctx)
{
	__u16 *eth = (void *)(long)ctx->data;
	__u16 swap[3];

	if ((void *)(eth + 7) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(swap, eth, ETH_ALEN);
	__builtin_memcpy(eth, eth + 3, ETH_ALEN);
	__builtin_memcpy(eth + 3, swap, ETH_ALEN);
	return XDP_TX;
}

int lb_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}
