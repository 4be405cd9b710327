/* SPDX-License-Identifier: MIT */
/*
 * Times XDP programs by BPF_PROG_TEST_RUN, which does not restore the packet between repetitions:
 * lb_restore4() and lb_restore6() take back whatever the last run added to the head, write the next
 * flow's frame, and tail-call the program under test. The others are baselines: what the harness
 * itself costs (drop), what any program costs that forwards (MAC swap) or tunnels (encap).
 *
 * The frame is written in words of eight octets from octet 2 on, so that no field which a program
 * reads at once is written in two parts: the processor could not forward such a store.
 * With lb_send() behind it the harness makes traffic: live frames, a flow after the other.
 * Used by lb_xdp/datapath/bench.py; no part of the gateway.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

#define LB_MAP(name) ((void *)bpf_pseudo_fd(1, LB_FD_##name))
#define LB_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)
#define LB_BENCH_WORDS 9 /* of IPv6: up to the end of the TCP header */

/* BCC has this helper only as sugar on its own maps. */
static void (*lb_tail_call)(void *ctx, void *programs, __u32 index) = (void *)BPF_FUNC_tail_call;

struct lb_bench {
	__u32 next; /* flow; written by the program */
	__u32 flows;
	__u32 frame_len;
	__u16 pad1;
	__u16 first; /* octets 0 and 1 of the frame */
	__u64 word[LB_BENCH_WORDS]; /* the octets after them */
};
LB_SIZE(lb_bench, 88);

/* What differs from flow to flow; of IPv6 addresses the last words. */
struct lb_bench_flow {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__be16 check; /* of the IPv4 header */
	__u16 pad1;
};
LB_SIZE(lb_bench_flow, 16);

/*
 * The words are those from octets 2, 10, 18 ... on. IPv4's checksum is at 24, its addresses at 26,
 * the ports at 34; IPv6's addresses end at 38 and 54, where the ports begin.
 */
static __always_inline void lb_write_frame(__u64 *to, const __u64 *from,
					   const struct lb_bench_flow *flow, int family)
{
	const __u64 upper = 0xffffffff00000000ULL;
	__u64 source = flow->source, destination = flow->destination;
	__u64 ports = *(__u32 *)&flow->source_port;

	to[0] = from[0];
	to[1] = from[1];
	if (family == 4) {
		to[2] = (from[2] & 0xffffffffffffULL) | (__u64)flow->check << 48;
		to[3] = source | destination << 32;
		to[4] = ports | (from[4] & upper);
		to[5] = from[5];
		to[6] = from[6];
	} else {
		to[2] = from[2];
		to[3] = from[3];
		to[4] = source | (from[4] & upper);
		to[5] = from[5];
		to[6] = destination | ports << 32;
		to[7] = from[7];
		to[8] = from[8];
	}
}

static __always_inline int lb_restore(struct xdp_md *ctx, int family)
{
	__u32 zero = 0, next, words = family == 4 ? 7 : LB_BENCH_WORDS;
	struct lb_bench *bench = bpf_map_lookup_elem(LB_MAP(bench), &zero);
	struct lb_bench_flow *flow = bpf_map_lookup_elem(LB_MAP(flows), &zero);
	__u8 *frame;

	if (!bench || !flow)
		return XDP_ABORTED;
	/* Also where nothing was added, so that the harness costs every program the same. */
	if (bpf_xdp_adjust_head(ctx, (long)ctx->data_end - (long)ctx->data - bench->frame_len))
		return XDP_ABORTED;
	frame = (void *)(long)ctx->data;
	if (frame + 2 + words * 8 > (__u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	next = bench->next & (LB_BENCH_FLOWS - 1);
	bench->next = next + 1 < bench->flows ? next + 1 : 0;
	flow += next;
	*(__u16 *)frame = bench->first;
	lb_write_frame((__u64 *)(frame + 2), bench->word, flow, family);
	lb_tail_call(ctx, LB_MAP(programs), 0);
	return XDP_ABORTED;
}

int lb_restore4(struct xdp_md *ctx)
{
	return lb_restore(ctx, 4);
}

int lb_restore6(struct xdp_md *ctx)
{
	return lb_restore(ctx, 6);
}

int lb_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

int lb_send(struct xdp_md *ctx)
{
	return XDP_TX;
}

int lb_mac_swap(struct xdp_md *ctx)
{
	__u16 *eth = (void *)(long)ctx->data;
	__u16 octets[3];

	if ((void *)(eth + 7) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(octets, eth, ETH_ALEN);
	__builtin_memcpy(eth, eth + 3, ETH_ALEN);
	__builtin_memcpy(eth + 3, octets, ETH_ALEN);
	return XDP_TX;
}

/* Constant MAC addresses and a constant outer header: the least that a tunnel can cost. */
static __always_inline int lb_encap(struct xdp_md *ctx, int family)
{
	int added = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u64 *word;

	if (bpf_xdp_adjust_head(ctx, -added))
		return XDP_DROP;
	word = (void *)(long)ctx->data;
	if ((void *)word + ETH_HLEN + added > (void *)(long)ctx->data_end)
		return XDP_DROP;
	if (family == 4) {
		word[0] = 0x0002020000000002ULL;
		word[1] = 0x0045000801000000ULL;
		word[2] = 0x0440000000004600ULL;
		word[3] = 0x0a010010ac000000ULL;
		*(__u16 *)(word + 4) = 0x0002;
	} else {
		word[0] = 0x0002020000000002ULL;
		word[1] = 0x0060dd8601000000ULL;
		word[2] = 0x0001402932000000ULL;
		word[3] = 0;
		word[4] = 0;
		word[5] = 0x0001fd0000000100ULL;
		*(__u32 *)(word + 6) = 0;
		*(__u16 *)((void *)(word + 6) + 4) = 0x0b00;
	}
	return XDP_TX;
}

int lb_encap4(struct xdp_md *ctx)
{
	return lb_encap(ctx, 4);
}

int lb_encap6(struct xdp_md *ctx)
{
	return lb_encap(ctx, 6);
}
