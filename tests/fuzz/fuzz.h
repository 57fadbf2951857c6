/* SPDX-License-Identifier: BSD-2-Clause */
/* What the fuzzers share: input taken apart, a folder in memory, files in it, a verdict. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "img.h"

/* Loops over content: their branches tell the fuzzer nothing, and counting them takes most of the
 * time. */
#if defined(__clang__)
#define FUZZ_UNCOUNTED __attribute__((no_sanitize("coverage")))
#else
#define FUZZ_UNCOUNTED
#endif

/* The rest of an input. Taking more than there is gives zeros: every input means something. */
struct fuzz_in {
	const uint8_t *p;
	size_t n;
};

uint8_t fuzz_u8(struct fuzz_in *in);
uint16_t fuzz_u16(struct fuzz_in *in);
uint32_t fuzz_u32(struct fuzz_in *in);

/*
 * A folder of this process, absolute and resolved, in memory if $TMPDIR is, or /dev/shm has room;
 * removed at the end. Files are on a real file system because locks, holes and names are part of
 * what is tested.
 */
const char *fuzz_dir(void);
/* Removes whatever is in it, folders too. */
void fuzz_dir_clear(void);
/* FOLDER/NAME in one of a few static buffers. */
const char *fuzz_path(const char *name);
/* The file NAME holds these bytes. */
void fuzz_file(const char *name, const void *buf, size_t len);
bool fuzz_exists(const char *name);
/* ROOM bytes for an input. Waits for other fuzzers to need theirs no more, half a minute at most;
 * then the process ends with status 73. */
void fuzz_room(uint64_t room);

/* Bytes that differ from sector to sector and between seeds; never a whole sector of zeros. */
void fuzz_pattern(uint8_t *buf, size_t len, uint32_t seed);

/* The library did what it must not. ERR (may be NULL) is shown. Where the disk is full, that is
 * said instead: the process ends as by fuzz_room(). */
void fuzz_die(const struct img_err *err, const char *fmt, ...)
	__attribute__((noreturn, format(printf, 2, 3)));

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
