/* SPDX-License-Identifier: BSD-2-Clause */
/* The table of formats; layers opened, created and written. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uuid.h>

#include "img_impl.h"
#include "undo.h"

const struct img_ops *const img_formats[] = {&vhd_ops, &raw_ops, NULL};

const char *img_type_name(enum img_type type)
{
	static const char *const names[] = {"raw", "fixed", "dynamic", "differencing"};

	return names[type];
}

void img_uuid_str(const uint8_t uuid[16], char out[IMG_UUID_STR])
{
	uuid_unparse_lower(uuid, out);
}

void img_uuid_new(uint8_t uuid[16])
{
	uint8_t b;

	uuid_generate_random(uuid);
	/* The version nibble stands in byte 7 where GUIDs are stored mixed-endian (§5.2). */
	b = uuid[6];
	uuid[6] = uuid[7];
	uuid[7] = b;
}

void img_warn(struct img *l, const char *fmt, ...)
{
	size_t n = strlen(l->warning);
	va_list ap;

	if (n + 2 < sizeof(l->warning) && n) {
		strncat(l->warning, "; ", sizeof(l->warning) - n - 1);
		n += 2;
	}
	va_start(ap, fmt);
	if (n < sizeof(l->warning))
		vsnprintf(l->warning + n, sizeof(l->warning) - n, fmt, ap);
	va_end(ap);
	l->info.warning = l->warning;
}

static struct img *layer_new(struct img_err *err)
{
	struct img *l = calloc(1, sizeof(*l));

	if (!l) {
		img_err_errno(err, ENOMEM, "out of memory");
		return NULL;
	}
	io_init(&l->file);
	pthread_mutex_init(&l->mutex, NULL);
	return l;
}

void img_layer_close(struct img *l)
{
	if (!l)
		return;
	if (l->ops)
		l->ops->close(l);
	io_close(&l->file);
	pthread_mutex_destroy(&l->mutex);
	free(l);
}

/* A format that is known by name only: better refused than taken as raw (vhd-format §1). */
static int refuse_vhdx(struct img *l, struct img_err *err)
{
	uint8_t buf[8];
	size_t got;

	if (io_read_upto(&l->file, buf, sizeof(buf), 0, &got, err) < 0)
		return -1;
	if (got == sizeof(buf) && memcmp(buf, "vhdxfile", sizeof(buf)) == 0)
		return img_err_set(err, IMG_DATA, "%s: a VHDX file, which is not supported",
				   l->file.path);
	return 0;
}

static int choose_format(struct img *l, enum img_raw raw, struct img_err *err)
{
	const struct img_ops *found = raw == RAW_ALWAYS ? &raw_ops : NULL;

	for (int i = 0; !found && img_formats[i]; i++) {
		int rc = img_formats[i]->probe(l, err);

		if (rc < 0)
			return -1;
		if (rc)
			found = img_formats[i];
	}
	if (!found && refuse_vhdx(l, err) < 0)
		return -1;
	if (!found && raw == RAW_MAYBE) {
		found = &raw_ops;
		img_warn(l, "no VHD footer at either end: taken as a raw disk");
	}
	if (!found)
		return img_err_set(
			err, IMG_DATA,
			"%s: no VHD footer at either end; a raw disk must be named as one",
			l->file.path);
	if (found->open(l, err) < 0)
		return -1;
	l->ops = found;
	l->info.format = found->name;
	return 0;
}

/* A change of the file that was cut short is undone before anything is read. */
static int settle(struct img *l, struct img_err *err)
{
	struct img_err e = {0};
	bool done;

	if (undo_settle(l->file.real, &done, &e) < 0)
		return img_err_set(
			err, e.code == IMG_DATA ? IMG_DATA : IMG_AGAIN,
			"%s: a change was cut short and must be undone first, by vhd-check --undo: %s",
			l->file.path, e.msg);
	if (done)
		img_warn(l, "a change that was cut short was undone");
	return 0;
}

