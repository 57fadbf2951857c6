/* SPDX-License-Identifier: BSD-2-Clause */
/* Opening and reading VHD files. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "vhd.h"

/* The footers that a file has; §14. */
struct footers {
	uint8_t front[VHD_FOOTER_LEN], end[VHD_FOOTER_LEN];
	enum vhd_verdict front_is, end_is;
	struct vhd_footer f, e;
	uint64_t end_off;
	bool short_end; /* 511 bytes, before Virtual PC 2004 (§2) */
};

static int read_footers(struct img *l, struct footers *fs, struct img_err *err)
{
	uint64_t size;
	size_t got;

	memset(fs, 0, sizeof(*fs));
	fs->end_is = VHD_NO_COOKIE;
	if (io_size(&l->file, &size, err) < 0 ||
	    io_read_upto(&l->file, fs->front, VHD_FOOTER_LEN, 0, &got, err) < 0)
		return -1;
	/* Of a file cut within its first sector the signature is left: no raw disk. */
	fs->front_is = vhd_footer_decode(fs->front, &fs->f);
	if (size < VHD_FOOTER_LEN - 1)
		return 0;
	if (size >= VHD_FOOTER_LEN) {
		fs->end_off = size - VHD_FOOTER_LEN;
		if (io_read(&l->file, fs->end, VHD_FOOTER_LEN, fs->end_off, err) < 0)
			return -1;
		fs->end_is = vhd_footer_decode(fs->end, &fs->e);
	}
	if (fs->end_is == VHD_NO_COOKIE) {
		uint8_t buf[VHD_FOOTER_LEN] = {0};

		if (io_read(&l->file, buf, VHD_FOOTER_LEN - 1, size - (VHD_FOOTER_LEN - 1), err) <
		    0)
			return -1;
		if (vhd_footer_decode(buf, &fs->e) != VHD_NO_COOKIE) {
			memcpy(fs->end, buf, sizeof(buf));
			fs->end_is = vhd_footer_decode(buf, &fs->e);
			fs->end_off = size - (VHD_FOOTER_LEN - 1);
			fs->short_end = true;
		}
	}
	return 0;
}

/*
 * A front copy belongs to a dynamic disk: a fixed one's guest data may begin with anything,
 * also with what would make it the child of some file of the host.
 */
static bool front_counts(const struct footers *fs)
{
	if (fs->end_is == VHD_OK && fs->e.type == VHD_FIXED && fs->e.size == fs->end_off)
		return false;
	return fs->front_is == VHD_POISONED || fs->front_is == VHD_BAD_VERSION ||
	       fs->front_is == VHD_BAD_TYPE ||
	       ((fs->front_is == VHD_OK || fs->front_is == VHD_BAD_CHECKSUM) &&
		fs->f.type != VHD_FIXED);
}

static int vhd_probe(struct img *l, struct img_err *err)
{
	struct footers fs;

	if (read_footers(l, &fs, err) < 0)
		return -1;
	return fs.end_is != VHD_NO_COOKIE || front_counts(&fs);
}

/* Differences of two valid copies that decide which one is believed (§14 rule 5). */
static bool end_is_consistent(const struct footers *fs)
{
	return fs->e.type == fs->f.type && memcmp(fs->e.uuid, fs->f.uuid, 16) == 0 &&
	       fs->e.data_off == fs->f.data_off;
}

static int refuse_footer(struct img *l, enum vhd_verdict v, uint64_t off, struct img_err *err)
{
	return img_err_set(err, IMG_DATA, "%s: footer at offset %" PRIu64 ": %s", l->file.path, off,
			   vhd_verdict_str(v));
}

/* Chooses the copy to believe, tells what is wrong with the other one. */
static int choose_footer(struct img *l, struct vhd *v, const struct footers *fs,
			 struct img_err *err)
{
	bool front = front_counts(fs), use_end = fs->end_is == VHD_OK;
	bool front_ok = front && fs->front_is == VHD_OK;

