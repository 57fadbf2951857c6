/* SPDX-License-Identifier: BSD-2-Clause */
#include "bytes.h"

#include <string.h>

bool bytes_are_zero(const void *buf, size_t len)
{
	const uint8_t *p = buf;
	size_t head = len < 16 ? len : 16;

	for (size_t i = 0; i < head; i++)
		if (p[i])
			return false;
	/* The first 16 bytes are zero: all are when the rest equals itself shifted by them. */
	return len == head || memcmp(p, p + 16, len - 16) == 0;
}
