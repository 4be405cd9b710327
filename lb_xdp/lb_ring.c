// SPDX-License-Identifier: MIT
/*
 * The one loop of the controller that is too hot for Python: each turn takes the free slot that its
 * backend prefers most (Maglev, NSDI'16 3.4). lb_xdp/core/ring.py says what the arrays are, and has
 * the same in Python, which the tests compare with this slot for slot.
 *
 * Freestanding: neither libc nor its headers are needed to build it.
 */
#include <stdint.h>

#define LB_EMPTY 0xFFFFFFFFu
#define LB_USUAL_SLOTS 65537u

/* A constant number of slots lets the compiler replace the division by a multiplication. */
static inline __attribute__((always_inline)) void
lb_fill(const uint32_t slots, const uint32_t *turns, const uint32_t *offsets, const uint32_t *skips,
	const uint32_t *powers, uint32_t *places, uint32_t *owner)
{
	for (uint32_t turn = 0; turn < slots; turn++) {
		const uint32_t backend = turns[turn];
		const uint64_t offset = offsets[backend], skip = skips[backend];
		uint32_t place = places[backend], slot;

		/* Ends: a turn is taken only while slots are free, and an order has them all. */
		do {
			slot = (offset + skip * powers[place++]) % slots;
		} while (owner[slot] != LB_EMPTY);
		places[backend] = place;
		owner[slot] = backend;
	}
}

/* @places: zeros, one for each backend; @owner: LB_EMPTY, one for each slot. Below 2^32 slots. */
void lb_ring_fill(uint32_t slots, const uint32_t *turns, const uint32_t *offsets,
		  const uint32_t *skips, const uint32_t *powers, uint32_t *places, uint32_t *owner)
{
	if (slots == LB_USUAL_SLOTS)
		lb_fill(LB_USUAL_SLOTS, turns, offsets, skips, powers, places, owner);
	else
		lb_fill(slots, turns, offsets, skips, powers, places, owner);
}
