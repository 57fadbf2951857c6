/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Disk images: the only image header that tools and the plugin include.
 *
 * A chain is a leaf and its parents down to the base; layer 0 is the leaf. What the guest sees
 * at an offset is decided by img_map() and nothing else. Offsets and lengths are bytes.
 * A chain may be used by many threads at once, except where a function says otherwise.
 */
#ifndef IMG_H
#define IMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define IMG_MAX_LAYERS 256
#define IMG_UUID_STR 37			 /* bytes of a printed UUID, with the NUL */
#define IMG_VHD_MAX_SIZE (2040ull << 30) /* vhd-format §19 */
#define IMG_BLOCK_MIN 4096u		 /* §7 */
#define IMG_BLOCK_MAX (256u << 20)

enum img_type { IMG_RAW, IMG_FIXED, IMG_DYNAMIC, IMG_DIFFERENCING };

/* What is known of one layer. Strings belong to the layer. */
struct img_info {
	enum img_type type;
	const char *format;	/* "vhd" or "raw" */
	uint64_t size;		/* virtual size */
	uint64_t original_size; /* at creation; a raw parent may still have it */
	uint64_t file_size;
	uint64_t allocated;  /* bytes of the file system's blocks */
	uint32_t block_size; /* 0: no blocks */
	uint32_t blocks;     /* entries of the BAT that the size needs */
	bool has_uuid;
	uint8_t uuid[16];
	bool has_parent;
	uint8_t parent_uuid[16]; /* all zero: the parent is raw */
	const char *parent_name; /* as the child names it, UTF-8; NULL: none */
	char creator[5];	 /* printable; "" for raw */
	uint32_t creator_version;
	uint32_t timestamp; /* seconds since 2000-01-01 UTC, 0: unset */
	uint16_t cylinders;
	uint8_t heads, sectors;
	bool saved_state;
	bool hidden;	     /* XenServer: parent only */
	const char *warning; /* what was tolerated while opening, or NULL */
	bool unsound;	     /* its two footers are not both valid and equal */
};

struct img; /* one layer */
struct img_chain;

struct img_open {
	bool writable;		 /* the leaf; parents are always read-only */
	bool unlocked;		 /* no lock at all: only to look at a disk in use */
	bool single;		 /* the leaf alone: parents are not even searched */
	bool raw;		 /* the leaf is raw whatever its bytes say */
	bool maybe_raw;		 /* a leaf without any VHD footer is raw, with a warning */
	bool ignore_saved_state; /* merge although a saved machine depends on the disk */
	bool parent_anywhere;
	const char *const *parent_dirs;
	size_t nparent_dirs;
	bool merge;	      /* for img_merge(): the layers down to its target writable as well */
	const char *merge_to; /* the target's path; NULL: the parent of the leaf */
	bool partial;	      /* a parent that is missing ends the chain: to look, or to clean up */
	const char *parent;   /* layer 1, whatever the leaf names, unchecked: for img_reparent() */
	bool parents_unlocked; /* somebody else holds their locks */
	bool receiver;	       /* it is the one that receives onto the disk: img_receive_begin() */
};

int img_open(struct img_chain **out, const char *path, const struct img_open *opts,
	     struct img_err *err);
/* Closes without syncing; NULL is fine. */
void img_close(struct img_chain *c);

uint64_t img_size(const struct img_chain *c);
unsigned img_layers(const struct img_chain *c);
const struct img_info *img_layer_info(const struct img_chain *c, unsigned layer);
/* As it was opened, and resolved. */
const char *img_layer_path(const struct img_chain *c, unsigned layer);
const char *img_layer_real(const struct img_chain *c, unsigned layer);
/* The layer that is the file PATH (device and inode), or -1: not in the chain. */
int img_find_layer(const struct img_chain *c, const char *path, struct img_err *err);
/* "raw", "fixed", "dynamic", "differencing" */
const char *img_type_name(enum img_type type);
/* Whether blocks can have SIZE bytes: a power of two from IMG_BLOCK_MIN to IMG_BLOCK_MAX. */
bool img_block_size_ok(uint32_t size);
void img_uuid_str(const uint8_t uuid[16], char out[IMG_UUID_STR]);
/* A new random (version 4) UUID, in Windows' byte order (vhd-format §5.2). */
void img_uuid_new(uint8_t uuid[16]);

enum img_kind {
	IMG_DATA_RUN,  /* bytes of a layer's file */
	IMG_ZERO_RUN,  /* no layer has it, or a file-system hole in a file's data */
	IMG_BELOW_RUN, /* no layer above BASE has it */
};

