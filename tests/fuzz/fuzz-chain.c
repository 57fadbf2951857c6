/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A chain and a list of operations on it, beside a plain buffer that knows what the guest must see. After every
 * operation the chain reads as the buffer, now and then for a second reader of the files as well: what
 * was acknowledged is in them.
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

struct disk {
	struct img_chain *c;
	uint64_t size;
	uint8_t view[MAX_SIZE];
	/* Sectors that a layer holds, whatever is below (the base is 0 and holds all). */
	bool owns[MAX_LAYERS][MAX_SIZE / 512];
	bool *own; /* the leaf's */
	bool raw; /* the base is */
	unsigned layers, names;
	char leaf[32], below[MAX_LAYERS][32];
};

static struct disk d;
static uint8_t buf[MAX_SIZE], buf2[MAX_SIZE];

static const uint32_t block_sizes[] = { 4096, 8192, 16384, 65536, 512 << 10, 2 << 20 };

static const char *new_name(const char *suffix, char out[32])
{
	snprintf(out, 32, "disk-%u.%s", d.names++, suffix);
	return fuzz_path(out);
}

static struct img_open options(void)
{
	return (struct img_open){ .writable = true, .raw = d.raw && d.layers == 1 };
}

static void open_leaf(void)
{
	struct img_open o = options();
	struct img_err err = { 0 };

	if (img_open(&d.c, fuzz_path(d.leaf), &o, &err) < 0)
		fuzz_die(&err, "the leaf does not open");
	if (img_size(d.c) != d.size || img_layers(d.c) != d.layers)
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
	d.own = d.owns[n - 1];
}

FUZZ_UNCOUNTED static void compare(struct img_chain *c, uint64_t off, uint64_t len, const char *after)
{
	struct img_err err = { 0 };

	if (img_read(c, buf2, off, len, &err) < 0)
		fuzz_die(&err, "cannot be read after %s", after);
	for (uint64_t n = 0; n < len; n += 512)
		if (memcmp(buf2 + n, d.view + off + n, u64_min(512, len - n)) != 0)
			fuzz_die(NULL, "sector %llu differs after %s", (unsigned long long)(off + n) / 512,
				 after);
}

static void compare_all(const char *after, bool second_reader)
{
	struct img_open o = options();
	struct img_err err = { 0 };
	struct img_chain *second;

	compare(d.c, 0, d.size, after);
	if (!second_reader)
		return;
	o.writable = false;
	o.unlocked = true;
	if (img_open(&second, fuzz_path(d.leaf), &o, &err) < 0)
		fuzz_die(&err, "a second reader cannot open it after %s", after);
	compare(second, 0, d.size, after);
	img_close(second);
}

static void make_base(struct fuzz_in *in)
{
	static const enum img_type types[] = { IMG_DYNAMIC, IMG_DYNAMIC, IMG_FIXED, IMG_RAW };
	struct img_create o = { 0 };
	struct img_err err = { 0 };

	o.type = types[fuzz_u8(in) % 4];
	o.block_size = block_sizes[fuzz_u8(in) % 6];
	d.size = o.size = 512 * (1 + fuzz_u16(in) % (MAX_SIZE / 512));
	d.raw = o.type == IMG_RAW;
	set_layers(1);
	d.names = 0;
	memset(d.view, 0, sizeof(d.view));
	memset(d.own, true, sizeof(d.owns[0]));
	if (img_create(new_name("base", d.leaf), &o, &err) < 0)
		fuzz_die(&err, "no base");
	open_leaf();
}

/* Part of the disk: anywhere, or on a block's border, or all of it. */
static void take_range(struct fuzz_in *in, uint64_t *off, uint64_t *len)
{
	uint64_t nsec = d.size / 512, sec = fuzz_u16(in) % nsec;
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
	struct img_err err = { 0 };
	uint64_t off, len;
	unsigned seed = fuzz_u8(in);

	take_range(in, &off, &len);
	if (seed % 16 == 0)
		memset(buf, 0, len); /* zeros that are written are data */
	else
		fuzz_pattern(buf, len, seed);
	if (img_write(d.c, buf, off, len, seed & 1, &err) < 0)
		fuzz_die(&err, "write");
	memcpy(d.view + off, buf, len);
	memset(d.own + off / 512, true, len / 512);
}

static void op_zero(struct fuzz_in *in)
{
	struct img_err err = { 0 };
	uint64_t off, len;
	bool fua = fuzz_u8(in) & 1;

	take_range(in, &off, &len);
	if (img_zero(d.c, off, len, fua, &err) < 0)
		fuzz_die(&err, "zero");
	memset(d.view + off, 0, len);
	memset(d.own + off / 512, true, len / 512);
}

