/* SPDX-License-Identifier: BSD-2-Clause */
/* New VHD files: the layout of Windows (vhd-format §11, §22). */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vhd.h"

#define PAGE 4096u
#define HEADER_OFF VHD_FOOTER_LEN

static void fill_footer(struct vhd_footer *f, const struct img_create *o)
{
	time_t now = time(NULL);

	*f = (struct vhd_footer){
		.features = 2,
		.version = 0x00010000,
		.data_off = o->type == IMG_FIXED ? ~0ull : HEADER_OFF,
		.timestamp = now > VHD_EPOCH ? (uint32_t)(now - VHD_EPOCH) : 0,
		.creator_version = 0x000a0000,
		.original_size = o->parent_size ? o->parent_size : o->size,
		.size = o->size,
		.type = o->type == IMG_FIXED	 ? VHD_FIXED
			: o->type == IMG_DYNAMIC ? VHD_DYNAMIC
						 : VHD_DIFFERENCING,
	};
	memcpy(f->creator_os, "Wi2k", 4);
	memset(f->creator, ' ', 4);
	const char *creator = o->creator ? o->creator : "win ";

	memcpy(f->creator, creator, strnlen(creator, 4));
	vhd_geometry(o->size, &f->cylinders, &f->heads, &f->sectors);
	if (o->uuid)
		memcpy(f->uuid, o->uuid, 16);
	else
		img_uuid_new(f->uuid);
}

/* Locator data behind the BAT; *END is moved behind it. */
static int write_locators(struct img *l, const struct img_create *o, uint64_t *end,
			  struct img_err *err)
{
	struct vhd *v = l->state;
	uint8_t *text[2] = {NULL, NULL};
	size_t len[2] = {0, 0};
	static const uint32_t codes[2] = {VHD_W2RU, VHD_W2KU};
	int rc;

	memcpy(v->header.parent_uuid, o->parent_uuid, 16);
	v->header.parent_timestamp = o->parent_timestamp;
	rc = vhd_parent_names(l->file.path, o->parent_path, &text[0], &len[0], &text[1], &len[1],
			      v->header.parent_name, err);
	for (int i = 0; rc == 0 && i < 2; i++) {
		struct vhd_locator *loc = &v->header.loc[i];

		*loc = (struct vhd_locator){codes[i], (uint32_t)u64_round_up(len[i], SECTOR),
					    (uint32_t)len[i], *end};
		rc = io_write(&l->file, text[i], len[i], *end, err);
		*end += loc->space;
	}
	free(text[0]);
	free(text[1]);
	return rc;
}

static int write_bat(struct img *l, struct img_err *err)
{
	struct vhd *v = l->state;
	uint64_t len = u64_round_up((uint64_t)v->blocks * 4, SECTOR);
	uint8_t buf[16 * SECTOR];

	memset(buf, 0xff, sizeof(buf));
	for (uint64_t done = 0; done < len;) {
		size_t n = (size_t)u64_min(len - done, sizeof(buf));

		if (io_write(&l->file, buf, n, v->header.bat_off + done, err) < 0)
			return -1;
		done += n;
	}
	return 0;
}

static int create_sparse(struct img *l, const struct img_create *o, struct img_err *err)
{
	struct vhd *v = l->state;
	uint8_t header[VHD_HEADER_LEN];
	uint64_t end;

	v->block_size = o->block_size ? o->block_size : 2u << 20;
	v->bitmap_len = vhd_bitmap_len(v->block_size);
	v->blocks = (uint32_t)((o->size + v->block_size - 1) / v->block_size);
	v->header.version = 0x00010000;
	v->header.entries = v->blocks;
	v->header.block_size = v->block_size;
	v->header.bat_off = HEADER_OFF + VHD_HEADER_LEN;
	end = v->header.bat_off + u64_round_up((uint64_t)v->blocks * 4, SECTOR);
	if (o->type == IMG_DIFFERENCING && write_locators(l, o, &end, err) < 0)
		return -1;
	/* BAT padding and locators together fill whole pages. The end footer comes last. */
	v->end = u64_round_up(end, SECTOR);
	vhd_header_encode(&v->header, header);
	if (io_write(&l->file, v->footer_raw, VHD_FOOTER_LEN, 0, err) < 0 ||
	    io_write(&l->file, header, sizeof(header), HEADER_OFF, err) < 0 ||
	    write_bat(l, err) < 0)
		return -1;
	return vhd_build_begin(l, err);
}

