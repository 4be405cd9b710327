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
	X(replied,        FORWARD, "backend's packet, translated and sent to its client (nat, fullnat)") \
	X(icmp_error,     FORWARD, "ICMP error about a flow, sent to whom it concerns") \
	X(echo,           FORWARD, "echo request to a VIP, answered") \
	X(refused,        FORWARD, "for a service that takes nothing now, answered by RST or unreachable") \
	X(reset,          FORWARD, "of a flow whose backend went down, or that fullnat has no record of, answered by RST") \
	X(too_big,        FORWARD, "too large for the way to its backend, answered by packet-too-big") \
	X(not_ip,         PASS,    "neither IPv4 nor IPv6: ARP, LLDP and the like") \
	X(other_family,   PASS,    "of an IP version that no service uses") \
	X(truncated,      PASS,    "too short to tell where it goes") \
	X(not_vip,        PASS,    "to an address that is not a VIP") \
	X(no_service,     PASS,    "to a VIP, but no service on that port and protocol") \
	X(protocol,       PASS,    "to a VIP, neither TCP nor UDP nor ICMP about a flow") \
	X(odd_header,     PASS,    "to a VIP, behind headers that cannot be followed") \
	X(other_host,     PASS,    "for a service, in a frame to another MAC: flooded, mirrored, multicast") \
	X(ttl_expired,    PASS,    "TTL or hop limit 1 where the gateway routes: left to the kernel") \
	X(to_gateway,     PASS,    "backend's packet to the gateway itself: answers to probes") \
	X(direct,         PASS,    "between a client and a backend's own address, not through a VIP") \
	X(no_flow,        PASS,    "to an address of fullnat's, but of no flow") \
	X(no_route,       PASS,    "translated reply without a route in XDP: left to the kernel") \
	X(no_neighbour,   PASS,    "translated reply whose next hop has no MAC yet: left to the kernel") \
	X(other_egress,   PASS,    "translated reply that leaves by an interface not ours: left to the kernel") \
	X(reply_too_big,  PASS,    "backend's packet larger than the way to its client: left to the kernel") \
	X(bad_length,     DROP,    "for a service, with lengths that contradict each other") \
	X(martian,        DROP,    "for a service, from an address that no client can have") \
	X(no_backend,     DROP,    "for a service without a backend to take it") \
	X(severed,        DROP,    "of a flow that is to be reset, and nothing that a RST can answer") \
	X(backends_full,  DROP,    "new flow while every backend is at max_connections") \
	X(snat_exhausted, DROP,    "new flow of fullnat, and no port of snat_addresses is free for it") \
	X(table_full,     DROP,    "new flow of fullnat while the flow table is full") \
	X(fragment_lost,  DROP,    "later fragment to a VIP whose first was never seen") \
	X(unanswered,     DROP,    "refused or too large, but this second's answers were spent") \
	X(no_egress,      DROP,    "for a backend whose interface is gone") \
	X(no_room,        DROP,    "no room in the buffer for the headers to add") \
	X(internal,       DROP,    "the program's own tables contradict each other: a bug, please report")
/* clang-format on */

#define LB_REASON_ENUM(name, verdict, meaning) LB_REASON_##name,
enum lb_reason { LB_REASONS(LB_REASON_ENUM) LB_REASON_COUNT };

/*
 * The passes of the program return LB_OK to go on, or the reason at which the packet's journey
 * ends, as LB_END(reason): never 0. LB_GENERAL ends the fast program only: the general one takes
 * the packet over, untouched. LB_ANSWER ends the general one's judgement: the packet is answered
 * by an ICMP error (lb_answer.h).
 */
#define LB_OK 0
#define LB_END(name) (LB_REASON_##name + 1)
#define LB_GENERAL -1
#define LB_ANSWER -2

#endif