	if (fs->end_is == VHD_POISONED || (front && fs->front_is == VHD_POISONED))
		return refuse_footer(l, VHD_POISONED, fs->end_is == VHD_POISONED ? fs->end_off : 0,
				     err);
	if (use_end && front_ok && !end_is_consistent(fs))
		use_end = false;
	if (!use_end && !front_ok) {
		/* Neither is whole: a plausible one will do for looking, never for writing. */
		use_end = fs->end_is == VHD_BAD_CHECKSUM;
		if (!use_end && !(front && fs->front_is == VHD_BAD_CHECKSUM))
			return fs->end_is != VHD_NO_COOKIE
				       ? refuse_footer(l, fs->end_is, fs->end_off, err)
				       : refuse_footer(l, fs->front_is, 0, err);
		if (l->file.writable)
			return img_err_set(err, IMG_DATA,
					   "%s: footer: wrong checksum; not opened for writing",
					   l->file.path);
		img_warn(l, "footer: wrong checksum");
	}
	v->footer = use_end ? fs->e : fs->f;
	memcpy(v->footer_raw, use_end ? fs->end : fs->front, VHD_FOOTER_LEN);
	v->footer_off = fs->end_off;
	l->info.unsound = fs->end_is != VHD_OK;
	if (v->footer.type == VHD_FIXED) {
		if (fs->short_end)
			img_warn(l, "footer of 511 bytes, from before Virtual PC 2004");
		return 0;
	}
	l->info.unsound |= !front_ok || memcmp(fs->front, fs->end, VHD_FOOTER_LEN) != 0;
	if (fs->end_is == VHD_NO_COOKIE || fs->end_is == VHD_BAD_CHECKSUM)
		img_warn(l, "end footer at offset %" PRIu64 ": %s; its front copy is used",
			 fs->end_off, vhd_verdict_str(fs->end_is));
	else if (!front_ok)
		img_warn(l, "front copy of the footer: %s", vhd_verdict_str(fs->front_is));
	else if (memcmp(fs->front, fs->end, VHD_FOOTER_LEN) != 0)
		img_warn(l, "the two footers differ; the one at %s is used",
			 use_end ? "the end" : "offset 0");
	return 0;
}

static int open_fixed(struct img *l, struct vhd *v, struct img_err *err)
{
	if (v->footer_off < v->footer.size)
		return img_err_set(err, IMG_DATA,
				   "%s: cut off: the footer says %" PRIu64
				   " bytes of data, the file holds %" PRIu64,
				   l->file.path, v->footer.size, v->footer_off);
	if (v->footer_off > v->footer.size)
		img_warn(l, "%" PRIu64 " bytes between the data and the footer",
			 v->footer_off - v->footer.size);
	l->info.type = IMG_FIXED;
	return 0;
}

static int check_header(struct img *l, struct vhd *v, uint64_t file_size, struct img_err *err)
{
	struct vhd_header *h = &v->header;
	uint64_t need, table_end;

	if (!img_block_size_ok(h->block_size))
		return img_err_set(err, IMG_DATA,
				   "%s: header: block size %" PRIu32
				   ", wanted a power of two from 4 KiB to 256 MiB",
				   l->file.path, h->block_size);
	need = vhd_blocks(v->footer.size, h->block_size);
	if (h->entries < need)
		return img_err_set(err, IMG_DATA,
				   "%s: header: the BAT has %" PRIu32 " entries, a disk of %" PRIu64
				   " bytes needs %" PRIu64,
				   l->file.path, h->entries, v->footer.size, need);
	/* What the disk does not need may end with the file inside of a sector. */
	if (!vhd_bat_place_ok(h->bat_off, need, v->footer.data_off, file_size) ||
	    !u64_add(h->bat_off, (uint64_t)h->entries * 4, &table_end) || table_end > file_size)
		return img_err_set(err, IMG_DATA,
				   "%s: header: a BAT of %" PRIu32 " entries at offset %" PRIu64
				   " overlaps the header at %" PRIu64
				   " or lies outside the file of %" PRIu64 " bytes",
				   l->file.path, h->entries, h->bat_off, v->footer.data_off,
				   file_size);
	v->blocks = (uint32_t)need;
	return 0;
}

