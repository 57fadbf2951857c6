/* SPDX-License-Identifier: BSD-2-Clause */
/* What fuzz-recv.c and recv-tool.c share: a visitor of the test's own, and vhd-recv's. */
#ifndef FUZZ_RECV_H
#define FUZZ_RECV_H

#include "stream-model.h"
#include "stream_impl.h"

/* The input's first bytes; fuzz-recv.c says what they are. */
enum { HEAD = 8, MAX_STREAM = 1 << 16 };

/* The first of them. */
enum {
	DIRECT = 2,  /* large data goes past the page cache */
	TOOL = 4,    /* vhd-recv's own visitor, and all that is around it */
	ONTO = 8,    /* … which changes the base */
	VERIFY = 16, /* … and reads back what it has written */
	FAILS = 32,  /* the visitor, at a call */
};

/* The base of an increment. */
void recv_make_base(const char *path, const uint8_t uuid[16], uint64_t size);
/* The disk is there and is the model's. */
void recv_check_disk(const char *path, bool raw, const struct model *m);

/* The rest of a stream that was cut behind MARK, changed as HEAD says, and both together. */
struct rest {
	size_t len;
	uint8_t p[MAX_STREAM + 4096], joined[MAX_STREAM];
};
void recv_make_rest(struct rest *r, const struct stream_begin *begin,
		    const struct stream_mark *mark, const uint8_t *p, size_t n,
		    const uint8_t *head);
/* Bytes that come the first time, so that mark I is among them. */
size_t recv_cut(const struct model *m, unsigned i, const uint8_t *head);

/* vhd-recv takes the stream P, of which M is the model; HEAD is the input's. */
void recv_by_tool(const uint8_t *p, size_t n, const struct model *m, const uint8_t *head);

#endif
