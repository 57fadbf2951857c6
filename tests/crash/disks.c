/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "disks.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "bytes.h"
#include "vhd_fmt.h"

void disk_fill(uint8_t *disk, uint64_t off, uint64_t len, uint64_t tag)
{
	for (uint64_t at = off; at < off + len; at += SECTOR)
		for (unsigned i = 0; i < SECTOR; i += 8)
			be64_put(disk + at + i, tag << 40 | at / SECTOR << 8 | i / 8);
}

void disk_own(uint8_t *own, uint64_t size, uint32_t block_size, struct rng *r)
{
	uint64_t nsec = size / SECTOR, per = block_size / SECTOR;

	for (uint64_t first = 0; first < nsec; first += per) {
		uint64_t n = u64_min(per, nsec - first);
		unsigned from, len, how = rng_below(r, 6);

		memset(own + first, 0, n);
		switch (how) {
		case 0:
		case 1: /* nothing */
			break;
		case 2: /* all */
			memset(own + first, 1, n);
			break;
		case 3: /* one run */
			from = rng_below(r, (unsigned)n);
			len = 1 + rng_below(r, (unsigned)(n - from));
			memset(own + first + from, 1, len);
			break;
		default: /* scattered */
			for (uint64_t i = 0; i < n; i++)
				own[first + i] = rng_one_in(r, how == 4 ? 2 : 6);
		}
	}
}

void disk_layout(struct vhd_spec *s, struct rng *r)
{
	s->align = rng_one_in(r, 3) ? SECTOR : 4096;
	s->tight = rng_one_in(r, 2);
	s->shuffled = rng_one_in(r, 2);
	s->gaps = rng_one_in(r, 4);
	s->xen = rng_one_in(r, 5) && s->type != IMG_FIXED && s->type != IMG_RAW;
	if (rng_one_in(r, 4))
		s->leaked = (1 + rng_below(r, 3 * s->block_size / SECTOR)) * SECTOR;
}

/* Where each block's bitmap stands (0: the block is not there); returns where all of that ends. */
static uint64_t place_blocks(const struct vhd_spec *s, uint64_t *place, uint64_t at, struct rng *r)
{
	uint32_t blocks = (uint32_t)((s->size + s->block_size - 1) / s->block_size), n = 0;
	uint64_t per = s->block_size / SECTOR, bitmap = u64_round_up(per / 8, SECTOR);
	uint32_t *order = calloc(blocks, sizeof(*order));

	if (!order)
		die("out of memory");
	for (uint32_t b = 0; b < blocks; b++) {
		bool any = rng_one_in(r, 12); /* a block in which nothing is left */

		for (uint64_t i = b * per; i < (b + 1) * per && i < s->size / SECTOR; i++)
			any |= s->own[i];
		if (any)
			order[n++] = b;
	}
	for (uint32_t i = n; s->shuffled && i > 1; i--) {
		uint32_t k = rng_below(r, i), x = order[k];

		order[k] = order[i - 1];
		order[i - 1] = x;
	}
	for (uint32_t i = 0; i < n; i++) {
		if (s->gaps && rng_one_in(r, 3))
			at += 4096;
		at = u64_round_up(at + bitmap, s->align);
		place[order[i]] = at - bitmap;
		at += s->block_size;
	}
	free(order);
	return at;
}

/* Unowned sectors hold bytes that nobody may ever see. */
static void put_blocks(uint8_t *file, const struct vhd_spec *s, const uint64_t *place)
{
	uint32_t blocks = (uint32_t)((s->size + s->block_size - 1) / s->block_size);
	uint64_t per = s->block_size / SECTOR, bitmap = u64_round_up(per / 8, SECTOR);

	for (uint32_t b = 0; b < blocks; b++) {
		if (!place[b])
			continue;
		memset(file + place[b], 0, bitmap);
		for (uint64_t i = 0; i < per; i++) {
			uint64_t sec = b * per + i;
			uint8_t *to = file + place[b] + bitmap + i * SECTOR;

			if (sec < s->size / SECTOR && s->own[sec]) {
				memcpy(to, s->disk + sec * SECTOR, SECTOR);
				bitmap_set(file + place[b], (uint32_t)i, 1);
			} else {
				memset(to, 0xdb, SECTOR);
			}
		}
	}
}

static void put_footer(uint8_t buf[VHD_FOOTER_LEN], const struct vhd_spec *s)
{
	struct vhd_footer f = {
		.features = 2,
		.version = 0x00010000,
		.data_off = s->type == IMG_FIXED ? ~0ull : VHD_FOOTER_LEN,
		.timestamp = 0x2a000000,
		.creator = {'v', 'p', 'c', ' '},
		.creator_version = 0x00050003,
		.creator_os = {'W', 'i', '2', 'k'},
		.original_size = s->first_size ? s->first_size : s->size,
		.size = s->size,
		.type = s->type == IMG_FIXED	 ? VHD_FIXED
			: s->type == IMG_DYNAMIC ? VHD_DYNAMIC
						 : VHD_DIFFERENCING,
	};

	if (s->xen) {
		memcpy(f.creator, "tap", 4);
		f.creator_version = 0x00010003;
	}
	vhd_geometry(s->size, &f.cylinders, &f.heads, &f.sectors);
	memcpy(f.uuid, s->uuid, 16);
	vhd_footer_encode(&f, buf);
}

