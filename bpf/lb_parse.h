/* SPDX-License-Identifier: MIT */
/*
 * From a frame to the few facts that the rest of the program needs. Nothing is written here, and
 * nothing is read past data_end. Pointers into the packet stay valid for the program's whole run:
 * no pass moves the head.
 */
#ifndef LB_PARSE_H
#define LB_PARSE_H

#define LB_IP_HEADER_LEN 20 /* without options */
#define LB_IP_DF 0x4000 /* do not fragment (RFC 791, 3.1) */
#define LB_IP_FRAGMENT 0x3fff /* more-fragments bit and offset (RFC 791, 3.1) */

struct lb_packet {
	struct ethhdr *eth;
	struct iphdr *ip;
	void *l4;
	void *end;
	__u32 frame_len; /* octets from the Ethernet header on; known after lb_check_lengths() */
	__be16 source_port;
	__be16 destination_port;
	int odd; /* LB_OK, or how it ends if it is for a VIP: no ports to go by */
};

static __always_inline int lb_parse_ethernet(struct lb_packet *packet)
{
	if ((void *)(packet->eth + 1) > packet->end)
		return LB_END(truncated);
	switch (bpf_ntohs(packet->eth->h_proto)) {
	case ETH_P_IP:
		return LB_OK;
	case ETH_P_IPV6:
		return LB_END(ipv6);
	case ETH_P_8021Q:
	case ETH_P_8021AD:
		return LB_END(vlan);
	default:
		return LB_END(not_ip);
	}
}

/* Reads the ports where there are any to go by; sets packet->odd where there are none. */
static __always_inline void lb_parse_ports(struct lb_packet *packet)
{
	struct iphdr *ip = packet->ip;
	__be16 *ports = packet->l4;

	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP) {
		packet->odd = LB_END(protocol);
	} else if (ip->frag_off & bpf_htons(LB_IP_FRAGMENT)) {
		packet->odd = LB_END(fragment);
	} else if (ip->ihl != 5) {
		packet->odd = LB_END(ip_options);
	} else if ((void *)(ports + 2) > packet->end) {
		packet->odd = LB_END(truncated);
	} else {
		packet->odd = LB_OK;
		packet->source_port = ports[0];
		packet->destination_port = ports[1];
	}
}

static __always_inline int lb_parse(struct xdp_md *ctx, struct lb_packet *packet)
{
	int end;

	packet->eth = (void *)(long)ctx->data;
	packet->end = (void *)(long)ctx->data_end;
	end = lb_parse_ethernet(packet);
	if (end)
		return end;
	packet->ip = (void *)(packet->eth + 1);
	if ((void *)(packet->ip + 1) > packet->end || packet->ip->version != 4 ||
	    packet->ip->ihl < 5)
		return LB_END(truncated);
	packet->l4 = (void *)(packet->ip + 1);
	lb_parse_ports(packet);
	return LB_OK;
}

static __always_inline int lb_tcp_length_ok(struct lb_packet *packet, __u32 l4_len)
{
	struct tcphdr *tcp = packet->l4;

	if ((void *)(tcp + 1) > packet->end)
		return 0;
	return tcp->doff >= 5 && tcp->doff * 4 <= l4_len;
}

static __always_inline int lb_udp_length_ok(struct lb_packet *packet, __u32 l4_len)
{
	struct udphdr *udp = packet->l4;
	__u32 claimed;

	if ((void *)(udp + 1) > packet->end)
		return 0;
	claimed = bpf_ntohs(udp->len);
	return claimed >= sizeof(*udp) && claimed <= l4_len;
}

/*
 * For packets of a service or a backend: whatever a header claims must be inside the frame. The
 * linear part holds all that we touch; only multi-buffer frames ask the kernel for their length.
 */
static __always_inline int lb_check_lengths(struct xdp_md *ctx, struct lb_packet *packet)
{
	__u32 total = bpf_ntohs(packet->ip->tot_len);
	__u32 l4_len = total - LB_IP_HEADER_LEN;
	int ok;

	packet->frame_len = (__u32)(packet->end - (void *)packet->eth);
	if (total < LB_IP_HEADER_LEN)
		return LB_END(bad_length);
	if (packet->frame_len < ETH_HLEN + total) {
		packet->frame_len = bpf_xdp_get_buff_len(ctx);
		if (packet->frame_len < ETH_HLEN + total)
			return LB_END(bad_length);
	}
	if (packet->ip->protocol == IPPROTO_TCP)
		ok = lb_tcp_length_ok(packet, l4_len);
	else
		ok = lb_udp_length_ok(packet, l4_len);
	return ok ? LB_OK : LB_END(bad_length);
}

#endif
