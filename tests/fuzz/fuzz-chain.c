/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A chain and a list of operations on it, beside a plain buffer that knows what the guest must see.
 * After every operation the chain reads as the buffer, now and then for a second reader of the
 * files as well: what was acknowledged is in them.
 *
 * Input: one byte each for the type and block size of the base, two for its size in sectors; then
 * operations, a byte each with their operands.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "fuzz.h"

#define MAX_SIZE (256u << 10)
#define MAX_OPS 40
#define MAX_LAYERS 6

/* A layer as it is when it is opened by itself. The base is 0. */
struct layer {
	char name[32];
	uint64_t size;
	uint8_t view[MAX_SIZE];
	bool own[MAX_SIZE / 512]; /* sectors that it has, whatever is below: all those of a base */
	bool mixed;		  /* a merge left it as no disk that ever was */
};

struct disk {
	struct img_chain *c;
	struct layer layer[MAX_LAYERS];
	unsigned layers, names;
	struct layer *leaf;
	bool raw; /* the base is */
};

static struct disk d;
static uint8_t buf[MAX_SIZE], buf2[MAX_SIZE];

static const uint32_t block_sizes[] = {4096, 8192, 16384, 65536, 512 << 10, 2 << 20};

static const char *new_name(const char *suffix, char out[32])
{
	snprintf(out, 32, "disk-%u.%s", d.names++, suffix);
	return fuzz_path(out);
}

/* Of the layer N alone, or with its parents. */
static struct img_open options(unsigned n, bool writable)
{
	return (struct img_open){.writable = writable, .raw = d.raw && n == 0};
}

static void open_leaf(void)
{
	struct img_open o = options(d.layers - 1, true);
	struct img_err err = {0};

	if (img_open(&d.c, fuzz_path(d.leaf->name), &o, &err) < 0)
		fuzz_die(&err, "the leaf does not open");
	if (img_size(d.c) != d.leaf->size || img_layers(d.c) != d.layers)
		fuzz_die(NULL, "%u layers of %llu bytes, wanted %u", img_layers(d.c),
			 (unsigned long long)img_size(d.c), d.layers);
}

static void close_leaf(void)
{
	img_close(d.c);
	d.c = NULL;
}

static void set_layers(unsigned n)
{
	d.layers = n;
	d.leaf = &d.layer[n - 1];
}

FUZZ_UNCOUNTED static void compare(struct img_chain *c, uint64_t off, uint64_t len,
				   const char *after)
{
	struct img_err err = {0};

	if (img_read(c, buf2, off, len, &err) < 0)
		fuzz_die(&err, "cannot be read after %s", after);
	for (uint64_t n = 0; n < len; n += 512)
		if (memcmp(buf2 + n, d.leaf->view + off + n, u64_min(512, len - n)) != 0)
			fuzz_die(NULL, "sector %llu differs after %s",
				 (unsigned long long)(off + n) / 512, after);
}

static void compare_all(const char *after, bool second_reader)
{
	struct img_open o = options(d.layers - 1, false);
	struct img_err err = {0};
	struct img_chain *second;

	compare(d.c, 0, d.leaf->size, after);
	if (!second_reader)
		return;
	o.unlocked = true;
	if (img_open(&second, fuzz_path(d.leaf->name), &o, &err) < 0)
		fuzz_die(&err, "a second reader cannot open it after %s", after);
	compare(second, 0, d.leaf->size, after);
	img_close(second);
}

static void make_base(struct fuzz_in *in)
{
	static const enum img_type types[] = {IMG_DYNAMIC, IMG_DYNAMIC, IMG_FIXED, IMG_RAW};
	struct img_create o = {0};
	struct img_err err = {0};

	o.type = types[fuzz_u8(in) % 4];
	o.block_size = block_sizes[fuzz_u8(in) % 6];
	o.size = 512 * (1 + fuzz_u16(in) % (MAX_SIZE / 512));
	memset(&d.layer[0], 0, sizeof(d.layer[0]));
	memset(d.layer[0].own, true, sizeof(d.layer[0].own));
	d.layer[0].size = o.size;
	d.raw = o.type == IMG_RAW;
	d.names = 0;
	set_layers(1);
	if (img_create(new_name("base", d.leaf->name), &o, &err) < 0)
		fuzz_die(&err, "no base");
	open_leaf();
}

