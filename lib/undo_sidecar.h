/* SPDX-License-Identifier: BSD-2-Clause */
/* The file that holds the old bytes of another one; its format stands in undo_sidecar.c. */
#ifndef UNDO_SIDECAR_H
#define UNDO_SIDECAR_H

#include <xxhash.h>

#include "undo.h"

/* One that is being written or read, from its start on. */
struct sidecar {
	struct io_file file;
	uint64_t pos, size;
	XXH3_state_t *hash;
	uint8_t *buf;
	/* head */
	uint32_t kind;
	struct io_id id;
	uint64_t length;
};

enum sidecar_state {
	SIDECAR_WANTED, /* of a change that has not ended; or none, as its user finds out */
	SIDECAR_VOID,	/* it has ended, nobody wants the old bytes */
	SIDECAR_DONE,	/* it has ended, and can be taken back */
};
/* If it has ended, that is durable. */
int sidecar_state(const char *path, enum sidecar_state *state, struct img_err *err);

/* PATH durably holds the ranges and the length of F, or is not there. */
int sidecar_save(const char *path, struct io_file *f, enum undo_kind kind,
		 const struct undo_range *r, size_t n, struct img_err *err);

/* Opens the sidecar PATH of F and reads its head. S is to be freed also after an error. */
int sidecar_open(struct sidecar *s, struct io_file *f, const char *path, bool writable,
		 struct img_err *err);
void sidecar_free(struct sidecar *s);
/* It was saved from this very F. */
int sidecar_check_identity(struct sidecar *s, struct io_file *f, struct img_err *err);
/* F is as the change has left it: else the old bytes would not fit what was written since. */
int sidecar_check_unchanged(struct sidecar *s, struct io_file *f, struct img_err *err);
/*
 * When every bit is what was saved: F gets its old bytes and length back. Not synced. Doing it
 * again does the same.
 */
int sidecar_restore(struct sidecar *s, struct io_file *f, struct img_err *err);
/* From here on the change of F has happened: durable. */
int sidecar_end(struct sidecar *s, struct io_file *f, struct img_err *err);
/* It becomes that of a change that has not ended, so its old bytes are wanted: durable. */
int sidecar_drop_tail(const char *path, struct img_err *err);

#endif
