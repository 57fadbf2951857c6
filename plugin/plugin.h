/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The nbdkit plugin: one disk, served to any number of connections, and its control socket.
 *
 * vhd.c is nbdkit's side, control.c the socket, live.c the live snapshot. Guest I/O holds the disk
 * shared (disk_hold); the push of a new leaf alone holds it exclusively. Only the control thread
 * changes the chain, so it may look at the layers without holding anything.
 */
#ifndef PLUGIN_H
#define PLUGIN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "img.h"

struct disk {
	char *file;    /* as configured, absolute: the pointer, or the leaf itself */
	char *control; /* NULL: no control socket */
	char *owner;   /* NULL: no ownership record to look for */
	const char **parent_dirs;
	size_t nparent_dirs;
	bool readonly;
	struct img_chain *chain;
	/*
	 * Readers pass through the gate, the writer keeps it closed while it waits: a steady stream
	 * of overlapping guest requests cannot starve a snapshot, on any libc.
	 */
	pthread_mutex_t gate;
	pthread_rwlock_t lock;
	/* Completed changes, and how many of them the last good flush covers. */
	_Atomic uint64_t writes, flushed;
};

/* How the disk is opened, now and by whoever starts the next server. */
struct img_open disk_open_opts(const struct disk *d);
void disk_hold(struct disk *d);
void disk_release(struct disk *d);
void disk_hold_alone(struct disk *d);
void disk_release_alone(struct disk *d);
/* Flushes while holding the disk shared. */
int disk_flush(struct disk *d, struct img_err *err);
/* The same for a caller that holds the disk. */
int disk_flush_held(struct disk *d, struct img_err *err);

/* A live snapshot under way: prepared, then committed or aborted. */
struct live {
	struct img *layer;   /* NULL: none is prepared */
	char *child;	     /* resolved */
	char *old_target;    /* what the pointer said before */
	uint64_t blocked_us; /* of the last commit: how long guest requests were held off */
	bool keep_child;     /* after a failure: the pointer may still name the child */
};
int live_prepare(struct disk *d, struct live *l, const char *child, struct img_err *err);
/* A failure has aborted the snapshot. */
int live_commit(struct disk *d, struct live *l, struct img_err *err);
/* Nothing prepared is fine. */
int live_abort(struct disk *d, struct live *l, struct img_err *err);

/* Binds the socket, so that errors show before nbdkit goes into the background. */
int control_bind(struct disk *d, struct img_err *err);
int control_start(struct disk *d);
/* Ends the thread, aborts what was not committed, removes the socket. Nothing bound is fine. */
void control_stop(struct disk *d);

#endif
