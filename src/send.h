/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What vhd-send does, apart from its command line: a disk, or a part of it, becomes a stream.
 * send.c walks through the disk, or against.h's sums beside it (send_against.c); send_begin.c says
 * what the stream is of, send_resume.c proves that it may go on, send_report.c tells what was sent
 * or would be.
 */
#ifndef SEND_H
#define SEND_H

#include "against.h"
#include "cli.h"
#include "stream.h"

enum dry_run { DRY_NO, DRY_EXACT, DRY_MAP };

struct send {
	/* what is wished */
	struct cli_common common;
	const char *disk, *from, *sums, *receipt;
	bool verify_base, json, force;
	enum dry_run dry;
	int level; /* of compression; 0: none */
	uint64_t rate;
	const char *rate_file;
	const char *resume; /* a token; NULL: from the start */
	struct stream_pipe to;
	/* what is there */
	struct img_chain *chain;
	unsigned base; /* the first layer that is not sent */
	struct against *against;
	struct stream_begin begin;
	struct stream_token token;
	struct img_sum *content; /* of what lies before the token, as far as it is known */
	/* what is sent */
	struct stream_writer *writer; /* NULL: planning, nothing is read */
	struct stream_totals totals;
	struct cli_progress progress;
	struct img_sums *kept; /* of what is read */
	uint64_t done;
	/* data that is contiguous for the guest, wherever it lies */
	uint64_t piece_off;
	size_t piece_len;
	uint8_t *piece;
};

/* The stream, or what a dry run says of it. */
int send_disk(struct send *s, struct img_err *err);
/* Closes everything. */
void send_end(struct send *s);

/* send_begin.c: BEGIN is filled, all but the plan and the base's content sum. */
int send_describe(struct send *s, struct img_err *err);
/*
 * The content sum of the base, so that the receiver can tell versions of it apart: asked for, or
 * unasked where it is known or there is little to read for it. The plan is made.
 */
int send_tell_base(struct send *s, struct img_err *err);

/* send_resume.c: the token is one of this disk, and what was sent of it is still what it holds. */
int send_prove(struct send *s, struct img_err *err);

/* send_against.c: what differs from the sums, in place of what the layers have. */
int send_differences(struct send *s, struct img_err *err);

/* send_report.c: the answer of a dry run, or the receipt. */
int send_report(const struct send *s, struct img_err *err);

#endif
