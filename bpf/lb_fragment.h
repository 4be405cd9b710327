/* SPDX-License-Identifier: MIT */
/*
 * Fragments. The first one has the ports and is dealt with as a whole packet is; what became of it
 * is noted for the others, which have none. In whatever order those come, they follow: to the same
 * backend, or back to the same client. One that comes before the first is dropped, as is one whose
 * first was not let through; of what was none of ours, all pass.
 *
 * A note holds for as long as hosts wait for the rest of a packet (RFC 1122, 3.3.2: 60 s at least;
 * Linux: 30 s), unless the backend is gone or down by then.
 */
#ifndef LB_FRAGMENT_H
#define LB_FRAGMENT_H

#include "lb_reply.h"
#include "lb_request.h"

#define LB_FRAGMENT_S 30

/* IPv6: without the protocol, which only the first fragment tells truly (RFC 8200, 4.5). */
static __always_inline void lb_fragment_key_of(struct lb_fragment_key *key,
					       struct lb_packet *packet, int family)
{
	lb_copy_address(key->source, lb_source(packet, family), family);
	lb_copy_address(key->destination, lb_destination(packet, family), family);
	key->id = packet->fragment_id;
	key->protocol = family == 4 ? packet->protocol : 0;
	key->family = family;
	key->pad = 0;
}

/* Notes what became of a first fragment: `end`, and where it went. */
static __always_inline void lb_fragment_note(struct lb_fragment_key *key, struct lb_packet *packet,
					     int end, int family)
{
	struct lb_fragment note = { .seen = bpf_jiffies64(), .kind = packet->kind };
	struct lb_backend *backend;

	if (end != LB_END(no_service)) {
		backend = packet->backend ? lb_backend_at(packet->backend) : NULL;
		if (!backend)
			return;
		note.backend = packet->backend;
		note.identity = backend->identity;
		if (end != LB_END(forwarded))
			note.flags = LB_FRAGMENT_REPLY;
#if LB_FULLNAT
		/* Nothing has moved: the translated packet is still at `l3`. */
		if (packet->kind == LB_KIND_FULLNAT &&
		    packet->l3 + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) <=
			    packet->end)
			lb_copy_address(note.address,
					end == LB_END(forwarded) ? lb_source(packet, family)
								 : lb_destination(packet, family),
					family);
#endif
	}
	bpf_map_update_elem(LB_MAP(fragments), key, &note, BPF_ANY);
}

/* Whether a first fragment's journey ended in a way that the others are to share. */
static __always_inline int lb_fragment_notable(int end)
{
	switch (end) {
	case LB_END(forwarded):
	case LB_END(no_service):
	case LB_END(replied):
	case LB_END(no_route): /* translated, and for the kernel to send */
	case LB_END(no_neighbour):
	case LB_END(other_egress):
	case LB_END(reply_too_big): /* untranslated: without a backend, and then not noted */
		return 1;
	default:
		return 0;
	}
}

static __always_inline struct lb_fragment *lb_fragment_find(struct lb_packet *packet, int family)
{
	struct lb_fragment *note;
	struct lb_fragment_key key;

	lb_fragment_key_of(&key, packet, family);
	note = bpf_map_lookup_elem(LB_MAP(fragments), &key);
	if (note && (__u32)bpf_jiffies64() - note->seen > LB_FRAGMENT_S * LB_HZ)
		note = NULL;
	LB_KEEP(note);
	return note;
}

/* Ends what is written into a packet for a backend: tunnel, hops, MACs. `action` is settled. */
static __always_inline int lb_hand_over(struct xdp_md *ctx, struct lb_packet *packet,
					struct lb_table *table, int kind,
					struct lb_backend *backend, int family)
{
	int end = LB_OK;

#if LB_IPIP
	if (kind == LB_KIND_IPIP)
		end = lb_encap(ctx, packet, table, backend, 0, packet->l3_at - ETH_HLEN, family);
#endif
#if LB_GUE
	if (kind == LB_KIND_GUE)
		end = lb_encap(ctx, packet, table, backend, 1, packet->l3_at - ETH_HLEN, family);
#endif
	if (end)
		return end;
	if (kind >= LB_KIND_NAT)
		lb_decrement_hops(packet, family);
	lb_set_macs(packet->eth, backend->mac, backend->source_mac);
	return LB_OK;
}

/* To where the first one went. */
static __always_inline int lb_fragment_request(struct xdp_md *ctx, struct lb_table *table,
					       struct lb_packet *packet, struct lb_fragment *note,
					       int *action, int family)
{
	struct lb_backend *backend = lb_backend_if(note->backend, note->identity);
	int end;

	if (!backend)
		return LB_END(fragment_lost);
	end = lb_admit(ctx, packet, note->kind, family);
	if (end)
		return end;
	if (packet->l3_len > backend->mtu)
		return LB_END(unanswered); /* never about a later fragment (RFC 1122, 3.2.2) */
	*action = lb_leave_by(ctx, backend->ifindex, XDP_DROP);
	if (*action == XDP_DROP)
		return LB_END(no_egress);
	packet->hash = packet->fragment_id * 0x9e3779b1;
#if LB_TRANSLATES
	if (note->kind >= LB_KIND_NAT) {
		struct lb_ends to = { .destination = backend->address };

		if (LB_FULLNAT && note->kind == LB_KIND_FULLNAT)
			to.source = note->address;
		LB_KEEP(to.source);
		end = lb_translate(packet, &to, family);
		if (end)
			return end;
	}
#endif
	end = lb_hand_over(ctx, packet, table, note->kind, backend, family);
	if (end)
		return end;
	lb_count_request(note->backend, packet, 0);
	return LB_END(forwarded);
}

#if LB_TRANSLATES
static __always_inline int lb_fragment_reply(struct xdp_md *ctx, struct lb_table *table,
					     struct lb_packet *packet, struct lb_fragment *note,
					     int *action, int family)
{
	struct lb_backend *backend = lb_backend_at(note->backend);
	const __be32 *client = lb_destination(packet, family);
	struct lb_ends to = {};
	int end;

	if (!backend || backend->identity != note->identity)
		return LB_END(not_vip);
	end = lb_admit_reply(ctx, table, packet, family);
	if (end)
		return end;
	to.source = backend->vip;
	if (LB_FULLNAT && note->kind == LB_KIND_FULLNAT) {
		to.destination = note->address;
		client = note->address;
	}
	LB_KEEP(to.destination);
	return lb_send_reply(ctx, packet, note->backend, &to, client, action, family);
}
#endif

/* `packet` is a later fragment of TCP or UDP, or of who knows what in IPv6. */
static __always_inline int lb_fragment_later(struct xdp_md *ctx, struct lb_table *table,
					     struct lb_packet *packet, int *action, int family)
{
	__u32 bits = lb_address_bits(table, lb_destination(packet, family), family);
	struct lb_fragment *note = lb_fragment_find(packet, family);

	packet->part = LB_LATER; /* now the compiler knows as well */
#if LB_TRANSLATES
	if (note && note->flags & LB_FRAGMENT_REPLY)
		return lb_fragment_reply(ctx, table, packet, note, action, family);
#endif
	if (!(bits & LB_ADDRESS_VIP))
		return LB_END(not_vip);
	if (note && !note->backend)
		return LB_END(no_service);
	if (!lb_is_for_us(table, packet->eth))
		return LB_END(other_host);
	if (!note)
		return LB_END(fragment_lost);
	return lb_fragment_request(ctx, table, packet, note, action, family);
}

#endif
