/* SPDX-License-Identifier: BSD-2-Clause */
/* A merge under way: what its parts (merge*.c) share. */
#ifndef MERGE_H
#define MERGE_H

#include "img_impl.h"

/* Paths of disks. */
struct merge_paths {
	char **path;
	size_t n;
};

struct merge {
	struct img_chain *c;
	struct img *leaf, *target;
	unsigned to; /* the target's layer */
	bool begun;  /* by a run that was cut short */
	bool merged; /* all of it is in the target; files may be left to be removed */
	char *kept;  /* a disk that was merged into the target before, and is still there */
	const struct img_merge *opts;
	struct img_merge_stats *stats;
	struct merge_paths grand; /* children of the leaf that get the target as parent */
	/* Every reason why it cannot be done, a line each. */
	char blockers[1800];
	int blocked; /* the code of the first one */
	struct compare *compare;
	/* Copying. */
	uint8_t *buf;
	uint64_t done, unwritten, first_unwritten;
};

/*
 * One walk over what the layers above the target have: the same runs in the same order every
 * time.
 */
typedef int merge_run(struct merge *m, const struct img_run *r, struct img_err *err);
int merge_walk(struct merge *m, merge_run *run, struct img_err *err);

/* merge_plan.c: places, sizes, blockers; changes nothing. */
int merge_plan(struct merge *m, struct img_err *err);
/* Where everything goes in the target, at its present size. */
int merge_place(struct merge *m, struct img_err *err);

/* A reason why it must not be done. */
void merge_block(struct merge *m, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * merge_again.c: MARKER, beside the target, says that a layer was merged into it. Sets m->merged,
 * or blocks where old data would come back.
 */
int merge_again(struct merge *m, const struct img_marker *marker, struct img_err *err);

/* merge_clean.c: the target is whole; markers and files that are not needed any more go. */
int merge_clean(struct merge *m, struct img_err *err);

int merge_paths_add(struct merge_paths *p, const char *path, struct img_err *err);
void merge_paths_free(struct merge_paths *p);

#endif
