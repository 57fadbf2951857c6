/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Errors: a code for the exit status and a message for a person, written once, where the fact
 * is known. A function that can fail takes a struct img_err * last and returns 0 or -1.
 */
#ifndef ERR_H
#define ERR_H

#include <stdarg.h>

/* The exit codes of every tool (sysexits, extended); see the EXIT STATUS of each man page. */
enum img_code {
	IMG_OK = 0,
	IMG_USAGE = 64,
	IMG_DATA = 65,	    /* damaged or refused input */
	IMG_NOINPUT = 66,   /* a file or a parent is missing */
	IMG_UNAVAIL = 69,   /* helper program or other side missing */
	IMG_BUG = 70,	    /* a bug in us */
	IMG_CANTCREAT = 73, /* output exists, no space, quota */
	IMG_IO = 74,	    /* I/O error */
	IMG_AGAIN = 75,	    /* locked, or interrupted and resumable */
	IMG_PROTO = 76,	    /* the stream breaks the protocol */
	IMG_PERM = 77,
	IMG_PREFLIGHT = 78, /* refused before anything was changed */
};

struct img_err {
	int code; /* enum img_code; 0 while nothing was reported */
	char msg[2048];
};

/*
 * Records CODE and the message; the first report wins, so that clean-up cannot mask the cause.
 * ERR may be NULL. Returns -1 always, for `return img_err_set(…)`.
 */
int img_err_set(struct img_err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The same for a failed system call: appends strerror(ERRNUM) and derives the code from it. */
int img_err_errno(struct img_err *err, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Makes ERR empty, for a second try. */
void img_err_clear(struct img_err *err);

#endif
