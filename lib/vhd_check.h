/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Checking and mending one VHD: what the checks share. They work on the raw bytes of the file,
 * since what they look for is what vhd_open() refuses. Each check reports what it finds and,
 * where the rest of the file proves how it should be, notes the mend and goes on with the
 * mended value; so one fault is reported once and not as ten that follow from it. Nothing is
 * written before all checks have run (vhd_repair.c).
 */
#ifndef VHD_CHECK_H
#define VHD_CHECK_H

#include "vhd.h"

#define NOWHERE IMG_FAULT_NOWHERE
/* Smaller gaps are alignment: Windows and XenServer leave up to 4 KiB before a block (§12). */
#define GAP_MIN 8192u

/* In the order of the table in vhd_faults.c. */
enum fault_id {
	F_ROLLBACK_PENDING,
	F_MERGE_UNFINISHED,
	F_MERGE_MARKER_DAMAGED,
	F_RECEIVE_UNFINISHED,
	F_ABSORBED,
	F_ABSORBED_DAMAGED,
	F_PARENT_WRITTEN,
	F_UNDO_LEFT,
	F_FOOTER_NONE,
	F_FOOTER_POISONED,
	F_FOOTER_END_MISSING,
	F_FOOTER_END_MISPLACED,
	F_FOOTER_END_BAD_CHECKSUM,
	F_FOOTER_END_BAD_VERSION,
	F_FOOTER_END_BAD_TYPE,
	F_FOOTER_END_SHORT,
	F_FOOTER_FRONT_MISSING,
	F_FOOTER_FRONT_BAD_CHECKSUM,
	F_FOOTER_FRONT_BAD_VERSION,
	F_FOOTER_FRONT_BAD_TYPE,
	F_FOOTER_COPIES_DIFFER,
	F_FOOTER_FEATURES,
	F_FOOTER_DATA_OFFSET,
	F_FOOTER_RESERVED,
	F_FOOTER_SAVED_STATE,
	F_FOOTER_UUID_NONE,
	F_SIZE_NOT_SECTORS,
	F_SIZE_TOO_BIG,
	F_SIZE_ORIGINAL_DIFFERS,
	F_GEOMETRY_WRONG,
	F_GEOMETRY_SIZE_DISPUTE,
	F_FIXED_CUT,
	F_FIXED_SLACK,
	F_HEADER_OUTSIDE,
	F_HEADER_MISSING,
	F_HEADER_BAD_VERSION,
	F_HEADER_BAD_CHECKSUM,
	F_HEADER_UNUSED_OFFSET,
	F_HEADER_RESERVED,
	F_HEADER_BLOCK_SIZE,
	F_HEADER_ENTRIES,
	F_HEADER_BAT_OFFSET,
	F_HEADER_PARENT_UNUSED,
	F_BAT_OUT_OF_FILE,
	F_BAT_WRAPS,
	F_BAT_IN_METADATA,
	F_BAT_OVERLAP,
	F_BAT_BEYOND_DISK,
	F_BLOCK_CUT,
	F_BLOCK_UNALIGNED,
	F_SPACE_LEAKED,
	F_SPACE_TRAILING,
	F_ORPHAN_BLOCK,
	F_BITMAP_CLEAR_OVER_DATA,
	F_BITMAP_BEYOND_DISK,
	F_BATMAP_MISSING,
	F_BATMAP_OUTSIDE,
	F_BATMAP_BAD_CHECKSUM,
	F_BATMAP_FALSE_FULL,
	F_ENCRYPTED,
	F_BITMAP_ORDER,
	F_LOCATOR_CODE,
	F_LOCATOR_TWICE,
	F_LOCATOR_LENGTH,
	F_LOCATOR_OUTSIDE,
	F_LOCATOR_SPACE,
	F_LOCATOR_TEXT,
	F_LOCATOR_OVERLAP,
	F_PARENT_UNNAMED,
	F_PARENT_MISSING,
	F_PARENT_NOT_ALLOWED,
	F_PARENT_DAMAGED,
	F_PARENT_WRONG_UUID,
	F_PARENT_WRONG_SIZE,
	F_PARENT_LOOP,
	F_PARENT_TOO_DEEP,
	F_PARENT_RAW,
	F_PARENT_TIMESTAMP,
	F_COUNT
};

/* Bytes of the file that are taken: no block may lie there; and up to OWNED, nothing is leaked. */
struct area {
	uint64_t off, end, owned;
	const char *what;
};

/* A block that is in the file: sector of its bitmap << 32 | number, so that they sort by place. */
static inline uint64_t placed_off(uint64_t p)
{
	return (p >> 32) * SECTOR;
}

static inline uint32_t placed_block(uint64_t p)
{
	return (uint32_t)p;
}

struct mend_entry {
	uint32_t block, n, entry; /* the same one for N blocks from BLOCK on */
};

struct mend_copy {
	uint32_t block;
	uint64_t from, to; /* TO is known when all has been looked at */
};

struct mend_bytes {
	uint64_t off;
	uint8_t *buf;
	size_t len;
};

