/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Files: the only place with positional I/O, EINTR, short transfers, barriers, locks and names.
 * Everything that changes a file or a folder goes through here, so that tests can put a
 * recording or a failing io.c in its place.
 */
#ifndef IO_H
#define IO_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"

struct io_file {
	int fd;	    /* -1 while closed */
	int direct; /* the same file past the page cache, see io_direct(); -1: none */
	char *path; /* as given; for messages. Owned */
	char *real; /* resolved; the file itself. Owned */
	bool writable;
	bool block_device;
	unsigned lock; /* enum io_lock held now */
	/* Group sync: one fdatasync serves all that asked before it began. */
	pthread_mutex_t mutex;
	pthread_cond_t done;
	uint64_t started, finished;
	bool syncing;
	int failed; /* errno of a failed sync: final, the kernel may have dropped the data */
	uint64_t data, data_end; /* where io_extent() found no hole; under the mutex */
};

enum io_lock {
	IO_UNLOCKED = 0,
	IO_LOCK_SHARED,	   /* others may read */
	IO_LOCK_EXCLUSIVE, /* nobody else */
};

/*
 * Opens a regular file or block device (nothing else: a FIFO or a terminal would block or
 * leak). Links in PATH are followed before: the file is opened under F->real, which has none.
 * Locks are taken by io_lock(). On error F is closed and safe for io_close().
 */
int io_open(struct io_file *f, const char *path, bool writable, struct img_err *err);

/* Makes the file a struct that io_close() accepts. */
void io_init(struct io_file *f);

/* Unlocks and closes; reports nothing: whoever wrote has called io_sync(). */
void io_close(struct io_file *f);

/*
 * Takes, changes or drops the lock. QEMU's protocol: byte-range locks of the open file
 * description at 100+ (permissions held) and 200+ (permissions denied to others). Busy for
 * longer than about a tenth of a second: IMG_AGAIN, naming the holder where /proc tells.
 */
int io_lock(struct io_file *f, enum io_lock lock, struct img_err *err);
/*
 * What says that the creator of a temporary file lives, until FD is closed; image locks do not
 * meet it. 1: somebody else holds it; -1: there are no locks here.
 */
int io_lock_temporary(int fd);

/* File size in bytes, also of a block device. */
int io_size(struct io_file *f, uint64_t *size, struct img_err *err);

/* Reads LEN bytes at OFF; the file ending earlier is IMG_DATA. */
int io_read(struct io_file *f, void *buf, size_t len, uint64_t off, struct img_err *err);

/* Reads up to LEN bytes; *GOT < LEN only at the end of the file. */
int io_read_upto(struct io_file *f, void *buf, size_t len, uint64_t off, size_t *got,
		 struct img_err *err);

int io_write(struct io_file *f, const void *buf, size_t len, uint64_t off, struct img_err *err);

/*
 * From now on large writes of whole pages go past the page cache, where the file system can. What
 * will not be read again soon would push out what others have there, and costs a copy more.
 * Barriers and everything else stay as they are. Only one thread may write to F then.
 */
void io_direct(struct io_file *f);

/* Makes LEN bytes at OFF read as zeros, without dense writing where the file system can. The range
 * may lie beyond the end: then the file grows. */
int io_zero(struct io_file *f, uint64_t off, uint64_t len, struct img_err *err);

/* Gives the space of LEN bytes at OFF back; they read as zeros. Size unchanged. */
int io_punch(struct io_file *f, uint64_t off, uint64_t len, struct img_err *err);

/* Copies inside the kernel where possible. */
int io_copy(struct io_file *from, uint64_t from_off, struct io_file *to, uint64_t to_off,
	    uint64_t len, struct img_err *err);

/* *LEN bytes from OFF on are all data or all hole (SEEK_DATA); *HOLE tells which. */
int io_extent(struct io_file *f, uint64_t off, uint64_t *len, bool *hole, struct img_err *err);

int io_truncate(struct io_file *f, uint64_t size, struct img_err *err);

/* fdatasync, shared by all callers that wait at the same time. A failure is final. */
int io_sync(struct io_file *f, struct img_err *err);

/* Starts writing out LEN bytes at OFF without waiting: a hint that overlaps copy and disk. */
void io_writeback(struct io_file *f, uint64_t off, uint64_t len);

/*
 * A new file that gets its name only when it is whole. io_create removes what attempts that were
 * killed have left of PATH, and opens a temporary one in its folder as F (its path, for messages,
 * is the final one); io_publish syncs, renames (without FORCE never over an existing file:
 * IMG_CANTCREAT) and syncs the folder; io_discard ends it either way and removes what was not
 * published. F stays the caller's to close.
 */
struct io_new {
	struct io_file *file;
	char *tmp; /* NULL when published or none */
	char *final;
};
int io_create(struct io_new *n, struct io_file *f, const char *path, bool force,
	      struct img_err *err);
/* The same under a temporary name of the caller's choice and with mode 0600; REOPEN: it is there,
 * and is gone on with. */
int io_create_as(struct io_new *n, struct io_file *f, const char *path, const char *tmp,
		 bool reopen, struct img_err *err);
int io_publish(struct io_new *n, bool force, struct img_err *err);
/* Replaces what has the name, and nothing is durable: for what can be made again. */
int io_publish_soon(struct io_new *n, struct img_err *err);
/* A file without a name in the folder of BESIDE. Whatever happens, it leaves nothing behind. */
int io_scratch(struct io_file *f, const char *beside, struct img_err *err);
/* What was not published stays under its temporary name. */
void io_keep(struct io_new *n);
void io_discard(struct io_new *n);

/*
 * A new file that tells of another one, which has the status ST: who may not read that may not read
 * this, and nobody but its owner writes to it.
 */
struct stat;
int io_access_like(struct io_file *f, const struct stat *st, struct img_err *err);

/* Durable changes of names. */
int io_unlink(const char *path, struct img_err *err);
/* Within one folder; never over an existing file: IMG_CANTCREAT. */
int io_rename_new(const char *from, const char *to, struct img_err *err);
int io_sync_dir_of(const char *path, struct img_err *err);
/* PATH (absent or a symlink) durably becomes a symlink to TARGET, by rename. */
int io_symlink_replace(const char *path, const char *target, struct img_err *err);
/* PATH durably holds LEN bytes: temporary file, sync, rename. MODE as for open(2). */
int io_store(const char *path, const void *buf, size_t len, mode_t mode, struct img_err *err);

/* To a stream (pipe, socket): all of it. PATH for messages. */
int io_stream_write(int fd, const void *buf, size_t len, const char *path, struct img_err *err);

/* The same file, whatever its names are. */
bool io_same(const struct stat *a, const struct stat *b);
/* The same, links followed; not when one of them cannot be seen. */
bool io_same_file(const char *a, const char *b);

/*
 * What tells a file from all others: inodes are used again, with the time of birth (in ns, 0 where
 * the system does not tell it) they are not. DIR, NAME and FLAGS as for statx(2). -1 with errno.
 */
struct io_id {
	uint64_t ino, birth;
};
int io_id_get(int dir, const char *name, int flags, struct io_id *id);

/* malloc'd string: the folder part of PATH ("." when none). NULL without memory. */
char *io_dirname(const char *path);
/* Pointer into PATH behind the last slash. */
const char *io_basename(const char *path);

#endif
