/* SPDX-License-Identifier: BSD-2-Clause */
#include "err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int code_of_errno(int errnum)
{
	switch (errnum) {
	case ENOENT:
	case ENOTDIR:
		return IMG_NOINPUT;
	case EEXIST:
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
	case EROFS:
		return IMG_CANTCREAT;
	case EACCES:
	case EPERM:
		return IMG_PERM;
	case ELOOP:
	case EISDIR:
	case EINVAL:
	case ENXIO:
		return IMG_DATA;
	case ENOMEM:
	case EMFILE:
	case ENFILE:
	case EAGAIN:
		return IMG_AGAIN;
	default:
		return IMG_IO;
	}
}

static __attribute__((format(printf, 4, 0))) void record(struct img_err *err, int code, int errnum,
							 const char *fmt, va_list ap)
{
	size_t n;

	if (!err || err->code)
		return;
	err->code = code;
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	n = strlen(err->msg);
	if (errnum && n < sizeof(err->msg))
		snprintf(err->msg + n, sizeof(err->msg) - n, ": %s", strerror(errnum));
}

int img_err_set(struct img_err *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	record(err, code, 0, fmt, ap);
	va_end(ap);
	return -1;
}

int img_err_errno(struct img_err *err, int errnum, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	record(err, code_of_errno(errnum), errnum, fmt, ap);
	va_end(ap);
	return -1;
}

void img_err_clear(struct img_err *err)
{
	if (err) {
		err->code = 0;
		err->msg[0] = '\0';
	}
}
