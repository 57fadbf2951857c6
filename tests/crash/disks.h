/* SPDX-License-Identifier: BSD-2-Clause */
/* Images made byte by byte, as other programs leave them, and what must be read from them. */
#ifndef CRASH_DISKS_H
#define CRASH_DISKS_H

#include "fs.h"
#include "img.h"
#include "random.h"

struct vhd_spec {
	enum img_type type;
	uint64_t size, first_size; /* now, and when it was made (0: the same) */
	uint32_t block_size;
	const uint8_t *disk; /* SIZE bytes, of which OWN tells the sectors that are in the file */
	const uint8_t *own;  /* a byte for each sector */
	uint8_t uuid[16], parent_uuid[16];
	const char *parent; /* name beside it, ASCII */
	uint32_t align;	    /* of the data of blocks: 512 or 4096 */
	bool shuffled;	    /* blocks in no order */
	bool tight;	    /* the footer right behind the last block */
	bool gaps;	    /* unused space between blocks, holding old bytes */
	bool xen;	    /* made by XenServer: with a batmap */
	uint64_t leaked;    /* more of it between the last block and the footer */
};

/* Adds the file to FS. */
void disk_add(struct fs *fs, const char *name, const struct vhd_spec *s, struct rng *r);
/* Random choices for a layout; type, size, disk, own, uuids are the caller's. */
void disk_layout(struct vhd_spec *s, struct rng *r);

/* Marks each sector with who wrote it, where and when. */
void disk_fill(uint8_t *disk, uint64_t off, uint64_t len, uint64_t tag);
/* Random ownership of a file, in one of several patterns. */
void disk_own(uint8_t *own, uint64_t size, uint32_t block_size, struct rng *r);

/* The whole content of PATH as a guest sees it; -1: ERR tells why it cannot be opened or read. */
int disk_read(const char *path, const struct img_open *opts, uint8_t *buf, uint64_t size,
	      struct img_err *err);
/* The first sector that differs, or -1. */
int64_t disk_differs(const uint8_t *a, const uint8_t *b, uint64_t size);

#endif