struct img_run {
	enum img_kind kind;
	unsigned layer;	   /* DATA: which layer */
	uint64_t off, len; /* of the disk */
	uint64_t file_off; /* DATA: where in the layer's file */
};

/*
 * The longest run from OFF on, at most LEN, that is of one kind and (DATA) contiguous in one
 * file. Layers from BASE on are not looked at: what only they could have is BELOW; pass
 * img_layers(c) for the whole chain. OFF + LEN must lie inside the disk.
 */
int img_map(struct img_chain *c, uint64_t off, uint64_t len, unsigned base, struct img_run *run,
	    struct img_err *err);

/* The bytes of a DATA run (or a part of one: adjust off, len and file_off alike). */
int img_read_run(struct img_chain *c, const struct img_run *run, void *buf, struct img_err *err);

/*
 * All from OFF to END, in ascending order, as img_map() tells it; data is read, in pieces that end
 * at multiples of UNIT, into BUF, which has so many bytes. VISIT gets BUF with data, NULL with
 * anything else. What it returns below 0 ends the walk.
 */
struct img_walk {
	uint64_t off, end;
	unsigned base;
	uint8_t *buf;
	size_t unit;
	int (*visit)(void *ctx, const struct img_run *run, uint8_t *buf, struct img_err *err);
	void *ctx;
};
int img_walk(struct img_chain *c, const struct img_walk *w, struct img_err *err);

/* What the guest sees. */
int img_read(struct img_chain *c, void *buf, uint64_t off, uint64_t len, struct img_err *err);

/*
 * Guest writes to the leaf, any byte range that is a multiple of 512. When these return, the
 * change survives the death of this process; after img_flush() (or with FUA) it survives power
 * loss. Until then a sector reads old or new after power loss, never anything else: data is
 * durable before the bit or BAT entry that shows it.
 */
int img_write(struct img_chain *c, const void *buf, uint64_t off, uint64_t len, bool fua,
	      struct img_err *err);
/* Reads as zeros afterwards; a parent never shines through. */
int img_zero(struct img_chain *c, uint64_t off, uint64_t len, bool fua, struct img_err *err);
/* Gives back space of what the leaf itself holds; such sectors read as zeros. */
int img_trim(struct img_chain *c, uint64_t off, uint64_t len, struct img_err *err);
int img_flush(struct img_chain *c, struct img_err *err);
/* Lets the disk begin with what was written to the leaf, so that a later sync has less to do. */
void img_writeback(struct img_chain *c);

/*
 * A new image, under its name only when whole and durable.
 */
struct img_create {
	enum img_type type;
	uint64_t size;	     /* multiple of 512, except raw */
	uint32_t block_size; /* 0: 2 MiB */
	const uint8_t *uuid; /* NULL: a new random one */
	const char *creator; /* 4 letters; NULL: "win " (vhd-format §3) */
	bool force;	     /* replace an existing file */
	bool direct;	     /* large data past the page cache (io_direct) */
	const char *partial; /* its name until it is finished, mode 0600; NULL: random */
	/* differencing only */
	const char *parent_path;    /* recorded in the locators */
	const uint8_t *parent_uuid; /* all zero: raw parent */
	uint32_t parent_timestamp;
	uint64_t parent_size; /* if it is not SIZE; a raw parent is known by nothing else */
};
int img_create(const char *path, const struct img_create *opts, struct img_err *err);
/* What of that can be refused before anything is done. */
int img_create_check(const char *path, const struct img_create *opts, struct img_err *err);

/*
 * The same in two steps, for a writer that fills the image first: it is open for img_write()
 * under a temporary name; img_create_finish() syncs it, gives it its name and closes the chain;
 * img_create_abort() removes it. OPTS must stay alive until then. The parent of a differencing
 * image is not opened: such an image can be written and closed, not read where it has no data.
 */
struct img_new;
int img_create_begin(struct img_new **out, const char *path, const struct img_create *opts,
		     struct img_err *err);
struct img_chain *img_new_chain(struct img_new *n);
/* The file is what it will be, and can be opened to be looked at; nothing is written any more. */
int img_create_complete(struct img_new *n, struct img_err *err);
int img_create_finish(struct img_new *n, struct img_err *err);
void img_create_abort(struct img_new *n);
/*
 * A new image that can be gone on with after an interruption: it has a .partial name and was
 * filled in ascending order. Settle writes what is held in memory and tells END; after a sync,
 * OFF (the end of what was written) and END are all that img_create_resume() needs to forget
 * whatever came later. img_create_keep() closes it and leaves the file. The sync may run beside
 * later writes.
 */