static int open_sparse(struct img *l, struct vhd *v, struct img_err *err)
{
	uint8_t buf[VHD_HEADER_LEN];
	uint64_t file_size, end;
	enum vhd_verdict verdict;

	if (io_size(&l->file, &file_size, err) < 0)
		return -1;
	if (v->footer.data_off < VHD_FOOTER_LEN ||
	    !u64_add(v->footer.data_off, VHD_HEADER_LEN, &end) || end > file_size)
		return img_err_set(err, IMG_DATA,
				   "%s: footer: header at offset %" PRIu64
				   " lies outside the file of %" PRIu64 " bytes",
				   l->file.path, v->footer.data_off, file_size);
	if (io_read(&l->file, buf, sizeof(buf), v->footer.data_off, err) < 0)
		return -1;
	verdict = vhd_header_decode(buf, &v->header);
	if (verdict != VHD_OK && (verdict != VHD_BAD_CHECKSUM || l->file.writable))
		return img_err_set(err, IMG_DATA, "%s: header at offset %" PRIu64 ": %s",
				   l->file.path, v->footer.data_off, vhd_verdict_str(verdict));
	if (verdict == VHD_BAD_CHECKSUM)
		img_warn(l, "header: wrong checksum");
	if (check_header(l, v, file_size, err) < 0)
		return -1;
	v->block_size = v->header.block_size;
	v->bitmap_len = vhd_bitmap_len(v->block_size);
	l->info.type = v->footer.type == VHD_DYNAMIC ? IMG_DYNAMIC : IMG_DIFFERENCING;
	l->info.block_size = v->block_size;
	l->info.blocks = v->blocks;
	v->cache = malloc(sizeof(*v->cache));
	if (!v->cache)
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	memset(v->cache->tag, 0xff, sizeof(v->cache->tag));
	return 0;
}

/* XenServer's disks whose bytes mean nothing to us (§10, §18.2). */
static int check_xenserver(struct img *l, struct img_err *err)
{
	const struct vhd *v = l->state;
	struct vhd_batmap m;

	if (vhd_bits_reversed(&v->footer))
		return img_err_set(err, IMG_DATA,
				   "%s: made by version 0.1 of XenServer's tapdisk, whose bitmaps "
				   "have another bit order; not supported",
				   l->file.path);
	if (vhd_batmap_find(l, &m, err) < 0)
		return -1;
	if (m.encrypted)
		return img_err_set(err, IMG_DATA,
				   "%s: encrypted by XenServer (a key hash is at offset %" PRIu64
				   "): its data cannot be read",
				   l->file.path, m.head_off);
	return 0;
}

static void fill_info(struct img *l, const struct vhd *v)
{
	struct img_info *i = &l->info;

	i->original_size = v->footer.original_size;
	i->has_uuid = true;
	memcpy(i->uuid, v->footer.uuid, 16);
	for (int n = 0; n < 4 && v->footer.creator[n] >= ' ' && v->footer.creator[n] < 127; n++)
		i->creator[n] = v->footer.creator[n];
	i->creator_version = v->footer.creator_version;
	i->timestamp = v->footer.timestamp;
	i->cylinders = v->footer.cylinders;
	i->heads = v->footer.heads;
	i->sectors = v->footer.sectors;
	i->saved_state = v->footer.saved;
	i->hidden = v->footer.hidden;
	if (i->type == IMG_DIFFERENCING) {
		i->has_parent = true;
		memcpy(i->parent_uuid, v->header.parent_uuid, 16);
		i->parent_name = v->parent_name;
	}
}

static void vhd_close(struct img *l)
{
	struct vhd *v = l->state;

	if (!v)
		return;
	vhd_absorb_end(l);
	vhd_pending_free(v);
	vhd_build_end(v);
	free(v->cache);
	free(v->parent_name);
	free(v);
	l->state = NULL;
}

static int open_body(struct img *l, struct vhd *v, struct img_err *err)
{
	struct footers fs;

	if (read_footers(l, &fs, err) < 0 || choose_footer(l, v, &fs, err) < 0)
		return -1;
	if (v->footer.size % SECTOR) {
		if (l->file.writable)
			return img_err_set(err, IMG_DATA,
					   "%s: size %" PRIu64 " is no multiple of 512",
					   l->file.path, v->footer.size);
		img_warn(l, "size %" PRIu64 " is no multiple of 512, rounded down", v->footer.size);
		v->footer.size -= v->footer.size % SECTOR;
	}
	l->info.size = v->footer.size;
	if (v->footer.type == VHD_FIXED)
		return open_fixed(l, v, err);
	if (open_sparse(l, v, err) < 0 || check_xenserver(l, err) < 0)
		return -1;
	if (v->footer.type == VHD_DIFFERENCING) {
		v->parent_name =
			vhd_utf16_get(v->header.parent_name, sizeof(v->header.parent_name), true);
	}
	return 0;
}

static int vhd_open(struct img *l, struct img_err *err)
{
	struct vhd *v = calloc(1, sizeof(*v));

	if (!v)
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	l->state = v;
	if (open_body(l, v, err) < 0 || (l->file.writable && vhd_prepare_write(l, err) < 0)) {
		vhd_close(l);
		return -1;
	}
	fill_info(l, v);
	return 0;
}