/* Part of the disk: anywhere, or on a block's border, or all of it. */
static void take_range(struct fuzz_in *in, uint64_t *off, uint64_t *len)
{
	uint64_t nsec = d.leaf->size / 512, sec = fuzz_u16(in) % nsec;
	unsigned how = fuzz_u8(in);
	uint64_t n = (how & 0x7f) + 1;

	if (how & 0x80) {
		sec &= ~7ull;
		n = (how & 0x7f) == 0x7f ? nsec : ((how & 0x7f) + 1) * 8;
	}
	*off = sec * 512;
	*len = u64_min(n, nsec - sec) * 512;
}

static void op_write(struct fuzz_in *in)
{
	struct img_err err = {0};
	uint64_t off, len;
	unsigned seed = fuzz_u8(in);

	take_range(in, &off, &len);
	if (seed % 16 == 0)
		memset(buf, 0, len); /* zeros that are written are data */
	else
		fuzz_pattern(buf, len, seed);
	if (img_write(d.c, buf, off, len, seed & 1, &err) < 0)
		fuzz_die(&err, "write");
	memcpy(d.leaf->view + off, buf, len);
	memset(d.leaf->own + off / 512, true, len / 512);
}

static void op_zero(struct fuzz_in *in)
{
	struct img_err err = {0};
	uint64_t off, len;
	bool fua = fuzz_u8(in) & 1;

	take_range(in, &off, &len);
	if (img_zero(d.c, off, len, fua, &err) < 0)
		fuzz_die(&err, "zero");
	memset(d.leaf->view + off, 0, len);
	memset(d.leaf->own + off / 512, true, len / 512);
}

static void op_trim(struct fuzz_in *in)
{
	struct img_err err = {0};
	uint64_t off, len;

	take_range(in, &off, &len);
	if (img_trim(d.c, off, len, &err) < 0)
		fuzz_die(&err, "trim");
	for (uint64_t s = off / 512; s < (off + len) / 512; s++)
		if (d.leaf->own[s])
			memset(d.leaf->view + s * 512, 0, 512);
}

/* Requests that no guest may make change nothing. */
static void op_refused(struct fuzz_in *in)
{
	struct img_err err = {0};
	struct img_run run;
	uint64_t off = fuzz_u32(in), len = 512;

	if (fuzz_u8(in) & 1)
		off += d.leaf->size;
	else if (d.raw && d.layers == 1)
		return;
	else
		off = off % d.leaf->size | 1;
	if (img_write(d.c, buf, off, len, false, &err) == 0 ||
	    img_zero(d.c, off, len, false, &err) == 0 || img_trim(d.c, off, len, &err) == 0)
		fuzz_die(NULL, "a write of %llu bytes at %llu went through",
			 (unsigned long long)len, (unsigned long long)off);
	if (off >= d.leaf->size && (img_read(d.c, buf, off, len, &err) == 0 ||
				    img_map(d.c, off, len, img_layers(d.c), &run, &err) == 0))
		fuzz_die(NULL, "a read beyond the end went through");
}

static void pushed(const char *child)
{
	struct layer *l = &d.layer[d.layers];

	memcpy(l->view, d.leaf->view, sizeof(l->view));
	memset(l->own, false, sizeof(l->own));
	l->size = d.leaf->size;
	l->mixed = false;
	strcpy(l->name, child);
	set_layers(d.layers + 1);
}

