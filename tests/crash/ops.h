/* SPDX-License-Identifier: BSD-2-Clause */
/* An operation under test: how a folder for it is made, what it does there, what must hold
 * afterwards. */
#ifndef CRASH_OPS_H
#define CRASH_OPS_H

#include "disks.h"
#include "fs.h"
#include "img.h"
#include "record.h"

struct world {
	const char *dir, *pool; /* the folder, resolved, and its files (fs_store) */
	struct rng rng;		/* of this scenario: images and operation follow from its seed */
	struct fs base;		/* what the folder holds before */
	uint64_t size;
	uint8_t *old, *view, *buf; /* SIZE bytes each */
	const char *aside[1];	   /* a second folder, where parents may lie; NULL: there is none */
	bool big;		   /* large blocks: fewer states */
	bool wide;		   /* many small blocks: a BAT of several sectors */
	unsigned runs;		   /* so far: what is written differs every time */
	bool unsure;		   /* kept sums whose removal failed earlier may be back */
	void *op;		   /* the operation's own; freed with free() */
	char why[3000];		   /* what does not hold */
};

struct when {
	bool done;    /* the operation has succeeded and all of it is there */
	bool power;   /* what was not synced may be lost; else only the process died */
	unsigned pos; /* so many events of the recording have been */
	const struct tape *tape;
};

struct op {
	const char *name;
	bool positional; /* check() looks at WHEN's position */
	void (*build)(struct world *w);
	/* What check() has to know of a recording; freed with free(). May be NULL. */
	void *(*begin)(struct world *w);
	/* AGAIN: the one before did not finish, or is not known to have. */
	int (*run)(struct world *w, void *ctx, bool again, struct img_err *err);
	bool (*check)(struct world *w, void *ctx, const struct when *when);
};

extern const struct op op_merge, op_flatten, op_resize, op_reparent, op_repair, op_snap, op_create,
	op_fill, op_guest, op_recv, op_onto, op_drop;

/* How disks of this scenario are opened. */
struct img_open open_as(const struct world *w);
/* Path of NAME in the folder; one of a few static buffers. */
const char *in_dir(const struct world *w, const char *name);
/* Sets WHY; returns false. */
bool wrong(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void *need(size_t size); /* calloc */
/* PATH opens and shows WANT. */
bool shows(struct world *w, const char *name, const uint8_t *want, uint64_t size);
/* vhd-check finds nothing in NAME, a VHD; unless DONE, nothing but what --repair or the next run
 * mends. */
bool sound(struct world *w, const char *name, bool done);
void ignore_fault(void *ctx, const struct img_fault *f);
bool opens(struct world *w, const char *name);
bool exists(struct world *w, const char *name);
/* What NAME shows, at most W->size bytes, to W->buf; what is behind its end is cleared. *SIZE is
 * its own. */
int look(struct world *w, const char *name, const struct img_open *o, uint64_t *size,
	 struct img_err *err);
/* Allocates old, view and buf. */
void world_size(struct world *w, uint64_t size);
void random_uuid(uint8_t uuid[16], struct rng *r);
/* A block size, and a disk size of some such blocks, the last one cut. */
uint32_t random_block_size(struct world *w);
uint64_t random_size(struct world *w, uint32_t block_size);

#endif
