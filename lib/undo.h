/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Old bytes, saved durably beside a file before they are overwritten.
 *
 * A change to bytes that have no second copy goes so: undo_store() with every range that will
 * change, the writes, io_sync(), undo_finish(). From the first to the last FILE.rollback is there,
 * whole, and whoever opens the file after a crash in between gets the old state back
 * (img_layer_open() calls undo_settle()). So a change needs no order of its own, and no re-run
 * can meet a half-done one.
 *
 * The lock is the caller's: exclusive for all but undo_pending() and undo_settle().
 */
#ifndef UNDO_H
#define UNDO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io.h"

enum undo_kind {
	UNDO_ROLLBACK = 1, /* forgotten by undo_finish() */
	UNDO_KEEP,	   /* kept as FILE.undo (.2, .3 … if there is one) for undo_revert() */
};

struct undo_range {
	uint64_t off, len; /* what lies beyond the end of the file needs no saving */
};

/*
 * Saves the ranges and the length of F. Refused (IMG_AGAIN) while an earlier change is
 * unfinished. A change that only makes the file longer needs no range, but needs this as well.
 */
int undo_store(struct io_file *f, enum undo_kind kind, const struct undo_range *r, size_t n,
	       struct img_err *err);
/* The change is on disk. */
int undo_finish(struct io_file *f, struct img_err *err);

/* Whether the file REAL has a change that was not finished. */
int undo_pending(const char *real, bool *yes, struct img_err *err);
/* Puts the old bytes and length of an unfinished change back, durably; nothing to do is fine. */
int undo_apply(struct io_file *f, struct img_err *err);
/*
 * The same for the newest FILE.undo, which is used up by it. Refused when the file has been
 * changed since, or is not the one that was saved, unless FORCE.
 */
int undo_revert(struct io_file *f, bool force, struct img_err *err);
/* The name of the newest FILE.undo, or "". */
int undo_newest(const char *real, char *name, size_t size, struct img_err *err);
/* What a change that has ended left lying goes, if it can: nobody would use it. */
void undo_tidy(struct io_file *f);
/* Takes a lock of its own on the file REAL and puts back what is unfinished; *DONE: it was. */
int undo_settle(const char *real, bool *done, struct img_err *err);

#endif