/* Bitmaps of neighbouring blocks are 4104 or 4097 sectors apart: they must not share slots. */
static uint32_t cache_slot(uint64_t off)
{
	return (uint32_t)(off / SECTOR * 2654435761u >> 7) % VHD_CACHE_SECTORS;
}

int vhd_meta_write(struct img *l, uint64_t off, const uint8_t sector[SECTOR], struct img_err *err)
{
	struct vhd *v = l->state;
	uint32_t slot = cache_slot(off);

	if (io_write(&l->file, sector, SECTOR, off, err) < 0) {
		/* What the file holds now is unknown: read it again when it is wanted. */
		if (v->cache->tag[slot] == off)
			v->cache->tag[slot] = ~0ull;
		return -1;
	}
	memcpy(v->cache->data[slot], sector, SECTOR);
	v->cache->tag[slot] = off;
	return 0;
}

int vhd_meta_read(struct img *l, uint64_t off, const uint8_t **sector, struct img_err *err)
{
	struct vhd *v = l->state;
	uint32_t slot = cache_slot(off);

	*sector = v->cache->data[slot];
	if (v->cache->tag[slot] == off)
		return 0;
	v->cache->tag[slot] = ~0ull;
	if (io_read(&l->file, v->cache->data[slot], SECTOR, off, err) < 0)
		return -1;
	v->cache->tag[slot] = off;
	return 0;
}

/* A BAT entry as a file offset, checked (§9). */
static int check_entry(struct img *l, uint32_t block, uint32_t entry, uint64_t file_size,
		       struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t off = (uint64_t)entry * SECTOR, end = off + v->bitmap_len + v->block_size;
	uint64_t bat_end = v->header.bat_off + u64_round_up((uint64_t)v->blocks * 4, SECTOR);

	uint64_t head = v->footer.data_off;

	if (off < VHD_FOOTER_LEN || (off < head + VHD_HEADER_LEN && end > head))
		return img_err_set(err, IMG_DATA,
				   "%s: BAT entry %" PRIu32 ": block at offset %" PRIu64
				   " lies in the header",
				   l->file.path, block, off);
	if (end > file_size)
		return img_err_set(err, IMG_DATA,
				   "%s: BAT entry %" PRIu32 ": block at %" PRIu64 "..%" PRIu64
				   " reaches beyond the file's end at %" PRIu64,
				   l->file.path, block, off, end, file_size);
	if (off < bat_end && end > v->header.bat_off)
		return img_err_set(err, IMG_DATA,
				   "%s: BAT entry %" PRIu32 ": block at %" PRIu64
				   " overlaps the BAT at %" PRIu64,
				   l->file.path, block, off, v->header.bat_off);
	return 0;
}

static int entry_read(struct img *l, uint32_t block, uint32_t *entry, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t at = v->header.bat_off + (uint64_t)block * 4;
	const uint8_t *s;

	if (vhd_meta_read(l, at & ~(uint64_t)(SECTOR - 1), &s, err) < 0)
		return -1;
	*entry = be32_get(s + at % SECTOR);
	return 0;
}

int vhd_block_find(struct img *l, uint32_t block, uint64_t *entry, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t end;
	uint32_t e;

	*entry = 0;
	if (entry_read(l, block, &e, err) < 0)
		return -1;
	if (e == VHD_BAT_FREE)
		return 0;
	/* The size that was seen last will do, unless the file has grown since. */
	end = (uint64_t)e * SECTOR + v->bitmap_len + v->block_size;
	if (end > v->seen_size && io_size(&l->file, &v->seen_size, err) < 0)
		return -1;
	if (check_entry(l, block, e, v->seen_size, err) < 0)
		return -1;
	*entry = (uint64_t)e * SECTOR;
	return 0;
}

int vhd_bat_each(struct img *l,
		 int (*fn)(void *ctx, uint32_t block, uint64_t off, struct img_err *err), void *ctx,
		 struct img_err *err)
{
	struct vhd *v = l->state;
	const uint32_t per = 4096 / 4; /* entries read at once, past the cache */
	uint8_t buf[4096];
	uint64_t size;