static void op_trim(struct fuzz_in *in)
{
	struct img_err err = { 0 };
	uint64_t off, len;

	take_range(in, &off, &len);
	if (img_trim(d.c, off, len, &err) < 0)
		fuzz_die(&err, "trim");
	for (uint64_t s = off / 512; s < (off + len) / 512; s++)
		if (d.own[s])
			memset(d.view + s * 512, 0, 512);
}

/* Requests that no guest may make change nothing. */
static void op_refused(struct fuzz_in *in)
{
	struct img_err err = { 0 };
	struct img_run run;
	uint64_t off = fuzz_u32(in), len = 512;

	if (fuzz_u8(in) & 1)
		off += d.size;
	else if (d.raw && d.layers == 1)
		return;
	else
		off = off % d.size | 1;
	if (img_write(d.c, buf, off, len, false, &err) == 0 || img_zero(d.c, off, len, false, &err) == 0 ||
	    img_trim(d.c, off, len, &err) == 0)
		fuzz_die(NULL, "a write of %llu bytes at %llu went through", (unsigned long long)len,
			 (unsigned long long)off);
	if (off >= d.size && (img_read(d.c, buf, off, len, &err) == 0 ||
			      img_map(d.c, off, len, img_layers(d.c), &run, &err) == 0))
		fuzz_die(NULL, "a read beyond the end went through");
}

static void pushed(const char *child)
{
	strcpy(d.below[d.layers - 1], d.leaf);
	strcpy(d.leaf, child);
	set_layers(d.layers + 1);
	memset(d.own, false, sizeof(d.owns[0]));
}

