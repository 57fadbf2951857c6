/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a receiver has so far, kept beside FILE until it is whole: the image, and a log that
 * says how far it is durable. The log is only appended to; of one that was cut by a crash the
 * last whole mark counts.
 */
#ifndef PARTIAL_H
#define PARTIAL_H

#include "cli.h"
#include "io.h"
#include "stream.h"

struct partial;

/* What the log's first record holds: how the image was begun. */
struct partial_head {
	struct stream_token what; /* its mark is not used */
	enum img_type type;
	uint32_t block_size;
	uint8_t uuid[16];
	uint64_t began;		     /* seconds since 1970 */
	bool onto;		     /* the image is a child of FILE, and will be merged into it */
	uint8_t base[IMG_SUM_BYTES]; /* identity of FILE then */
	uint8_t boot[16];	     /* of the system's run; zeros: not known */
	uint64_t file;		     /* ONTO: partial_file_id() of FILE; 0: not known */
	char parent[4096];	     /* as the user named it; "" without one */
};

enum partial_open {
	PARTIAL_FIND, /* *OUT is NULL where there is none */
	PARTIAL_MAKE, /* or an empty one */
	PARTIAL_PEEK, /* only to look: also while somebody works on it */
};
/*
 * The partial result of FILE, locked: another receiver is waited for up to ten seconds, then
 * IMG_AGAIN.
 */
int partial_open(struct partial **out, const char *file, enum partial_open how,
		 struct img_err *err);
/* Waits for what is under way, unlocks; leaves the files. */
void partial_close(struct partial *p);

/* The name that --onto gives to the child of FILE. malloc'd. */
char *partial_child(const char *file);
/* Name of the image while it is partial. */
const char *partial_image(const struct partial *p);
/* What it is called when whole: FILE, or its child. */
const char *partial_final(const struct partial *p);
/* What tells the file at PATH from all others, whatever is written to it. -1 with errno. */
int partial_file_id(const char *path, bool follow, uint64_t *id);
/* NULL while nothing is durable. */
const struct stream_mark *partial_mark(const struct partial *p);
const struct partial_head *partial_get(const struct partial *p);
/* The stream came to its end, and all of it is in the image, or in FILE itself already. */
bool partial_is_complete(const struct partial *p);
bool partial_is_published(const struct partial *p);
/* From now on FILE is changed, and there is no way back: durable. */
int partial_apply(struct partial *p, struct img_err *err);
bool partial_is_applied(const struct partial *p);
/* The child is in FILE, and not needed any more: durable. */
int partial_done(struct partial *p, struct img_err *err);
bool partial_is_done(const struct partial *p);
bool partial_in_use(const struct partial *p);
/* When the mark was made, seconds since 1970. */
uint64_t partial_time(const struct partial *p);
void partial_token(const struct partial *p, char out[STREAM_TOKEN_STR]);

/* Forgets what was there and begins. */
int partial_begin(struct partial *p, const struct partial_head *head, struct img_err *err);
/*
 * Takes up IMAGE (opened at the last mark) and, for whole disks, tells CONTENT the sums below
 * the mark.
 */
int partial_resume(struct partial *p, struct img_sum *content, struct img_err *err);
/* END of the image at the last mark, for img_create_resume(). */
uint64_t partial_end(const struct partial *p);

void partial_chunks(struct partial *p, uint64_t first, uint64_t n,
		    const uint8_t sum[IMG_SUM_BYTES]);
/* Tells FN what was given to partial_chunks() for the image as it is now complete. */
void partial_each(struct partial *p,
		  void (*fn)(void *ctx, uint64_t first, uint64_t n,
			     const uint8_t sum[IMG_SUM_BYTES]),
		  void *ctx);
/*
 * Makes NEW durable as it is now, and then MARK, in the background. LAST: waits for it, the
 * stream is complete.
 */
int partial_set_mark(struct partial *p, struct img_new *new, const struct stream_mark *mark,
		     bool last, struct img_err *err);
/* Lets the disk begin with what was written to NEW, beside the stream. */
void partial_writeback(struct partial *p, struct img_new *new);
/* Waits for what is under way. */
int partial_wait(struct partial *p, struct img_err *err);

/* Whether something is there under the names of the image, also without a log that tells of it. */
bool partial_is_left(const char *file);

/*
 * The log goes, and the image under its name while it is partial; with IMAGE under any name, and
 * durably. Refused then (IMG_DATA) where FILE is half merged with the image.
 */
int partial_remove(struct partial *p, bool image, struct img_err *err);

#endif