int img_create_settle(struct img_new *n, uint64_t *end, struct img_err *err);
int img_create_sync(struct img_new *n, struct img_err *err);
void img_create_keep(struct img_new *n);
int img_create_resume(struct img_new **out, const char *path, const struct img_create *opts,
		      uint64_t off, uint64_t end, struct img_err *err);

/* An empty differencing child of PARENT (which must open as a chain under OPTS). */
int img_snapshot(const char *parent, const char *child, const struct img_open *opts, bool force,
		 struct img_err *err);

/*
 * Live snapshot. img_push_open opens CHILD (an empty differencing child of the present leaf)
 * and locks it; img_push makes it the new leaf: the caller must hold off all other users of the
 * chain and have flushed it. A layer that was not pushed is given to img_push_cancel.
 */
int img_push_open(struct img_chain *c, const char *child, struct img **layer, struct img_err *err);
int img_push(struct img_chain *c, struct img *layer, struct img_err *err);
void img_push_cancel(struct img *layer);

/*
 * Folds all layers above a target into it, in place. The chain was opened with .writable and
 * .merge (to plan, .merge alone will do). Crash-safe and re-runnable: HACKING.md gives the
 * order and the argument. Merged files that are not removed are remembered: merged once more when
 * the target was written to in between, they would bring back old data, and are refused.
 */
struct img_merge {
	const struct img_open *open; /* its folders are searched for other children */
	bool del;   /* the merged files go; children of the leaf become the target's */
	bool again; /* what was merged before as well, though its target was written to since */
	/*
	 * Bytes done and planned; non-zero stops (IMG_AGAIN, the same call finishes). NULL:
	 * nobody asks.
	 */
	int (*progress)(void *ctx, uint64_t done, uint64_t planned);
	void *ctx;
};
struct img_merge_stats {
	uint64_t bytes;	     /* data moved */
	uint64_t new_blocks; /* allocated in the target */
	uint64_t growth;     /* bytes the target's file grew, an upper bound before the merge */
	uint64_t space_free; /* on the target's file system */
	unsigned layers;     /* merged into the target */
	unsigned reparented; /* children of the leaf that were, or will be, given a new parent */
	bool already;	     /* it was merged before: there was nothing to do but to remove files */
};
/* Only looks: what a merge would do, and every reason why it cannot, in one message. */
int img_merge_plan(struct img_chain *c, const struct img_merge *opts, struct img_merge_stats *stats,
		   struct img_err *err);
int img_merge(struct img_chain *c, const struct img_merge *opts, struct img_merge_stats *stats,
	      struct img_err *err);
/* The layer that is merged into: the last one that .merge made writable. */
unsigned img_merge_target(const struct img_chain *c);
/*
 * After a merge with .del that was cut short while it removed files, so that LEAF is gone or
 * its chain does not open any more: removes what is left of it. TARGET may be NULL: the disk
 * beside LEAF that says it was merged from it. *DONE tells whether there was such a merge; then
 * *INTO is the target's path, malloc'd.
 */
int img_merge_clean_up(const char *leaf, const char *target, const struct img_open *open,
		       bool *done, char **into, struct img_err *err);

/*
 * A child that is on its way will be merged into the leaf of C. From before its first byte until it
 * is in, or dropped, nobody else opens that disk, also after a crash: a marker beside it says so,
 * which the merge takes over. Every reason that a merge would have against it is one here, too.
 */
struct img_receive {
	const struct img_open *open; /* its folders are searched for other children */
	const char *child;	     /* the name that it will have */
	const char *partial;	     /* and has until it is whole */
	uint8_t uuid[16];	     /* of the child */
	uint64_t size;		     /* that the disk will have */
};
int img_receive_begin(struct img_chain *c, const struct img_receive *r, struct img_err *err);
enum img_receiving {
	IMG_RECEIVING_NOT,
	IMG_RECEIVING,	     /* nothing of the disk has changed yet */
	IMG_RECEIVING_MERGE, /* the marker of a merge */
};
int img_receive_state(const char *path, enum img_receiving *state, struct img_err *err);
/* Whether a merge says that the child UUID became part of the disk, and left the child there. */
int img_receive_kept(const char *path, const uint8_t uuid[16], bool *yes, struct img_err *err);
/* The marker goes, durably, unless it is that of a merge. */
int img_receive_end(const char *path, struct img_err *err);

/*
 * What the layers 0 to LAST show becomes a new image PATH, in the order of the disk, zeros left
 * out: with all layers a dynamic one without a parent, else a child of the layer below LAST.
 */
