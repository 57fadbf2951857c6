/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The batmap of XenServer: a bit for each block whose bitmap has every bit set (vhd-format §18.2).
 *
 * A bit that is missing costs tapdisk a look at the bitmap; a bit too many shows it rubbish. Map and checksum cannot
 * be written in one piece, so guest writes and merges, which only ever add to a block, leave
 * the map alone. What takes bits from a block clears the block's bit before (vhd_resize.c).
 */
#include "config.h"

#include <string.h>

#include "vhd.h"

int vhd_batmap_find(struct img *l, struct vhd_batmap *m, struct img_err *err)
{
	const struct vhd *v = l->state;
	uint64_t size, end;
	size_t got;

	memset(m, 0, sizeof(*m));
	if (memcmp(v->footer.creator, "tap", 3) != 0)
		return 0;
	m->head_off = v->header.bat_off + u64_round_up((uint64_t)v->header.entries * 4, SECTOR);
	if (io_size(&l->file, &size, err) < 0 ||
	    io_read_upto(&l->file, m->head, SECTOR, m->head_off, &got, err) < 0)
		return -1;
	if (got != SECTOR || memcmp(m->head, "tdbatmap", 8) != 0)
		return 0;
	m->present = true;
	m->encrypted = m->head[29];
	m->off = be64_get(m->head + 8);
	m->len = (uint64_t)be32_get(m->head + 16) * SECTOR;
	/* A map that is not in the file is none. */
	if (!u64_add(m->off, m->len, &end) || end > size)
		m->off = m->len = 0;
	return 0;
}