/* A checkpoint while the disk is open, and one while it is not. */
static void op_push(struct fuzz_in *in)
{
	struct img_create o = {.type = IMG_DIFFERENCING, .size = d.leaf->size};
	const struct img_info *info = img_layer_info(d.c, 0);
	struct img_open oo = options(d.layers - 1, false);
	static const uint8_t none[16];
	struct img_err err = {0};
	unsigned how = fuzz_u8(in);
	struct img *layer;
	char child[32];

	if (d.layers == MAX_LAYERS)
		return;
	new_name("avhd", child);
	if (how % 4 == 0) {
		close_leaf();
		if (img_snapshot(fuzz_path(d.leaf->name), fuzz_path(child), &oo, false, &err) < 0)
			fuzz_die(&err, "snapshot");
		pushed(child);
		open_leaf();
		return;
	}
	o.block_size = block_sizes[how / 4 % 6];
	o.parent_path = fuzz_path(d.leaf->name);
	o.parent_uuid = info->has_uuid ? info->uuid : none;
	if (img_create(fuzz_path(child), &o, &err) < 0 ||
	    img_push_open(d.c, fuzz_path(child), &layer, &err) < 0)
		fuzz_die(&err, "push: open");
	if (how % 4 == 1) {
		img_push_cancel(layer);
		(void)unlink(fuzz_path(child));
		return;
	}
	if (img_flush(d.c, &err) < 0 || img_push(d.c, layer, &err) < 0)
		fuzz_die(&err, "push");
	pushed(child);
}

static int stop_at(void *ctx, uint64_t done, uint64_t planned)
{
	unsigned *left = ctx;

	if (done > planned)
		fuzz_die(NULL, "%llu bytes of %llu merged", (unsigned long long)done,
			 (unsigned long long)planned);
	return (*left)-- == 0;
}

enum merged { REFUSED, STOPPED, MERGED };

/* Merges the leaf down to layer TO. After a merge that did not end much may be refused, but nothing
 * may change. */
static enum merged try_merge(unsigned to, bool del, unsigned stop)
{
	struct img_open o = options(d.layers - 1, true);
	struct img_merge m = {.open = &o, .del = del, .progress = stop_at, .ctx = &stop};
	struct img_merge_stats plan, stats;
	struct img_err err = {0};
	enum merged how = MERGED;

	o.merge = true;
	o.merge_to = fuzz_path(d.layer[to].name);
	if (img_open(&d.c, fuzz_path(d.leaf->name), &o, &err) < 0)
		fuzz_die(&err, "does not open for a merge");
	if (img_merge_plan(d.c, &m, &plan, &err) < 0) {
		how = REFUSED;
		for (unsigned i = to; i < d.layers; i++)
			if (d.layer[i].mixed || d.layer[i].size != d.leaf->size)
				goto out;
		fuzz_die(&err, "merge: plan");
	}
	if (img_merge(d.c, &m, &stats, &err) < 0) {
		if (err.code != IMG_AGAIN)
			fuzz_die(&err, "merge");
		how = STOPPED;
	} else if (stats.bytes != plan.bytes || stats.new_blocks != plan.new_blocks) {
		fuzz_die(NULL, "merged %llu bytes, planned %llu", (unsigned long long)stats.bytes,
			 (unsigned long long)plan.bytes);
	}
out:
	compare(d.c, 0, d.leaf->size, how == MERGED ? "a merge, through the leaf" : "half a merge");
	close_leaf();
	return how;
}

/* What is half merged shows itself through the leaf only. */
static void alone(unsigned n)
{
	struct img_open o = options(n, false);
	struct img_err err = {0};
	struct img_chain *c;

	if (img_open(&c, fuzz_path(d.layer[n].name), &o, &err) == 0)
		fuzz_die(NULL, "a half merged layer opens alone");
	if (err.code != IMG_AGAIN)
		fuzz_die(&err, "a half merged layer is refused for a wrong reason");
}

static void mixed(unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++)
		d.layer[i].mixed = true;
}

/* Layer TO has all that was above it. */
static void merged(unsigned to)
{
	struct layer *t = &d.layer[to];

	memcpy(t->view, d.leaf->view, sizeof(t->view));
	t->size = d.leaf->size;
	t->mixed = false;
	for (unsigned i = to + 1; i < d.layers; i++)
		for (unsigned s = 0; s < MAX_SIZE / 512; s++)
			t->own[s] |= d.layer[i].own[s];
}

