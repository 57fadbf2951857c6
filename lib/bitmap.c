/* SPDX-License-Identifier: BSD-2-Clause */
#include "bitmap.h"

#include <string.h>

#include "bytes.h"

void bitmap_set(uint8_t *map, uint32_t n, uint32_t len)
{
	uint32_t end = n + len;

	for (; n < end && (n & 7); n++)
		map[n >> 3] |= (uint8_t)(0x80 >> (n & 7));
	if (n < end) {
		memset(map + (n >> 3), 0xff, (end - n) >> 3);
		n = end & ~7u;
	}
	for (; n < end; n++)
		map[n >> 3] |= (uint8_t)(0x80 >> (n & 7));
}

uint32_t bitmap_run(const uint8_t *map, uint32_t n, uint32_t len, bool *value)
{
	uint32_t i = n, end = n + len;
	bool first = bitmap_get(map, n);
	uint64_t flip = first ? ~0ull : 0;

	*value = first;
	while (i < end) {
		if ((i & 63) || end - i < 64) {
			if (bitmap_get(map, i) != first)
				break;
			i++;
			continue;
		}
		uint64_t word = be64_get(map + (i >> 3)) ^ flip;
		if (word) {
			i += (uint32_t)__builtin_clzll(word);
			break;
		}
		i += 64;
	}
	return i - n;
}