int img_flatten(struct img_chain *c, unsigned last, const char *path, bool force,
		const struct img_merge *opts, struct img_merge_stats *stats, struct img_err *err);

/* Content sum (vhd-sum(1)): independent of layout, equal for equal guest-visible content. */
#define IMG_SUM_CHUNK (1u << 20)
#define IMG_SUM_BYTES 16
#define IMG_SUM_STR 33 /* bytes of a printed sum, with the NUL */
struct img_sum;	       /* takes the disk's bytes in ascending order */
struct img_sum *img_sum_new(uint64_t size);
/* Of one chunk. */
void img_sum_chunk(const void *buf, size_t len, uint64_t seed, uint8_t sum[IMG_SUM_BYTES]);
/* With a seed for the chunks' sums; 0 is that of the content sum. */
struct img_sum *img_sum_new_seeded(uint64_t size, uint64_t seed);
void img_sum_free(struct img_sum *s);
void img_sum_data(struct img_sum *s, const void *buf, size_t len);
void img_sum_zeros(struct img_sum *s, uint64_t len);
/* N chunks whose content was seen before and has this sum; where a chunk begins. */
void img_sum_known(struct img_sum *s, const uint8_t sum[IMG_SUM_BYTES], uint64_t n);
/* N chunks that nobody looks at: then there is no sum of all, img_sum_final() gives "". */
void img_sum_skip(struct img_sum *s, uint64_t n);
/* FN is told the sum of each chunk as soon as it is known: of N equal ones, from FIRST on. */
void img_sum_watch(struct img_sum *s,
		   void (*fn)(void *ctx, uint64_t first, uint64_t n,
			      const uint8_t sum[IMG_SUM_BYTES]),
		   void *ctx);
/* Lower-case hexadecimal; all SIZE bytes must have been given. */
void img_sum_final(struct img_sum *s, char out[IMG_SUM_STR]);
/*
 * A value that stays the same as long as nobody writes to the files of layers FROM to TO-1:
 * made of their UUIDs, inodes, sizes and times.
 */
int img_identity(struct img_chain *c, unsigned from, unsigned to, uint8_t out[IMG_SUM_BYTES],
		 struct img_err *err);
/*
 * Makes it one of this run of the system: after power loss a file may have newer content than its
 * times. False: no run is told from another.
 */
bool img_identity_boot(uint8_t id[IMG_SUM_BYTES]);
/*
 * Sums of the chunks of a disk are kept beside it, in FILE.sums, while nobody has written to its
 * files (lib/sums.c says how that is known). Of small disks none are kept. All this fails
 * silently: then they are not known, and must be read again.
 */
struct img_sum_how {
	bool known;	/* chunks whose sum is known are not read */
	uint64_t limit; /* with KNOWN: where more must be read, nothing is done. 0: no limit */
	bool keep;	/* with KNOWN: where nothing new can be kept, nothing is done */
	uint64_t seed;	/* of the chunks' sums; known are only those with seed 0 */
	int (*progress)(void *ctx, uint64_t done, uint64_t planned);
	void *ctx;
	/* Told the sums as img_sum_watch() does. */
	void (*chunks)(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES]);
	void *chunks_ctx;
};
struct img_sum_result {
	bool done;
	char sum[IMG_SUM_STR];
	uint64_t read; /* bytes */
};
/* The content sum of a chain; with seed 0 what was learned is kept. */
int img_sum_disk(struct img_chain *c, const struct img_sum_how *how, struct img_sum_result *r,
		 struct img_err *err);
/*
 * Gives S the first CHUNKS chunks, those whose sum is known without reading them. The others are
 * read, or with SKIP passed over.
 */
int img_sum_first(struct img_chain *c, uint64_t chunks, bool skip, const struct img_sum_how *how,
		  struct img_sum *s, struct img_err *err);

/*
 * For whoever sums on the way: begun before C is read, given the sums of chunks in ascending order
 * (an img_sum_watch() callback), stored at the end, however far that came: behind it stays known
 * what was known before. Everything takes NULL.
 */
struct img_sums;
struct img_sums *img_sums_begin(struct img_chain *c);
/*
 * Of a new image that will stay as MADE is now, after img_create_complete(), on BASE (or NULL); to
 * be stored when it is open under its name.
 */
struct img_sums *img_sums_begin_new(struct img_chain *made, const struct img_chain *base);
void img_sums_add(void *sums, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES]);
void img_sums_store(struct img_sums *s, struct img_chain *c);
void img_sums_drop(struct img_sums *s);
/* Whether the sum of what layer FROM shows can be told without reading it. */
bool img_sums_known(struct img_chain *c, unsigned from);
/* FILE.sums goes, durably, if it is one. REAL is the resolved name of FILE. */
void img_sums_remove(const char *real);

