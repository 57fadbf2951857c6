/* SPDX-License-Identifier: BSD-2-Clause */
/* One open VHD file. Everything is guarded by the layer's mutex once the layer is open. */
#ifndef VHD_H
#define VHD_H

#include "img_impl.h"
#include "vhd_fmt.h"

/*
 * Metadata sectors (BAT, bitmaps) read or written lately, by file offset: the memory of a
 * layer is bounded whatever the disk's size.
 */
#define VHD_CACHE_SECTORS 128u

struct vhd_cache {
	uint64_t tag[VHD_CACHE_SECTORS]; /* file offset; ~0: empty */
	uint8_t data[VHD_CACHE_SECTORS][SECTOR];
};

/* A block that has its place in the file but no BAT entry yet. */
struct vhd_pending {
	uint32_t block;
	uint64_t off;
	struct vhd_pending *next;
};

struct vhd_absorb;
struct vhd_build;

struct vhd {
	struct vhd_footer footer;
	struct vhd_header header; /* not fixed */
	uint8_t footer_raw[VHD_FOOTER_LEN];
	uint32_t blocks; /* BAT entries that the size needs */
	uint32_t block_size, bitmap_len;
	uint64_t seen_size; /* of the file, when it was last asked for */
	char *parent_name;  /* UTF-8 */
	struct vhd_cache *cache;
	/* writable only */
	uint64_t end;	     /* next free byte of the file */
	uint64_t footer_off; /* where the end footer is */
	bool healed;	     /* both footers are what they should be */
	struct vhd_pending *pending;
	struct vhd_absorb *absorb;
	struct vhd_build *build; /* not published yet, and not fixed */
};

/* vhd.c: reading. All want the mutex held. */
/* Writes a metadata sector through the cache. */
int vhd_meta_write(struct img *l, uint64_t off, const uint8_t sector[SECTOR], struct img_err *err);
int vhd_meta_read(struct img *l, uint64_t off, const uint8_t **sector, struct img_err *err);
/* ENTRY: file offset of the block's bitmap, 0 when the block is not in the file. */
int vhd_block_find(struct img *l, uint32_t block, uint64_t *entry, struct img_err *err);
/* From the sector SEC of a block's bitmap at ENTRY on: how many bits, at most NSEC, are alike. */
int vhd_bitmap_run(struct img *l, uint64_t entry, uint32_t sec, uint32_t nsec, uint32_t *run,
		   bool *set, struct img_err *err);
/* Checks each BAT entry in use, ascending by block, and calls FN (may be NULL). */
int vhd_bat_each(struct img *l,
		 int (*fn)(void *ctx, uint32_t block, uint64_t off, struct img_err *err), void *ctx,
		 struct img_err *err);

/* vhd_write.c: writing. */
int vhd_write(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len, struct img_err *err);
int vhd_trim(struct img *l, uint64_t off, uint64_t len, struct img_err *err);
/* Sets bits of a block's bitmap, on disk. Mutex held. */
int vhd_bitmap_mark(struct img *l, uint64_t entry, uint32_t sec, uint32_t nsec, bool always,
		    struct img_err *err);
int vhd_bat_set(struct img *l, uint32_t block, uint64_t off, struct img_err *err);
void vhd_pending_free(struct vhd *v);

/* vhd_space.c: what lies where. */
/* Finds where the file's content ends; refuses overlapping blocks. Writes nothing. */
int vhd_prepare_write(struct img *l, struct img_err *err);
/* Once, before the first write: rewrites a footer that is missing or differs. Mutex held. */
int vhd_heal(struct img *l, struct img_err *err);
/* A place for one more block behind END (advanced); nothing is written. */
int vhd_next_place(struct img *l, uint64_t *end, uint64_t *off, struct img_err *err);
/* Where the footer stands when blocks reach up to END. */
uint64_t vhd_footer_place(uint64_t end);
/* Bytes that a locator's data may take. */
uint64_t vhd_locator_room(const struct vhd_locator *loc);
/* Where the BAT ends, its padding to a sector included; the batmap's header follows. */
uint64_t vhd_bat_end(const struct vhd *v);
/* Whether a range of the file meets none of its structures but blocks. */
int vhd_space_no_metadata(struct img *l, uint64_t off, uint64_t len, bool *yes,
			  struct img_err *err);
