/* SPDX-License-Identifier: BSD-2-Clause */
/* What all operations under test need. */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "ops.h"

void *need(size_t size)
{
	void *p = calloc(1, size ? size : 1);

	if (!p)
		die("out of memory");
	return p;
}

const char *in_dir(const struct world *w, const char *name)
{
	static char path[4][2 * FS_PATH];
	static unsigned turn;
	char *p = path[turn++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", w->dir, name);
	return p;
}

struct img_open open_as(const struct world *w)
{
	return (struct img_open){.parent_dirs = w->aside, .nparent_dirs = w->aside[0] != NULL};
}

bool wrong(struct world *w, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(w->why, sizeof(w->why), fmt, ap);
	va_end(ap);
	return false;
}

bool shows(struct world *w, const char *name, const uint8_t *want, uint64_t size)
{
	struct img_open o = open_as(w);
	struct img_err err = {0};
	int64_t sec;

	if (disk_read(in_dir(w, name), &o, w->buf, size, &err) < 0)
		return wrong(w, "%s: %s", name, err.msg);
	sec = disk_differs(w->buf, want, size);
	return sec < 0 ||
	       wrong(w, "%s shows something else in sector %lld: %016llx, wanted %016llx", name,
		     (long long)sec, (unsigned long long)be64_get(w->buf + sec * SECTOR),
		     (unsigned long long)be64_get(want + sec * SECTOR));
}

struct faults {
	bool done;
	char list[1500];
};

/*
 * What waits for another run is no damage. A batmap that claims too much must not be at any time:
 * others believe it.
 */
static void note_fault(void *ctx, const struct img_fault *f)
{
	struct faults *x = ctx;
	size_t n = strlen(x->list);

	if (f->severity == IMG_ERROR && (x->done || strcmp(f->id, "batmap-false-full") == 0 ||
					 (!f->mendable && strcmp(f->id, "merge-unfinished") != 0 &&
					  strcmp(f->id, "rollback-pending") != 0)))
		snprintf(x->list + n, sizeof(x->list) - n, " %s at %llu (%s; wanted %s)", f->id,
			 (unsigned long long)f->offset, f->found, f->expected);
}

void ignore_fault(void *ctx, const struct img_fault *f)
{
	(void)ctx, (void)f;
}

bool sound(struct world *w, const char *name, bool done)
{
	struct faults x = {.done = done};
	struct img_check o = {.open = open_as(w), .fault = note_fault, .ctx = &x};
	struct img_check_result res;
	struct img_err err = {0};

	if (img_check(in_dir(w, name), &o, &res, &err) < 0)
		return wrong(w, "%s cannot be checked: %s", name, err.msg);
	return !x.list[0] || wrong(w, "%s is damaged:%s", name, x.list);
}

int look(struct world *w, const char *name, const struct img_open *o, uint64_t *size,
	 struct img_err *err)
{
	struct img_chain *c;
	int rc;

	memset(w->buf, 0, w->size);
	if (img_open(&c, in_dir(w, name), o, err) < 0)
		return -1;
	*size = img_size(c);
	rc = img_read(c, w->buf, 0, u64_min(*size, w->size), err);
	img_close(c);
	return rc;
}

bool opens(struct world *w, const char *name)
{
	struct img_open o = open_as(w);
	struct img_chain *c;

	if (img_open(&c, in_dir(w, name), &o, NULL) < 0)
		return false;
	img_close(c);
	return true;
}

bool exists(struct world *w, const char *name)
{
	struct stat st;

	return lstat(in_dir(w, name), &st) == 0;
}

void world_size(struct world *w, uint64_t size)
{
	w->size = size;
	w->old = need(size);
	w->view = need(size);
	w->buf = need(size);
}

void random_uuid(uint8_t uuid[16], struct rng *r)
{
	be64_put(uuid, rng_next(r));
	be64_put(uuid + 8, rng_next(r));
}

uint32_t random_block_size(struct world *w)
{
	static const uint32_t small[] = {4096, 4096, 4096, 8192, 16384, 65536};
	static const uint32_t big[] = {512 << 10, 1 << 20, 2 << 20};

	/* One size for all layers most of the time, and then the large ones. */
	if (w->big || (!w->size && rng_one_in(&w->rng, 20))) {
		w->big = true;
		return big[rng_below(&w->rng, 3)];
	}
	if (w->wide || (!w->size && rng_one_in(&w->rng, 12))) {
		w->wide = true;
		return 4096;
	}
	return small[rng_below(&w->rng, 6)];
}

uint64_t random_size(struct world *w, uint32_t block_size)
{
	uint64_t most = w->big ? 3 : w->wide ? 150 : 65536 / block_size + 3;
	uint64_t size = (1 + rng_below(&w->rng, (unsigned)most)) * (uint64_t)block_size;

	if (rng_one_in(&w->rng, 2))
		size -= rng_below(&w->rng, block_size / SECTOR) * SECTOR;
	return size;
}