static void op_merge(struct fuzz_in *in)
{
	unsigned how = fuzz_u8(in), top = d.layers - 1, to;
	bool del = how & 4;
	enum merged done;

	if (d.layers == 1)
		return;
	to = how & 8 ? (how >> 4) % top : top - 1;
	close_leaf();
	if (how & 1 && (done = try_merge(to, del, fuzz_u8(in))) != MERGED) {
		if (done == STOPPED)
			mixed(to, top);
		if (done == STOPPED)
			alone(to);
		if (done == REFUSED || how & 2) {
			/* Goes on as a disk, half merged below. */
			open_leaf();
			return;
		}
	} else if (how & 1 && del) {
		merged(to);
		set_layers(to + 1);
		open_leaf();
		return;
	}
	done = try_merge(to, del, ~0u);
	if (done == STOPPED)
		fuzz_die(NULL, "a merge stopped by itself");
	if (done == MERGED) {
		merged(to);
		mixed(to + 1, top);
	}
	if (done == MERGED && del) {
		for (unsigned i = to + 1; i <= top; i++)
			if (fuzz_exists(d.layer[i].name))
				fuzz_die(NULL, "a merged file is still there");
		set_layers(to + 1);
	}
	open_leaf();
}

static void op_reopen(struct fuzz_in *in)
{
	struct img_err err = {0};

	if (fuzz_u8(in) & 1 && img_flush(d.c, &err) < 0)
		fuzz_die(&err, "flush");
	close_leaf();
	open_leaf();
}

static void op_read(struct fuzz_in *in)
{
	uint64_t off, len;

	take_range(in, &off, &len);
	compare(d.c, off, len, "reading a part");
}

/* Runs cover the disk and say the truth. */
static void op_map(struct fuzz_in *in)
{
	unsigned base = 1 + fuzz_u8(in) % d.layers;
	struct img_err err = {0};
	struct img_run run;

	for (uint64_t off = 0; off < d.leaf->size; off += run.len) {
		if (img_map(d.c, off, d.leaf->size - off, base, &run, &err) < 0)
			fuzz_die(&err, "map");
		if (run.off != off || run.len == 0 || run.len > d.leaf->size - off)
			fuzz_die(NULL, "a run of %llu bytes at %llu", (unsigned long long)run.len,
				 (unsigned long long)off);
		if (run.kind == IMG_BELOW_RUN  ? base == d.layers
		    : run.kind == IMG_DATA_RUN ? run.layer >= base
					       : !bytes_are_zero(d.leaf->view + off, run.len))
			fuzz_die(NULL, "a run of kind %d at %llu is wrong", run.kind,
				 (unsigned long long)off);
		if (run.kind == IMG_DATA_RUN && img_read_run(d.c, &run, buf, &err) < 0)
			fuzz_die(&err, "a run that cannot be read");
		if (run.kind == IMG_DATA_RUN && memcmp(buf, d.leaf->view + off, run.len) != 0)
			fuzz_die(NULL, "the run at %llu holds something else",
				 (unsigned long long)off);
	}
}

static void op_sum(struct fuzz_in *in)
{
	char got[IMG_SUM_STR], want[IMG_SUM_STR];
	struct img_sum *s = img_sum_new(d.leaf->size);
	struct img_err err = {0};
	uint64_t split = fuzz_u32(in) % (d.leaf->size + 1);

	if (!s || img_sum_chain(d.c, NULL, NULL, got, &err) < 0)
		fuzz_die(&err, "sum");
	img_sum_data(s, d.leaf->view, split);
	img_sum_data(s, d.leaf->view + split, d.leaf->size - split);
	img_sum_final(s, want);
	img_sum_free(s);
	if (strcmp(got, want) != 0)
		fuzz_die(NULL, "sum %s, wanted %s", got, want);
}

/* The layers from FROM on are the file NAME now; the old files go. */
static void replace_layers(unsigned from, const char *name)
{
	static struct layer now;

	now = *d.leaf;
	now.mixed = false;
	strcpy(now.name, name);
	for (unsigned i = from; i < d.layers; i++) {
		char marker[48];

		(void)unlink(fuzz_path(d.layer[i].name));
		snprintf(marker, sizeof(marker), "%s.merging", d.layer[i].name);
		(void)unlink(fuzz_path(marker));
		snprintf(marker, sizeof(marker), "%s.absorbed", d.layer[i].name);
		(void)unlink(fuzz_path(marker));
		for (unsigned n = 0; n < MAX_SIZE / 512; n++)
			now.own[n] |= from == 0 || d.layer[i].own[n];
	}
	d.layer[from] = now;
	set_layers(from + 1);
}