/* Locked, and with nothing unfinished beside it. */
static int lock_settled(struct img *l, bool writable, struct img_err *err)
{
	bool pending;

	for (int i = 0; i < 2; i++) {
		if (io_lock(&l->file, writable ? IO_LOCK_EXCLUSIVE : IO_LOCK_SHARED, err) < 0 ||
		    undo_pending(l->file.real, &pending, err) < 0)
			return -1;
		if (!pending) {
			if (writable)
				undo_tidy(&l->file);
			return 0;
		}
		/* Its own descriptor takes the lock that putting back needs. */
		if (io_lock(&l->file, IO_UNLOCKED, err) < 0 || settle(l, err) < 0)
			return -1;
	}
	return img_err_set(err, IMG_AGAIN, "%s: another process is changing it", l->file.path);
}

static int look_unlocked(struct img *l, struct img_err *err)
{
	bool pending;

	if (undo_pending(l->file.real, &pending, err) < 0)
		return -1;
	if (pending)
		img_warn(l, "a change is under way, or was cut short");
	return 0;
}

int img_layer_open(struct img **out, const char *path, bool writable, bool unlocked,
		   enum img_raw raw, struct img_err *err)
{
	struct img *l = layer_new(err);
	struct stat st;

	*out = NULL;
	if (!l)
		return -1;
	if (io_open(&l->file, path, writable, err) < 0)
		goto fail;
	if ((unlocked ? look_unlocked(l, err) : lock_settled(l, writable, err)) < 0)
		goto fail;
	if (choose_format(l, raw, err) < 0 || io_size(&l->file, &l->info.file_size, err) < 0)
		goto fail;
	if (fstat(l->file.fd, &st) == 0)
		l->info.allocated = (uint64_t)st.st_blocks * 512;
	*out = l;
	return 0;
fail:
	img_layer_close(l);
	return -1;
}

/* Guest requests: sector-aligned and inside the disk. */
static int check_range(struct img_chain *c, uint64_t off, uint64_t len, struct img_err *err)
{
	uint64_t end;

	if (!u64_add(off, len, &end) || end > c->size)
		return img_err_set(err, IMG_DATA,
				   "%s: %" PRIu64 " bytes at offset %" PRIu64
				   " reach beyond the disk's end at %" PRIu64,
				   c->layer[0]->file.path, len, off, c->size);
	return 0;
}

static int check_write(struct img_chain *c, uint64_t off, uint64_t len, struct img_err *err)
{
	if (!c->layer[0]->file.writable)
		return img_err_set(err, IMG_PERM, "%s: opened for reading only",
				   c->layer[0]->file.path);
	if (c->layer[0]->ops != &raw_ops && ((off | len) & (SECTOR - 1)))
		return img_err_set(err, IMG_BUG,
				   "%s: write of %" PRIu64 " bytes at %" PRIu64
				   " is not a whole number of sectors",
				   c->layer[0]->file.path, len, off);
	return check_range(c, off, len, err);
}

int img_write(struct img_chain *c, const void *buf, uint64_t off, uint64_t len, bool fua,
	      struct img_err *err)
{
	struct img *l = c->layer[0];

	if (check_write(c, off, len, err) < 0 || l->ops->write(l, buf, off, len, err) < 0)
		return -1;
	return fua ? img_flush(c, err) : 0;
}

/* Whether no layer holds anything in the range: then zeros need not be recorded. */
static int reads_zero(struct img_chain *c, uint64_t off, uint64_t len, bool *zero,
		      struct img_err *err)
{
	struct img_run run;

	*zero = true;
	while (len && *zero) {
		if (img_map(c, off, len, c->n, &run, err) < 0)
			return -1;
		*zero = run.kind == IMG_ZERO_RUN;
		off += run.len;
		len -= run.len;
	}
	return 0;
}

int img_zero(struct img_chain *c, uint64_t off, uint64_t len, bool fua, struct img_err *err)
{
	struct img *l = c->layer[0];
	bool zero = false;

	if (check_write(c, off, len, err) < 0)
		return -1;
	/* A chain that lacks its parent (under construction) cannot know what is below. */
	if (!l->building && reads_zero(c, off, len, &zero, err) < 0)
		return -1;
	if (!zero && l->ops->write(l, NULL, off, len, err) < 0)
		return -1;
	return fua ? img_flush(c, err) : 0;
}

int img_trim(struct img_chain *c, uint64_t off, uint64_t len, struct img_err *err)
{
	if (check_write(c, off, len, err) < 0)
		return -1;
	return c->layer[0]->ops->trim(c->layer[0], off, len, err);
}