/* A checkpoint while the disk is open, and one while it is not. */
static void op_push(struct fuzz_in *in)
{
	struct img_create o = { .type = IMG_DIFFERENCING, .size = d.size };
	const struct img_info *info = img_layer_info(d.c, 0);
	struct img_open oo = options();
	static const uint8_t none[16];
	struct img_err err = { 0 };
	unsigned how = fuzz_u8(in);
	struct img *layer;
	char child[32];

	if (d.layers == MAX_LAYERS)
		return;
	new_name("avhd", child);
	if (how % 4 == 0) {
		close_leaf();
		oo.writable = false;
		if (img_snapshot(fuzz_path(d.leaf), fuzz_path(child), &oo, false, &err) < 0)
			fuzz_die(&err, "snapshot");
		pushed(child);
		open_leaf();
		return;
	}
	o.block_size = block_sizes[how / 4 % 6];
	o.parent_path = fuzz_path(d.leaf);
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

/* Merges what is open; true when it was interrupted. */
static bool try_merge(unsigned stop)
{
	struct img_merge_stats plan, stats;
	struct img_open o = options();
	struct img_merge opts = { .progress = stop_at, .ctx = &stop };
	struct img_err err = { 0 };
	bool stopped;

	o.merge = true;
	if (img_open(&d.c, fuzz_path(d.leaf), &o, &err) < 0 || img_merge_plan(d.c, &opts, &plan, &err) < 0)
		fuzz_die(&err, "merge: plan");
	stopped = img_merge(d.c, &opts, &stats, &err) < 0;
	if (stopped && err.code != IMG_AGAIN)
		fuzz_die(&err, "merge");
	if (!stopped && (stats.bytes != plan.bytes || stats.new_blocks != plan.new_blocks))
		fuzz_die(NULL, "merged %llu bytes, planned %llu", (unsigned long long)stats.bytes,
			 (unsigned long long)plan.bytes);
	compare(d.c, 0, d.size, stopped ? "half a merge" : "a merge, through the child");
	close_leaf();
	return stopped;
}

static void alone(const char *name)
{
	struct img_open o = { .raw = d.raw && d.layers == 2 };
	struct img_err err = { 0 };
	struct img_chain *c;

	if (img_open(&c, fuzz_path(name), &o, &err) == 0)
		fuzz_die(NULL, "a half merged parent opens alone");
	if (err.code != IMG_AGAIN)
		fuzz_die(&err, "a half merged parent is refused for a wrong reason");
}

static void op_merge(struct fuzz_in *in)
{
	unsigned how = fuzz_u8(in);
	const char *parent;

	if (d.layers == 1)
		return;
	parent = d.below[d.layers - 2];
	close_leaf();
	if (how & 1 && try_merge(how / 4)) {
		alone(parent);
		if (how & 2) {
			/* Goes on as a disk, half merged below. */
			open_leaf();
			return;
		}
	}
	if (try_merge(~0u))
		fuzz_die(NULL, "a merge stopped by itself");
	if (how & 2) { /* the child stays a while */
		open_leaf();
		return;
	}
	(void)unlink(fuzz_path(d.leaf));
	strcpy(d.leaf, parent);
	set_layers(d.layers - 1);
	for (unsigned i = 0; i < MAX_SIZE / 512; i++)
		d.own[i] |= d.owns[d.layers][i];
	open_leaf();
}

static void op_reopen(struct fuzz_in *in)
{
	struct img_err err = { 0 };

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
	struct img_err err = { 0 };
	struct img_run run;

	for (uint64_t off = 0; off < d.size; off += run.len) {
		if (img_map(d.c, off, d.size - off, base, &run, &err) < 0)
			fuzz_die(&err, "map");
		if (run.off != off || run.len == 0 || run.len > d.size - off)
			fuzz_die(NULL, "a run of %llu bytes at %llu", (unsigned long long)run.len,
				 (unsigned long long)off);
		if (run.kind == IMG_BELOW_RUN ? base == d.layers :
		    run.kind == IMG_DATA_RUN  ? run.layer >= base :
						!bytes_are_zero(d.view + off, run.len))
			fuzz_die(NULL, "a run of kind %d at %llu is wrong", run.kind,
				 (unsigned long long)off);
		if (run.kind == IMG_DATA_RUN && img_read_run(d.c, &run, buf, &err) < 0)
			fuzz_die(&err, "a run that cannot be read");
		if (run.kind == IMG_DATA_RUN && memcmp(buf, d.view + off, run.len) != 0)
			fuzz_die(NULL, "the run at %llu holds something else", (unsigned long long)off);
	}
}

static void op_sum(struct fuzz_in *in)
{
	char got[IMG_SUM_STR], want[IMG_SUM_STR];
	struct img_sum *s = img_sum_new(d.size);
	struct img_err err = { 0 };
	uint64_t split = fuzz_u32(in) % (d.size + 1);

	if (!s || img_sum_chain(d.c, NULL, NULL, got, &err) < 0)
		fuzz_die(&err, "sum");
	img_sum_data(s, d.view, split);
	img_sum_data(s, d.view + split, d.size - split);
	img_sum_final(s, want);
	img_sum_free(s);
	if (strcmp(got, want) != 0)
		fuzz_die(NULL, "sum %s, wanted %s", got, want);
}

/* The whole disk goes into a new file of another type, run by run. */
static void op_convert(struct fuzz_in *in)
{
	static const enum img_type types[] = { IMG_DYNAMIC, IMG_FIXED, IMG_RAW };
	struct img_create o = { .size = d.size };
	struct img_err err = { 0 };
	struct img_new *n;
	struct img_run run;
	char name[32];

	o.type = types[fuzz_u8(in) % 3];
	o.block_size = block_sizes[fuzz_u8(in) % 6];
	if (img_create_begin(&n, new_name("base", name), &o, &err) < 0)
		fuzz_die(&err, "convert");
	for (uint64_t off = 0; off < d.size; off += run.len) {
		if (img_map(d.c, off, d.size - off, d.layers, &run, &err) < 0)
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
	strcpy(d.leaf, name);
	set_layers(1);
	d.raw = o.type == IMG_RAW;
	memset(d.own, true, sizeof(d.owns[0]));
	open_leaf();
}

static const struct {
	const char *name;
	void (*run)(struct fuzz_in *in);
	bool changes;
} ops[] = {
	{ "a write", op_write, true },
	{ "a write", op_write, true },
	{ "zeroing", op_zero, true },
	{ "a trim", op_trim, true },
	{ "a push", op_push, true },
	{ "a merge", op_merge, true },
	{ "reopening", op_reopen, false },
	{ "a read", op_read, false },
	{ "a map", op_map, false },
	{ "a refused request", op_refused, true },
	{ "a sum", op_sum, false },
	{ "converting", op_convert, true },
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };

	fuzz_dir_clear();
	make_base(&in);
	for (int n = 0; n < MAX_OPS && in.n; n++) {
		unsigned op = fuzz_u8(&in) % (sizeof(ops) / sizeof(ops[0]));

		ops[op].run(&in);
		compare_all(ops[op].name, ops[op].changes && (n % 4 == 3 || in.n == 0));
	}
	close_leaf();
	return 0;
}