/* The whole disk goes into a new file of another type, run by run. */
static void op_convert(struct fuzz_in *in)
{
	static const enum img_type types[] = {IMG_DYNAMIC, IMG_FIXED, IMG_RAW};
	struct img_create o = {.size = d.leaf->size};
	struct img_err err = {0};
	struct img_new *n;
	struct img_run run;
	char name[32];

	o.type = types[fuzz_u8(in) % 3];
	o.block_size = block_sizes[fuzz_u8(in) % 6];
	if (img_create_begin(&n, new_name("base", name), &o, &err) < 0)
		fuzz_die(&err, "convert");
	for (uint64_t off = 0; off < d.leaf->size; off += run.len) {
		if (img_map(d.c, off, d.leaf->size - off, d.layers, &run, &err) < 0)
			fuzz_die(&err, "convert: map");
		if (run.kind == IMG_ZERO_RUN)
			continue;
		if (img_read_run(d.c, &run, buf, &err) < 0 ||
		    img_write(img_new_chain(n), buf, off, run.len, false, &err) < 0)
			fuzz_die(&err, "convert: copy");
	}
	if (o.block_size == 16384) { /* changed its mind */
		img_create_abort(n);
		if (fuzz_exists(name))
			fuzz_die(NULL, "what was given up is there");
		return;
	}
	if (img_create_finish(n, &err) < 0)
		fuzz_die(&err, "convert: end");
	close_leaf();
	replace_layers(0, name);
	d.raw = o.type == IMG_RAW;
	open_leaf();
}

/* Layers from one on become one file, beside the chain, and then take its place. */
static void op_flatten(struct fuzz_in *in)
{
	unsigned from = fuzz_u8(in) % d.layers, left = fuzz_u8(in);
	struct img_merge m = {.progress = stop_at, .ctx = &left};
	struct img_merge_stats stats;
	struct img_err err = {0};
	char name[32];

	if (left & 1)
		left = ~0u;
	/* What a merge left behind opens below its own leaf only, not below a new file. */
	if (d.layers == 1 || (from && d.layer[from - 1].mixed))
		return;
	new_name("flat", name);
	if (img_flatten(d.c, d.layers - 1 - from, fuzz_path(name), false, &m, &stats, &err) < 0) {
		if (err.code != IMG_AGAIN || fuzz_exists(name))
			fuzz_die(&err, "flatten");
		return;
	}
	close_leaf();
	replace_layers(from, name);
	if (from == 0)
		d.raw = false;
	open_leaf();
}

/* Behind the old end: what the parent has there, zeros behind its end. */
static void grown(uint64_t from, uint64_t to)
{
	const struct layer *below = d.layers > 1 ? d.leaf - 1 : NULL;
	uint64_t end = below ? u64_max(from, u64_min(to, below->size)) : from;

	if (below)
		memcpy(d.leaf->view + from, below->view + from, end - from);
	memset(d.leaf->view + end, 0, to - end);
	memset(d.leaf->own + from / 512, d.layers == 1, (to - from) / 512);
}

static void op_resize(struct fuzz_in *in)
{
	struct img_open o = options(d.layers - 1, true);
	struct img_resize r = {.size = 512 * (1 + fuzz_u16(in) % (MAX_SIZE / 512))};
	struct img_err err = {0};
	uint64_t old = d.leaf->size;
	bool loss = r.size < old && !bytes_are_zero(d.leaf->view + r.size, old - r.size);

	for (unsigned i = 0; i < d.layers; i++)
		if (d.layer[i].mixed)
			return;
	if (d.raw && d.layers == 1)
		return;
	close_leaf();
	if (img_resize(fuzz_path(d.leaf->name), &o, &r, NULL, NULL, &err) < 0) {
		if (!loss || err.code != IMG_PREFLIGHT)
			fuzz_die(&err, "resize from %llu to %llu", (unsigned long long)old,
				 (unsigned long long)r.size);
	} else if (loss) {
		fuzz_die(NULL, "shrunk over data");
	} else {
		d.leaf->size = r.size;
		if (r.size > old)
			grown(old, r.size);
		else
			memset(d.leaf->view + r.size, 0, MAX_SIZE - r.size);
	}
	open_leaf();
}

