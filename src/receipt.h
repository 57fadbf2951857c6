/* SPDX-License-Identifier: BSD-2-Clause */
/* The receipt of a transfer: what both ends say, in JSON, so that a script can compare it. */
#ifndef RECEIPT_H
#define RECEIPT_H

#include "cli.h"
#include "stream.h"

struct receipt {
	const char *file;    /* as named by the user */
	const char *parent;  /* of an increment; NULL: none */
	const uint8_t *uuid; /* NULL: the disk has none */
	const struct stream_begin *begin;
	const struct stream_totals *totals;
	bool verified; /* read back and compared */
};

/* One line, malloc'd; NULL without memory. */
char *receipt_json(const struct receipt *r);

/* Before the work: may PATH be written? What holds something is not overwritten without FORCE. */
int receipt_check(const char *path, bool force, struct img_err *err);

/* Durable under its name at once; a FIFO, a device or what a link leads to is written to. */
int receipt_store(const char *path, const char *text, bool force, struct img_err *err);

#endif
