/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Proof that what was received is what the disk gives back: read with cold caches, and compared by
 * the sums that were made of the stream as it came.
 */
#ifndef READBACK_H
#define READBACK_H

#include "cli.h"
#include "stream.h"

/*
 * Opens PATH, and its parents if it has some, as a new reader would, and compares what PATH itself
 * holds: *SAME. That it cannot be read is an error.
 */
int readback_compare(const char *path, const struct img_open *opts,
		     const struct stream_begin *begin, const struct stream_totals *totals,
		     struct cli_progress *progress, bool *same, struct img_err *err);

/* The same of what was just written: a difference is IMG_IO. */
int readback_check(const char *path, const struct img_open *opts, const struct stream_begin *begin,
		   const struct stream_totals *totals, struct cli_progress *progress,
		   struct img_err *err);

/*
 * PATH, a difference, is together with its base the disk that was sent (IMG_DATA: it is not). What
 * is known of the base is not read.
 */
int readback_difference(const char *path, const struct img_open *opts,
			const struct stream_totals *totals, struct cli_progress *progress,
			struct img_err *err);

/*
 * What PATH holds is durable, and read from the disk by whoever comes next. Where caches cannot be
 * dropped a check is only the weaker one.
 */
int readback_sync(const char *path, struct img_err *err);

#endif
