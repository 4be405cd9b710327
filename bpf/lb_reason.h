/* SPDX-License-Identifier: MIT */
/*
 * What became of a packet: every packet ends with exactly one reason, and each reason has exactly
 * one verdict. This list is the only place where they are named: the counters' indices, the labels
 * of lb_xdp_packets_total, `lb-xdp status` and the table in docs/packet-walk.md are read from it.
 * The format `X(name, VERDICT, "meaning")`, one to a line, is parsed by lb_xdp/datapath/layout.py.
 */
#ifndef LB_REASON_H
#define LB_REASON_H

/* clang-format off */
#define LB_REASONS(X) \
	X(forwarded,      FORWARD, "client's packet, sent to its backend") \
	X(replied,        FORWARD, "backend's packet, translated and sent to its client (nat)") \
	X(not_ip,         PASS,    "neither IPv4 nor IPv6: ARP, LLDP and the like") \
	X(ipv6,           PASS,    "IPv6, which no service uses") \
	X(vlan,           PASS,    "tagged frame, which no service uses") \
	X(truncated,      PASS,    "too short to tell where it goes") \
	X(not_vip,        PASS,    "IPv4 to an address that is not a VIP") \
	X(no_service,     PASS,    "to a VIP, but no service on that port and protocol") \
	X(protocol,       PASS,    "to a VIP, neither TCP nor UDP") \
	X(fragment,       PASS,    "to a VIP, an IPv4 fragment") \
	X(ip_options,     PASS,    "to a VIP, IPv4 options present") \
	X(other_host,     PASS,    "for a service, in a frame to another MAC: flooded, mirrored, multicast") \
	X(ttl_expired,    PASS,    "TTL 1 where the gateway routes: left to the kernel") \
	X(too_big,        PASS,    "larger than the MTU of the way out: left to the kernel") \
	X(to_gateway,     PASS,    "backend's packet to the gateway itself: answers to probes") \
	X(direct,         PASS,    "between a client and a backend's own address, not through a VIP") \
	X(no_route,       PASS,    "translated reply without a route in XDP: left to the kernel") \
	X(no_neighbour,   PASS,    "translated reply whose next hop has no MAC yet: left to the kernel") \
	X(other_egress,   PASS,    "translated reply that leaves by an interface not ours: left to the kernel") \
	X(bad_length,     DROP,    "for a service, with lengths that contradict each other") \
	X(no_backend,     DROP,    "for a service without a backend to take it") \
	X(no_egress,      DROP,    "for a backend whose interface is gone") \
	X(internal,       DROP,    "the program's own tables contradict each other: a bug, please report")
/* clang-format on */

#define LB_REASON_ENUM(name, verdict, meaning) LB_REASON_##name,
enum lb_reason { LB_REASONS(LB_REASON_ENUM) LB_REASON_COUNT };

/*
 * The passes of the program return LB_OK to go on, or the reason at which the packet's journey
 * ends, as LB_END(reason): never 0.
 */
#define LB_OK 0
#define LB_END(name) (LB_REASON_##name + 1)

#endif
