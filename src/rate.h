/* SPDX-License-Identifier: BSD-2-Clause */
/* How fast a transfer may go; a file may say so, and is read again at SIGHUP. */
#ifndef RATE_H
#define RATE_H

#include "stream.h"

/*
 * TO gets the limit RATE (0: none), or that of FILE (NULL: none), and asks from now on whether the
 * tool was interrupted or the file is to be read again. One pipe a process.
 */
int rate_limit(struct stream_pipe *to, uint64_t rate, const char *file, struct img_err *err);

#endif