/* The parent moves away, and is found again. */
static void op_reparent(struct fuzz_in *in)
{
	struct img_open o = options(d.layers - 1, false);
	struct img_reparent_plan plan;
	struct img_err err = {0};
	struct layer *below = d.leaf - 1;
	bool move = fuzz_u8(in) & 1;
	char name[32];

	for (unsigned i = 0; i < d.layers; i++)
		if (d.layer[i].mixed)
			return;
	if (d.layers == 1)
		return;
	close_leaf();
	if (move) {
		strcpy(name, below->name);
		(void)rename(fuzz_path(name), new_name("moved", below->name));
		if (img_open(&d.c, fuzz_path(d.leaf->name), &o, &err) == 0)
			fuzz_die(NULL, "opens without its parent");
		memset(&err, 0, sizeof(err));
	}
	if (d.layers > 2 &&
	    img_reparent(fuzz_path(d.leaf->name), fuzz_path(d.layer[0].name), &o, false, &err) == 0)
		fuzz_die(NULL, "takes any disk for its parent");
	memset(&err, 0, sizeof(err));
	if (img_reparent_plan(fuzz_path(d.leaf->name), fuzz_path(below->name), &o, false, &plan,
			      &err) < 0 ||
	    plan.other || (move && !plan.changes) ||
	    img_reparent(fuzz_path(d.leaf->name), fuzz_path(below->name), &o, false, &err) < 0)
		fuzz_die(&err, "reparent: %s", plan.why);
	open_leaf();
}

static const struct {
	const char *name;
	void (*run)(struct fuzz_in *in);
	bool changes;
} ops[] = {
	{"a write", op_write, true},
	{"a write", op_write, true},
	{"zeroing", op_zero, true},
	{"a trim", op_trim, true},
	{"a push", op_push, true},
	{"a merge", op_merge, true},
	{"reopening", op_reopen, false},
	{"a read", op_read, false},
	{"a map", op_map, false},
	{"a refused request", op_refused, true},
	{"a sum", op_sum, false},
	{"converting", op_convert, true},
	{"flattening", op_flatten, true},
	{"resizing", op_resize, true},
	{"a move of the parent", op_reparent, true},
};

static void no_error(void *ctx, const struct img_fault *f)
{
	const bool *mixed = ctx;

	/* A layer that a merge left behind is no disk any more, and its parent may have grown. */
	if (*mixed && strcmp(f->id, "parent-wrong-size") == 0)
		return;
	if (f->severity == IMG_ERROR && strncmp(f->id, "merge-", 6) != 0)
		fuzz_die(NULL, "%s at %lld of %s: found %s, expected %s", f->id,
			 (long long)f->offset, f->path, f->found, f->expected);
}

/* After all that the files are sound. */
static void check_all(void)
{
	bool any = false;
	struct img_check o = {.chain = true, .fault = no_error, .ctx = &any};
	struct img_check_result r;
	struct img_err err = {0};

	if (d.raw && d.layers == 1)
		return;
	for (unsigned i = 0; i < d.layers; i++)
		any |= d.layer[i].mixed;
	if (img_check(fuzz_path(d.leaf->name), &o, &r, &err) < 0)
		fuzz_die(&err, "check");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, size};

	fuzz_dir_clear();
	fuzz_room(16 << 20);
	make_base(&in);
	for (int n = 0; n < MAX_OPS && in.n; n++) {
		unsigned op = fuzz_u8(&in) % (sizeof(ops) / sizeof(ops[0]));

		if (getenv("FUZZ_VERBOSE"))
			fprintf(stderr, "%s; layer %u of %llu bytes\n", ops[op].name, d.layers,
				(unsigned long long)d.leaf->size);
		ops[op].run(&in);
		compare_all(ops[op].name, ops[op].changes && (n % 4 == 3 || in.n == 0));
	}
	close_leaf();
	check_all();
	return 0;
}
