/* SPDX-License-Identifier: BSD-2-Clause */
/* Inside the library: a layer, the table of formats, and what they share. */
#ifndef IMG_IMPL_H
#define IMG_IMPL_H

#include <pthread.h>
#include <sys/stat.h>

#include "bytes.h"
#include "img.h"
#include "io.h"

enum img_ext_kind {
	EXT_DATA, /* this file has it, at file_off */
	EXT_ZERO, /* reads as zeros, parents or not */
	EXT_HOLE, /* not here: ask the parent, or zeros at the base */
};

/* A uniform run within one layer. */
struct img_ext {
	enum img_ext_kind kind;
	uint64_t len;
	uint64_t file_off;
};

struct img;

/*
 * One row for each format. OFF and LEN lie inside the layer's size and are multiples of 512
 * (except at the end of a raw disk). All may be called by many threads at once.
 */
struct img_ops {
	const char *name;
	/* 1: the file is of this format, 0: it is not. */
	int (*probe)(struct img *l, struct img_err *err);
	int (*open)(struct img *l, struct img_err *err);
	void (*close)(struct img *l);
	/* Looks at what open() leaves for later: every entry of the BAT. */
	int (*check)(struct img *l, struct img_err *err);
	/* Fills in the first uniform run; need not be the longest. */
	int (*map)(struct img *l, uint64_t off, uint64_t len, struct img_ext *ext,
		   struct img_err *err);
	/* BUF is NULL for zeros. */
	int (*write)(struct img *l, const uint8_t *buf, uint64_t off, uint64_t len,
		     struct img_err *err);
	int (*trim)(struct img *l, uint64_t off, uint64_t len, struct img_err *err);
	/*
	 * Another size; nobody else uses the layer. When shrinking, what lies behind SIZE reads as
	 * zeros. Crash-safe; after a failure the layer is only fit to be closed.
	 */
	int (*resize)(struct img *l, uint64_t size, struct img_err *err);
	/* Writes an empty image of these options into the empty file of L. */
	int (*create)(struct img *l, const struct img_create *opts, struct img_err *err);
	/* Takes up the file of L where it was at OFF and END; settle() writes what it holds and
	 * tells END, finish() makes it a whole image. All three only while building. */
	int (*recreate)(struct img *l, const struct img_create *opts, uint64_t off, uint64_t end,
			struct img_err *err);
	int (*settle)(struct img *l, uint64_t *end, struct img_err *err);
	int (*finish)(struct img *l, struct img_err *err);
	/*
	 * Absorbing a child of SIZE bytes, in this order (merge.c): absorb_begin once (again
	 * after resize()); absorb_place for each run of the child, ascending: where LEN' <= LEN
	 * bytes of the disk have their place in the file; absorb_extend: space and footers
	 * durable; then the data is copied and synced; absorb_mark for each run again;
	 * absorb_publish makes all of it visible, durably; absorb_end frees, always.
	 */
	int (*absorb_begin)(struct img *l, uint64_t size, struct img_err *err);
	int (*absorb_place)(struct img *l, uint64_t off, uint64_t len, uint64_t *file_off,
			    uint64_t *placed, struct img_err *err);
	int (*absorb_extend)(struct img *l, struct img_merge_stats *stats, bool dry_run,
			     struct img_err *err);
	int (*absorb_mark)(struct img *l, uint64_t off, uint64_t len, struct img_err *err);
	int (*absorb_publish)(struct img *l, struct img_err *err);
	void (*absorb_end)(struct img *l);
};

struct img {
	const struct img_ops *ops;
	struct io_file file;
	struct img_info info;
	pthread_mutex_t mutex; /* the format's state */
	void *state;	       /* the format's own */
	bool building;	       /* not published yet: no barriers before the last one */
	uint64_t parent_size;  /* of the parent that was opened, 0: none */
	char warning[512];
};

struct img_chain {
	struct img *layer[IMG_MAX_LAYERS]; /* 0: leaf */
	unsigned n;
	uint64_t size;
	unsigned merge_to; /* target of a merge: layers up to it are writable; 0: none */
	bool ignore_saved_state;
};

extern const struct img_ops vhd_ops, raw_ops;
/* All formats, NULL at the end, in the order of probing. */
extern const struct img_ops *const img_formats[];