/* The sum of a whole chain, which is read. PROGRESS as for img_merge(). */
int img_sum_chain(struct img_chain *c, int (*progress)(void *ctx, uint64_t done, uint64_t planned),
		  void *ctx, char out[IMG_SUM_STR], struct img_err *err);

/*
 * Another size for the disk PATH. What is new reads as zeros (in a child: as its parent has it,
 * zeros behind that one's end). Shrinking is refused (IMG_PREFLIGHT), naming the offset, when
 * there is anything but zeros behind the new end. Refused as well: a disk with children, since
 * they would have another size, and one that a saved machine depends on; unless FORCE. Crash-
 * safe: old or new.
 */
struct img_resize {
	uint64_t size;
	bool force, dry_run;
	uint64_t old_size, old_file_size, file_size; /* told */
};
int img_resize(const char *path, const struct img_open *opts, struct img_resize *r,
	       int (*progress)(void *ctx, uint64_t done, uint64_t planned), void *ctx,
	       struct img_err *err);

/*
 * The link of CHILD to its parent, written anew. Refused when PARENT is not the one that CHILD
 * names (UUID, and not larger unless the child has shrunk; a raw parent's size), unless FORCE:
 * then its UUID is taken over; loops and chains that are too deep always. OPTS says where
 * PARENT's own parents may lie; with .unlocked the caller holds the locks of PARENT and all
 * below. Crash-safe: old or new.
 */
struct img_reparent_plan {
	bool changes;			    /* false: all is as it should be already */
	bool other;			    /* not the parent that CHILD named */
	char why[256];			    /* … and why not */
	uint8_t old_uuid[16], new_uuid[16]; /* all zero: a raw parent */
};
int img_reparent(const char *child, const char *parent, const struct img_open *opts, bool force,
		 struct img_err *err);
/* Only looks. */
int img_reparent_plan(const char *child, const char *parent, const struct img_open *opts,
		      bool force, struct img_reparent_plan *plan, struct img_err *err);

/*
 * Looks at every byte of structure of one VHD, and reports each fault to FAULT (non-zero ends the
 * check). The file may be damaged in any way. vhd-check(1) lists the identifiers.
 */
enum img_severity { IMG_NOTE, IMG_WARNING, IMG_ERROR };

#define IMG_FAULT_NOWHERE ~0ull
#define IMG_FAULT_TEXT 256

struct img_fault {
	const char *id, *what; /* stable; for a person */
	const char *path;      /* of the file it is in */
	enum img_severity severity;
	uint64_t offset;	/* in that file, or IMG_FAULT_NOWHERE */
	uint32_t block, blocks; /* which blocks; BLOCKS is 0: none */
	bool mendable;		/* by img_repair() */
	char found[IMG_FAULT_TEXT], expected[IMG_FAULT_TEXT]; /* or "" */
	char loss[IMG_FAULT_TEXT]; /* what the guest has lost by it, or "" */
};

struct img_check {
	struct img_open open; /* .unlocked and where parents may lie */
	bool chain;	      /* the parents as well, down to the base */
	bool no_bitmaps;      /* only what does not need every block looked at */
	bool dry_run;	      /* img_repair() only tells what it would do */
	void (*fault)(void *ctx, const struct img_fault *f);
	int (*progress)(void *ctx, uint64_t done, uint64_t planned); /* of one file; may be NULL */
	void *ctx;
};

struct img_check_result {
	unsigned layers; /* that were looked at */
	uint64_t errors, warnings, notes, mendable;
	uint64_t blocks, used; /* of the first file: entries of the BAT, blocks in the file */
	uint64_t leaked;       /* its bytes that nothing owns */
	bool repaired;	       /* img_repair() changed the file */
	uint64_t changed;      /* bytes written for it */
	char undo[4096];       /* where the old bytes are */
};

int img_check(const char *path, const struct img_check *opts, struct img_check_result *res,
	      struct img_err *err);
/*
 * Mends what the rest of the file proves, and reports every fault that it found. The old bytes
 * are in FILE.undo afterwards. A repair that was cut short is undone by the next open. RES
 * counts what was there before; AFTER is what a new check says.
 */
int img_repair(const char *path, const struct img_check *opts, struct img_check_result *res,
	       struct img_check_result *after, struct img_err *err);
/* Takes the last repair back; also a change that was cut short. FORCE: whatever happened since. */
int img_undo(const char *path, bool force, struct img_err *err);

#endif
