/* SPDX-License-Identifier: MIT */
/*
 * What `lb-xdp decap` and its program agree on: map values, and what became of a packet.
 * lb_xdp/datapath/decap.py reads this file as lb_xdp/datapath/layout.py reads lb_types.h, so it
 * keeps to the same form. Nothing of a gateway's layout is in here: a backend host has no gateway.
 */
#ifndef LB_DECAP_H
#define LB_DECAP_H

#define LB_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)

/* clang-format off */
#define LB_DECAP_REASONS(X) \
	X(decapsulated, PASS, "a gateway's: outer headers taken off") \
	X(not_tunnel,   PASS, "neither ipip nor gue: the host's other traffic") \
	X(vlan,         PASS, "tagged frame") \
	X(other_host,   PASS, "tunnel, in a frame to another MAC") \
	X(fragment,     PASS, "outer fragment of what could be a tunnel") \
	X(ip_options,   PASS, "outer IPv4 options in front of what could be a tunnel") \
	X(bad_outer,    PASS, "tunnel, with outer lengths that contradict each other") \
	X(untrusted,    PASS, "tunnel, from a source that is not trusted") \
	X(bad_inner,    PASS, "tunnel, with something inside that is no whole IP packet") \
	X(not_vip,      PASS, "tunnel, with an inner destination that is not among the VIPs given") \
	X(refused,      PASS, "tunnel that the kernel did not let us undo: in tc before Linux 6.3, IPv4 in IPv6 and IPv6 in IPv4") \
	X(congested,    DROP, "outer header says congestion, inner sender knows no ECN (RFC 6040, 4.2)") \
	X(internal,     DROP, "the program's own tables contradict each other: a bug, please report")
/* clang-format on */

#define LB_DECAP_REASON_ENUM(name, verdict, meaning) LB_DECAP_##name,
enum lb_decap_reason { LB_DECAP_REASONS(LB_DECAP_REASON_ENUM) LB_DECAP_REASON_COUNT };

#define LB_DECAP_LIMIT_VIPS 1 /* only inner destinations that the map vips has */
#define LB_DECAP_OWN_QDISC 2 /* for `lb-xdp decap detach`: clsact was not there before us */

/* The one entry of the map host. */
struct lb_decap_host {
	__u8 mac[6]; /* frames to another one are not ours */
	__be16 gue_port;
	__u32 flags; /* LB_DECAP_* */
};
LB_SIZE(lb_decap_host, 12);

/* Key of the tries trust and vips. The version leads, so that no IPv6 prefix covers IPv4. */
struct lb_decap_prefix {
	__u32 bits; /* of what follows that count: 32 and the prefix length */
	__u8 version; /* 4 or 6 */
	__u8 pad[3];
	__u8 address[16]; /* of IPv4 the first four */
};
LB_SIZE(lb_decap_prefix, 24);

#endif