	if (io_size(&l->file, &size, err) < 0)
		return -1;
	for (uint32_t first = 0; first < v->blocks; first += per) {
		uint32_t n = v->blocks - first < per ? v->blocks - first : per;

		if (io_read(&l->file, buf, (size_t)n * 4, v->header.bat_off + (uint64_t)first * 4,
			    err) < 0)
			return -1;
		for (uint32_t i = 0; i < n; i++) {
			uint32_t e = be32_get(buf + 4 * i);

			if (e == VHD_BAT_FREE)
				continue;
			if (check_entry(l, first + i, e, size, err) < 0 ||
			    (fn && fn(ctx, first + i, (uint64_t)e * SECTOR, err) < 0))
				return -1;
		}
	}
	return 0;
}

int vhd_bitmap_run(struct img *l, uint64_t entry, uint32_t sec, uint32_t nsec, uint32_t *run,
		   bool *set, struct img_err *err)
{
	const uint32_t per = SECTOR * 8; /* bits in one sector of bitmap */
	bool value;

	*run = 0;
	while (*run < nsec) {
		uint32_t at = sec + *run, n = per - at % per;
		const uint8_t *s;

		if (n > nsec - *run)
			n = nsec - *run;
		if (vhd_meta_read(l, entry + at / per * SECTOR, &s, err) < 0)
			return -1;
		uint32_t got = bitmap_run(s, at % per, n, &value);

		if (*run && value != *set)
			break;
		*set = value;
		*run += got;
		if (got < n)
			break;
	}
	return 0;
}

/*
 * A run of blocks that are not in the file: bounded, so that a walk through a chain stays
 * linear.
 */
static int map_absent(struct img *l, uint32_t block, uint64_t in_block, uint64_t len,
		      struct img_ext *ext, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t run = v->block_size - in_block;
	uint32_t e;

	for (uint32_t n = 1; run < len && n < 128 && block + n < v->blocks; n++) {
		if (entry_read(l, block + n, &e, err) < 0)
			return -1;
		if (e != VHD_BAT_FREE)
			break;
		run += v->block_size;
	}
	*ext = (struct img_ext){EXT_HOLE, u64_min(run, len), 0};
	return 0;
}

static int map_sparse(struct img *l, uint64_t off, uint64_t len, struct img_ext *ext,
		      struct img_err *err)
{
	struct vhd *v = l->state;
	uint32_t block = (uint32_t)(off / v->block_size), run;
	uint64_t in_block = off % v->block_size, entry;
	bool set = false;

	if (vhd_block_find(l, block, &entry, err) < 0)
		return -1;
	if (!entry)
		return map_absent(l, block, in_block, len, ext, err);
	len = u64_min(len, v->block_size - in_block);
	if (vhd_bitmap_run(l, entry, (uint32_t)(in_block / SECTOR),
			   (uint32_t)((len + SECTOR - 1) / SECTOR), &run, &set, err) < 0)
		return -1;
	/* A clear bit: never written (dynamic) or the parent's (differencing); §10. */
	*ext = (struct img_ext){set ? EXT_DATA : EXT_HOLE, u64_min(len, (uint64_t)run * SECTOR),
				entry + v->bitmap_len + in_block};
	return 0;
}

static int vhd_map(struct img *l, uint64_t off, uint64_t len, struct img_ext *ext,
		   struct img_err *err)
{
	int rc;

	if (l->info.type == IMG_FIXED) {
		*ext = (struct img_ext){EXT_DATA, len, off};
		return 0;
	}
	pthread_mutex_lock(&l->mutex);
	rc = map_sparse(l, off, len, ext, err);
	pthread_mutex_unlock(&l->mutex);
	return rc;
}

/* vhd_bat_each() refuses an entry that leads out of the file or into its metadata. */
static int vhd_check(struct img *l, struct img_err *err)
{
	int rc;

	if (l->info.type == IMG_FIXED)
		return 0;
	pthread_mutex_lock(&l->mutex);
	rc = vhd_bat_each(l, NULL, NULL, err);
	pthread_mutex_unlock(&l->mutex);
	return rc;
}

const struct img_ops vhd_ops = {
	.name = "vhd",
	.probe = vhd_probe,
	.open = vhd_open,
	.close = vhd_close,
	.check = vhd_check,
	.map = vhd_map,
	.write = vhd_write,
	.trim = vhd_trim,
	.resize = vhd_resize,
	.create = vhd_create,
	.recreate = vhd_recreate,
	.settle = vhd_build_settle,
	.finish = vhd_build_finish,
	.absorb_begin = vhd_absorb_begin,
	.absorb_place = vhd_absorb_place,
	.absorb_extend = vhd_absorb_extend,
	.absorb_mark = vhd_absorb_mark,
	.absorb_publish = vhd_absorb_publish,
	.absorb_end = vhd_absorb_end,
};
