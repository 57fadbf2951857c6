/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a folder holds, what a program did to it, and what a disk may hold of that after a power
 * cut.
 *
 * The model is a journalling file system's at its worst: a write is there in any subset of its
 * 512-byte sectors until its file is synced, the same file's other writes notwithstanding; a file
 * may have grown without the data that made it grow (zeros then); changes of names are there up to
 * any point until their folder is synced, independent of the data. What a failed sync was to cover
 * may be lost for ever, whatever later syncs say.
 */
#ifndef CRASH_FS_H
#define CRASH_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FS_NODES 96
#define FS_NAMES 96
#define FS_PATH 256

struct node {
	bool used, link; /* link: the bytes are the target of a symbolic link */
	uint8_t *data;
	uint64_t size, room;
};

struct name {
	char path[FS_PATH]; /* relative to the folder */
	int node;
};

struct fs {
	struct node node[FS_NODES];
	struct name name[FS_NAMES];
	int nodes, names;
};

enum event_kind {
	EV_WRITE,
	EV_ZERO,
	EV_SIZE,
	EV_SYNC,
	EV_CREATE, /* from here on names */
	EV_RENAME,
	EV_LINK,
	EV_UNLINK,
	EV_SYNC_DIR,
	EV_NOTE, /* of the scenario; OFF is its number */
};

struct event {
	enum event_kind kind;
	bool failed;	   /* a sync */
	int node;	   /* of data, or what a name leads to */
	uint64_t off, len; /* SIZE: LEN is the new one */
	uint8_t *data;
	unsigned call;			 /* the changing call that it is, counted from 1 */
	char path[FS_PATH], to[FS_PATH]; /* SYNC_DIR: PATH is the folder, "" the top */
	enum {
		FATE_OPEN,
		FATE_THERE,
		FATE_GONE
	} fate;		  /* decided already, since somebody has looked */
	unsigned covered; /* the sync that decides about it; UINT_MAX: none so far (tape_seal) */
};

struct tape {
	struct event *ev;
	unsigned n, room;
	int nodes; /* numbers given so far, the base's included */
};

/* Which of the changes that were not durable are there. */
struct choice {
	enum { TAKE_ALL, TAKE_NONE, TAKE_MASK, TAKE_RANDOM } how;
	uint64_t value; /* MASK: bit by bit; RANDOM: the seed */
};

struct event *tape_add(struct tape *t, enum event_kind kind);
/* Finds out which sync decides about which event: to be called before a replay. */
void tape_seal(struct tape *t);
void tape_free(struct tape *t);
void tape_print(const struct tape *t, unsigned n, struct choice c);

/* The state of BASE after the first N events of T. Returns the number of decisions that C had to
 * take. */
unsigned fs_replay(struct fs *out, const struct fs *base, const struct tape *t, unsigned n,
		   struct choice c);
void fs_copy(struct fs *out, const struct fs *from);
void fs_free(struct fs *fs);
/* Finds PATH, or -1. */
int fs_find(const struct fs *fs, const char *path);
/* A new file; DATA is copied. */
int fs_add(struct fs *fs, const char *path, const void *data, uint64_t size);
/* The names and bytes, as a number. */
uint64_t fs_hash(const struct fs *fs);
/*
 * Makes the folder ROOT hold exactly this. A file has the same inode every time: it is kept in
 * POOL, a folder beside ROOT.
 */
void fs_store(const struct fs *fs, const char *root, const char *pool);
/* PATH, which is not there, becomes an empty file with the inode of node K. False: errno. */
bool fs_pool_link(const char *pool, int k, const char *path, unsigned mode);
void fs_load(struct fs *fs, const char *root, const char *pool);
void fs_empty(const char *path);
/* Tells the first difference; NULL: none. */
const char *fs_compare(const struct fs *a, const struct fs *b);

/* Ends the program: the explorer itself is at fault. */
void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

#endif
