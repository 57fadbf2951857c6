/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The batmap of XenServer: a bit for each block whose bitmap has every bit set (vhd-format §18.2).
 *
 * A bit that is missing costs tapdisk a look at the bitmap; a bit too many shows it rubbish. Map
 * and checksum cannot be written in one piece, so guest writes and merges, which only ever add to a
 * block, leave the map alone. What takes bits from a block clears the block's bit before
 * (vhd_resize.c).
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

/* XenServer knows blocks of 2 MiB only: 128 KiB for the largest disk. */
#define MAP_MAX (1u << 20)

bool vhd_batmap_is(uint8_t head[SECTOR], size_t got)
{
	memset(head + got, 0, SECTOR - got);
	return memcmp(head, "tdbatmap", 8) == 0;
}

int vhd_batmap_find(struct img *l, struct vhd_batmap *m, struct img_err *err)
{
	const struct vhd *v = l->state;
	uint64_t size, end;
	size_t got;

	memset(m, 0, sizeof(*m));
	if (memcmp(v->footer.creator, "tap", 3) != 0)
		return 0;
	m->head_off = vhd_bat_end(v);
	if (io_size(&l->file, &size, err) < 0 ||
	    io_read_upto(&l->file, m->head, SECTOR, m->head_off, &got, err) < 0)
		return -1;
	if (!vhd_batmap_is(m->head, got))
		return 0;
	m->present = true;
	m->encrypted = m->head[29];
	m->off = be64_get(m->head + 8);
	m->len = (uint64_t)be32_get(m->head + 16) * SECTOR;
	/* A map that is not in the file, or for more blocks than a disk can have, is none. */
	if (m->len > MAP_MAX || !u64_add(m->off, m->len, &end) || end > size)
		m->off = m->len = 0;
	return 0;
}

/* Version 1.1 added up signed bytes. */
static uint32_t map_sum(const uint8_t head[SECTOR], const uint8_t *map, uint64_t len)
{
	bool is_signed = be32_get(head + 20) == 0x00010001;
	uint32_t sum = 0;

	for (uint64_t i = 0; i < len; i++)
		sum += is_signed ? (uint32_t)(int8_t)map[i] : map[i];
	return ~sum;
}

uint8_t *vhd_batmap_load(struct img *l, const struct vhd_batmap *m, uint64_t len,
			 struct img_err *err)
{
	uint8_t *map = calloc(1, u64_max(len, m->len) + 1);

	if (!map) {
		img_err_errno(err, ENOMEM, "%s", l->file.path);
		return NULL;
	}
	if (io_read(&l->file, map, m->len, m->off, err) < 0) {
		free(map);
		return NULL;
	}
	if (map_sum(m->head, map, m->len) != be32_get(m->head + 24))
		memset(map, 0, m->len);
	return map;
}

void vhd_batmap_seal(struct vhd_batmap *m, uint64_t off, const uint8_t *map, uint64_t len)
{
	m->off = off;
	m->len = len;
	be64_put(m->head + 8, off);
	be32_put(m->head + 16, (uint32_t)(len / SECTOR));
	be32_put(m->head + 24, map_sum(m->head, map, len));
}
