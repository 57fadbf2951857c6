/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The system calls of the library that change files, taken at link time (--wrap): recorded, made to
 * fail, or the last thing that the process does. A table inside io.c would be shorter, but code
 * that bypasses it would go unseen and the library would carry it everywhere; tests/crash/calls and
 * crash.bats see to it that no call is forgotten.
 */
#ifndef CRASH_RECORD_H
#define CRASH_RECORD_H

#include "fs.h"

struct fault {
	enum { FAULT_NONE, FAULT_FAIL, FAULT_KILL } kind;
	unsigned at; /* the call, counted from 1 */
	int errnum;
	bool half; /* half of the write is done before */
};

/*
 * From here on every change below ROOT, which holds BASE, is added to T. A tape that has events is
 * continued. A thread that the code under test would start is refused, or works only while the one
 * that started it waits (record_threads with LATE).
 */
void record_start(const char *root, const char *pool, const struct fs *base, struct tape *t,
		  struct fault f);
/* Returns the number of calls that could have been made to fail. */
unsigned record_stop(void);
void record_note(uint64_t number);
/* Whether the fault came: the call number exists. */
bool record_fault_hit(void);
void record_threads(bool late);

#endif
