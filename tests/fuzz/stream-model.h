/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What vhd-stream(5) says about some bytes: a stream or not, and of which disk. Written from the
 * page; of the library only the names of constants and the hashes' inputs (stream_head_sum,
 * stream_sum_link) are the same.
 */
#ifndef FUZZ_STREAM_MODEL_H
#define FUZZ_STREAM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Room for a record that is larger than what a receiver writes at once, and for some more. */
enum { MODEL_DISK = 12 << 20, MODEL_MARKS = 256 };

struct model {
	bool ok, too_large; /* a disk of more than MODEL_DISK bytes: no verdict */
	const char *why;    /* what is wrong with it first */
	size_t at;	    /* … and where */
	unsigned kind, type;
	uint64_t size, base_size;
	uint8_t base_uuid[16];
	/* Of what a receiver knows besides: the base is the disk itself; its content is another
	 * one. */
	bool own_base, other_base;
	uint8_t content[16]; /* the content sum that END should have; kind 0 */
	size_t content_at;   /* where in the stream END has it; 0: nowhere */
	bool content_right;  /* … and it is that */
	/* Where a receiver can go on: behind which byte, and where END begins. */
	size_t mark[MODEL_MARKS], end_at;
	unsigned marks;
	uint8_t disk[MODEL_DISK];
};

/* The base of increments and differences, whatever its identity. */
void model_base(uint8_t *disk, uint64_t size);
/* JOINED: the rest came from a sender that went on; END may lack the content sum. */
void model_read(struct model *m, const uint8_t *p, size_t n, bool joined);

#endif
