/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What vhd-recv does, apart from its command line: a stream becomes a disk, whole or not at all.
 * recv.c takes the stream, recv_base.c looks whether it fits what is here, recv_there.c whether it
 * is what is there already, recv_onto.c changes the disk that is there, recv_manage.c tells or
 * drops what is kept.
 */
#ifndef RECV_H
#define RECV_H

#include "cli.h"
#include "partial.h"
#include "stream.h"

enum { TYPE_KEEP = -1 };

enum verb { RECEIVE, TOKEN, STATUS, ABORT };

struct recv {
	/* what is wished */
	struct cli_common common;
	enum verb verb;
	bool json;
	const char *file, *parent, *receipt;
	bool onto, verify_base, base_changed, new_uuid, verify, force;
	int type;  /* enum img_type or TYPE_KEEP */
	int in;	   /* where the stream comes from */
	FILE *out; /* where the receipt, a token or the status goes */
	bool show;
	/* what is there, and what comes */
	const char *path; /* what is made: FILE, or with --onto a child of it */
	struct img_chain *base;
	struct stream_begin begin;
	struct stream_totals totals;
	struct img_create create;
	uint8_t uuid[16], base_uuid[16], base_id[IMG_SUM_BYTES];
	bool base_has_uuid;
	char *child; /* --onto */
	struct img_new *new;
	struct partial *partial;
	bool published; /* by an earlier run, which did not come to its end */
	bool exists;	/* FILE is there: is it what comes? */
	bool verified;	/* it was read back */
	struct img_chain *there;
	uint8_t *there_buf;
	bool worthless; /* what is there is not to be gone on with */
	bool kept;	/* it is */
	struct cli_progress progress;
	uint64_t done, unwritten; /* bytes; since the last hint to the disk */
};

/* A stream; what came of it stays for the next run where that can go on, or goes. */
int recv_stream(struct recv *r, struct img_err *err);
/* The other verbs. */
int recv_manage(struct recv *r, struct img_err *err);
/* Closes everything. */
void recv_end(struct recv *r);

/* The parent of what is made was named by the user: it may lie where it does. D.own is malloc'd. */
struct recv_dirs {
	const char *dir[64 + 1];
	char *own;
};
int recv_parent_in(const struct recv *r, const char *parent, struct img_open *opts,
		   struct recv_dirs *d, struct img_err *err);

/* recv_base.c: may the stream that BEGIN tells of become the disk that was asked for? Fills what
 * the image is created with. */
int recv_fits(struct recv *r, struct img_err *err);

/* The content of PARENT is what the stream says, or nobody knows: all is read that is not known. */
int recv_compare_base(struct recv *r, struct img_err *err);

/* recv_there.c: FILE is there, and perhaps what comes. BEGIN fits what is here. */
int recv_there_begin(struct recv *r, struct img_err *err);
/* It holds this; BUF is NULL for zeros. */
int recv_there_data(struct recv *r, uint64_t off, const uint8_t *buf, uint64_t len,
		    struct img_err *err);
/* It holds this and no more, durably. */
int recv_there_end(struct recv *r, struct img_err *err);
int recv_exists(const struct recv *r, struct img_err *err);

/* recv_onto.c: nobody else opens FILE from now on. */
int recv_close_file(struct recv *r, struct img_err *err);
/* The child is whole; it becomes a part of FILE, and goes. */
int recv_apply(struct recv *r, struct img_err *err);

#endif