/* What --repair will write. The mended footer and header are in struct check. */
struct mend {
	bool footers, header, move_end, link;
	bool front_only; /* where the end footer belongs is not known */
	struct mend_entry *entries;
	size_t nentries;
	struct mend_copy *copies;
	size_t ncopies;
	struct mend_bytes bytes[16];
	size_t nbytes;
	uint64_t cut_from, cut_to; /* the missing end of a block */
	uint64_t end;		   /* of all that stays in the file, and of what is added */
	uint64_t footer_off;	   /* where the end footer goes */
};

struct check {
	const struct img_check *opts;
	struct img_check_result *res;
	struct io_file file;
	uint64_t file_size;
	bool quiet; /* only to find the next layer: nothing is reported */
	struct mend mend;
	struct img_fault held[4]; /* mended only if the BAT tells where the file ends */
	unsigned nheld;

	/* footers */
	bool has_footer;
	bool doubtful; /* nothing bears out the footer that is gone on with: nothing is mended */
	struct vhd_footer footer;
	uint8_t footer_raw[VHD_FOOTER_LEN];
	uint64_t end_off; /* of the end footer; of the end of the file when there is none */
	bool has_end;
	bool front_bad; /* the front copy is to be written anew */

	/* header */
	bool has_header;
	struct vhd_header header;
	uint8_t header_raw[VHD_HEADER_LEN];
	uint32_t blocks, bitmap_len;
	uint64_t stride; /* bitmap and data of a block */

	/* what is where */
	struct area areas[16];
	unsigned nareas;
	uint64_t *placed;
	size_t nplaced;
	bool has_bat;
	uint32_t beyond; /* bitmaps with bits behind their last sector */
	struct img_fault first_beyond;

	/* XenServer's batmap */
	bool has_batmap;   /* its header is there */
	bool batmap_sound; /* it lies in the file, and the checksum is right */
	uint64_t batmap_head, batmap_off;
	uint8_t batmap_raw[SECTOR]; /* its header */
	uint8_t *batmap, *full;	    /* as it is; as the bitmaps have it. One bit a block */

	/* differencing only */
	struct img_parent link;
	bool link_known;	   /* it was searched for */
	bool renamed;		   /* … and found by its UUID only */
	const uint8_t *child_uuid; /* of the layer above, or NULL */
};

/* vhd_faults.c */
struct img_fault fault_make(const struct check *c, enum fault_id id, uint64_t off);
void fault_text(char *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define FOUND(f, ...) fault_text((f)->found, __VA_ARGS__)
#define EXPECTED(f, ...) fault_text((f)->expected, __VA_ARGS__)
#define LOSS(f, ...) fault_text((f)->loss, __VA_ARGS__)
void fault_report(struct check *c, const struct img_fault *f);
/* The same, when it is known whether the end of the file can be mended. */
void fault_hold(struct check *c, const struct img_fault *f);
void fault_release(struct check *c);

/* The checks, in the order in which they run. */
int check_leftovers(struct check *c, struct img_err *err);
int check_footers(struct check *c, struct img_err *err);
int check_size(struct check *c, struct img_err *err);
int check_geometry(struct check *c, struct img_err *err);
int check_header(struct check *c, struct img_err *err);
int check_locators(struct check *c, struct img_err *err);
int check_batmap(struct check *c, struct img_err *err);
int check_bat(struct check *c, struct img_err *err);
int check_space(struct check *c, struct img_err *err);
int check_bitmaps(struct check *c, struct img_err *err);
int check_link(struct check *c, struct img_err *err);

/* vhd_check_names.c: whether the code is one that is in use somewhere. */
bool check_locator_known(uint32_t code);
/* vhd_check_link.c: looks for the parent, once. */
int check_find_parent(struct check *c, struct img_err *err);
/* What a chain adds: the layer is one that stands above, or there are too many. */
void check_report_loop(struct check *c, const char *path);
void check_report_depth(struct check *c, unsigned layers);

/* vhd_check_bat.c */
void check_area_add(struct check *c, uint64_t off, uint64_t len, uint64_t owned, const char *what);
/* The area in the range, or NULL. */
const struct area *check_area_at(const struct check *c, uint64_t off, uint64_t end);
int check_zero(struct check *c, uint64_t off, uint64_t len, bool *zero, struct img_err *err);
/* Reads N entries from number FIRST on, as host integers. */
int check_bat_read(struct check *c, uint64_t bat_off, uint32_t first, uint32_t n, uint32_t *out,
		   struct img_err *err);

/* vhd_check.c: one file, all its checks; C->file is open and locked. */
int check_run(struct check *c, struct img_err *err);
void check_free(struct check *c);
/* The parents, in the manner that the options say. */
int check_parents(struct check *c, struct img_err *err);
/* Mends are noted here; MEND_BYTES takes the buffer over. */
int mend_entry(struct check *c, uint32_t block, uint32_t n, uint32_t entry, struct img_err *err);
int mend_copy(struct check *c, uint32_t block, uint64_t from, struct img_err *err);
int mend_bytes(struct check *c, uint64_t off, uint8_t *buf, size_t len, struct img_err *err);

#endif
