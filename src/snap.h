/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What vhd-snap does, apart from names, checks and its command line: snap_live.c is the switch of
 * running servers to the children, snap_control.c speaks with one of them.
 */
#ifndef SNAP_H
#define SNAP_H

#include <errno.h>

#include <jansson.h>

#include "cli.h"

/* One disk and its child. */
struct snap {
	char *parent;
	char *child;
	bool created;
	bool keep; /* the child may be named by a pointer: not ours to remove */
	/* live only */
	char *socket;
	char *disk; /* as asserted with DISK=, or NULL */
	int fd;
	char *pointer;
	bool prepared, committed;
	uint64_t blocked_us;
};

struct snap_job {
	struct cli_common common;
	const char *output, *directory;
	bool force, dry_run, null, json, live;
	struct snap *snaps;
	size_t n;
};

/* One more, with nothing in it. NULL without memory. */
struct snap *snap_add(struct snap_job *j);

/* IMG_AGAIN once a signal has asked for the end. */
int snap_interrupted(struct img_err *err);

static inline int snap_no_memory(struct img_err *err)
{
	return img_err_errno(err, ENOMEM, "vhd-snap");
}

/* snap_control.c: asks the server what it serves; the leaf becomes the parent. */
int snap_ask(struct snap *s, struct img_err *err);
/* *REPLY (may be NULL) is the answer if it is ok, to be released; else its error is reported. */
int snap_request(struct snap *s, const char *command, const char *child, json_t **reply,
		 struct img_err *err);

/* snap_live.c: one disk more, from [DISK=]SOCKET. */
int snap_add_live(struct snap_job *j, const char *arg, struct img_err *err);
/* Asks all servers, and puts them into the order of the PARENTs, if any are given. */
int snap_find_live(struct snap_job *j, char *const *parents, size_t n, struct img_err *err);
/* The children are made: every server prepares, then every one commits. */
int snap_switch(struct snap_job *j, struct img_err *err);
/*
 * Takes back what was prepared. Afterwards S->keep says whether the pointer may name the child: by
 * the server's word and our own look.
 */
void snap_withdraw(struct snap *s);

#endif