/* What was tolerated; several add up. */
void img_warn(struct img *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

enum img_raw { RAW_NEVER, RAW_MAYBE, RAW_ALWAYS };

/* Opens PATH as one layer and locks it. */
int img_layer_open(struct img **out, const char *path, bool writable, bool unlocked,
		   enum img_raw raw, struct img_err *err);
void img_layer_close(struct img *l);
/* A file whose bytes are the disk's loses those from OFF on; what is below must be there. */
int img_forget_from(struct img *l, uint64_t off, struct img_err *err);

/* map.c: img_map() without a look at the file system's holes, which costs a system call a run. */
int img_map_dense(struct img_chain *c, uint64_t off, uint64_t len, unsigned base,
		  struct img_run *run, struct img_err *err);

/* sum.c: the part of a chain from OFF to END goes into S. BUF is made, the caller's to free. */
struct img_sum_job {
	int (*progress)(void *ctx, uint64_t done, uint64_t planned);
	void *ctx;
	uint8_t *buf;
	uint64_t read; /* bytes */
};
int img_sum_range(struct img_chain *c, struct img_sum *s, uint64_t off, uint64_t end,
		  struct img_sum_job *job, struct img_err *err);

/*
 * sums.c: what is known of the chain, that will be known of layer TO when all above is merged into
 * it; after that it is stored. Nothing is read. From the first call on nothing is kept of the files
 * that the merge changes.
 */
struct img_sums *img_sums_before_merge(struct img_chain *c, unsigned to);
void img_sums_after_merge(struct img_sums *s, struct img_chain *c, unsigned to);

/* kin.c: calls FN with the path of each disk, not of the chain, that is a child of PARENT. */
typedef int img_kin_fn(void *ctx, const char *path, struct img_err *err);
int img_kin_each(const struct img_chain *c, const struct img *parent, const struct img_open *opts,
		 img_kin_fn *fn, void *ctx, struct img_err *err);

/* marker.c: the markers of a merge, files beside the disks that it changes. */
enum img_marker_state {
	IMG_MARKER_NONE,
	IMG_MARKER_MERGING,   /* half merged */
	IMG_MARKER_MIDDLE,    /* between the leaf and the target: of no use without the leaf */
	IMG_MARKER_MERGED,    /* whole; files that are not needed any more are being removed */
	IMG_MARKER_RECEIVING, /* still the old disk, while a child that will be merged arrives */
	IMG_MARKER_KEPT,      /* whole, and what was merged is still there: in a file of its own */
};
struct img_marker {
	enum img_marker_state state;
	uint8_t child_uuid[16]; /* of the layer through which alone the disk opens */
	uint8_t leaf_uuid[16];
	/* MERGED, KEPT: img_identity() of the disk and of what was merged; zero: not any more */
	uint8_t target[16], above[16];
	uint8_t boot[16]; /* when that was so */
	uint8_t file[16]; /* which file the disk is, whatever is in it; zero: not known */
	char leaf[4096];  /* its path */
	struct stat st;	  /* of the marker, where it was read */
	bool plain;	  /* and no link led there */
};
#define IMG_MARKER_SUFFIX ".merging"
#define IMG_KEPT_SUFFIX ".absorbed"
int img_marker_read(const char *real, struct img_marker *m, struct img_err *err);
/* KEPT, or NONE. */
int img_kept_read(const char *real, struct img_marker *m, struct img_err *err);
int img_kept_remove(const char *real, struct img_err *err);
/* Durable when it returns. ABOVE: the layer through which alone L opens. */
int img_marker_write(const struct img *l, const struct img *above, const struct img *leaf,
		     enum img_marker_state state, struct img_err *err);
/* The same for the disk at REAL, with all that the marker says. */
int img_marker_store(const char *real, const struct img_marker *m, struct img_err *err);
/* None there is fine. */
int img_marker_remove(const char *real, struct img_err *err);
/* Whether a new disk may have the name PATH: what lies beside it would be taken for one of the new
 * one. */
int img_marker_check_new(const char *path, struct img_err *err);
/* Whether L may be opened below CHILD (NULL: by itself). */
int img_marker_check(struct img *l, struct img *child, const struct img_open *opts,
		     struct img_err *err);

/*
 * absorbed.c: layers that were merged into a disk and are still there. As long as nobody writes to
 * that one they are as good as before; from then on they must not be merged into it once more.
 */
/* C was merged down to layer TO: MERGED or KEPT is durably noted beside that, as things are now. */
int img_absorbed_note(struct img_chain *c, unsigned to, enum img_marker_state state,
		      struct img_err *err);
/* L was opened below CHILD (or NULL): whether that one shows what it showed. */
void img_absorbed_warn(struct img *l, struct img *child, const struct img_open *opts);
/* Before somebody writes to the leaf: what was noted of it is true no longer. */
void img_absorbed_written(struct img_chain *c);
struct img_absorbed {
	bool same_leaf; /* the leaf is the one that was merged */
	bool above_same,
		target_same; /* nobody has written to the files, by what they say themselves */
	bool sure;	     /* and that is worth something */
	bool trusted;	     /* nobody else made the marker */
	bool replaced;	     /* the target is another file now, or an older one was put back */
};
/* What marker M, which is beside layer TO and about the one above it, is worth now. */
int img_absorbed_judge(struct img_chain *c, unsigned to, const struct img_marker *m,
		       struct img_absorbed *a, struct img_err *err);
/* Whether the file that M is about is still there. */
bool img_absorbed_there(const struct img_marker *m);

/* What a search for the parent of a layer found (chain.c). */
struct img_parent {
	char *path;		      /* the one; NULL: none */
	char *damaged;		      /* a candidate that cannot be opened, or NULL */
	bool refused;		      /* one lies outside the allowed folders */
	bool wrong;		      /* one is somebody else's parent */
	uint64_t size, original_size; /* of the last that was looked at */
	int64_t mtime;
	char tried[1400]; /* every candidate and why not, a line each */
};
int img_parent_find(struct img *child, const struct img_open *opts, struct img_parent *out,
		    struct img_err *err);
void img_parent_free(struct img_parent *p);

#endif
