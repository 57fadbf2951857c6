/* SPDX-License-Identifier: BSD-2-Clause */
/* Bit arrays, most significant bit first, as VHD stores them (vhd-format §10). */
#ifndef BITMAP_H
#define BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool bitmap_get(const uint8_t *map, uint32_t n)
{
	return map[n >> 3] & (0x80 >> (n & 7));
}

/* Sets LEN bits from bit N on. */
void bitmap_set(uint8_t *map, uint32_t n, uint32_t len);

/*
 * How many bits from N on are equal to bit N, at most LEN; *VALUE is that bit.
 */
uint32_t bitmap_run(const uint8_t *map, uint32_t n, uint32_t len, bool *value);

#endif
