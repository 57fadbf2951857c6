/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sums of a stale copy's chunks, as vhd-sum --blocks prints them, read beside the disk that
 * is sent.
 */
#ifndef AGAINST_H
#define AGAINST_H

#include "cli.h"

struct against;
/*
 * PATH may be "-". Reads the first line; the rest comes as it is asked for, so that it takes no
 * memory.
 */
int against_open(struct against **out, const char *path, struct img_err *err);
void against_close(struct against *a);
uint64_t against_size(const struct against *a);
uint64_t against_seed(const struct against *a);
bool against_uuid(const struct against *a, uint8_t uuid[16]);
/*
 * The content sum of the copy, from the last line, if that is one (seed 0) and can be read
 * beforehand. against_end() checks it.
 */
bool against_content(struct against *a, char sum[IMG_SUM_STR]);
/* The sum of the next chunk. */
int against_next(struct against *a, uint8_t sum[IMG_SUM_BYTES], struct img_err *err);
/* All chunks were read: is the end there, and were the lines what vhd-sum printed? */
int against_end(struct against *a, struct img_err *err);

#endif