/* Whether it meets none at all, but the locator EXCEPT. */
int vhd_space_free(struct img *l, uint64_t off, uint64_t len, int except, bool *yes,
		   struct img_err *err);

/* vhd_batmap.c */
struct vhd_batmap {
	bool present, encrypted;
	uint64_t head_off, off, len; /* of the header; of the map, 0 when it is not in the file */
	uint8_t head[SECTOR];
};
/*
 * Whether HEAD, of which the file holds the first GOT bytes, is a batmap's header; the rest is
 * zeroed. One that the file's end cuts is one: what is written behind it makes it whole.
 */
bool vhd_batmap_is(uint8_t head[SECTOR], size_t got);
int vhd_batmap_find(struct img *l, struct vhd_batmap *m, struct img_err *err);
/*
 * LEN bytes of map; zeros, which are always right, where it has none or its checksum is wrong.
 * malloc'd.
 */
uint8_t *vhd_batmap_load(struct img *l, const struct vhd_batmap *m, uint64_t len,
			 struct img_err *err);
/* The header of a map of LEN bytes at OFF; what we do not know of in M's stays. */
void vhd_batmap_seal(struct vhd_batmap *m, uint64_t off, const uint8_t *map, uint64_t len);

/*
 * vhd_resize.c: another size, crash-safe, for a layer that is open for writing and used by nobody
 * else. Shrinking: what lies behind SIZE must read as zeros. A failure leaves the file as it
 * was, and the layer only fit to be closed.
 */
int vhd_resize(struct img *l, uint64_t size, struct img_err *err);

/* vhd_new.c */
int vhd_create(struct img *l, const struct img_create *opts, struct img_err *err);

/* The same for a file that was begun by vhd_create() with the same options: what lies at OFF or
 * behind it is forgotten; END is what vhd_build_settle() told at OFF. */
int vhd_recreate(struct img *l, const struct img_create *opts, uint64_t off, uint64_t end,
		 struct img_err *err);

/* vhd_build.c: filling a new file; not for fixed disks. */
int vhd_build_begin(struct img *l, struct img_err *err);
void vhd_build_end(struct vhd *v);
int vhd_build_write(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len,
		    struct img_err *err);
/* Writes what is held. *END (may be NULL): where the next block goes. */
int vhd_build_settle(struct img *l, uint64_t *end, struct img_err *err);
/* The same, and the footer at the end. */
int vhd_build_finish(struct img *l, struct img_err *err);
int vhd_build_resume(struct img *l, uint64_t off, uint64_t end, struct img_err *err);

/* vhd_absorb.c: the parent's side of a merge. */
int vhd_absorb_begin(struct img *l, uint64_t size, struct img_err *err);
int vhd_absorb_place(struct img *l, uint64_t off, uint64_t len, uint64_t *file_off,
		     uint64_t *placed, struct img_err *err);
int vhd_absorb_extend(struct img *l, struct img_merge_stats *stats, bool dry_run,
		      struct img_err *err);
int vhd_absorb_mark(struct img *l, uint64_t off, uint64_t len, struct img_err *err);
int vhd_absorb_publish(struct img *l, struct img_err *err);
void vhd_absorb_end(struct img *l);

/* locator.c: names of parents. */
/* UTF-16 to UTF-8, up to the first NUL; malloc'd, NULL when it is not text. */
char *vhd_utf16_get(const uint8_t *p, size_t bytes, bool big_endian);
/* The candidates for the parent of L, in order of trust; malloc'd array of malloc'd host paths,
 * NULL at the end. Relative ones are relative to the child's folder. */
char **vhd_parent_candidates(struct img *l, struct img_err *err);
/* Text of one locator in UTF-16LE (or MacX UTF-8): the relative and absolute names of PARENT as
 * seen from the folder of CHILD. malloc'd. */
int vhd_parent_names(const char *child, const char *parent, uint8_t **rel, size_t *rel_len,
		     uint8_t **abs, size_t *abs_len, uint8_t name[VHD_NAME_UNITS * 2],
		     struct img_err *err);

/* The relative name as XenServer writes it in a MacX locator: file://./name. malloc'd. */
char *vhd_parent_url(const char *child, const char *parent);

#endif
/* The relative name as XenServer writes it in a MacX locator: file://./name. malloc'd. */
char *vhd_parent_url(const char *child, const char *parent);
