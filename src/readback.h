/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Proof that what was written is what the disk gives back: a digest of everything that was
 * received, and the same of the finished file, read with cold caches.
 */
#ifndef READBACK_H
#define READBACK_H

#include "cli.h"

struct readback;
struct readback *readback_new(uint64_t size, struct img_err *err);
void readback_free(struct readback *r);
/* Ascending; BUF is NULL for zeros. */
void readback_add(struct readback *r, const void *buf, uint64_t off, uint64_t len);
/*
 * Opens PATH, and its parents if it has some, as a new reader would, and compares what PATH itself
 * holds. A difference is IMG_IO.
 */
int readback_check(struct readback *r, const char *path, const struct img_open *opts,
		   struct cli_progress *progress, struct img_err *err);

#endif