/* The name of the parent, from the child's folder, in Windows' notation. */
static void put_parent(uint8_t *file, struct vhd_header *h, const struct vhd_spec *s, uint64_t at)
{
	const char *slash = strrchr(s->parent, '/'), *base = slash ? slash + 1 : s->parent;
	char rel[200];
	int n = snprintf(rel, sizeof(rel), "./%s", s->parent);

	memcpy(h->parent_uuid, s->parent_uuid, 16);
	for (size_t i = 0; base[i]; i++)
		h->parent_name[2 * i + 1] = (uint8_t)base[i];
	h->loc[0] = (struct vhd_locator){VHD_W2RU, SECTOR, (uint32_t)n * 2, at};
	for (int i = 0; i < n; i++)
		le16_put(file + at + 2 * i, rel[i] == '/' ? '\\' : (uint8_t)rel[i]);
}

/* A bit for each block that is full; HEAD is followed by the map of LEN bytes. */
static void put_batmap(uint8_t *head, uint64_t off, uint64_t len, const struct vhd_spec *s)
{
	uint64_t per = s->block_size / SECTOR, nsec = s->size / SECTOR;
	uint8_t *map = head + SECTOR;
	uint32_t sum = 0;

	memset(head, 0, SECTOR + len);
	for (uint64_t b = 0; (b + 1) * per <= nsec; b++)
		if (!memchr(s->own + b * per, 0, per))
			bitmap_set(map, (uint32_t)b, 1);
	for (uint64_t i = 0; i < len; i++)
		sum += map[i];
	memcpy(head, "tdbatmap", 8);
	be64_put(head + 8, off + SECTOR);
	be32_put(head + 16, (uint32_t)(len / SECTOR));
	be32_put(head + 20, 0x00010002);
	be32_put(head + 24, ~sum);
}

static void add_fixed(struct fs *fs, const char *name, const struct vhd_spec *s)
{
	uint64_t len = s->size + (s->type == IMG_FIXED ? VHD_FOOTER_LEN : 0);
	int n = fs_add(fs, name, NULL, len);

	memcpy(fs->node[n].data, s->disk, s->size);
	if (s->type == IMG_FIXED)
		put_footer(fs->node[n].data + s->size, s);
}

void disk_add(struct fs *fs, const char *name, const struct vhd_spec *s, struct rng *r)
{
	uint32_t blocks = (uint32_t)((s->size + s->block_size - 1) / s->block_size);
	uint64_t bat_off = VHD_FOOTER_LEN + VHD_HEADER_LEN, bat_end, loc, map, end, *place;
	struct vhd_header h = {.version = 0x00010000, .block_size = s->block_size};
	uint8_t footer[VHD_FOOTER_LEN], *file;

	if (s->type == IMG_FIXED || s->type == IMG_RAW) {
		add_fixed(fs, name, s);
		return;
	}
	place = calloc(blocks, sizeof(*place));
	if (!place)
		die("out of memory");
	h.entries = blocks + rng_below(r, 3);
	h.bat_off = bat_off;
	bat_end = bat_off + u64_round_up((uint64_t)h.entries * 4, SECTOR);
	map = u64_round_up((h.entries + 7) / 8, SECTOR);
	loc = bat_end + (s->xen ? SECTOR + map : 0);
	end = place_blocks(s, place, loc + SECTOR, r);
	end += s->leaked;
	if (!s->tight)
		end = u64_round_up(end + VHD_FOOTER_LEN, 4096) - VHD_FOOTER_LEN;
	file = fs->node[fs_add(fs, name, NULL, end + VHD_FOOTER_LEN)].data;
	put_footer(footer, s);
	memcpy(file, footer, sizeof(footer));
	memcpy(file + end, footer, sizeof(footer));
	memset(file + bat_off, 0xff, bat_end - bat_off);
	if (s->xen)
		put_batmap(file + bat_end, bat_end, map, s);
	if (s->type == IMG_DIFFERENCING)
		put_parent(file, &h, s, loc);
	vhd_header_encode(&h, file + VHD_FOOTER_LEN);
	for (uint32_t b = 0; b < blocks; b++)
		if (place[b])
			be32_put(file + bat_off + 4 * b, (uint32_t)(place[b] / SECTOR));
	if (s->gaps || s->leaked)
		memset(file + loc + SECTOR, 0xe5, end - loc - SECTOR);
	put_blocks(file, s, place);
	free(place);
}

int disk_read(const char *path, const struct img_open *opts, uint8_t *buf, uint64_t size,
	      struct img_err *err)
{
	struct img_chain *c;
	int rc = -1;

	if (img_open(&c, path, opts, err) < 0)
		return -1;
	if (img_size(c) != size)
		img_err_set(err, IMG_BUG, "%s: %" PRIu64 " bytes instead of %" PRIu64, path,
			    img_size(c), size);
	else
		rc = img_read(c, buf, 0, size, err);
	img_close(c);
	return rc;
}

int64_t disk_differs(const uint8_t *a, const uint8_t *b, uint64_t size)
{
	if (memcmp(a, b, size) == 0)
		return -1;
	for (uint64_t at = 0; at < size; at += SECTOR)
		if (memcmp(a + at, b + at, u64_min(SECTOR, size - at)) != 0)
			return (int64_t)(at / SECTOR);
	return -1;
}