static void fill_info(struct img *l, const struct vhd *v, const struct img_create *o)
{
	l->info.type = o->type;
	l->info.size = o->size;
	l->info.has_uuid = true;
	memcpy(l->info.uuid, v->footer.uuid, 16);
}

int vhd_create(struct img *l, const struct img_create *o, struct img_err *err)
{
	struct vhd *v = calloc(1, sizeof(*v));

	if (!v)
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	l->state = v;
	fill_footer(&v->footer, o);
	vhd_footer_encode(&v->footer, v->footer_raw);
	fill_info(l, v, o);
	if (o->type != IMG_FIXED)
		return create_sparse(l, o, err);
	v->footer_off = o->size;
	return io_write(&l->file, v->footer_raw, VHD_FOOTER_LEN, o->size, err);
}

/* Is the file, so far, the one that these options make? Fills in what vhd_create() would. */
static int reopen_sparse(struct img *l, const struct img_create *o, struct img_err *err)
{
	struct vhd *v = l->state;
	uint8_t header[VHD_HEADER_LEN];

	if (io_read(&l->file, header, sizeof(header), HEADER_OFF, err) < 0)
		return -1;
	if (vhd_header_decode(header, &v->header) != VHD_OK ||
	    v->header.block_size != (o->block_size ? o->block_size : 2u << 20) ||
	    v->header.bat_off != HEADER_OFF + VHD_HEADER_LEN ||
	    v->header.entries != (o->size + v->header.block_size - 1) / v->header.block_size)
		return img_err_set(err, IMG_DATA, "%s: the header is not the one that was begun",
				   l->file.path);
	v->block_size = v->header.block_size;
	v->bitmap_len = vhd_bitmap_len(v->block_size);
	v->blocks = v->header.entries;
	return vhd_build_begin(l, err);
}

/*
 * What came later goes with the end of the file, and the footer with it. So it is made anew: it may
 * not be there, if the run that was to do this died in between.
 */
static int recreate_fixed(struct img *l, const struct img_create *o, uint64_t off,
			  struct img_err *err)
{
	struct vhd *v = l->state;

	fill_footer(&v->footer, o);
	vhd_footer_encode(&v->footer, v->footer_raw);
	fill_info(l, v, o);
	v->footer_off = o->size;
	if (img_forget_from(l, off, err) < 0)
		return -1;
	return io_write(&l->file, v->footer_raw, VHD_FOOTER_LEN, o->size, err);
}

int vhd_recreate(struct img *l, const struct img_create *o, uint64_t off, uint64_t end,
		 struct img_err *err)
{
	struct vhd *v = calloc(1, sizeof(*v));

	if (!v)
		return img_err_errno(err, ENOMEM, "%s", l->file.path);
	l->state = v;
	if (o->type == IMG_FIXED)
		return recreate_fixed(l, o, off, err);
	if (io_read(&l->file, v->footer_raw, VHD_FOOTER_LEN, 0, err) < 0)
		return -1;
	if (vhd_footer_decode(v->footer_raw, &v->footer) != VHD_OK || v->footer.size != o->size ||
	    memcmp(v->footer.uuid, o->uuid, 16) != 0)
		return img_err_set(err, IMG_DATA, "%s: the footer is not the one that was begun",
				   l->file.path);
	fill_info(l, v, o);
	return reopen_sparse(l, o, err) < 0 ? -1 : vhd_build_resume(l, off, end, err);
}