int img_flush(struct img_chain *c, struct img_err *err)
{
	return c->layer[0]->building ? 0 : io_sync(&c->layer[0]->file, err);
}

void img_writeback(struct img_chain *c)
{
	io_writeback(&c->layer[0]->file, 0, 0);
}

int img_read_run(struct img_chain *c, const struct img_run *run, void *buf, struct img_err *err)
{
	return io_read(&c->layer[run->layer]->file, buf, run->len, run->file_off, err);
}

int img_read(struct img_chain *c, void *buf, uint64_t off, uint64_t len, struct img_err *err)
{
	uint8_t *p = buf;
	struct img_run run;

	if (check_range(c, off, len, err) < 0)
		return -1;
	while (len) {
		if (img_map(c, off, len, c->n, &run, err) < 0)
			return -1;
		if (run.kind != IMG_DATA_RUN)
			memset(p, 0, run.len);
		else if (img_read_run(c, &run, p, err) < 0)
			return -1;
		p += run.len;
		off += run.len;
		len -= run.len;
	}
	return 0;
}

struct img_new {
	struct io_new file;
	struct img_chain chain;
	bool force, named, complete;
};

bool img_block_size_ok(uint32_t size)
{
	return u64_is_pow2(size) && size >= IMG_BLOCK_MIN && size <= IMG_BLOCK_MAX;
}

static int check_create(const char *path, const struct img_create *o, struct img_err *err)
{
	if (o->type == IMG_RAW)
		return 0;
	if (o->size == 0 || o->size % SECTOR)
		return img_err_set(err, IMG_USAGE,
				   "%s: a VHD's size must be a multiple of 512, not %" PRIu64, path,
				   o->size);
	if (o->size > IMG_VHD_MAX_SIZE)
		return img_err_set(err, IMG_USAGE,
				   "%s: %" PRIu64 " bytes: a VHD holds at most 2040 GiB (%llu)",
				   path, o->size, IMG_VHD_MAX_SIZE);
	if (o->block_size && !img_block_size_ok(o->block_size))
		return img_err_set(err, IMG_USAGE,
				   "%s: the block size must be a power of two from 4K to 256M",
				   path);
	if (o->creator && strlen(o->creator) > 4)
		return img_err_set(err, IMG_USAGE, "%s: a creator code has at most four letters",
				   path);
	return 0;
}

/* A file that somebody uses is not replaced: its user would go on with the old one. F is locked. */
static int lock_old(const char *path, struct io_file *f, struct img_err *err)
{
	struct stat st;

	io_init(f);
	if (stat(path, &st) < 0)
		return 0;
	if (!S_ISREG(st.st_mode))
		return img_err_set(err, IMG_CANTCREAT,
				   "%s: exists and is no regular file; not replaced", path);
	return io_open(f, path, false, err) < 0 ? -1 : io_lock(f, IO_LOCK_EXCLUSIVE, err);
}

static int check_unused(const char *path, struct img_err *err)
{
	struct io_file f;
	int rc = lock_old(path, &f, err);

	io_close(&f);
	return rc;
}

int img_create_check(const char *path, const struct img_create *opts, struct img_err *err)
{
	if (check_create(path, opts, err) < 0 || (opts->force && check_unused(path, err) < 0))
		return -1;
	return img_marker_check_new(path, err);
}

static int create_file(struct io_new *n, struct io_file *f, const char *path,
		       const struct img_create *opts, bool reopen, struct img_err *err)
{
	return opts->partial ? io_create_as(n, f, path, opts->partial, reopen, err)
			     : io_create(n, f, path, opts->force, err);
}

static int new_begin(struct img_new **out, const char *path, const struct img_create *opts,
		     bool reopen, struct img_err *err)
{
	struct img_new *n;
	struct img *l;

	*out = NULL;
	if (img_create_check(path, opts, err) < 0)
		return -1;
	n = calloc(1, sizeof(*n));
	l = layer_new(err);
	if (!n)
		img_err_errno(err, ENOMEM, "%s", path);
	if (!n || !l || create_file(&n->file, &l->file, path, opts, reopen, err) < 0) {
		free(n);
		img_layer_close(l);
		return -1;
	}
	if (opts->direct)
		io_direct(&l->file);
	n->force = opts->force;
	n->named = opts->partial;
	n->chain.layer[0] = l;
	n->chain.n = 1;
	n->chain.size = opts->size;
	l->building = true;
	l->ops = opts->type == IMG_RAW ? &raw_ops : &vhd_ops;
	l->info.format = l->ops->name;
	*out = n;
	return 0;
}

