/* SPDX-License-Identifier: BSD-2-Clause */
/* Raw disks: the file's bytes are the disk's. No identity, no parent. */
#include "img_impl.h"

/* Nothing can be told from the bytes: a raw disk is one because somebody says so. */
static int raw_probe(struct img *l, struct img_err *err)
{
	(void)l, (void)err;
	return 0;
}

static int raw_open(struct img *l, struct img_err *err)
{
	if (io_size(&l->file, &l->info.size, err) < 0)
		return -1;
	l->info.type = IMG_RAW;
	return 0;
}

static void raw_close(struct img *l)
{
	(void)l;
}

static int raw_check(struct img *l, struct img_err *err)
{
	(void)l, (void)err;
	return 0;
}

static int raw_map(struct img *l, uint64_t off, uint64_t len, struct img_ext *ext,
		   struct img_err *err)
{
	(void)l, (void)err;
	*ext = (struct img_ext){EXT_DATA, len, off};
	return 0;
}

static int raw_write(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len,
		     struct img_err *err)
{
	return buf ? io_write(&l->file, buf, len, off, err) : io_zero(&l->file, off, len, err);
}

static int raw_trim(struct img *l, uint64_t off, uint64_t len, struct img_err *err)
{
	return io_punch(&l->file, off, len, err);
}

static int raw_resize(struct img *l, uint64_t size, struct img_err *err)
{
	if (io_truncate(&l->file, size, err) < 0 || io_sync(&l->file, err) < 0)
		return -1;
	l->info.size = l->info.file_size = size;
	return 0;
}

static int raw_create(struct img *l, const struct img_create *opts, struct img_err *err)
{
	l->info.type = IMG_RAW;
	l->info.size = opts->size;
	return io_truncate(&l->file, opts->size, err);
}

static int raw_recreate(struct img *l, const struct img_create *opts, uint64_t off, uint64_t end,
			struct img_err *err)
{
	(void)end;
	l->info.type = IMG_RAW;
	l->info.size = opts->size;
	return img_forget_from(l, off, err) < 0 ? -1 : io_truncate(&l->file, opts->size, err);
}

static int raw_settle(struct img *l, uint64_t *end, struct img_err *err)
{
	(void)err;
	if (end)
		*end = l->info.size;
	return 0;
}

static int raw_finish(struct img *l, struct img_err *err)
{
	(void)l, (void)err;
	return 0;
}

static int raw_absorb_begin(struct img *l, uint64_t size, struct img_err *err)
{
	(void)l, (void)size, (void)err;
	return 0;
}

static int raw_absorb_place(struct img *l, uint64_t off, uint64_t len, uint64_t *file_off,
			    uint64_t *placed, struct img_err *err)
{
	(void)l, (void)err;
	*file_off = off;
	*placed = len;
	return 0;
}

static int raw_absorb_extend(struct img *l, struct img_merge_stats *stats, bool dry_run,
			     struct img_err *err)
{
	(void)l, (void)stats, (void)dry_run, (void)err;
	return 0;
}

static int raw_absorb_mark(struct img *l, uint64_t off, uint64_t len, struct img_err *err)
{
	(void)l, (void)off, (void)len, (void)err;
	return 0;
}

static int raw_absorb_publish(struct img *l, struct img_err *err)
{
	(void)l, (void)err;
	return 0;
}

static void raw_absorb_end(struct img *l)
{
	(void)l;
}

const struct img_ops raw_ops = {
	.name = "raw",
	.probe = raw_probe,
	.open = raw_open,
	.close = raw_close,
	.check = raw_check,
	.map = raw_map,
	.write = raw_write,
	.trim = raw_trim,
	.resize = raw_resize,
	.create = raw_create,
	.recreate = raw_recreate,
	.settle = raw_settle,
	.finish = raw_finish,
	.absorb_begin = raw_absorb_begin,
	.absorb_place = raw_absorb_place,
	.absorb_extend = raw_absorb_extend,
	.absorb_mark = raw_absorb_mark,
	.absorb_publish = raw_absorb_publish,
	.absorb_end = raw_absorb_end,
};