int img_create_begin(struct img_new **out, const char *path, const struct img_create *opts,
		     struct img_err *err)
{
	struct img *l;

	if (new_begin(out, path, opts, false, err) < 0)
		return -1;
	l = (*out)->chain.layer[0];
	if (l->ops->create(l, opts, err) == 0)
		return 0;
	img_create_abort(*out);
	*out = NULL;
	return -1;
}

int img_forget_from(struct img *l, uint64_t off, struct img_err *err)
{
	uint64_t size;

	if (io_size(&l->file, &size, err) < 0)
		return -1;
	if (size < off)
		return img_err_set(err, IMG_DATA,
				   "%s: %" PRIu64 " bytes were written, %" PRIu64 " are there",
				   l->file.path, off, size);
	return io_truncate(&l->file, off, err);
}

int img_create_resume(struct img_new **out, const char *path, const struct img_create *opts,
		      uint64_t off, uint64_t end, struct img_err *err)
{
	struct img *l;

	if (new_begin(out, path, opts, true, err) < 0)
		return -1;
	l = (*out)->chain.layer[0];
	if (l->ops->recreate(l, opts, off, end, err) == 0)
		return 0;
	img_create_keep(*out);
	*out = NULL;
	return -1;
}

struct img_chain *img_new_chain(struct img_new *n)
{
	return &n->chain;
}

/* The mode that a file has which was not secret while it grew. */
static int open_up(struct io_file *f, struct img_err *err)
{
	mode_t mask = umask(0);

	umask(mask);
	if (fchmod(f->fd, 0666 & ~mask) < 0)
		return img_err_errno(err, errno, "%s: cannot set the mode", f->path);
	return 0;
}

int img_create_complete(struct img_new *n, struct img_err *err)
{
	if (!n->complete && n->chain.layer[0]->ops->finish(n->chain.layer[0], err) < 0)
		return -1;
	n->complete = true;
	return 0;
}

/* What was there when it was begun may have changed. Until it is replaced nobody else gets it. */
static int publish(struct img_new *n, struct img_err *err)
{
	struct io_file old;
	int rc = 0;

	io_init(&old);
	if (n->force && (lock_old(n->file.final, &old, err) < 0 ||
			 img_marker_check_new(n->file.final, err) < 0))
		rc = -1;
	/* Those of the file that is replaced. */
	if (rc == 0 && n->force)
		img_sums_remove(n->file.final);
	if (rc == 0)
		rc = io_publish(&n->file, n->force, err);
	io_close(&old);
	return rc;
}

int img_create_finish(struct img_new *n, struct img_err *err)
{
	struct img *l = n->chain.layer[0];
	int rc = img_create_complete(n, err);

	if (rc == 0 && n->named)
		rc = open_up(&l->file, err);
	if (rc == 0)
		rc = publish(n, err);
	if (n->named)
		img_create_keep(n);
	else
		img_create_abort(n);
	return rc;
}

int img_create_settle(struct img_new *n, uint64_t *end, struct img_err *err)
{
	return n->chain.layer[0]->ops->settle(n->chain.layer[0], end, err);
}

int img_create_sync(struct img_new *n, struct img_err *err)
{
	return io_sync(&n->chain.layer[0]->file, err);
}

void img_create_keep(struct img_new *n)
{
	if (n)
		io_keep(&n->file);
	img_create_abort(n);
}

void img_create_abort(struct img_new *n)
{
	if (!n)
		return;
	io_discard(&n->file);
	img_layer_close(n->chain.layer[0]);
	free(n);
}

int img_create(const char *path, const struct img_create *opts, struct img_err *err)
{
	struct img_new *n;

	if (img_create_begin(&n, path, opts, err) < 0)
		return -1;
	return img_create_finish(n, err);
}
